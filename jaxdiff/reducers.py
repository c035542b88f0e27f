"""How what a tap reads becomes small, inside the compiled block: the reducers of `jaxdiff.taps.Tap`, by name and as objects.

A reducer may have ``of_parts(x, grid, parts)``: the same where a device has a part of the tokens, x [B, s, D], with `parts`
being `jaxdiff.kernels.sequence`. One that has not is handed all tokens, gathered from their devices.
"""

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

    def of_parts(self, x: jax.Array, grid: Grid3, parts: Any) -> jax.Array:
        return parts.pooled(x, tuple(_pooling(n, 1) for n in grid))[:, 0, 0, 0]


@dataclasses.dataclass(frozen=True)
class FrameMean:
    """Mean over the tokens of each latent frame: [B, S, D] -> [B, T', D] float32."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return x.astype(jnp.float32).reshape(x.shape[0], grid[0], -1, x.shape[-1]).mean(2)

    def of_parts(self, x: jax.Array, grid: Grid3, parts: Any) -> jax.Array:
        t, h, w = grid
        return parts.pooled(x, (_pooling(t, t), _pooling(h, 1), _pooling(w, 1)))[:, :, 0, 0]


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

    def of_parts(self, x: jax.Array, grid: Grid3, parts: Any) -> jax.Array:
        t, h, w = grid
        return parts.pooled(x, (_pooling(t, t), _pooling(h, self.rows), _pooling(w, self.columns)))


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean, standard deviation and skewness over time per position, then averaged over positions:
    [B, S, D] -> [B, 3, D] float32. Population moments, in their own units; `SemanticMoments` scales them."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return _moments(x, grid, lost=0)

    def of_parts(self, x: jax.Array, grid: Grid3, parts: Any) -> jax.Array:
        return _moments_of_parts(x, grid, parts, lost=0)


@dataclasses.dataclass(frozen=True)
class SemanticMoments:
    """SemanticMoments (arXiv 2602.09146) as its code has them: [B, S, D] -> [B, 3 D] float32, vectors of length one.

    Per position over time: mean, standard deviation (divided by T' - 1) and skewness
    ``mean((x - mean)^3) / (std^3 + 1e-6)``. Each is averaged over positions, scaled to length one and weighted; the three,
    one after the other, are scaled to length one again. Of a single frame, deviation and skewness are zero.
    """

    weights: tuple[float, float, float] = (1.0, 8.0, 4.0)

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return self._scaled(_moments(x, grid, lost=1))

    def of_parts(self, x: jax.Array, grid: Grid3, parts: Any) -> jax.Array:
        return self._scaled(_moments_of_parts(x, grid, parts, lost=1))

    def _scaled(self, moments: jax.Array) -> jax.Array:
        weighted = _unit(moments) * np.asarray(self.weights, np.float32)[:, None]
        return _unit(weighted.reshape(weighted.shape[0], -1))


def _moments(x: jax.Array, grid: Grid3, lost: int) -> jax.Array:
    """[B, 3, D] mean, standard deviation with divisor T' - `lost`, and skewness, averaged over positions."""
    x = x.astype(jnp.float32).reshape(x.shape[0], grid[0], -1, x.shape[-1])
    mean = x.mean(1, keepdims=True)
    centred = x - mean
    std = jnp.sqrt(jnp.mean(centred**2, 1, keepdims=True) * (grid[0] / max(grid[0] - lost, 1)))
    skewness = jnp.mean(centred**3, 1, keepdims=True) / (std**3 + 1e-6)
    return jnp.concatenate([mean, std, skewness], 1).mean(2)


def _moments_of_parts(x: jax.Array, grid: Grid3, parts: Any, lost: int) -> jax.Array:
    """Moments are a channel's own: every device takes all tokens of some channels."""
    return parts.joined(_moments(parts.channels(x, int(np.prod(grid))), grid, lost), axis=-1)


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
        return self._projected(Mean()(x, grid))

    def of_parts(self, x: jax.Array, grid: Grid3, parts: Any) -> jax.Array:
        return self._projected(Mean().of_parts(x, grid, parts))

    def _projected(self, mean: jax.Array) -> jax.Array:
        key = jax.random.key(self.seed)
        matrix = jax.random.normal(key, (mean.shape[-1], self.size), jnp.float32) * self.size**-0.5
        return jnp.matmul(mean, matrix, precision="highest")


@dataclasses.dataclass(frozen=True)
class Full:
    """Every token, bfloat16: [B, S, D]. Large: `Tap` consumers report the bytes before they run."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return x.astype(jnp.bfloat16)

    def of_parts(self, x: jax.Array, grid: Grid3, parts: Any) -> jax.Array:
        """Tokens stay on the devices that have them."""
        parts.check_even(int(np.prod(grid)))
        return self(x, grid)


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
