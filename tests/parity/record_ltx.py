"""Record what diffusers' LTX-Video computes, for the tests that run without torch.

    python -m tests.parity.record_ltx

writes tests/goldens/ltx.json (configurations, tensor names and shapes) and ltx.npz: of every transformer case the
output and the mean over batch and tokens of what leaves each site of each block; of every VAE the moments and every
third pixel of the video decoded from their mean; grids of both schedules; the end of a guided sample.
"""

import json
import warnings
from pathlib import Path

import numpy as np

from tests.parity import ltx_reference, ltx_vae_reference
from tests.reference import LTX_PLAIN, LTX_SHIFTED, ltx_inputs

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
# Configuration, what the pipeline hands the scheduler, steps, tokens.
GRIDS = [
    *((LTX_SHIFTED, "even", steps, tokens) for steps in (2, 40) for tokens in (60, 7392)),
    (LTX_PLAIN, "even", 30, None),
    *((LTX_PLAIN, "linear_quadratic", steps, None) for steps in (1, 7, 30)),
]
SAMPLE = {"grid": (2, 1, 2), "steps": 5, "guidance": 3.0, "fps": 24.0}


def record() -> None:
    """Write both files."""
    described: dict = {"transformers": {}, "vaes": {}, "grids": GRIDS, "sample": SAMPLE}
    arrays = {}
    for name, (_, grid) in ltx_reference.CASES.items():
        model, _, (output, sites) = ltx_reference.run_case(name)
        arrays[f"{name}/output"] = output
        for site, values in sites.items():
            arrays[f"{name}/{site}"] = values.mean((1, 2))
        described["transformers"][name] = {**describe(model), "seed": len(name), "grid": grid}
    for name in ltx_vae_reference.CASES:
        vae = ltx_vae_reference.model(name)
        clip = ltx_vae_reference.video(batch=1)
        said = ltx_vae_reference.run(vae, clip)
        arrays[f"{name}/moments"], arrays[f"{name}/video"] = said.moments, said.decoded[:, :, ::3, ::3]
        described["vaes"][name] = {**describe(vae), "seed": len(name), "video": clip.shape}
    described["timestep"] = ltx_vae_reference.TIMESTEPS[0]
    for number, (config, spacing, steps, tokens) in enumerate(GRIDS):
        sigmas, _ = ltx_reference.grid_and_timesteps(config, spacing, steps, tokens or 1)
        arrays[f"sigmas_{number}"] = sigmas
    (noise, _, text, mask), (_, _, negative, negative_mask) = (
        ltx_inputs(ltx_reference.TINY, SAMPLE["grid"], seed=seed) for seed in (7, 8)
    )
    arrays["sample"], _ = ltx_reference.sample(
        ltx_reference.pipeline("LTXPipeline"), noise, text, mask, negative, negative_mask,
        steps=SAMPLE["steps"], guidance=SAMPLE["guidance"], fps=SAMPLE["fps"],
    )  # fmt: skip
    (GOLDENS / "ltx.json").write_text(json.dumps(described, sort_keys=True, separators=(",", ":")) + "\n")
    np.savez_compressed(GOLDENS / "ltx.npz", **arrays)
    for file in ("ltx.json", "ltx.npz"):
        print(f"{GOLDENS / file}: {(GOLDENS / file).stat().st_size} bytes")


def describe(model) -> dict:
    """A model's configuration with its class, and its tensors' names and shapes."""
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    return {
        "config": {"_class_name": type(model).__name__, **config},
        "shapes": {key: tuple(value.shape) for key, value in model.state_dict().items()},
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    record()
