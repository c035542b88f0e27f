"""Physics of clips, found by a tracker: of generated clips of the nano world, or of plain clips of anything.

    python -m experiments.measure --generated=runs/generate --workdir=runs/measured
    python -m experiments.measure --videos=clips --captions=captions.csv --workdir=runs/measured
    python -m experiments.measure --videos=clips --workdir=runs/measured --scale=0.002

The first two tell permanence, attributes, constant velocity and hops of the nano world. The command
scores a run of experiments.generate, or a folder of clips (17 frames of 32 pixels, as the nano model makes them) with a csv
of the columns video,caption. Beside every score stand the same numbers of true clips (the floor), of true clips after the
VAE, of true clips with their frames shuffled and of clips whose thing is swapped in hiding (the ceilings), and how often the
tracker fails where the truth is known.

The third tells the mechanics of whatever moves before a still camera: energy error and gain, gravity, area variance, and
momentum, restitution, penetration and causality of collisions, beside known motion (the floor) and shuffled frames (the
ceiling), with the clips that cannot be tracked and why. --fps and --scale (metres a pixel) make seconds and metres of frames
and pixels; --floor is the row on which things stand. Captions are optional there: --tracker=plain --captions=... only groups
the clips by them. Writes result.json, clips.csv and report.html.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and beside what."""

    generated: Path | None = setting(None, "Workdir of a finished experiments.generate; or give --videos.")
    videos: Path | None = setting(None, "Folder of clips.")
    captions: Path | None = setting(None, "Their prompts: a csv with the columns video,caption.")
    tracker: Literal["world", "plain"] | None = setting(
        None, "Whose clips they are: the nano world's, or anybody's. Default: plain for --videos without --captions."
    )
    fps: float | None = setting(None, "Plain clips: frames a second, where the files do not say or say wrong.")
    scale: float | None = setting(None, "Plain clips: metres a pixel.")
    floor: float | None = setting(None, "Plain clips: row, in pixels from the top, on which things stand.")
    model: str = setting("nano", "World: checkpoint whose VAE true clips are put through; empty for none.")
    world_seed: int = setting(0, "World of the true clips.")
    scenes: int | None = setting(None, "True clips beside the scores: scenes of each category (40); known scenes (8).")
    seed: int = setting(0, "Seed of the shuffling, the known scenes and the bootstrap.")

    def __post_init__(self):
        if (self.generated is None) == (self.videos is None) or (
            self.generated is not None and self.captions is not None
        ):
            raise ConfigError("give either --generated, or --videos, with --captions if they have any")
        if not self.plain:
            if self.videos is not None and self.captions is None:
                raise ConfigError("--tracker=world reads the prompts of clips; give --captions")
            if given := [name for name in ("fps", "scale", "floor") if getattr(self, name) is not None]:
                raise ConfigError(f"--{given[0]} is of plain clips; the nano world has no seconds and no metres")
        elif self.generated is not None:
            raise ConfigError(
                "--tracker=plain takes a folder of clips: --videos=RUN/videos in the place of --generated=RUN"
            )

    @property
    def plain(self) -> bool:
        """Whether the clips are anybody's."""
        return self.tracker == "plain" or (self.tracker is None and self.videos is not None and self.captions is None)


def run(config: Config, workdir: Path) -> None:
    """Measure, report."""
    place = config.videos if config.generated is None else config.generated
    assert place is not None  # `Config` has seen to it
    if config.plain:
        from jaxdiff.study.plain_measuring import PlainConfig, run_plain

        known = {} if config.scenes is None else {"scenes": config.scenes}
        run_plain(
            PlainConfig(place, config.captions, config.fps, config.scale, config.floor, seed=config.seed, **known),
            workdir,
        )
        return
    from experiments._training import opened_model
    from jaxdiff.study.measuring import MeasureConfig, run_measure

    scenes = 40 if config.scenes is None else config.scenes
    given = MeasureConfig(place, config.captions, config.model, config.world_seed, scenes, config.seed)
    run_measure(given, workdir, opened_model(config.model) if config.model else None)


if __name__ == "__main__":
    run_binary(run, Config)
