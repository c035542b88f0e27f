"""What happens in a generated scene: the stage, the thing behind the screen, and how both are drawn.

A clip shows one `Stage` (wall, floor, a screen that rises and falls, sometimes a small distractor: the same
in every clip of a scene) and one `Thing` (the object that the label is about). The screen hides the thing
completely in the two frames on either side of the switch, and what comes out from behind it may be another
`Thing` than the one that went in.

Lengths are fractions of the frame, so 32 and 48 px show the same world; y points down. Time is in frames.

Every draw below keeps one property: within every category the two things of a pair are exchangeable, and each
of them, when present, has the same distribution in all three categories. Training clips and test quadruplets
therefore have the same single-part marginals, and only the *combination* of before and after can tell them
apart.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError

CATEGORIES = ("O1", "O2", "O3")
"""IntPhys's block names: object permanence, shape constancy, spatio-temporal continuity."""

CATEGORY_NAMES = {"O1": "object permanence", "O2": "shape constancy", "O3": "spatio-temporal continuity"}

COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
PALETTE = (
    (0.90, 0.12, 0.10),
    (0.10, 0.72, 0.16),
    (0.12, 0.22, 0.92),
    (0.98, 0.88, 0.10),
    (0.88, 0.12, 0.82),
    (0.10, 0.86, 0.92),
)
SHAPES = ("disc", "square", "triangle")

HIDDEN = 2  # frames on each side of the switch in which the thing is completely covered
TOP = (0.02, 0.06)  # where the raised screen's upper edge stops
FLOOR_GAP = 0.02  # between the lowest thing and the lower edge of the frame


