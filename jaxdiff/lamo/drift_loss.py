"""The Motion Drift Loss: the predicted clean latents should drift as the true ones do. LaMo, arXiv 2605.23878."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError
from jaxdiff.lamo.motion import LAG, differences, regular_pairs


@dataclasses.dataclass(frozen=True)
class DriftLoss:
    """``mean_i |mu_hat_i - mu_i|^2 / (|mu_i|^2 + floor)``, weighted by how much of the clean latent a state still holds.

    The clean latent that a field predicts at a state is ``x - sigma v``, whatever its network was trained to predict, so
    that one loss serves flow, v-prediction and noise-prediction models.

    Parameters
    ----------
    lag : latent frames between the two of a pair (tau; the project page's 2).
    weight : lambda_d, the factor beside the denoising loss (0.4; reported by third parties, not in an official source).
    floor : added to ``|mu_i|^2``, per channel summed over: a clip at rest would divide by nothing. The 1e-6 of third-party
        code is small beside latents of unit variance; it is the default for fidelity.
    per_position : compare the differences position by position instead of their means (the paper's dense ablation).
    normalised : divide by the true drift's size (False: the paper's ablation with a raw L2).
    skip_first : leave out pair 0, whose frames are closer in time (`regular_pairs`); ours.
    """

    lag: int = LAG
    weight: float = 0.4
    floor: float = 1e-6
    per_position: bool = False
    normalised: bool = True
    skip_first: bool = False

    def __post_init__(self):
        if self.weight < 0 or self.floor <= 0:
            raise ConfigError(f"weight={self.weight} must not be negative and floor={self.floor} must be positive")

    def per_clip(self, predicted: jax.Array, clean: jax.Array) -> jax.Array:
        """The loss of every clip, not yet weighted.

        Parameters
        ----------
        predicted, clean : [B, T', H', W', C], the clean latents as predicted and as they are; gradients reach
            `predicted` alone.

        Returns
        -------
        float32 [B]
        """
        true = differences(jax.lax.stop_gradient(clean), self.lag)
        found = differences(predicted, self.lag)
        if not self.per_position:
            true, found = true.mean((2, 3)), found.mean((2, 3))
        error, size = (jnp.sum(jnp.square(x), -1) for x in (found - true, true))
        ratio = error / (size + self.floor) if self.normalised else error
        pairs = regular_pairs(clean.shape[1], self.lag) if self.skip_first else slice(None)
        ratio = ratio[:, pairs]
        if not ratio.shape[1]:
            raise ConfigError(f"{clean.shape[1]} latent frames have no pair but the first, which skip_first leaves out")
        return ratio.reshape(ratio.shape[0], -1).mean(1)

    def __call__(self, predicted: jax.Array, clean: jax.Array, sigma: jax.Array) -> jax.Array:
        """``weight * mean_b w(sigma_b) L_b``, what is added to the denoising loss: a float32 scalar.

        Parameters
        ----------
        sigma : [B], noise levels in flow coordinates. ``w = (1 - sigma)^2 / ((1 - sigma)^2 + sigma^2)``, which is
            alpha-bar of a variance-preserving model at that level.
        """
        return self.weight * jnp.mean(signal_share(sigma) * self.per_clip(predicted, clean))


def predicted_clean(x: jax.Array, velocity: jax.Array, sigma: jax.Array) -> jax.Array:
    """``x0 = x - sigma v`` for states and velocities [B, ...] in flow coordinates and sigma [B] or a scalar."""
    sigma = jnp.asarray(sigma, jnp.float32)
    return x - sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) * velocity


def signal_share(sigma: jax.Array) -> jax.Array:
    """alpha-bar: the share of a state's variance that is signal, for unit-variance signal and noise."""
    sigma = jnp.asarray(sigma, jnp.float32)
    return jnp.square(1.0 - sigma) / (jnp.square(1.0 - sigma) + jnp.square(sigma))
