"""Physics of generated clips of the nano world, found by a tracker: permanence, attributes, constant velocity, hops.

    python -m experiments.measure --generated=runs/generate --workdir=runs/measured
    python -m experiments.measure --videos=clips --captions=captions.csv --workdir=runs/measured

scores a run of experiments.generate, or a folder of clips (17 frames of 32 pixels, as the nano model makes them) with a csv
of the columns video,caption. Beside every score stand the same numbers of true clips (the floor), of true clips after the
VAE, of true clips with their frames shuffled and of clips whose thing is swapped in hiding (the ceilings), and how often the
tracker fails where the truth is known. Writes result.json, clips.csv and report.html.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured, and beside what."""

    generated: Path | None = setting(None, "Workdir of a finished experiments.generate; or give the next two.")
    videos: Path | None = setting(None, "Folder of clips.")
    captions: Path | None = setting(None, "Their prompts: a csv with the columns video,caption.")
    model: str = setting("nano", "Checkpoint whose VAE true clips are put through; empty for none.")
    world_seed: int = setting(0, "World of the true clips.")
    scenes: int = setting(40, "Its scenes in each of the three categories.")
    seed: int = setting(0, "Seed of the shuffling and the bootstrap.")

    def __post_init__(self):
        if (self.generated is None) == (self.videos is None) or (self.videos is None) != (self.captions is None):
            raise ConfigError("give either --generated, or --videos and --captions")


def run(config: Config, workdir: Path) -> None:
    """Measure, report."""
    from experiments._training import opened_model
    from jaxdiff.study.measuring import MeasureConfig, run_measure

    place = config.videos if config.generated is None else config.generated
    assert place is not None  # `Config` has seen to it
    given = MeasureConfig(place, config.captions, config.model, config.world_seed, config.scenes, config.seed)
    run_measure(given, workdir, opened_model(config.model) if config.model else None)


if __name__ == "__main__":
    run_binary(run, Config)
