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
