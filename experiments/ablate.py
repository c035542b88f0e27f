"""Cut attention at one block at a time, invert the study's clips again, and probe again: what does reading rest on?

    python -m experiments.ablate --study=runs/demo --workdir=runs/ablate

needs a finished study. --cuts: "frames", self-attention from frame to frame (every frame then attends to itself only), and
"text", attention to the text. Nothing is trained anew but the probes, which are fitted with the study's corrected protocol.
Writes result.json, ablation.csv and report.html, a curve over blocks for each cut. Interrupted, the same command goes on
where it stopped.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is cut and where."""

    study: Path = setting(help="Workdir of a finished experiments.study, whose clips and protocol are used.")
    model: str | None = setting(None, "Checkpoint folder, if the study's has moved.")
    cuts: tuple[str, ...] = setting(("frames", "text"), "frames, text, or both, comma-separated.")
    blocks: tuple[int, ...] | None = setting(None, "Blocks to cut, one at a time; default: every one.")
    everywhere: bool = setting(True, "Cut at all blocks at once, too.")
    scenes: int | None = setting(None, "Scenes of each category, the first ones; default: all of the study's.")


def run(config: Config, workdir: Path) -> None:
    """Cut, invert, probe, report."""
    from jaxdiff.study.ablation import AblationConfig, run_ablation

    run_ablation(AblationConfig(**dataclasses.asdict(config)), workdir)


if __name__ == "__main__":
    run_binary(run, Config)
