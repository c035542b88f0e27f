"""How what a tap reads becomes small, inside the compiled block: the reducers of `jaxdiff.taps.Tap`, by name and as objects."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Grid3 = tuple[int, int, int]  # (T', H', W') in tokens


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean over all tokens: [B, S, D] -> [B, D] float32."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return x.astype(jnp.float32).mean(1)


@dataclasses.dataclass(frozen=True)
class FrameMean:
    """Mean over the tokens of each latent frame: [B, S, D] -> [B, T', D] float32."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return x.astype(jnp.float32).reshape(x.shape[0], grid[0], -1, x.shape[-1]).mean(2)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Mean over the cells of a coarse spatial grid per latent frame: [B, S, D] -> [B, T', rows, columns, D] float32.

    Cell edges are ``floor(i H' / rows)`` to ``ceil((i + 1) H' / rows)`` (adaptive average pooling), so a grid finer
    than the tokens repeats them.
    """

    rows: int = 4
    columns: int = 4

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        x = x.astype(jnp.float32).reshape(x.shape[0], *grid, x.shape[-1])
        x = jnp.einsum("rh,bthwd->btrwd", _pooling(grid[1], self.rows), x, precision="highest")
        return jnp.einsum("cw,btrwd->btrcd", _pooling(grid[2], self.columns), x, precision="highest")


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean, standard deviation and skewness over time per position, then averaged over positions:
    [B, S, D] -> [B, 3, D] float32. Population moments, in their own units; `SemanticMoments` scales them."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return _moments(x, grid, lost=0)


@dataclasses.dataclass(frozen=True)
class SemanticMoments:
    """SemanticMoments (arXiv 2602.09146) as its code has them: [B, S, D] -> [B, 3 D] float32, vectors of length one.

    Per position over time: mean, standard deviation (divided by T' - 1) and skewness
    ``mean((x - mean)^3) / (std^3 + 1e-6)``. Each is averaged over positions, scaled to length one and weighted; the three,
    one after the other, are scaled to length one again. Of a single frame, deviation and skewness are zero.
    """

    weights: tuple[float, float, float] = (1.0, 8.0, 4.0)

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        parts = _unit(_moments(x, grid, lost=1)) * np.asarray(self.weights, np.float32)[:, None]
        return _unit(parts.reshape(parts.shape[0], -1))


def _moments(x: jax.Array, grid: Grid3, lost: int) -> jax.Array:
    """[B, 3, D] mean, standard deviation with divisor T' - `lost`, and skewness, averaged over positions."""
    x = x.astype(jnp.float32).reshape(x.shape[0], grid[0], -1, x.shape[-1])
    mean = x.mean(1, keepdims=True)
    centred = x - mean
    std = jnp.sqrt(jnp.mean(centred**2, 1, keepdims=True) * (grid[0] / max(grid[0] - lost, 1)))
    skewness = jnp.mean(centred**3, 1, keepdims=True) / (std**3 + 1e-6)
    return jnp.concatenate([mean, std, skewness], 1).mean(2)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class Project:
    """A fixed Gaussian projection of every token, averaged over tokens: [B, S, D] -> [B, size] float32.

    The matrix is drawn with variance 1 / size, so squared lengths are kept on average (Johnson-Lindenstrauss).
    """

    size: int
    seed: int = 0

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        key = jax.random.key(self.seed)
        matrix = jax.random.normal(key, (x.shape[-1], self.size), jnp.float32) * self.size**-0.5
        return jnp.matmul(x.astype(jnp.float32).mean(1), matrix, precision="highest")


@dataclasses.dataclass(frozen=True)
class Full:
    """Every token, bfloat16: [B, S, D]. Large: `Tap` consumers report the bytes before they run."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return x.astype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class FrameMap:
    """The exact frame-by-frame attention map per head: [B, K, T', T'] float32, query frame by key frame."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return x  # the attention kernel has already reduced it


REDUCERS: dict[str, Any] = {
    "mean": Mean(),
    "frame_mean": FrameMean(),
    "grid": Grid(),
    "moments": Moments(),
    "semantic_moments": SemanticMoments(),
    "project": Project(64),
    "full": Full(),
    "frame_map": FrameMap(),
}


def _pooling(size: int, cells: int) -> np.ndarray:
    weights = np.zeros((cells, size), np.float32)
    for i in range(cells):
        lo, hi = i * size // cells, -(-(i + 1) * size // cells)
        weights[i, lo:hi] = 1.0 / (hi - lo)
    return weights
