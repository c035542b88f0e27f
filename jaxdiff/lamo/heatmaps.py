"""Where a clip drifts, and where the motion field expects motion: maps over the latent grid. LaMo, arXiv 2605.23878.

The numbers of equations are those of third-party notes; the paper's body is not public.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError
from jaxdiff.lamo.motion import differences
from jaxdiff.models.network import Network

EPS = 1e-6


class MotionMaps(NamedTuple):
    """Of clips; P = T' - lag pairs, pair i of the latent frames i and i + lag.

    drift_size [B, P] : |mu_i|, how much the whole frame drifts.
    strongest [B] : t* = argmax_i |mu_i| (11), the pair that maps of a whole clip are taken at.
    drift [B, P, H', W'] : ``R_drift = |<Delta_i, mu_i>| / (|mu_i| + eps)`` (12), how much of a position's change goes along
        with the whole frame's drift.
    field [B, P, H', W'] : ``R_field = |f(z_i, c) - f(z_static, c)|`` over channels (14), what the field expects of a frame
        beyond what it expects of the clip's temporal mean.
    """

    drift_size: jax.Array
    strongest: jax.Array
    drift: jax.Array
    field: jax.Array


@jax.jit
def motion_maps(
    network: Network, latents: jax.Array, text: jax.Array | None = None, text_mask: jax.Array | None = None
) -> MotionMaps:
    """Maps of every pair of clips [B, T', H', W', C], all float32.

    Parameters
    ----------
    network : a trained `MotionField`; its lag is the maps'.
    text, text_mask : [B or 1, N, D] and bool [B or 1, N], the clips' prompts; None: the null condition.
    """
    lag = network.config.lag
    change = differences(latents, lag)
    mu = change.mean((2, 3))
    size = jnp.linalg.norm(mu, axis=-1)
    along = jnp.abs(jnp.einsum("bphwc,bpc->bphw", change, mu, precision="highest"))
    latents = latents.astype(jnp.float32)
    expected = network(latents[:, :-lag], text, text_mask)
    static = network(latents.mean(1, keepdims=True), text, text_mask)
    return MotionMaps(
        size,
        jnp.argmax(size, -1),
        along / (size + EPS)[:, :, None, None],
        jnp.linalg.norm(expected - static, axis=-1),
    )


def video_frames(frames: int, latent_frames: int) -> list[range]:
    """The video frames that each latent frame of a causal VAE stands for: the first alone, then equally many at a time.

    Raises
    ------
    ConfigError : the numbers are not those of a causal VAE.
    """
    stride, rest = divmod(frames - 1, max(latent_frames - 1, 1))
    if rest or frames < 1 or (latent_frames == 1) != (frames == 1):
        raise ConfigError(f"{frames} video frames are not 1 + k strides for {latent_frames} latent frames")
    return [range(1), *(range(1 + stride * i, 1 + stride * (i + 1)) for i in range(latent_frames - 1))]
