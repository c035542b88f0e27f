"""Motion in latent space: differences of latent frames some frames apart, and what they are on average.

LaMo, arXiv 2605.23878. T' latent frames give T' - lag pairs; pair i is of the frames i and i + lag.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError

LAG = 2  # tau of the paper, latent frames


def differences(latents: jax.Array, lag: int = LAG) -> jax.Array:
    """``z[i + lag] - z[i]`` of clean latents [B, T', H', W', C], as [B, T' - lag, H', W', C] float32.

    Raises
    ------
    ConfigError : there are fewer than lag + 1 latent frames, or `lag` is below 1.
    """
    if latents.ndim != 5:
        raise ConfigError(f"latents must be [B, T', H', W', C], got {latents.shape}")
    if lag < 1:
        raise ConfigError(f"lag={lag}; frames are compared with later ones, so it must be 1 or more")
    if latents.shape[1] <= lag:
        raise ConfigError(
            f"{latents.shape[1]} latent frames have no two that are {lag} apart; at least {lag + 1} are needed"
        )
    latents = latents.astype(jnp.float32)
    return latents[:, lag:] - latents[:, :-lag]


def macro_drift(latents: jax.Array, lag: int = LAG) -> jax.Array:
    """The mean over positions of `differences`: mu [B, T' - lag, C] float32, how each channel drifts as a whole."""
    return differences(latents, lag).mean((2, 3))


def regular_pairs(frames: int, lag: int = LAG) -> np.ndarray:
    """Pairs whose two frames stand for equally many video frames: bool [T' - lag].

    The causal video VAEs encode the first video frame alone and then `stride` of them at a time, so that the first latent
    frame is nearer to the second than any other two neighbours are. Only pair 0 holds it.
    """
    return np.arange(frames - lag) > 0
