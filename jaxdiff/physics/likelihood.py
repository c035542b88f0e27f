"""The losses of physics-informed diffusion (PIDM, Bastek et al., arXiv 2403.14404): data, residual, objective.

A residual r of the clean field counts as an observation of zero with the variance of the diffusion's posterior at t,
``-log p(r = 0 | x_0) = r^2 / (2 Sigma_t)`` but for a constant: its weight grows steeply towards the clean end. A constant
weight would be another, weaker method.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError
from jaxdiff.physics.diffusion import CosineDiffusion, Denoiser
from jaxdiff.train.finetune import ExtraLoss

Estimation = Literal["none", "mean", "sample"]


@dataclasses.dataclass(frozen=True)
class ResidualLoss:
    """``c * mean(r(x_0)^2 / (2 Sigma_t))``, an `ExtraLoss` for PIDM and for every video backbone (`jaxdiff.train.finetune`).

    Parameters
    ----------
    residual : predicted clean fields [B, ...] -> [B, ...], zero where the law holds. For a video backbone its argument is the
        latents [B, T', H', W', C]; a law of pixels decodes them first:
        ``lambda latents: residuals.wave(pipeline.vae(latents, method="decode")[..., 0], ...)``. An inequality g <= 0 is the
        residual ``relu(g)``.
    weight : c; as published 1e-3 with mean estimation and 1e-5 with sample estimation, for Darcy flow.
    diffusion : whose Sigma_t. Noise levels between its timesteps are interpolated (`CosineDiffusion.variance_at`).
    most : bound on ``r^2 / (2 Sigma_t)``, beyond which there is no gradient; the published toy example has 27.63.
    """

    residual: Callable[[jax.Array], jax.Array]
    weight: float = 1e-3
    diffusion: CosineDiffusion = CosineDiffusion()
    most: float | None = None

    def __post_init__(self):
        if self.weight < 0 or (self.most is not None and self.most <= 0):
            raise ConfigError(f"weight={self.weight} must not be negative and most={self.most} must be positive")

    def __call__(self, predicted: jax.Array, clean: jax.Array, sigma: jax.Array) -> jax.Array:
        """A scalar; `sigma` [B] in flow coordinates, `clean` does not matter."""
        r = self.residual(predicted)
        if r.ndim == 0 or r.shape[0] != predicted.shape[0]:
            raise ConfigError(
                f"the residual of fields {predicted.shape} is {r.shape}; it must have a row for every field"
            )
        variance = self.diffusion.variance_at(sigma.astype(r.dtype))
        surprise = jnp.square(r) / (2 * variance.reshape(-1, *[1] * (r.ndim - 1)))
        return self.weight * jnp.mean(surprise if self.most is None else jnp.minimum(surprise, self.most))


@dataclasses.dataclass(frozen=True)
class ObjectiveLoss:
    """``lambda * mean(q(x_0))``, the likelihood of a quantity that is as small as can be (exponential), as compliance.

    Parameters
    ----------
    objective : predicted clean fields [B, ...] -> [B].
    """

    objective: Callable[[jax.Array], jax.Array]
    weight: float

    def __call__(self, predicted: jax.Array, clean: jax.Array, sigma: jax.Array) -> jax.Array:
        """A scalar; neither `clean` nor `sigma` matters."""
        return self.weight * jnp.mean(self.objective(predicted))


def pidm_losses(
    denoise: Denoiser,
    diffusion: CosineDiffusion,
    clean: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    extra: Mapping[str, ExtraLoss] | None = None,
    *,
    estimation: Estimation = "mean",
    between: int = 0,
) -> dict[str, jax.Array]:
    """The losses of a batch at given noise and timesteps: "data", and one for each of `extra`, scalars.

    "data" is ``mean_b min(SNR_t, 5) |x_0 - denoise(x_t, t)|^2 / size``. The extra losses look at an estimate of the clean
    field: the network's prediction, which is the mean of what is possible ("mean"), or one possible field by `between` + 1
    DDIM steps from x_t ("sample"), where a law that is not linear need not hold for the mean.

    Parameters
    ----------
    clean, noise : [B, ...]
    t : int [B]
    """
    x = diffusion.noised(clean, noise, t)
    if estimation == "sample" and extra:
        estimate, predicted = diffusion.ddim(denoise, x, t, between)
    else:
        estimate = predicted = denoise(x, t)
    error = jnp.mean(jnp.square(predicted - clean).reshape(len(clean), -1), 1)
    losses = {"data": jnp.mean(jnp.asarray(diffusion.tables.weight, error.dtype)[t] * error)}
    if extra and estimation != "none":
        sigma = jnp.asarray(diffusion.tables.sigma, error.dtype)[t]
        losses |= {name: loss(estimate, clean, sigma) for name, loss in extra.items()}
    return losses
