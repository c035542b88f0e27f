"""Classifier-free guidance as one evaluation of a double batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError


def pair(cond: Conditioning, negative: Conditioning, batch: int) -> Conditioning:
    """Both conditionings as one of batch 2B: rows 2b and 2b + 1 are clip b, conditional and unconditional.

    Neighbours, not halves: a batch split over devices then stays where it is.

    Raises
    ------
    ConfigError : the two do not have the same fields, with the same shapes beyond the batch.
    """

    def one(path: Any, c: jax.Array, n: jax.Array) -> jax.Array:
        c, n = _per_clip(c, batch), _per_clip(n, batch)
        if c.shape != n.shape:
            raise ConfigError(
                f"negative{jax.tree_util.keystr(path)} has the shape {n.shape}, but cond's is "
                f"{c.shape}: for guidance pad both to the same number of tokens"
            )
        return jnp.stack([c, n.astype(c.dtype)], 1).reshape(2 * batch, *c.shape[1:])

    if jax.tree.structure(cond) != jax.tree.structure(negative):  # type: ignore[operator]
        raise ConfigError(
            "cond and negative must set the same fields of Conditioning, but one sets "
            f"{_fields(cond)} and the other {_fields(negative)}"
        )
    return jax.tree_util.tree_map_with_path(one, cond, negative)


def double(x: jax.Array) -> jax.Array:
    """[B, ...] -> [2B, ...], every row twice in a row."""
    return jnp.broadcast_to(x[:, None], (x.shape[0], 2, *x.shape[1:])).reshape(-1, *x.shape[1:])


def halves(x: jax.Array, axis: int = 0) -> tuple[jax.Array, jax.Array]:
    """The conditional and the unconditional rows of a doubled axis."""
    x = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    index = (slice(None),) * (axis + 1)
    return x[(*index, 0)], x[(*index, 1)]


def mix(velocity: jax.Array, scale: jax.Array) -> jax.Array:
    """``u + scale (c - u)`` (Ho and Salimans, arXiv 2207.12598) from the doubled velocity [2B, ...] -> [B,
    ...].
    """
    conditional, unconditional = halves(velocity)
    return unconditional + scale * (conditional - unconditional)


def is_off(scale: Any, negative: Any) -> bool:
    """Whether one plain evaluation does: the scale is known to be 1, or there is nothing to guide away from.

    Raises
    ------
    ConfigError : a scale other than 1 without `negative`.
    """
    known = not isinstance(scale, jax.core.Tracer)
    if known and np.ndim(scale):
        raise ConfigError(f"guidance_scale must be one number, got shape {np.shape(scale)}")
    if known and float(scale) == 1.0:
        return True
    if negative is None:
        raise ConfigError(
            f"guidance_scale={scale} needs negative=: the embeddings to guide away from, usually "
            "those of the empty prompt"
        )
    return False


def _per_clip(x: Any, batch: int) -> jax.Array:
    x = jnp.asarray(x)
    return jnp.broadcast_to(x, (batch, *x.shape[1:]))


def _fields(cond: Conditioning) -> list[str]:
    return sorted(name for name, value in vars(cond).items() if value is not None)
