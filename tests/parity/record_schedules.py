"""Record what the diffusers schedulers make of `schedules.CASES`: python -m tests.parity.record_schedules"""

import json
from pathlib import Path

import numpy as np

from tests.parity.schedules import CASES, CONFIGS

GOLDEN = Path(__file__).parents[1] / "goldens" / "schedules.npz"


def reference(config: dict, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """sigmas [steps + 1] and timesteps [steps] of the diffusers scheduler."""
    import diffusers

    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.numpy(), scheduler.timesteps.numpy()


def main() -> None:
    arrays = {"configs": np.array(json.dumps(CONFIGS))}
    for number, steps in CASES:
        sigmas, timesteps = reference(CONFIGS[number], steps)
        arrays[f"sigmas_{number}_{steps}"] = sigmas
        arrays[f"timesteps_{number}_{steps}"] = timesteps
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
