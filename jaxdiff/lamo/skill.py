"""How well motion is predicted: errors of a field against what came, beside predictions that know nothing and one that
knows the future.

Skill is ``1 - MSE / MSE(zero)``: 0 for a field that expects no motion, 1 for one that knows it.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.lamo.motion import LAG, differences
from jaxdiff.models.network import Network
from jaxdiff.probes.statistics import cluster_bootstrap, difference_of_sums

BLOCK, RADIUS = 2, 2  # latent positions, of block matching
PREDICTIONS = ("field", "field without prompt", "mean", "block matching")


class Errors(NamedTuple):
    """Of clips, each [B] float32: mean squared error, mean squared size of the truth, and the cosine of prediction and truth
    over all elements of the clip."""

    error: jax.Array
    zero: jax.Array
    cosine: jax.Array


@jax.jit
def errors(found: jax.Array, true: jax.Array) -> Errors:
    """Compare predicted with true differences, both [B, P, H, W, C]."""
    axes = tuple(range(1, true.ndim))
    size = jnp.sum(true**2, axes)
    product = jnp.sum(found * true, axes) / jnp.sqrt(jnp.maximum(size * jnp.sum(found**2, axes), 1e-12))
    return Errors(jnp.mean((found - true) ** 2, axes), jnp.mean(true**2, axes), product)


@functools.partial(jax.jit, static_argnames=("lag", "block", "radius"))
def matched_shift(latents: jax.Array, *, lag: int = LAG, block: int = BLOCK, radius: int = RADIUS) -> jax.Array:
    """Block matching in latent space, an oracle that sees the later frame: what the best translation explains.

    Every block of ``block x block`` positions of frame ``i + lag`` is taken from frame i at the integer shift, of at most
    `radius` positions along each axis, with the least squared error; borders are continued.

    Parameters
    ----------
    latents : [B, T', H, W, C].

    Returns
    -------
    float32 [B, T' - lag, H, W, C], what is predicted for `jaxdiff.lamo.differences`
    """
    latents = latents.astype(jnp.float32)
    here, later = latents[:, :-lag], latents[:, lag:]
    height, width = here.shape[2:4]
    wide = jnp.pad(here, ((0, 0), (0, 0), (radius, radius), (radius, radius), (0, 0)), mode="edge")

    def per_block(error):  # [B, P, H, W] -> the sum over its block, at every position
        down, right = -height % block, -width % block
        error = jnp.pad(error, ((0, 0), (0, 0), (0, down), (0, right)))
        sums = error.reshape(*error.shape[:2], -1, block, error.shape[3] // block, block).sum((3, 5))
        return jnp.repeat(jnp.repeat(sums, block, 2), block, 3)[:, :, :height, :width]

    def consider(best, shift):
        moved = jax.lax.dynamic_slice(wide, (0, 0, *shift, 0), here.shape)
        error = per_block(jnp.square(moved - later).sum(-1))
        better = error < best[0]
        return (jnp.where(better, error, best[0]), jnp.where(better[..., None], moved, best[1])), None

    # No shift comes first: of equal ones it is kept.
    shifts = sorted(
        np.ndindex(2 * radius + 1, 2 * radius + 1), key=lambda s: (abs(s[0] - radius) + abs(s[1] - radius), s)
    )
    start = jnp.full(here.shape[:-1], jnp.inf), here
    (_, found), _ = jax.lax.scan(consider, start, jnp.asarray(shifts))
    return found - here


@dataclasses.dataclass(frozen=True)
class Skill:
    """Of one prediction on held-out clips: means, and 95 % intervals from a bootstrap over clips (scenes)."""

    skill: float
    skill_interval: tuple[float, float]
    cosine: float
    cosine_interval: tuple[float, float]
    mse: float

    @classmethod
    def of(cls, parts: Sequence[Errors]) -> "Skill":
        """From the errors of some batches; a clip is a scene."""
        error, zero, cosine = (np.concatenate(values).astype(np.float64) for values in zip(*parts, strict=True))
        skill, ends = difference_of_sums(zero - error, zero)
        around = cluster_bootstrap(cosine, np.arange(len(cosine)))
        return cls(skill, (ends.low, ends.high), float(cosine.mean()), (around.low, around.high), float(error.mean()))


@jax.jit
def _of_network(network: Network, latents, text, text_mask, mean) -> dict[str, Errors]:
    lag = network.config.lag
    true = differences(latents, lag)
    found = {
        "field": network(latents[:, :-lag], text, text_mask),
        "field without prompt": network(latents[:, :-lag]),
        "mean": jnp.broadcast_to(mean, true.shape),
        "block matching": matched_shift(latents, lag=lag, block=BLOCK, radius=RADIUS),
    }
    return {name: errors(field, true) for name, field in found.items()}


@functools.partial(jax.jit, static_argnames="lag")
def _sum(latents, lag):
    return differences(latents, lag).sum(0)


def skills(network: Network, training: Iterable[tuple], held_out: Iterable[tuple]) -> dict[str, Skill]:
    """The skill of a motion field on held-out clips, beside that of predictions that bound it.

    Parameters
    ----------
    network : a `MotionField`.
    training, held_out : batches of clips, each (latents [B, T', H, W, C], text [B, N, D], text mask [B, N] or None).

    Returns
    -------
    "field" : the network, told the prompt; "field without prompt": the null condition.
    "mean" : the training clips' mean difference of each pair, position and channel: what needs no input.
    "block matching" : `matched_shift` with blocks of `BLOCK` and shifts of up to `RADIUS` latent positions. It sees the later
        frame: what translation explains. A ceiling for predictions that move what is there, and for no others: things that
        appear or vanish are not translated.
    """
    lag = network.config.lag
    total, count = np.zeros(()), 0
    for latents, _, _ in training:
        total, count = total + np.asarray(_sum(latents, lag), np.float64), count + len(latents)
    mean = jnp.asarray(total / count, jnp.float32)
    parts = [jax.device_get(_of_network(network, *clips, mean)) for clips in held_out]
    return {name: Skill.of([part[name] for part in parts]) for name in PREDICTIONS}
