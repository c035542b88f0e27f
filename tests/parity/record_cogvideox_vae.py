"""Record what diffusers' CogVideoX VAE computes, for the tests that run without torch.

    python -m tests.parity.record_cogvideox_vae

writes tests/goldens/cogvideox_vae.json (configurations, tensor names and shapes) and cogvideox_vae.npz (moments, and
the video decoded from their mean, not clamped).
"""

import json
from pathlib import Path

import numpy as np

from tests.parity import cogvideox_vae_reference as reference

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"


def record() -> None:
    """Write both files."""
    described, arrays = {}, {}
    for name in ("one_frame", "13", "17"):  # one chunk of one frame, one of many, and two
        changes, frames = reference.CASES[name]
        vae = reference.model(changes, seed=frames)
        clip = reference.video(frames)
        said = reference.run(vae, clip)
        arrays[f"{name}/moments"], arrays[f"{name}/video"] = said.moments, said.decoded
        config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
        described[name] = {
            "config": {"_class_name": "AutoencoderKLCogVideoX", **config},
            "seed": frames,
            "video": clip.shape,
            "shapes": {key: tuple(value.shape) for key, value in vae.state_dict().items()},
        }
    (GOLDENS / "cogvideox_vae.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(GOLDENS / "cogvideox_vae.npz", **arrays)


if __name__ == "__main__":
    record()
