"""Where a token of Cosmos lies: the grid of the latents, learned vectors of its axes, and the rotary embedding."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiff.errors import ConfigError

if TYPE_CHECKING:
    from jaxdiff.models.cosmos.transformer import CosmosTransformerConfig

EPS = 1e-6  # of all norms but those of queries and keys; a constant of the reference
THETA = 10000.0
BASE_FPS = 24.0  # at this rate a latent frame is one position from the next

Grid3 = tuple[int, int, int]


class LearnedPositions(nnx.Module):
    """A vector for every frame, row and column, whose sum is a token's, scaled to a root mean square of 1."""

    def __init__(self, config: "CosmosTransformerConfig", *, rngs: nnx.Rngs):
        def table(size):
            return nnx.Param(jax.random.normal(rngs.params(), (size, config.width)) * config.width**-0.5)

        self.frames, self.rows, self.columns = (table(size) for size in config.max_grid)

    def __call__(self, grid: Grid3) -> jax.Array:
        """[T' H' W', D] float32"""
        t, h, w = (
            table[...][:size].astype(jnp.float32)
            for table, size in zip((self.frames, self.rows, self.columns), grid, strict=True)
        )
        x = (t[:, None, None] + h[None, :, None] + w[None, None]).reshape(-1, t.shape[-1])
        return x / (EPS + jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True)))


def token_grid(config: "CosmosTransformerConfig", shape: tuple[int, ...]) -> Grid3:
    """(T', H', W') in tokens of latents [B, T', H', W', C].

    Raises
    ------
    ConfigError : a size that is no multiple of the patch, or larger than the checkpoint has positions for.
    """
    if any(n % p for n, p in zip(shape[1:4], config.patch_size, strict=True)):
        raise ConfigError(
            f"latents {tuple(shape)}: T', H', W' must be multiples of the patch size {config.patch_size}; choose "
            "another video size"
        )
    t, h, w = (n // p for n, p in zip(shape[1:4], config.patch_size, strict=True))
    # Rotary positions are counted up to the longest axis, learned ones along each.
    most = config.max_grid if config.extra_pos_embed_type else (max(config.max_grid),) * 3
    if any(n > limit for n, limit in zip((t, h, w), most, strict=True)):
        raise ConfigError(
            f"latents {tuple(shape)} are {(t, h, w)} tokens, and this checkpoint has positions for {most}"
        )
    return (t, h, w)


def rotary(config: "CosmosTransformerConfig", grid: Grid3, fps=None) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary embedding, for `kernels.rotate_halves`.

    A head's channels are split into (d - 4 (d // 6), 2 (d // 6), 2 (d // 6)) for time, rows and columns. An axis of n
    channels has the frequencies ``theta ** (-2 i / n)`` with ``theta = 10000 scale ** (n / (n - 2))`` (NTK scaling).
    Formed in float32, as in the reference.

    Parameters
    ----------
    grid : (T', H', W') in tokens
    fps : positions in time are multiplied by 24 / fps; one number, or [B].

    Returns
    -------
    cos, sin : float32 [T' H' W', d / 2], or [B, T' H' W', d / 2] where the clips have rates of their own.
    """
    space = config.attention_head_dim // 6 * 2
    angles = []
    for axis, channels in enumerate((config.attention_head_dim - 2 * space, space, space)):
        theta = np.float32(THETA * config.rope_scale[axis] ** (channels / (channels - 2)))
        exponents = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
        frequencies = np.float32(1) / np.power(theta, exponents, dtype=np.float64).astype(np.float32)
        positions = jnp.arange(grid[axis], dtype=jnp.float32)
        if axis == 0 and fps is not None:
            positions = positions / jnp.asarray(fps, jnp.float32)[..., None] * BASE_FPS
        angle = positions[..., None] * frequencies  # [n, channels / 2], or [B, n, channels / 2]
        shape = [1, 1, 1, channels // 2]
        shape[axis] = grid[axis]
        angles.append(angle.reshape(*angle.shape[:-2], *shape))
    lead = angles[0].shape[:-4]
    table = jnp.concatenate([jnp.broadcast_to(a, (*lead, *grid, a.shape[-1])) for a in angles], -1)
    table = table.reshape(*lead, -1, table.shape[-1])
    return jnp.cos(table), jnp.sin(table)
