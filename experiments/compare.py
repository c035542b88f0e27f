"""Studies of several models on the same clips, side by side, with paired intervals of their differences.

    python -m experiments.compare runs/wan runs/cogvideox runs/ltx --workdir=runs/compared

The studies must be finished and about the same clips; models, taps, solvers and controls may differ.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    runs: tuple[Path, ...] = setting((), "Workdirs of finished studies, comma-separated; or name them without a flag.")
    source: str = setting("states", "What is compared: a source that all of the studies probed.")
    seed: int = setting(0, "Seed of bootstraps and permutations.")


def run(config: Config, workdir: Path) -> None:
    """Read, compare, report."""
    from jaxdiff.study.compare import run_compare

    run_compare(config.runs, config.source, config.seed, workdir)


if __name__ == "__main__":
    run_binary(run, Config, positional="runs")
