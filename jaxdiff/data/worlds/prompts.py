"""Three-word prompts for generated clips, and their fixed embedding.

A prompt is `colour shape motion` ("red disc slides-left"), or three times "nothing" when the thing is absent.
Each word has one fixed vector: a row of the DCT-II basis scaled to unit mean square, so that words are
exactly orthogonal and nothing has to be stored or seeded. The empty prompt is one zero token; attention
without a mask sees no difference between one zero token and three, since all their keys and values agree.
"""

import difflib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data.worlds.scene import COLOURS, SHAPES, Thing
from jaxdiff.errors import ConfigError

MOTIONS = ("slides-left", "slides-right", "hops-left", "hops-right")
WORDS = (*COLOURS, *SHAPES, *MOTIONS, "nothing")
NOTHING = len(WORDS) - 1
LENGTH = 3  # words of a prompt


def words(thing: Thing) -> jax.Array:
    """Indices into WORDS that describe a thing: int32 `[..., 3]` (colour, shape, motion)."""
    motion = 2 * (thing.hop > 0).astype(jnp.int32) + (thing.speed >= 0)
    spoken = jnp.stack([thing.colour, len(COLOURS) + thing.shape, len(COLOURS) + len(SHAPES) + motion], -1)
    return jnp.where(jnp.asarray(thing.present)[..., None], spoken, NOTHING)


def table(text_dim: int) -> np.ndarray:
    """The vectors of WORDS, float32 `[len(WORDS), text_dim]`: orthogonal rows of mean square 1."""
    if text_dim < len(WORDS):
        raise ConfigError(
            f"text_dim={text_dim} cannot hold {len(WORDS)} orthogonal word vectors; use at least that many."
        )
    row, column = np.arange(1, len(WORDS) + 1)[:, None], np.arange(text_dim)[None, :]
    return (np.sqrt(2.0) * np.cos(np.pi * row * (column + 0.5) / text_dim)).astype(np.float32)


def embed(indices: jax.Array, text_dim: int) -> jax.Array:
    """Vectors of word indices: int `[..., N]` to float32 `[..., N, text_dim]`."""
    return jnp.asarray(table(text_dim))[indices]


def empty(text_dim: int) -> np.ndarray:
    """The empty prompt: one zero token, float32 `[1, text_dim]`."""
    return np.zeros((1, text_dim), np.float32)


def encode(prompt: str, text_dim: int) -> np.ndarray:
    """Embed a written prompt: float32 `[N, text_dim]` for N words, or the empty prompt for "".

    Raises
    ------
    ConfigError
        For a word that the world does not know.
    """
    spoken = prompt.lower().split()
    for word in spoken:
        if word not in WORDS:
            close = difflib.get_close_matches(word, WORDS, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"the prompt's word {word!r} is unknown to the generated world.{hint} Known: {', '.join(WORDS)}."
            )
    return table(text_dim)[[WORDS.index(word) for word in spoken]] if spoken else empty(text_dim)


def encode_all(prompts: Sequence[str], text_dim: int) -> np.ndarray:
    """Embed prompts of as many words as `words` makes, or of none: float32 `[B, 3, text_dim]`.

    Raises
    ------
    ConfigError
        For a word that the world does not know, or another number of words.
    """
    if odd := [prompt for prompt in prompts if len(prompt.split()) not in (0, LENGTH)]:
        raise ConfigError(
            f"the prompt {odd[0]!r} has {len(odd[0].split())} words; the generated world speaks in {LENGTH}: colour shape motion"
        )
    return np.stack([np.broadcast_to(encode(prompt, text_dim), (LENGTH, text_dim)) for prompt in prompts])


def as_text(indices: np.ndarray) -> str:
    """The written prompt of word indices `[N]`."""
    return " ".join(WORDS[int(i)] for i in indices)
