"""Rotary position embedding over (frame, row, column) grids (RoFormer, Su et al. 2021, eq. 34, per axis)."""

import jax
import jax.numpy as jnp
import numpy as np


def rope_3d(grid: tuple[int, int, int], head_dim: int, theta: float = 10000.0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines for every token of a grid, rows first by frame, then height, then width.

    The head's channels are split into (d - 4 (d // 6), 2 (d // 6), 2 (d // 6)) for time, height and width.
    Angles are computed in float64 (positions times frequencies lose digits in float32) and stored in float32.

    Parameters
    ----------
    grid : (T', H', W') token counts per axis.
    head_dim : d, even.

    Returns
    -------
    cos, sin : float32 [T' H' W', d / 2], one angle per channel pair.
    """
    spatial = 2 * (head_dim // 6)
    angles = []
    for axis, width in enumerate((head_dim - 2 * spatial, spatial, spatial)):
        frequencies = 1.0 / theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
        angle = np.arange(grid[axis], dtype=np.float64)[:, None] * frequencies
        shape = [1, 1, 1, width // 2]
        shape[axis] = grid[axis]
        angles.append(np.broadcast_to(angle.reshape(shape), (*grid, width // 2)))
    angles = np.concatenate(angles, -1).reshape(-1, head_dim // 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate_pairs(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate adjacent channel pairs (interleaved layout): x [B, S, K, d], cos and sin [S, d / 2] or [B, S, d / 2].

    The rotation is computed in float32 and returned in the dtype of `x`.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = jnp.asarray(cos)[..., None, :], jnp.asarray(sin)[..., None, :]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape).astype(x.dtype)


def rotate_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`rotate_pairs` in the split layout: channel i turns with channel i + d / 2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = jnp.asarray(cos)[..., None, :], jnp.asarray(sin)[..., None, :]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1).astype(x.dtype)
