"""Probe a store of an earlier inversion again, without running the model.

    python -m experiments.probe --store=runs/demo --workdir=runs/probe
    python -m experiments.probe --store=runs/demo/store/trained --workdir=runs/probe

The workdir of a study gives all that it stored: the model, its control models and variants, the noised latents and the
encoders, with the numbers that the study has of them. What is cheap to read again and was not stored (pixels, latents) is
left out. Labels come with the stores of `experiments.study`; for those of `experiments.invert` give a csv with the columns clip,
possible, group and category.
Numbers in place of labels (PhyWorld) are in the stores too, and are regressed on again.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is probed and how."""

    store: Path = setting(
        help="Workdir of a study, or one store: WORKDIR/store/trained, or what experiments.invert wrote."
    )
    labels: Path | None = setting(None, "FILE.csv with the columns clip, possible (0 or 1), group, category.")
    outer: int = setting(5, "Outer folds.")
    inner: int = setting(4, "Inner folds.")
    repeats: int = setting(1, "Times that the outer folds are redrawn.")
    seed: int = setting(0, "Seed of folds, permutations and bootstraps.")
    protocol: str = setting(
        "both",
        "both; published: the paper's probes and its choice on the reported fold; or corrected: nested grouped folds.",
    )
    capacity: bool = setting(True, "Also measure what the states' probes could do with any labels.")
    published_seeds: int = setting(5, "Splits of the published protocol; 0: none.")
    published_batch: int = setting(32, "Its batches: 32 as in the released code, 4 as in the paper's first version.")
    published_test: float = setting(0.4, "Share of scenes that it reports: 0.4 as in the paper, 0.2 as in the code.")
    published_by_category: bool = setting(False, "Also fit its probes to each category by itself, as the paper does.")
    middle: float = setting(0.5, "Noise level of its t = 0.5, the state that half of the steps lead to.")


def run(config: Config, workdir: Path) -> None:
    """Read, probe, report."""
    from jaxdiff.study.probing import ProbeConfig, run_probe

    values = dataclasses.asdict(config)
    run_probe(ProbeConfig(which=values.pop("protocol"), **values), workdir)


if __name__ == "__main__":
    run_binary(run, Config)
