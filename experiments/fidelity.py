"""Which solver follows the flow best for the same number of network evaluations?

    python -m experiments.fidelity --model=nano --workdir=runs/fidelity
    python -m experiments.fidelity --model=DIR --videos=DIR --size=256 --frames=81 --workdir=DIR

inverts a few clips with every solver and every budget of evaluations, and compares where they end and what the blocks hold
on the way with a fine reference run. Writes result.json, fidelity.csv and report.html. Interrupted, the same command goes
on where it stopped.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary

NANO = {"frames": 17, "size": 32, "evaluations": (16, 32, 64, 96), "clips_per_device": 24}
REAL = {"frames": 81, "size": 256, "evaluations": (20, 50, 100), "clips_per_device": 1}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    model: str = setting("nano", "Checkpoint folder, or nano for the model that ships with the package.")
    config: str | None = setting(None, "Defaults: nano or real. Default: nano for --model=nano, else real.")
    videos: Path | None = setting(None, "Folder of videos; default: generated scenes, in WORKDIR/world.")
    clips: int = setting(24, "Clips, at most.")
    frames: int | None = setting(None, "Frames per clip; default 17 for nano, 81 else.")
    size: int | None = setting(None, "Short side and centre crop in pixels; default 32 for nano, 256 else.")
    solvers: tuple[str, ...] | None = setting(None, "Solvers to compare; default: every one that inverts.")
    evaluations: tuple[int, ...] | None = setting(
        None, "Budgets of network evaluations, all counted; default 16, 32, 64, 96 for nano, 20, 50, 100 else."
    )
    reference: int = setting(4, "Steps of the reference (midpoint), in multiples of the largest budget.")
    levels: tuple[float, ...] = setting((0.2, 0.4, 0.6, 0.8), "Noise levels at which the blocks are compared.")
    prompt: str = setting("", "Prompt; needs the folder's text encoder.")
    text_embeddings: str | None = setting(None, "FILE.npy with embeddings [N, text_dim], or zeros; replaces --prompt.")
    clips_per_device: int | None = setting(None, "Clips at once on a device; default 24 for nano, 1 else.")
    dtype: str | None = setting(None, "float32 or bfloat16; default: bfloat16 on accelerators, float32 on a CPU.")
    mesh: str = setting(
        "auto", "Devices as data=4,fsdp=8,seq=2, or auto: all along data. Weights are split over fsdp, tokens over seq."
    )
    world_seed: int = setting(0, "Seed of the generated scenes.")


def run(config: Config, workdir: Path) -> None:
    """Fill in the model's defaults, compare, report."""
    from jaxdiff.mesh import working_on
    from jaxdiff.study.solvers import SolverStudy, run_solvers

    values = dataclasses.asdict(config)
    nano = config.config == "nano" or (config.config is None and config.model == "nano")
    values["config"] = config.config or ("nano" if nano else "real")
    for name, default in (NANO if nano else REAL).items():
        if values[name] is None:
            values[name] = default
    with working_on(values.pop("mesh")):
        run_solvers(SolverStudy(**values), workdir)


if __name__ == "__main__":
    run_binary(run, Config)