@dataclass(frozen=True)
class WorldConfig:
    """The generated world's numbers.

    Parameters
    ----------
    frames, size : int
        Clip length (`4k + 1`, at least 9), and side of the frame in pixels (a multiple of 8, at least 32).
    radius : (float, float)
        Range of the thing's radius, as a fraction of the frame. Large on purpose: a small model needs several
        tokens on it.
    travel : float
        Largest distance that a thing moves horizontally during the clip.
    hopping : float
        Probability that a thing hops on parabolas instead of sliding.
    distractor : float
        Probability of a second, smaller thing. It is part of the stage and never changes.
    recolour : float
        Probability that in O2 the colour changes along with the shape (at 32 px a change of shape alone moves
        few pixels).
    jump : float
        Smallest vertical distance between the two trajectories of an O3 scene.
    """

    frames: int = 17
    size: int = 32
    radius: tuple[float, float] = (0.13, 0.18)
    travel: float = 0.32
    hopping: float = 0.5
    distractor: float = 0.2
    recolour: float = 1.0
    jump: float = 0.18

    def __post_init__(self):
        if self.frames < 9 or self.frames % 4 != 1:
            raise ConfigError(
                f"WorldConfig: frames={self.frames}, but a clip must have 4k+1 frames and at least 9 "
                "(9, 13, 17, 21, ...): the causal VAE encodes the first frame alone and the others in fours."
            )
        if self.size < 32 or self.size % 8:
            raise ConfigError(f"WorldConfig: size={self.size}, but it must be a multiple of 8 and at least 32.")
        if not 0.05 <= self.radius[0] <= self.radius[1] <= 0.18:
            raise ConfigError(
                f"WorldConfig: radius={self.radius} must be an increasing pair within [0.05, 0.18], "
                "or the screen cannot hide it."
            )
        for name in ("hopping", "distractor", "recolour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"WorldConfig: {name}={getattr(self, name)} is a probability and must lie in [0, 1].")
        if not (0 <= self.travel <= 0.4 and 0 <= self.jump <= 0.18):
            raise ConfigError(
                f"WorldConfig: travel={self.travel} must lie in [0, 0.4] and jump={self.jump} in [0, 0.18]."
            )

    @property
    def switch(self) -> int:
        """First frame after the switch: `1 + 4j`, so it falls between two latent frames (9 for 17 frames)."""
        return 1 + 4 * ((self.frames - 1) // 8)

    @property
    def hidden(self) -> range:
        """Frames in which the thing is completely covered (7..10 for 17 frames)."""
        return range(self.switch - HIDDEN, self.switch + HIDDEN)

    @property
    def tempo(self) -> float:
        """Durations are given for 17 frames and multiplied by this."""
        return (self.frames - 1) / 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Thing:
    """One object and its motion; every field is a scalar (or has the leading axes of a batch)."""

    present: jax.Array  # bool
    colour: jax.Array  # int32, index into COLOURS
    shape: jax.Array  # int32, index into SHAPES
    radius: jax.Array
    x: jax.Array  # horizontal position at the switch
    speed: jax.Array  # per frame
    y: jax.Array  # vertical position; of a hopping thing, at its lowest
    hop: jax.Array  # height of the hops, 0 for a sliding thing
    period: jax.Array  # frames per hop
    phase: jax.Array  # in [0, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stage:
    """All that the clips of a scene share."""

    wall: jax.Array  # [3] RGB in [0, 1]
    floor: jax.Array  # [3]
    horizon: jax.Array
    screen: jax.Array  # [3]
    screen_x: jax.Array  # centre
    screen_half: jax.Array  # half of the width
    screen_top: jax.Array  # upper edge when raised
    rise_end: jax.Array  # frames before the switch at which the screen stands
    rise_for: jax.Array  # frames that it takes to rise
    fall_start: jax.Array  # frames after the switch at which it starts to fall
    fall_for: jax.Array
    distractor: Thing


class _Draws:
    """Uniform numbers handed out in order. One threefry call a scene is much faster than one a parameter."""

    def __init__(self, key, n):
        self.values, self.n, self.used = jax.random.uniform(key, (n,)), n, 0

    def __call__(self, low=0.0, high=1.0):
        if self.used == self.n:  # jax clamps an index past the end: the draws would repeat silently
            raise IndexError(f"all {self.n} draws are used")
        self.used += 1
        return low + (high - low) * self.values[self.used - 1]

    def below(self, n):
        return jnp.minimum((self() * n).astype(jnp.int32), n - 1)

    def chance(self, p):
        return self() < p


def _tinted(grey, draw):
    return jnp.clip(jnp.stack([grey + draw(-0.06, 0.06) for _ in range(3)]), 0.0, 1.0)


def sample_stage(key: jax.Array, config: WorldConfig) -> Stage:
    """Draw what the clips of a scene share: colours, the screen and its timing, perhaps a distractor."""
    draw = _Draws(key, 30)
    tempo = config.tempo
    grey = draw(0.35, 0.65)
    # the screen stands out from the wall: lighter or darker by at least .2
    screen_grey = jnp.where(draw.chance(0.5), grey + draw(0.2, 0.3), grey - draw(0.2, 0.3))
    wall = _tinted(grey, draw)
    floor = _tinted(grey * draw(0.65, 0.85), draw)
    screen = _tinted(screen_grey, draw)
    half = draw(0.32, 0.42)
    distractor = Thing(
        present=draw.chance(config.distractor),
        colour=draw.below(len(COLOURS)),
        shape=draw.below(len(SHAPES)),
        radius=draw(0.06, 0.09),
        x=draw(0.15, 0.85),
        speed=draw(-1, 1) * config.travel / (config.frames - 1) / 2,
        y=draw(0.2, 0.85),
        hop=jnp.float32(0.0),
        period=jnp.float32(8.0),
        phase=jnp.float32(0.0),
    )
    return Stage(
        wall=wall,
        floor=floor,
        horizon=draw(0.78, 0.9),
        screen=screen,
        screen_x=draw(0.44, 0.56),
        screen_half=half,
        screen_top=draw(*TOP),
        rise_end=HIDDEN - 0.5 + draw(0.0, 0.7) * tempo,
        rise_for=draw(1.5, 3.0) * tempo,
        fall_start=HIDDEN - 0.5 + draw(0.0, 0.7) * tempo,
        fall_for=draw(1.5, 3.0) * tempo,
        distractor=distractor,
    )


class _Range(NamedTuple):
    low: jax.Array
    high: jax.Array


def _heights(config, radius, hop) -> _Range:
    """Where a thing may be vertically: in the frame, and a pixel or more below the raised screen's edge."""
    return _Range(TOP[1] + 1.0 / config.size + hop + radius, 1.0 - FLOOR_GAP - radius)


def _path(draw, config, stage, radius):
    """Horizontal position at the switch and speed, such that the screen is wide enough to hide the thing."""
    fastest = config.travel / (config.frames - 1)
    room = stage.screen_half - radius - HIDDEN * fastest - 1.0 / config.size
    return {"x": stage.screen_x + draw(-1, 1) * room, "speed": draw(-1, 1) * fastest}


def sample_pair(key: jax.Array, config: WorldConfig, stage: Stage, category: jax.Array) -> tuple[Thing, Thing]:
    """Draw the two things of a scene; they differ in what its category (an index into CATEGORIES) is about.

    O1: one of them is absent. O2: other shape (and colour). O3: other trajectory, at every moment at least
    `config.jump` higher or lower, with another speed and horizontal position.
    """
    draw = _Draws(key, 20)
    radius = draw(*config.radius)
    hop = jnp.where(draw.chance(config.hopping), draw(0.08, 0.14), 0.0)
    rows = _heights(config, radius, hop)
    first = Thing(
        present=jnp.bool_(True),
        colour=draw.below(len(COLOURS)),
        shape=draw.below(len(SHAPES)),
        radius=radius,
        y=draw(*rows),
        hop=hop,
        period=draw(5.0, 9.0) * config.tempo,
        phase=draw(),
        **_path(draw, config, stage, radius),
    )
    permanence, constancy, continuity = (category == i for i in range(3))
    recolour = constancy & draw.chance(config.recolour)
    # A shift on a circle: the shifted value has the same uniform distribution, and both arcs are >= the jump.
    height = rows.high - rows.low
    shifted = rows.low + jnp.mod(first.y - rows.low + draw(config.jump, height - config.jump), height)
    other_path = _path(draw, config, stage, radius)
    other_colour = (first.colour + 1 + draw.below(len(COLOURS) - 1)) % len(COLOURS)
    other_shape = (first.shape + 1 + draw.below(len(SHAPES) - 1)) % len(SHAPES)
    second = dataclasses.replace(
        first,
        present=~permanence,
        colour=jnp.where(recolour, other_colour, first.colour),
        shape=jnp.where(constancy, other_shape, first.shape),
        y=jnp.where(continuity, shifted, first.y),
        **{name: jnp.where(continuity, value, getattr(first, name)) for name, value in other_path.items()},
    )
    swap = draw.chance(0.5)
    return choose(swap, second, first), choose(swap, first, second)


def choose(condition: jax.Array, yes, no):
    """`jnp.where` on every leaf of two equal pytrees."""
    return jax.tree.map(partial(jnp.where, condition), yes, no)


def since_switch(config: WorldConfig) -> jax.Array:
    """Time of every frame from the moment of the switch, in frames: `[T]`, half-integers."""
    return jnp.arange(config.frames) - (config.switch - 0.5)


def trajectory(config: WorldConfig, thing: Thing) -> jax.Array:
    """Exact centre of one thing in every frame: `[T, 2]` as (x, y), fractions of the frame."""
    t = since_switch(config)
    turn = jnp.mod(t / thing.period + thing.phase, 1.0)
    return jnp.stack([thing.x + thing.speed * t, thing.y - thing.hop * 4.0 * turn * (1.0 - turn)], -1)


def screen_edge(config: WorldConfig, stage: Stage) -> jax.Array:
    """Height of the screen's upper edge in every frame: `[T]`; beyond 1 the screen is down."""
    t = since_switch(config)
    risen = (t + stage.rise_end + stage.rise_for) / stage.rise_for
    fallen = (t - stage.fall_start) / stage.fall_for
    up = jnp.clip(jnp.minimum(risen, 1.0 - fallen), 0.0, 1.0)
    return 1.0 + 1.0 / config.size - (1.0 + 1.0 / config.size - stage.screen_top) * up
