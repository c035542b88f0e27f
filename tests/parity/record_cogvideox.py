"""Record what diffusers' CogVideoX transformers compute, for the tests that run without torch.

    python -m tests.parity.record_cogvideox

writes tests/goldens/cogvideox.json (configurations, tensor names and shapes) and cogvideox.npz (for each case the
output, and the mean over batch and video tokens of what leaves each site of each block).
"""

import json
from pathlib import Path

import numpy as np

from tests.parity import cogvideox_reference as reference
from tests.reference import cogvideox_inputs

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"


def record() -> None:
    """Write both files."""
    described, arrays = {}, {}
    for seed, (name, (changes, grid)) in enumerate(reference.CASES.items()):
        model = reference.transformer(changes, seed)
        output, sites = reference.run(model, cogvideox_inputs({**reference.TINY, **changes}, grid))
        arrays[f"{name}/output"] = output
        for site, values in sites.items():
            arrays[f"{name}/{site}"] = values.mean((1, 2))
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        described[name] = {
            "config": {"_class_name": "CogVideoXTransformer3DModel", **config},
            "seed": seed,
            "grid": grid,
            "shapes": {key: tuple(value.shape) for key, value in model.state_dict().items()},
        }
    (GOLDENS / "cogvideox.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(GOLDENS / "cogvideox.npz", **arrays)


if __name__ == "__main__":
    record()
