"""Write generated scenes with known physics, in the layout of a real benchmark.

    python -m experiments.make_world --layout=intphys --out=worlds/seed0 --seed=0 --scenes=60

makes 60 scenes for each of object permanence (O1), shape constancy (O2) and spatio-temporal continuity (O3),
four clips a scene, two possible and two impossible.
"""

import sys
from dataclasses import dataclass, field

from absl import app, flags, logging

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import JaxdiffError


@dataclass(frozen=True)
class MakeWorldConfig:
    """What to write and where."""

    out: str
    layout: str = "intphys"
    seed: int = 0
    scenes: int = 60
    depth: bool = True
    masks: bool = True
    world: WorldConfig = field(default_factory=WorldConfig)


def run(config: MakeWorldConfig) -> None:
    """Write the world, and say what it holds."""
    from jaxdiff.data.intphys import load_intphys
    from jaxdiff.data.worlds.layout import write_intphys

    write_intphys(config.world, config.seed, config.scenes, config.out, depth=config.depth, masks=config.masks)
    clips = load_intphys(config.out, scenes=config.scenes)
    print(
        f"{config.out}: {len(clips)} clips of {config.world.frames} frames, "
        f"{config.scenes} scenes in each of O1, O2 and O3, world seed {config.seed}"
    )


def main(argv: list[str]) -> None:
    """Read the flags, write, and exit with the code of the error if there is one."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; all settings are flags.")
    logging.set_verbosity(logging.WARNING)  # jax logs every backend that it does not find
    values = flags.FLAGS
    try:
        world = WorldConfig(frames=values.frames, size=values.size)
        run(MakeWorldConfig(values.out, values.layout, values.seed, values.scenes, values.depth, values.masks, world))
    except JaxdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    flags.DEFINE_enum("layout", "intphys", ["intphys"], "Layout on disk.")
    flags.DEFINE_string(
        "out", None, "Folder to write; new, empty, or an earlier result of the same command.", required=True
    )
    flags.DEFINE_integer("seed", 0, "World seed.", lower_bound=0)
    flags.DEFINE_integer("scenes", 60, "Scenes (of four clips) in each of the three categories.", lower_bound=1)
    flags.DEFINE_integer("frames", 17, "Frames of a clip: 4k+1.")
    flags.DEFINE_integer("size", 32, "Side of the square frames in pixels.")
    flags.DEFINE_bool("depth", True, "Write depth/ as well.")
    flags.DEFINE_bool("masks", True, "Write masks/ as well.")
    try:
        app.run(main)
    except KeyboardInterrupt:
        sys.exit(130)
