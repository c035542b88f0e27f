"""Reference weights that torch and torch-free tests can both build, from names and shapes alone.

Default initialisations hide port errors (norm gains are exactly one, biases nearly zero), so every tensor is
drawn at random. A golden is recorded once from the reference implementation with these weights, and the
torch-free tests rebuild the very same weights from the recorded names and shapes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

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
