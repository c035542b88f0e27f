"""The discrete diffusion of PIDM (Bastek et al., arXiv 2403.14404): cosine schedule, prediction of the clean field.

``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise`` for t = 0 ... T - 1, less noise for smaller t. In flow coordinates
(`jaxdiff.flow`) the same state is at ``sigma = s / (sqrt(abar) + s)`` with ``s = sqrt(1 - abar)``.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # states [B, ...] at timesteps int [B] -> clean fields [B, ...]
OFFSET = 0.008  # s of the cosine schedule (Nichol & Dhariwal, arXiv 2102.09672, eq. 17)
LARGEST_BETA = 0.999
CLIPPED_SNR = 5.0  # gamma of min-SNR weighting (Hang et al., arXiv 2303.09556)


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a schedule is at each of its T timesteps, float64 [T].

    Parameters
    ----------
    kept : abar, the share of the variance that is signal.
    beta : of the step that leads here, at most 0.999.
    clean_share, state_share : c1 and c2 of the mean ``c1 x_0 + c2 x_t`` of x_{t-1} given both.
    variance : of that, Sigma_t; the first, which would be zero, is that of t = 1.
    weight : ``min(abar / (1 - abar), 5)``, of the squared error of the clean field.
    sigma : in flow coordinates.
    """

    kept: np.ndarray
    beta: np.ndarray
    clean_share: np.ndarray
    state_share: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    sigma: np.ndarray


@dataclasses.dataclass(frozen=True)
class CosineDiffusion:
    """The schedule of T = `steps` timesteps, and what is done along it."""

    steps: int = 100

    def __post_init__(self):
        if self.steps < 2:
            raise ConfigError(f"steps={self.steps}; a diffusion needs at least 2 timesteps")

    @property
    def tables(self) -> Tables:
        """Float64 tables over the timesteps."""
        return _tables(self.steps)

    def at(self, table: np.ndarray, t: jax.Array, like: jax.Array) -> jax.Array:
        """Entries of a table at timesteps [B], shaped to multiply arrays like [B, ...], in their dtype."""
        return jnp.asarray(table, like.dtype)[t].reshape(-1, *[1] * (like.ndim - 1))

    def noised(self, clean: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """x_t of clean fields [B, ...] at timesteps int [B]."""
        kept = self.tables.kept
        return self.at(np.sqrt(kept), t, clean) * clean + self.at(np.sqrt(1 - kept), t, clean) * noise

    def variance_at(self, sigma: jax.Array) -> jax.Array:
        """Sigma_t at noise levels in flow coordinates [B], interpolated between the timesteps: what weighs residuals of
        models that are trained at any level."""
        sigma = jnp.asarray(sigma)
        return jnp.interp(sigma, *(jnp.asarray(v, sigma.dtype) for v in (self.tables.sigma, self.tables.variance)))

    def ddim(self, denoise: Denoiser, x: jax.Array, t: jax.Array, between: int = 0) -> tuple[jax.Array, jax.Array]:
        """A clean field by deterministic DDIM steps from x_t, and the network's first prediction on the way.

        Each row walks its own timesteps ``int(linspace(0, t, between + 2))`` downwards, and the last prediction, at 0, is
        the field. Where two of them are equal (small t) nothing is done. Gradients flow through every step.

        Parameters
        ----------
        x : [B, ...]
        t : int [B]
        between : timesteps between t and 0; none makes two calls of the network, as published.
        """
        # In integers, so that no rounding decides: exactly floor(i t / (between + 1)).
        walk = [i * t // (between + 1) for i in range(between + 1, -1, -1)]
        noise_share, signal = np.sqrt(1 - self.tables.kept), np.sqrt(self.tables.kept)
        predictions = []
        for now, following in itertools.pairwise(walk):
            predictions.append(denoise(x, now))
            noise = (x - self.at(signal, now, x) * predictions[-1]) / self.at(noise_share, now, x)
            moved = self.at(signal, following, x) * predictions[-1] + self.at(noise_share, following, x) * noise
            x = jnp.where((now == following).reshape(-1, *[1] * (x.ndim - 1)), x, moved)
        return denoise(x, walk[-1]), predictions[0]

    def sample(self, denoise: Denoiser, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Ancestral sampling from noise: ``x_{t-1} = c1 x_0 + c2 x_t + sqrt(beta_t) noise``, without noise at the last step.

        The published noise is sqrt(beta_t) and not the root of the posterior variance. Float32 `shape`; one `lax.scan`.
        """
        tables = self.tables
        start, noise = jax.random.split(key)

        def step(x, t):
            rows = jnp.full((shape[0],), t)
            mean = self.at(tables.clean_share, rows, x) * denoise(x, rows) + self.at(tables.state_share, rows, x) * x
            spread = jnp.asarray(np.sqrt(tables.beta), x.dtype)[t] * (t > 0)
            return mean + spread * jax.random.normal(jax.random.fold_in(noise, t), shape), None

        return jax.lax.scan(step, jax.random.normal(start, shape), jnp.arange(self.steps - 1, -1, -1))[0]


@functools.cache
def _tables(steps: int) -> Tables:
    curve = np.square(np.cos((np.arange(steps + 1) / steps + OFFSET) / (1 + OFFSET) * np.pi / 2))
    beta = np.clip(1 - curve[1:] / curve[:-1], 0.0, LARGEST_BETA)
    kept = np.cumprod(1 - beta)
    before = np.append(1.0, kept[:-1])
    variance = beta * (1 - before) / (1 - kept)
    variance[0] = variance[1]
    s = np.sqrt(1 - kept)
    found = Tables(
        kept,
        beta,
        beta * np.sqrt(before) / (1 - kept),
        (1 - before) * np.sqrt(1 - beta) / (1 - kept),
        variance,
        np.minimum(kept / (1 - kept), CLIPPED_SNR),
        s / (np.sqrt(kept) + s),
    )
    for table in vars(found).values():
        table.setflags(write=False)
    return found
