"""Record what diffusers' Wan VAE computes, for the tests that run without torch.

    python -m tests.parity.record_wan_vae

writes tests/goldens/wan_vae.json (configurations, tensor names and shapes) and wan_vae.npz (moments, and every third
column of the video decoded from their mean, not clamped).
"""

import json
from pathlib import Path

import numpy as np

from tests.parity import wan_vae_reference as reference

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"


def record() -> None:
    """Write both files."""
    described, arrays = {}, {}
    for name in reference.RECORDED:
        changes, frames = reference.CASES[name]
        vae = reference.model(changes, seed=frames)
        clip = reference.video(vae, frames)
        said = reference.run(vae, clip)
        arrays[f"{name}/moments"], arrays[f"{name}/video"] = said.moments, said.decoded[:, :, :, ::3]
        config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
        described[name] = {
            "config": {"_class_name": "AutoencoderKLWan", **config},
            "seed": frames,
            "video": clip.shape,
            "shapes": {key: tuple(value.shape) for key, value in vae.state_dict().items()},
        }
    (GOLDENS / "wan_vae.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(GOLDENS / "wan_vae.npz", **arrays)


if __name__ == "__main__":
    record()
