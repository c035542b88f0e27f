"""Disturb one block at a time while clips are made again from their noise, and ask the study's probe what it sees.

    python -m experiments.intervene --study=runs/demo --workdir=runs/intervene

needs a finished study. For each block, at every step of the way from the recovered noise to the clip, its output h becomes
h + alpha std(h) noise (arXiv 2606.05328, its intervention); the new video is inverted and probed. Writes result.json,
intervention.csv and report.html, with a run without any disturbance (the round trip) and one with alpha 0 beside the
blocks. Interrupted, the same command goes on where it stopped.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is disturbed and how."""

    study: Path = setting(help="Workdir of a finished experiments.study, whose probes, folds and clips are used.")
    model: str | None = setting(None, "Checkpoint folder, if the study's has moved.")
    alpha: float = setting(0.5, "Size of the disturbance, in standard deviations of a token over its features.")
    blocks: tuple[int, ...] | None = setting(None, "Blocks to disturb, one at a time; default: every one.")
    clips: int = setting(180, "Possible clips, at most, spread over scenes and categories; as many as the paper's.")
    probe_sigmas: tuple[float, ...] | None = setting(
        None, "Noise levels at which the new videos are probed; default: the one next to the middle of the grid."
    )
    reencode: bool = setting(
        True, "Decode and encode in between, as the paper does; else the latents go on as they are."
    )
    seed: int = setting(0, "Seed of the disturbances and the bootstrap.")
    mesh: str = setting(
        "auto", "Devices as data=4,fsdp=8,seq=2, or auto: all along data. Weights are split over fsdp, tokens over seq."
    )


def run(config: Config, workdir: Path) -> None:
    """Make, invert, probe, report."""
    from jaxdiff.mesh import working_on
    from jaxdiff.study.intervention import InterventionConfig, run_intervention

    values = dataclasses.asdict(config)
    with working_on(values.pop("mesh")):
        run_intervention(InterventionConfig(**values), workdir)


if __name__ == "__main__":
    run_binary(run, Config)
