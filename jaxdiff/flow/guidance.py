"""Classifier-free guidance as one evaluation of a double batch, and what else may change the field: guides."""

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow.solvers import SOLVERS, Solver

# What the published pipelines give the unconditional half too: guidance leads away from a text, not from an image.
SHARED = ("image_latents", "image_embeds", "fps", "extra")


class Guide(Protocol):
    """What `jaxdiff.sample` lets change the field, after the classifier-free mix: a pytree whose weights are leaves.

    A guide whose `scale` is the Python number 0 is no guide: the program is that of plain sampling.
    """

    def __call__(
        self, x: jax.Array, velocity: jax.Array, sigma: jax.Array, done: jax.Array, cond: Conditioning
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The guided velocity at a state, and what there is to report of it. Traced, inside the loop over the steps.

        Parameters
        ----------
        x, velocity : [B, T', H', W', C] float32, the state and the field's answer in flow coordinates, where the
            predicted clean latent is ``x - sigma velocity`` whatever the network was trained to predict.
        sigma : scalar, the state's noise level.
        done : scalar, the share of the steps that lie behind, 0 at the noise; one value for all evaluations of a step.
        cond : what the network was told, without the negative half; leaves [B, ...].

        Returns
        -------
        velocity : [B, T', H', W', C]
        metrics : name -> [B]
        """


def acting(guide: Any) -> Any:
    """`guide`, or None if its scale is known to be 0."""
    scale = getattr(guide, "scale", None)
    return None if isinstance(scale, int | float) and scale == 0 else guide


def check_solver(solver: Solver) -> None:
    """Raise a `ConfigError` for a solver that takes no guide."""
    if not solver.evaluates_start:
        ways = ", ".join(name for name, other in SOLVERS.items() if other.evaluates_start)
        raise ConfigError(
            f"{solver.name} does not evaluate the field where a step starts, as guide= needs; choose {ways}"
        )


def per_clip(cond: Conditioning, batch: int) -> Conditioning:
    """`cond` with leaves [batch, ...]."""
    return jax.tree.map(lambda leaf: _per_clip(leaf, batch), cond)


@dataclasses.dataclass(frozen=True)
class DynamicGuidance:
    """The published CogVideoX pipelines' ``use_dynamic_cfg``: another scale at every step.

    ``1 + scale (1 - cos(pi ((N - t) / N)^5)) / 2``, where N is the number of steps and t, as published, the timestep
    (999 at first) and not the step's number.

    Parameters
    ----------
    scale : how far above 1 it may go.
    """

    scale: float

    def __call__(self, timesteps: np.ndarray, steps: int) -> np.ndarray:
        """The scale at every timestep, float64 like `timesteps`, of a sample of `steps` steps."""
        # Of few steps the cosine's argument is some 1e12, and a last bit of NumPy's power would change the scale.
        angles = (math.pi * ((steps - float(t)) / steps) ** 5.0 for t in timesteps)
        return np.array([1 + self.scale * ((1 - math.cos(angle)) / 2) for angle in angles])


@dataclasses.dataclass(frozen=True)
class ExpertGuidance:
    """The published Wan 2.2 pipelines' `guidance_scale` and `guidance_scale_2`: a scale for each of two networks.

    Parameters
    ----------
    scale, scale_2 : of `transformer` and of `transformer_2`
    boundary : the timestep that lies between the two, ``pipeline.boundary``
    """

    scale: float
    scale_2: float
    boundary: float

    def __call__(self, timesteps: np.ndarray, steps: int) -> np.ndarray:
        """The scale at every timestep, float64; compared in float32, as the pipeline chooses the network."""
        high = np.asarray(timesteps, np.float32) >= np.float32(self.boundary)
        return np.where(high, float(self.scale), float(self.scale_2))


def scales(scale: Any, timesteps: Any, steps: int) -> jax.Array:
    """The scale of every step, float32 like `timesteps`.

    Parameters
    ----------
    scale : one number, or a function of the next two
    timesteps : what the network is told in each step
    steps : how many there are, without those put in to be read

    Raises
    ------
    ConfigError : a function that does not give one number a step.
    """
    if not callable(scale):
        return jnp.broadcast_to(jnp.asarray(scale, jnp.float32), timesteps.shape)
    each = scale(timesteps, steps)
    if np.shape(each) != timesteps.shape:
        raise ConfigError(f"guidance_scale={scale!r} gives an array {np.shape(each)} for {timesteps.shape[0]} steps")
    return jnp.asarray(each, jnp.float32)


def pair(cond: Conditioning, negative: Conditioning, batch: int) -> Conditioning:
    """Both conditionings as one of batch 2B: rows 2b and 2b + 1 are clip b, conditional and unconditional.

    Neighbours, not halves: a batch split over devices then stays where it is. What `negative` leaves out of image, fps
    and extra is that of `cond`.

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

    left_out = {name: getattr(cond, name) for name in SHARED if getattr(negative, name) is None}
    negative = dataclasses.replace(negative, **left_out)
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
    known &= not callable(scale)
    if known and np.ndim(scale):
        raise ConfigError(
            f"guidance_scale must be one number or a function of the timesteps, got shape {np.shape(scale)}"
        )
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
