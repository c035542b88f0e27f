"""Schedules of networks trained on ``z = alpha x0 + s noise`` with ``alpha^2 + s^2 = 1`` that predict v, as CogVideoX.

In flow coordinates (`jaxdiff.flow.schedule`) the same states are ``x = z / (alpha + s)`` at ``sigma = s / (alpha + s)``.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.flow.multistep import DPMpp2MSDE
from jaxdiff.flow.schedule import SCHEDULERS, Schedule
from jaxdiff.flow.solvers import Solver


@dataclasses.dataclass(frozen=True)
class VariancePreserving(Schedule):
    """`CogVideoXDDIMScheduler`: v-prediction, zero terminal SNR, trailing timesteps.

    With ``n = alpha + s = ((1 - sigma)^2 + sigma^2)^(-1/2)`` and the network's ``v = alpha noise - s x0``::

        dx / dsigma = noise - x0 = (s z + alpha v) - (alpha z - s v) = (2 sigma - 1) n^2 x + n v

    which divides by nothing, so that it holds at alpha = 0 (t = 999) too. An Euler step of this field is a DDIM step, and
    `ddim_label` is the DDIM inversion that evaluates v at the next timestep.

    A grid of N steps has the sigmas of the scheduler's N timesteps, ``round(1000 - i 1000 / N) - 1``, and ends at 0. Where
    N divides 1000 sampling with `Euler` is the scheduler's own. Where it does not, the scheduler steps to
    ``t - 1000 // N``, one beside the next timestep, and stops short of a clean state; here every step ends where the
    next begins.

    Parameters
    ----------
    shift : `snr_shift_scale`, by which the signal-to-noise ratio alpha^2 / s^2 is divided.
    beta_start, beta_end : ends of the noise added per training step; their roots are spaced evenly between.
    """

    shift: float = 3.0
    beta_start: float = 0.00085
    beta_end: float = 0.012

    SHIFT_KEY: ClassVar[str] = "snr_shift_scale"
    KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "clip_sample",
            "set_alpha_to_one", "steps_offset", "prediction_type", "clip_sample_range", "sample_max_value",
            "timestep_spacing", "rescale_betas_zero_snr", "snr_shift_scale",
        }
    )  # fmt: skip
    # The two classes never clip, whatever clip_sample says, and trailing timesteps have no offset.
    REQUIRED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "prediction_type": ("v_prediction",),
        "timestep_spacing": ("trailing",),
        "rescale_betas_zero_snr": (True,),
        "beta_schedule": ("scaled_linear",),
        "set_alpha_to_one": (True,),
        "trained_betas": (None,),
    }
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "rescale_betas_zero_snr": False,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": True,
        "snr_shift_scale": 3.0,
    }

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                f"a schedule needs 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}"
            )

    @property
    def sigma_min_trained(self) -> float:
        """Sigma of timestep 0: .048 for CogVideoX-2B, .028 for 5B."""
        return float(self.sigmas[0])

    @property
    def sigmas(self) -> np.ndarray:
        """Sigma of every timestep, float64 [num_train_timesteps], ascending to exactly 1."""
        return _sigmas(self)

    def timestep(self, label):
        """The timestep whose sigma is `label`, interpolated between the integers; 0 below `sigma_min_trained`.

        The table is float32 for every label: one that `rounded` made then lies on it, and gives the integer itself.
        """
        xp = jnp if isinstance(label, jax.Array) else np
        return xp.interp(label, _sigmas(self).astype(np.float32), np.arange(self.num_train_timesteps, dtype=np.float32))

    def rounded(self, sigmas):
        """Labels of the nearest integer timesteps."""
        timesteps = np.interp(np.asarray(sigmas, np.float64), self.sigmas, np.arange(self.num_train_timesteps))
        return self.sigmas[np.round(timesteps).astype(int)].astype(np.float32)

    def to_network(self, x, sigma):
        """``z = n x``, float32."""
        return _norm(x, sigma)[1] * x.astype(jnp.float32)

    def velocity(self, output, x, sigma):
        """``(2 sigma - 1) n^2 x + n v``, float32."""
        sigma, norm = _norm(x, sigma)
        return (2 * sigma - 1) * norm * norm * x.astype(jnp.float32) + norm * output.astype(jnp.float32)

    def target(self, clean, noise, sigma):
        """``v = alpha noise - s clean = n ((1 - sigma) noise - sigma clean)``, float32."""
        sigma, norm = _norm(noise, sigma)
        return norm * ((1 - sigma) * noise.astype(jnp.float32) - sigma * clean.astype(jnp.float32))

    def _sampler_sigmas(self, steps, tokens):
        if steps > self.num_train_timesteps:
            raise ConfigError(f"{steps} steps are more than the {self.num_train_timesteps} timesteps of this schedule")
        # The reference's own arange may run one step too far, to a timestep of -1.
        ends = np.arange(self.num_train_timesteps, 0, -self.num_train_timesteps / steps)[:steps]
        return self.sigmas[np.round(ends).astype(int) - 1]


class VariancePreservingSDE(VariancePreserving):
    """`CogVideoXDPMScheduler`: the same field and grid, sampled with `DPMpp2MSDE`."""

    @property
    def solver(self) -> Solver:
        """`DPMpp2MSDE`."""
        return DPMpp2MSDE()


@functools.lru_cache(maxsize=16)
def _sigmas(schedule: VariancePreserving) -> np.ndarray:
    roots = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, schedule.num_train_timesteps)
    kept = np.cumprod(1.0 - roots**2)  # alpha^2 before the shift
    kept = kept / (schedule.shift + (1 - schedule.shift) * kept)
    # Zero terminal SNR (Lin et al., arXiv 2305.08891, algorithm 1): alpha moves and stretches to end at 0.
    alpha = np.sqrt(kept)
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    s = np.sqrt(1.0 - alpha**2)
    sigmas = s / (alpha + s)
    sigmas.setflags(write=False)
    return sigmas


def _norm(x: jax.Array, sigma: Any) -> tuple[jax.Array, jax.Array]:
    """Sigma, and n of it, to broadcast against x: scalar or [B, 1, ...], float32."""
    sigma = jnp.asarray(sigma, jnp.float32)
    sigma = sigma.reshape(*sigma.shape, *[1] * (x.ndim - 1)) if sigma.ndim else sigma
    return sigma, jax.lax.rsqrt(jnp.square(1 - sigma) + jnp.square(sigma))


# `jaxdiff.flow` imports this module, so the registry is complete whenever anything of the flow is in use.
SCHEDULERS.update({"CogVideoXDDIMScheduler": VariancePreserving, "CogVideoXDPMScheduler": VariancePreservingSDE})
