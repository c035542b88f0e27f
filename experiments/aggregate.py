"""Several finished studies as one answer, with intervals over scenes and seeds.

    python -m experiments.aggregate --studies=runs/study/seed1-world100,runs/study/seed2-world100 --workdir=runs/study/all

The studies may differ in their models, encoders and worlds, in nothing else. Every pair is listed, none is left out. Writes
result.json, aggregate.csv, report.html, and summary.md with the tables, commands, seeds and machines.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is put together."""

    studies: tuple[Path, ...] = setting(help="Workdirs of finished studies, comma-separated.")
    seed: int = setting(0, "Seed of the bootstrap.")


def run(config: Config, workdir: Path) -> None:
    """Read, pool, report."""
    from jaxdiff.study.aggregate import run_aggregate

    run_aggregate(config.studies, config.seed, workdir)


if __name__ == "__main__":
    run_binary(run, Config)
