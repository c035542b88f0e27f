"""Motion Prior Guidance: a sample's predicted clean latents are led towards what the motion field expects of them.

LaMo, arXiv 2605.23878. The guidance acts on the field's answer after the classifier-free mix; no gradient goes through the
transformer, since the predicted clean latent ``x0 = x - sigma v`` is affine in that answer.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.lamo.drift_loss import predicted_clean
from jaxdiff.lamo.motion import differences
from jaxdiff.models.network import Network

LARGEST = 100.0  # bound of sigma / (1 - sigma), which is infinite at pure noise
FAINT = 1e-20  # a scale that changes no float32 velocity, by a program that every other scale runs too


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["field", "scale"], meta_fields=["space", "share", "largest"]
)
@dataclasses.dataclass(frozen=True)
class MotionGuidance:
    """A guide for `jaxdiff.sample`: ``velocity' = velocity + d(sigma) scale g`` with ``g = d energy / d x0``.

    Parameters
    ----------
    field : a trained `MotionField`.
    scale : lambda_g. What a value does depends on how the energy is summed, so numbers of other codes (15 in the official
        README, 25 in third-party notes) mean nothing here: choose it by the relative change that is logged, see
        `calibrated`. The Python number 0 compiles to plain sampling.
    space : "noise": the gradient is taken with respect to the noise prediction, as published; then
        ``d = sigma / (1 - sigma)^2`` and the clean latent moves by ``-scale (sigma / (1 - sigma))^2 g``, which grows without
        bound towards pure noise. "velocity": with respect to the velocity; ``d = sigma`` and ``-scale sigma^2 g``, bounded.
    share : rho, the share of the steps, at the lower noise levels, that are guided (0.8: not the noisiest fifth).
    largest : bound of ``sigma / (1 - sigma)`` in "noise"; ours.
    """

    field: Network
    scale: float | jax.Array = 1.0
    space: Literal["noise", "velocity"] = "noise"
    share: float = 0.8
    largest: float = LARGEST

    def __post_init__(self):
        if self.space not in ("noise", "velocity"):
            raise ConfigError(f"space={self.space!r} is unknown; choose 'noise' or 'velocity'")
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"share={self.share} is a share of the steps, between 0 and 1")

    def check(self, frames: int, channels: int, text_dim: int) -> None:
        """Raise a `ConfigError` unless the field is one of latents of so many channels and frames and of such prompts."""
        config = self.field.config
        if (config.channels, config.text_dim) != (channels, text_dim):
            raise ConfigError(
                f"the motion field was made for latents of {config.channels} channels and text embeddings of "
                f"{config.text_dim}, but the model has {channels} and {text_dim}: it belongs to another model"
            )
        if frames <= config.lag:
            raise ConfigError(
                f"{frames} latent frames have no two that are {config.lag} apart, which is what the motion field "
                f"describes; at least {config.lag + 1} are needed: sample longer videos"
            )

    def energy(self, clean: jax.Array, cond: Conditioning) -> jax.Array:
        """``mean_i |z_i + f(z_i, c) - z_{i + lag}|^2``, summed over channels and positions: [B].

        Parameters
        ----------
        clean : [B, T', H', W', C] float32.
        """
        self.check(clean.shape[1], clean.shape[-1], cond.text.shape[-1])
        lag = self.field.config.lag
        expected = self.field(clean[:, :-lag], cond.text, cond.text_mask)
        return jnp.square(expected - differences(clean, lag)).sum((2, 3, 4)).mean(1)

    def __call__(
        self, x: jax.Array, velocity: jax.Array, sigma: jax.Array, done: jax.Array, cond: Conditioning
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The guided velocity at a state.

        Parameters
        ----------
        x, velocity : [B, T', H', W', C] float32, the state and the field's answer in flow coordinates.
        sigma : scalar, the state's noise level.
        done : scalar, the share of the steps that lie behind, 0 at the noise.
        cond : what the network was told.

        Returns
        -------
        velocity : [B, T', H', W', C]
        {"energy": [B] before the change, "change": [B] rms change of the predicted clean latent over its rms}
        """
        clean = predicted_clean(x, velocity, sigma)
        energy, gradient = _value_and_grad(self.energy, clean, cond)
        on = (done >= 1.0 - self.share).astype(jnp.float32) * self.scale
        ratio = jnp.minimum(sigma / jnp.maximum(1.0 - sigma, 1e-12), self.largest)
        # In "noise": e' = e + scale ratio g and x0' = x0 - scale ratio^2 g, so v' - v = scale (ratio + ratio^2) g.
        add, move = (ratio * (1.0 + ratio), ratio**2) if self.space == "noise" else (sigma, sigma**2)
        size = jnp.sqrt(jnp.mean(jnp.square(gradient), (1, 2, 3, 4)))
        rms = jnp.sqrt(jnp.mean(jnp.square(clean), (1, 2, 3, 4)))
        change = jnp.abs(on) * move * size / jnp.maximum(rms, 1e-12)
        return velocity + on * add * gradient, {"energy": energy, "change": change}

    def faint(self) -> "MotionGuidance":
        """This guide with a scale that leaves a sample as it is, and whose "change" is all the same that of the scale."""
        return dataclasses.replace(self, scale=FAINT)

    def calibrated(self, change: float, measured: np.ndarray | jax.Array) -> "MotionGuidance":
        """This guide with the scale that changes the predicted clean latent by `change` on average, over guided steps.

        At a given state the change is linear in the scale, so that a plain sample, made with the guide `faint`, tells the
        scale. The states of a guided sample are others, and what it logs differs a little.

        Parameters
        ----------
        change : wanted, relative: 0.005 for half a per cent.
        measured : [steps, B], the metric "change" of samples that this guide, with its scale, guided.

        Raises
        ------
        ConfigError : `change` is not positive, or the guide would have changed nothing, whatever its scale.
        """
        if not change > 0:
            raise ConfigError(
                f"change={change} must be positive: it is what the guidance does to the predicted clean latent"
            )
        steps = len(measured)
        guided = np.asarray(measured, np.float64)[np.arange(steps, dtype=np.float32) / steps >= 1.0 - self.share]
        mean = guided.mean() if guided.size else 0.0
        if not (np.isfinite(mean) and mean > 0):
            raise ConfigError(
                f"the guidance changed the {len(guided)} guided of {steps} steps by {mean} on average: there is nothing to "
                "calibrate (a scale of 0, a share of 0, or latents that lie where the field wants them)"
            )
        return dataclasses.replace(self, scale=float(self.scale) * change / float(mean))


def _value_and_grad(energy, clean, cond):
    def total(clean):
        each = energy(clean, cond)
        return each.sum(), each

    gradient, each = jax.grad(total, has_aux=True)(clean)
    return each, gradient
