"""Record what diffusers' Cosmos computes, for the tests that run without torch.

    python -m tests.parity.record_cosmos

writes tests/goldens/cosmos.json (configurations, tensor names and shapes) and cosmos.npz: of every transformer case the
output and the mean over batch and tokens of what leaves each site of each block; grids of both schedulers; the ends of
guided samples.
"""

import json
from pathlib import Path

import numpy as np

from tests.parity import cosmos_reference as reference
from tests.parity.record_ltx import describe
from tests.reference import COSMOS_EDM, COSMOS_UNIPC

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
STEPS = (2, 5, 35)


def record() -> None:
    """Write both files."""
    described: dict = {"transformers": {}, "steps": STEPS}
    arrays = {}
    for name, (_, grid, pipeline) in reference.CASES.items():
        model = reference.transformer(name)
        output, sites = reference.run_case(name, model)
        arrays[f"{name}/output"] = output
        for site, values in sites.items():
            arrays[f"{name}/{site}"] = values.mean((1, 2))
        described["transformers"][name] = {**describe(model), "grid": grid, "pipeline": pipeline}
    described["vae"] = describe(reference.pipeline("text2image").vae)
    for kind, config in (("edm", COSMOS_EDM), ("unipc", COSMOS_UNIPC)):
        for steps in STEPS:
            arrays[f"{kind}_{steps}"] = reference.sigmas(config, steps)
    for name in reference.SAMPLES:
        arrays[f"{name}/sample"] = reference.sample_case(name)[0][-1]
    (GOLDENS / "cosmos.json").write_text(json.dumps(described, sort_keys=True, separators=(",", ":")) + "\n")
    np.savez_compressed(GOLDENS / "cosmos.npz", **arrays)
    for file in ("cosmos.json", "cosmos.npz"):
        print(f"{GOLDENS / file}: {(GOLDENS / file).stat().st_size} bytes")


if __name__ == "__main__":
    record()
