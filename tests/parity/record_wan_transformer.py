"""Record what diffusers' Wan transformer computes, for the tests that run without torch.

    python -m tests.parity.record_wan_transformer

writes tests/goldens/wan_transformer.json (configurations, tensor names and shapes) and wan_transformer.npz
(for each case the output, and the mean over batch and tokens of what leaves each site of each block).
"""

import json
from pathlib import Path

import numpy as np

from tests.parity.torch_models import TINY_WAN, run_wan, wan_transformer
from tests.reference import wan_inputs

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
CASES = {
    "tiny": ({}, (3, 8, 8)),
    "time_patches": ({"patch_size": (2, 1, 2), "in_channels": 3, "out_channels": 5}, (4, 3, 6)),
    "heads": ({"num_attention_heads": 3, "attention_head_dim": 16, "cross_attn_norm": False}, (5, 4, 10)),
}


def record() -> None:
    """Write both files."""
    described, arrays = {}, {}
    for seed, (name, (changes, grid)) in enumerate(CASES.items()):
        model = wan_transformer(seed, **changes)
        output, sites = run_wan(model, *wan_inputs({**TINY_WAN, **changes}, grid))
        arrays[f"{name}/output"] = output
        for site, values in sites.items():
            arrays[f"{name}/{site}"] = values.mean((1, 2))
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        described[name] = {
            "config": {"_class_name": "WanTransformer3DModel", **config},
            "seed": seed,
            "grid": grid,
            "shapes": {key: tuple(value.shape) for key, value in model.state_dict().items()},
        }
    (GOLDENS / "wan_transformer.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(GOLDENS / "wan_transformer.npz", **arrays)


if __name__ == "__main__":
    record()
