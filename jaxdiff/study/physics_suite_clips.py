"""Clips of the generated world with what covers every pixel: masks for a control branch, targets for object rewards."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.worlds import WorldConfig, normalise, prompts, render, sample_batch
from jaxdiff.data.worlds.render import LAYERS
from jaxdiff.errors import ConfigError
from jaxdiff.physics.control import told
from jaxdiff.physics.rewards import Target
from jaxdiff.store import LatentStore
from jaxdiff.train.nano import DRAWN, clips_key
from jaxdiff.train.reward_tuning import Task

OBJECT, SCREEN = LAYERS.index("object"), LAYERS.index("screen")
MOST = 256  # batches that are searched for prompts


@dataclasses.dataclass(frozen=True)
class Scenes:
    """N clips: video uint8 [N, T, S, S, 3], layers uint8 [N, T, S, S] (places in `LAYERS`), words int32 [N, 3]."""

    video: np.ndarray
    layers: np.ndarray
    words: np.ndarray

    def __getitem__(self, rows: Any) -> "Scenes":
        return Scenes(self.video[rows], self.layers[rows], self.words[rows])

    @property
    def screen(self) -> np.ndarray:
        """bool [N, T, S, S], what is driven from outside."""
        return self.layers == SCREEN

    @property
    def object(self) -> np.ndarray:
        """bool [N, T, S, S], what is seen of the thing."""
        return self.layers == OBJECT

    @classmethod
    def joined(cls, parts: Sequence["Scenes"]) -> "Scenes":
        """One after the other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls)))


def scenes(world: WorldConfig, seed: int, count: int) -> Scenes:
    """The clips that `jaxdiff.train.latents.WorldClips` of this seed draws, in its order."""
    return Scenes.joined([_batch(world, seed, i) for i in range(-(-count // DRAWN))])[:count]


def prompted_scenes(world: WorldConfig, seed: int, captions: Sequence[str], samples: Sequence[int]) -> Scenes:
    """A clip for each caption: of those of a seed that show it, the one of the number in `samples`.

    Raises
    ------
    ConfigError : the seed has too few clips of a caption.
    """
    wanted = [(caption, sample) for caption, sample in zip(captions, samples, strict=True)]
    found: dict[tuple[str, int], Scenes] = {}
    counts: dict[str, int] = {}
    missing = set(wanted)
    for number in range(MOST):
        if not missing:
            break
        batch = _batch(world, seed, number)
        for i, row in enumerate(batch.words):
            key = (caption := prompts.as_text(row)), counts.setdefault(caption, 0)
            counts[caption] += 1
            if key in missing:
                missing.remove(key)
                found[key] = batch[i : i + 1]
    if missing:
        raise ConfigError(
            f"{MOST * DRAWN} clips of the world {seed} do not show {sorted(missing)[0]} as often as asked for"
        )
    return Scenes.joined([found[key] for key in wanted])


def _batch(world: WorldConfig, seed: int, number: int) -> Scenes:
    return Scenes(*jax.device_get(_drawn(jax.random.fold_in(clips_key(seed), number), world)))


@functools.partial(jax.jit, static_argnums=1)
def _drawn(key: jax.Array, world: WorldConfig):
    drawn = sample_batch(key, world, DRAWN)
    layers = jax.vmap(functools.partial(render, world))(drawn.stage, drawn.before).masks
    return drawn.video, layers, drawn.words


@dataclasses.dataclass(frozen=True)
class FrameTasks:
    """Clips to be sampled from their prompt and first frame and compared with how they went on, a `Tasks`.

    Parameters
    ----------
    store, clips : the same clips, encoded and as pictures. Those that show nothing are left out.
    """

    store: LatentStore
    clips: Scenes

    def __post_init__(self):
        if len(self.store) != len(self.clips.words):
            raise ConfigError(f"{len(self.store)} encoded clips and {len(self.clips.words)} pictures of them")

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Those whose first frame shows the thing."""
        return np.flatnonzero(self.clips.object[:, 0].any((1, 2)))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int] | np.ndarray) -> Task:
        """The tasks at these places."""
        at = self.rows[np.asarray(indices)]
        encoded: Any = self.store.read(at)
        clips = self.clips[at]
        cond = told(Conditioning(encoded.text, encoded.text_mask), first=encoded.latents[:, :1])
        return Task(
            cond, Target(normalise(jnp.asarray(clips.video)), jnp.asarray(clips.object, jnp.float32)[..., None])
        )
