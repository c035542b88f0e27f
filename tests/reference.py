"""Reference weights that torch and torch-free tests can both build, from names and shapes alone.

Default initialisations hide port errors (norm gains are exactly one, biases nearly zero), so every tensor is
drawn at random. A golden is recorded once from the reference implementation with these weights, and the
torch-free tests rebuild the very same weights from the recorded names and shapes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

WAN_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "num_train_timesteps": 1000,
    "solver_order": 2,
}

# As the folder of CogVideoX-2B publishes it; 5B and 1.5 have snr_shift_scale 1.
COGVIDEOX_SCHEDULER = {
    "_class_name": "CogVideoXDDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
}
LTX_PLAIN = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
LTX_SHIFTED = LTX_PLAIN | {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
    "time_shift_type": "exponential",
}

# As Cosmos-Predict2's pipelines set their scheduler up and its folders keep it, and as the folders of 2.5 do.
COSMOS_EDM = LTX_PLAIN | {
    "use_karras_sigmas": True,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    "sigma_data": 1.0,
    "final_sigmas_type": "sigma_min",
}
COSMOS_UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "use_karras_sigmas": True,
    "sigma_max": 200.0,
    "sigma_min": 0.01,
    "num_train_timesteps": 1000,
    "solver_order": 2,
}


def is_gain(name: str) -> bool:
    """Whether a torch tensor name is the gain of a norm (`...norm_q.weight`, `...norm1.gamma`)."""
    module, _, leaf = name.rpartition(".")
    return leaf == "gamma" or (leaf == "weight" and "norm" in module.rpartition(".")[2])


def random_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """A random torch state dict in float32, drawn in sorted name order from one generator.

    Norm gains are 1 + 0.1 n, other tensors of at most one dimension 0.1 n, all others n / sqrt(fan in), with
    n standard normal.
    """
    rng = np.random.default_rng(seed)
    state = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        noise = rng.standard_normal(shape)
        if is_gain(name):
            value = 1.0 + 0.1 * noise
        elif len(shape) <= 1:
            value = 0.1 * noise
        else:
            value = noise / np.sqrt(np.prod(shape[1:]))
        state[name] = np.asarray(value, dtype=np.float32)
    return state


def wan_inputs(config: Mapping, grid: tuple[int, int, int], tokens: int = 12, batch: int = 2, seed: int = 7):
    """Latents [B, T', H', W', C], timesteps [B] and text [B, N, text_dim], all float32."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((batch, *grid, config["in_channels"])).astype(np.float32)
    text = rng.standard_normal((batch, tokens, config["text_dim"])).astype(np.float32)
    return latents, np.linspace(999.0, 250.0, batch, dtype=np.float32), text


def ltx_inputs(config: Mapping, grid: tuple[int, int, int], tokens: int = 6, batch: int = 2, seed: int = 7):
    """Latents [B, T', H', W', C], timesteps [B], text [B, N, caption_channels], all float32, and text_mask [B, N]."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((batch, *grid, config["in_channels"])).astype(np.float32)
    text = rng.standard_normal((batch, tokens, config["caption_channels"])).astype(np.float32)
    mask = np.arange(tokens) < np.linspace(2, tokens, batch).astype(int)[:, None]
    return latents, np.linspace(999.0, 250.0, batch, dtype=np.float32), text, mask


class Ltx2Inputs(NamedTuple):
    """Latents [B, T', H', W', C], timesteps [B], text and audio_text [B, N, caption_channels], mask [B, N] and audio
    [B, L, audio_in_channels]; float32 but the mask."""

    latents: np.ndarray
    timestep: np.ndarray
    text: np.ndarray
    audio_text: np.ndarray
    mask: np.ndarray
    audio: np.ndarray


def ltx2_inputs(config: Mapping, grid: tuple[int, int, int], patches: int = 5, batch: int = 2, seed: int = 7):
    """Random inputs of a configuration."""
    latents, timestep, text, mask = ltx_inputs(config, grid, batch=batch, seed=seed)
    rng = np.random.default_rng(seed + 100)
    audio_text = rng.standard_normal(text.shape).astype(np.float32)
    audio = rng.standard_normal((batch, patches, config["audio_in_channels"])).astype(np.float32)
    return Ltx2Inputs(latents, timestep, text, audio_text, mask, audio)


def ltx2_states(config: Mapping, tokens: int = 8, batch: int = 2, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """What connectors take: states [B, N, caption_channels, text_proj_in_factor] and a left-padded mask [B, N]."""
    rng = np.random.default_rng(seed)
    shape = (batch, tokens, config["caption_channels"], config["text_proj_in_factor"])
    real = np.linspace(3, tokens, batch).astype(int)[:, None]
    return rng.standard_normal(shape).astype(np.float32), np.arange(tokens) >= tokens - real


class CosmosInputs(NamedTuple):
    """Latents [B, T', H', W', out_channels], timesteps [B], text [B, N, text_dim], frames that are given
    [B, 2, H', W', out_channels] and video frames [B, 5, 8 H', 8 W', 3] in [-1, 1], all float32."""

    latents: np.ndarray
    timestep: np.ndarray
    text: np.ndarray
    given: np.ndarray
    video: np.ndarray


def cosmos_inputs(config: Mapping, grid: tuple[int, int, int], batch: int = 2, seed: int = 7) -> CosmosInputs:
    """Random inputs of a configuration."""
    rng = np.random.default_rng(seed)
    projected = config.get("use_crossattn_projection")
    text_dim = config["crossattn_proj_in_channels" if projected else "text_embed_dim"]

    def normal(*shape):
        return rng.standard_normal((batch, *shape)).astype(np.float32)

    video = rng.uniform(-1, 1, (batch, 5, 8 * grid[1], 8 * grid[2], 3)).astype(np.float32)
    return CosmosInputs(
        normal(*grid, config["out_channels"]),
        np.linspace(80 / 81, 0.25, batch, dtype=np.float32),
        normal(6, text_dim),
        normal(2, *grid[1:], config["out_channels"]),
        video,
    )


class CogVideoXInputs(NamedTuple):
    """Latents [B, T', H', W', in_channels], timesteps [B], text [B, N, text_embed_dim] and ofs [B], all float32."""

    latents: np.ndarray
    timestep: np.ndarray
    text: np.ndarray
    ofs: np.ndarray


def cogvideox_inputs(config: Mapping, grid: tuple[int, int, int], batch: int = 2, seed: int = 7) -> CogVideoXInputs:
    """Random inputs of a configuration; the image's channels, if it has any, are the last of the latents."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((batch, *grid, config["in_channels"])).astype(np.float32)
    text = rng.standard_normal((batch, config["max_text_seq_length"], config["text_embed_dim"])).astype(np.float32)
    ofs = np.linspace(2.0, 5.0, batch, dtype=np.float32)
    return CogVideoXInputs(latents, np.linspace(999.0, 250.0, batch, dtype=np.float32), text, ofs)


def relative_error(ours, reference) -> float:
    """Largest difference over the largest reference value."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def write_component(folder: Path, config: Mapping, state: Mapping[str, np.ndarray]) -> None:
    """Write config.json and diffusion_pytorch_model.safetensors, by the safetensors library: our own writer
    and our own reader would agree on a mistake."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    save_file(dict(state), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def write_folder(
    folder: Path,
    *,
    pipeline: str = "WanPipeline",
    scheduler: Mapping = WAN_SCHEDULER,
    **components: tuple[Mapping, Mapping[str, np.ndarray]],
) -> Path:
    """Write a checkpoint folder in the diffusers layout. A component is its config (with `_class_name`) and
    its torch state dict. Components that are not given are entered as absent."""
    index: dict = {"_class_name": pipeline, "scheduler": ["diffusers", scheduler["_class_name"]]}
    for name in ("transformer", "vae", "text_encoder", "tokenizer"):
        config, _ = components.get(name, ({"_class_name": None}, None))
        index[name] = ["diffusers" if config["_class_name"] else None, config["_class_name"]]
    for name, (config, state) in components.items():
        write_component(folder / name, config, state)
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(scheduler)))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
