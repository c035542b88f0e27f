"""Training clips, made inside the training step, and test quadruplets.

With `Bk` and `Ak` the before- and after-parts of a clip that shows thing k throughout, a quadruplet is

    possible: B1 A1, B2 A2        impossible: B1 A2, B2 A1

Every part occurs once in a possible and once in an impossible clip, bit for bit the same. So at each frame
both classes hold the same multiset of pictures: no classifier of single frames beats chance; and any
statistic that is a sum over frames (every linear one is) has equal sums over the two classes, which makes the
zero vector the optimum of a logistic fit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data.worlds import prompts
from jaxdiff.data.worlds.render import Frames, render, render_video
from jaxdiff.data.worlds.scene import (
    CATEGORIES,
    Stage,
    Thing,
    WorldConfig,
    choose,
    sample_pair,
    sample_stage,
)
from jaxdiff.errors import ConfigError

STRUCTURES = ("plausible", "independent")

PAIRING = ((0, 0), (1, 1), (0, 1), (1, 0))
"""(before, after) thing of the four clips of a quadruplet, the possible ones first."""

_TEST_STREAM = 0x7E57  # keeps the scenes of a world seed apart from the training clips of an equal seed
_CHUNK = 16  # scenes per compiled call


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Training clips, with the leading axis B everywhere."""

    video: jax.Array  # uint8 [B, T, H, W, 3]
    before: Thing  # what the clip shows before the switch,
    after: Thing  # and after it
    words: jax.Array  # int32 [B, 3], the prompt
    stage: Stage  # around them


@dataclass(frozen=True)
class Quadruplet:
    """The four clips of one test scene with their ground truth, in NumPy; axis 0 is the clip, shuffled."""

    category: str  # "O1", "O2" or "O3"
    scene: int  # counts from 0 inside its category
    possible: np.ndarray  # bool [4]
    parts: np.ndarray  # int [4, 2]: which thing each clip shows before and after
    frames: Frames  # leaves with leading axis 4
    things: tuple[Thing, Thing]
    stage: Stage


def _one_thing(key, config, stage):
    """One draw from the marginal distribution of a part: a category, then one of its two things."""
    category, pair, pick = jax.random.split(key, 3)
    first, second = sample_pair(pair, config, stage, jax.random.randint(category, (), 0, len(CATEGORIES)))
    return choose(jax.random.bernoulli(pick), first, second)


def sample_batch(key: jax.Array, config: WorldConfig, batch: int, structure: str = "plausible") -> Batch:
    """Draw training clips. Pure and traceable: call it inside the jitted step.

    Parameters
    ----------
    key : jax.Array
        PRNG key; the batch is a function of it.
    structure : {"plausible", "independent"}
        "plausible": what comes out from behind the screen is what went in. "independent": the structure-less
        control; the same renderer, stages and part marginals, but the things before and after are drawn
        independently. With equal keys both have equal before-parts.

    Returns
    -------
    Batch
        `video` uint8 `[B, T, H, W, 3]`. The prompt of an independent clip describes either of its two things.
    """
    if structure not in STRUCTURES:
        raise ConfigError(f"structure={structure!r} is not one of {', '.join(STRUCTURES)}.")

    def one(key):
        stage_key, before_key, after_key, word_key = jax.random.split(key, 4)
        stage = sample_stage(stage_key, config)
        before = _one_thing(before_key, config, stage)
        after = before if structure == "plausible" else _one_thing(after_key, config, stage)
        told = choose(jax.random.bernoulli(word_key), before, after)
        video = render_video(config, stage, before)
        if structure == "independent":
            video = jnp.concatenate([video[: config.switch], render_video(config, stage, after)[config.switch :]])
        return Batch(video=video, before=before, after=after, words=prompts.words(told), stage=stage)

    return jax.vmap(one)(jax.random.split(key, batch))


@partial(jax.jit, static_argnums=(0,))
def _scenes(config, keys, category):
    def one(key):
        stage_key, pair_key, order_key = jax.random.split(key, 3)
        stage = sample_stage(stage_key, config)
        things = sample_pair(pair_key, config, stage, category)
        whole = [render(config, stage, thing) for thing in things]
        return stage, things, whole, jax.random.permutation(order_key, len(PAIRING))

    return jax.vmap(one)(keys)


def _join(config, whole, pairing):
    """Cut the two rendered clips at the switch and join the parts: equal parts are equal bit for bit."""
    clips = [
        jax.tree.map(lambda b, a: np.concatenate([b[: config.switch], a[config.switch :]]), whole[before], whole[after])
        for before, after in pairing
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *clips)


def quadruplets(
    config: WorldConfig, seed: int, scenes: int, categories: tuple[str, ...] = CATEGORIES, start: int = 0
) -> Iterator[Quadruplet]:
    """Yield the test scenes of a world seed, `scenes` of each category; scene k is the same whatever is
    generated beside it.

    Runs on the CPU whatever the default device is, so that a seed means the same pixels on every machine.

    Raises
    ------
    ConfigError
        For an unknown category, or fewer than one scene.
    """
    unknown = [c for c in categories if c not in CATEGORIES]
    if unknown or scenes < 1:
        raise ConfigError(
            f"quadruplets: categories={categories!r} (known: {', '.join(CATEGORIES)}), scenes={scenes} (at least 1)."
        )
    return _generate(config, seed, scenes, categories, start)


def _cpu():
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ConfigError(
            "the generated world is drawn on the CPU, so that its pixels do not depend on the accelerator, "
            "but jax was started without one: name it as well, e.g. JAX_PLATFORMS=cuda,cpu."
        ) from error


def _generate(config, seed, scenes, categories, start):
    for category in categories:
        index = CATEGORIES.index(category)
        for first in range(start, start + scenes, _CHUNK):
            with jax.default_device(_cpu()):
                root = jax.random.fold_in(
                    jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _TEST_STREAM), index
                )
                keys = jax.vmap(partial(jax.random.fold_in, root))(jnp.arange(first, first + _CHUNK))
                drawn = jax.device_get(_scenes(config, keys, index))
            for k in range(min(_CHUNK, start + scenes - first)):
                stage, things, whole, order = jax.tree.map(lambda leaf, k=k: np.asarray(leaf[k]), drawn)
                pairing = [PAIRING[i] for i in order]
                yield Quadruplet(
                    category=category,
                    scene=first + k,
                    possible=np.array([before == after for before, after in pairing]),
                    parts=np.array(pairing),
                    frames=_join(config, whole, pairing),
                    things=things,
                    stage=stage,
                )
