"""Write generated scenes with known physics, in the layout of a real benchmark.

    python -m experiments.make_world --layout=intphys --out=worlds/seed0 --seed=0 --scenes=60

makes 60 scenes for each of object permanence (O1), shape constancy (O2) and spatio-temporal continuity (O3),
four clips a scene, two possible and two impossible.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """What to write and where."""

    out: Path = setting(help="Folder to write; new, empty, or an earlier result of the same command.")
    layout: Literal["intphys"] = setting("intphys", "Layout on disk.")
    seed: int = setting(0, "World seed.")
    scenes: int = setting(60, "Scenes (of four clips) in each of the three categories.")
    frames: int = setting(17, "Frames of a clip: 4k+1.")
    size: int = setting(32, "Side of the square frames in pixels.")
    depth: bool = setting(True, "Write depth/ as well.")
    masks: bool = setting(True, "Write masks/ as well.")

    def __post_init__(self):
        if self.seed < 0 or self.scenes < 1:
            raise ConfigError(f"--seed={self.seed} must be at least 0 and --scenes={self.scenes} at least 1")


def run(config: Config) -> None:
    """Write the world, and say what it holds."""
    from jaxdiff.data.intphys import load_intphys
    from jaxdiff.data.worlds import WorldConfig
    from jaxdiff.data.worlds.layout import write_intphys

    world = WorldConfig(frames=config.frames, size=config.size)
    write_intphys(world, config.seed, config.scenes, config.out, depth=config.depth, masks=config.masks)
    clips = load_intphys(config.out, scenes=config.scenes)
    print(
        f"{config.out}: {len(clips)} clips of {world.frames} frames, "
        f"{config.scenes} scenes in each of O1, O2 and O3, world seed {config.seed}"
    )


if __name__ == "__main__":
    run_binary(run, Config, workdir=False)
