"""Clips of the generated world in which something impossible happens at a known frame, and equal ones in which nothing does.

A clip is the pictures of one thing up to a frame and of another from there on, the same stage around both. What is broken
may happen in sight or in hiding. Where nothing is broken the two things are one.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data.worlds import COLOURS, SHAPES, Thing, WorldConfig, prompts
from jaxdiff.data.worlds.render import render_video
from jaxdiff.data.worlds.scene import CATEGORIES, TOP, choose, sample_pair, sample_stage, since_switch, trajectory
from jaxdiff.errors import ConfigError

LAWS = (
    "persists",
    "keeps its colour",
    "keeps its shape",
    "keeps its size",
    "moves steadily",
    "keeps its path",
)
"""What can be broken; "keeps its path" stands for "stays level" and "bounces on equal hops", whichever the prompt asks for."""

VIOLATIONS = {
    "nothing": (),
    "vanish": ("persists",),
    "recolour": ("keeps its colour",),
    "reshape": ("keeps its shape",),
    "shrink": ("keeps its size",),
    "teleport": ("moves steadily", "keeps its path"),
    "kick": ("moves steadily",),
    "float": ("keeps its path",),
}
"""What happens -> the laws that it breaks. A kick turns a thing back that nothing touches; float: it stops falling in the air."""

MIXED = tuple(kind for broken in VIOLATIONS if broken != "nothing" for kind in ("nothing", broken))
"""Kinds by which half of the clips break a law."""

EDGE = 4  # frames at either end in which nothing happens, so that there is a before and an after to see
SHRINKS = 0.8  # to this of the radius; a thing is still told from a distractor then
KICK = 0.03  # by which the speed changes, of the frame's side in a frame; things move at .02 at most
_CHUNK = 64


class Clips(NamedTuple):
    """Clips with what is broken in them.

    Attributes
    ----------
    video : uint8 [N, T, S, S, 3]
    kinds : int32 [N], places in `VIOLATIONS`.
    words : int32 [N, 3], the prompts, of the thing before.
    """

    video: np.ndarray
    kinds: np.ndarray
    words: np.ndarray

    @property
    def laws(self) -> np.ndarray:
        """bool [N, laws]: which of `LAWS` each clip keeps."""
        return LAW_TABLE[self.kinds]

    @property
    def captions(self) -> list[str]:
        """The prompts in words."""
        return [prompts.as_text(row) for row in self.words]


LAW_TABLE = np.array([[law not in broken for law in LAWS] for broken in VIOLATIONS.values()])


def clips(config: WorldConfig, seed: int, count: int, kinds: tuple[str, ...] = tuple(VIOLATIONS)) -> Clips:
    """`count` clips of these kinds in turn, each of a scene of its own.

    Raises
    ------
    ConfigError : an unknown kind, or no clip.
    """
    unknown = [kind for kind in kinds if kind not in VIOLATIONS]
    if unknown or not kinds or count < 1:
        raise ConfigError(f"clips={count} of the kinds {kinds}; known: {', '.join(VIOLATIONS)}, and at least one clip")
    names = [*VIOLATIONS]
    numbers = np.resize(np.array([names.index(kind) for kind in kinds], np.int32), -(-count // _CHUNK) * _CHUNK)
    root = jax.random.key(seed)
    parts = []
    for start in range(0, count, _CHUNK):
        keys = jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.arange(start, start + _CHUNK))
        parts.append(jax.device_get(_draw(config, keys, numbers[start : start + _CHUNK])))
    video, words = (np.concatenate(leaves)[:count] for leaves in zip(*parts, strict=True))
    return Clips(video, numbers[:count], words)


@functools.partial(jax.jit, static_argnums=0)
def _draw(config: WorldConfig, keys: jax.Array, kinds: jax.Array) -> tuple[jax.Array, jax.Array]:
    def one(key, kind):
        stage_key, pair_key, frame_key, change_key = jax.random.split(key, 4)
        stage = sample_stage(stage_key, config)
        # The things of this category differ in their path alone.
        before, elsewhere = sample_pair(pair_key, config, stage, jnp.int32(CATEGORIES.index("O3")))
        before, elsewhere = (_hopping(thing, kind == _FLOAT, config) for thing in (before, elsewhere))
        frame = jax.random.randint(frame_key, (), EDGE, config.frames - EDGE + 1)
        after = _changed(change_key, before, elsewhere, kind, frame, config)
        videos = (render_video(config, stage, thing) for thing in (before, after))
        first = (jnp.arange(config.frames) < frame)[:, None, None, None]
        return jnp.where(first, *videos), prompts.words(before)

    return jax.vmap(one)(keys, kinds)


_FLOAT = [*VIOLATIONS].index("float")


def _hopping(thing: Thing, must: jax.Array, config: WorldConfig) -> Thing:
    """The thing, made to hop where it must; lower then, so that its hops stay below the screen's edge."""
    hop = jnp.where(must, jnp.maximum(thing.hop, 0.12), thing.hop)
    return dataclasses.replace(thing, hop=hop, y=jnp.maximum(thing.y, TOP[1] + 1.0 / config.size + hop + thing.radius))


def _changed(key, before: Thing, elsewhere: Thing, kind, frame, config: WorldConfig) -> Thing:
    """What the thing is from `frame` on."""
    colour, shape = jax.random.split(key)
    time = since_switch(config)[frame]
    kicked = jnp.where(before.speed > 0, before.speed - KICK, before.speed + KICK)
    here = trajectory(config, before)[frame]
    changes = {
        "vanish": {"present": jnp.bool_(False)},
        "recolour": {"colour": (before.colour + jax.random.randint(colour, (), 1, len(COLOURS))) % len(COLOURS)},
        "reshape": {"shape": (before.shape + jax.random.randint(shape, (), 1, len(SHAPES))) % len(SHAPES)},
        "shrink": {"radius": SHRINKS * before.radius},
        "teleport": {"x": elsewhere.x, "y": elsewhere.y, "speed": elsewhere.speed},
        "kick": {"x": before.x + (before.speed - kicked) * time, "speed": kicked},
        "float": {"y": here[1], "hop": jnp.float32(0.0)},
    }
    after = before
    for place, name in enumerate(VIOLATIONS):
        if name in changes:
            after = choose(kind == place, dataclasses.replace(before, **changes[name]), after)
    return after
