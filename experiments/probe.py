"""Probe a store of an earlier inversion again, without running the model.

    python -m experiments.probe --store=runs/demo/store/trained --workdir=runs/probe

Labels come with the stores of `experiments.study`; for those of `experiments.invert` give a csv with the columns clip,
possible, group and category.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is probed and how."""

    store: Path = setting(help="Store folder, such as WORKDIR/store.")
    labels: Path | None = setting(None, "FILE.csv with the columns clip, possible (0 or 1), group, category.")
    outer: int = setting(5, "Outer folds.")
    inner: int = setting(4, "Inner folds.")
    repeats: int = setting(1, "Times that the outer folds are redrawn.")
    seed: int = setting(0, "Seed of folds, permutations and bootstraps.")
    published_seeds: int = setting(3, "Splits of the published protocol, run beside the corrected one; 0: none.")


def run(config: Config, workdir: Path) -> None:
    """Read, probe, report."""
    from jaxdiff.study.probing import ProbeConfig, run_probe

    run_probe(ProbeConfig(**dataclasses.asdict(config)), workdir)


if __name__ == "__main__":
    run_binary(run, Config)
