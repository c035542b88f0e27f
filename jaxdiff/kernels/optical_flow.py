"""Optical flow without a network: Lucas and Kanade's least squares (1981) on a pyramid (after Bouguet, 2001) with Gaussian
windows. Differentiable in both pictures."""

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 3  # of the pyramid, fewer for small frames:
SMALLEST = 16  # pixels of the short side of its coarsest level
ITERATIONS = 3  # of warping and solving, a level
WINDOW = 2.0  # standard deviation of the Gaussian window, pixels of the level
FLAT = 1e-4  # added to the structure tensor's diagonal (intensities in [0, 1]): no motion where there is no texture


def lucas_kanade(first: jax.Array, second: jax.Array) -> jax.Array:
    """Optical flow by least squares, coarse to fine.

    At every pixel, with gradients I_x, I_y of the mean of both pictures and I_t their difference, and sums over a Gaussian
    window, ``[sum I_x^2, sum I_x I_y; sum I_x I_y, sum I_y^2] u = -[sum I_x I_t, sum I_y I_t]``; the second picture is
    then warped back by u and the step repeated (Lucas & Kanade 1981, Bouguet 2001).

    Parameters
    ----------
    first, second : float32 [N, H, W], brightness in [0, 1]

    Returns
    -------
    float32 [N, H, W, 2], (dx, dy) in pixels: what is at (x, y) in `first` is at (x + dx, y + dy) in `second`.
    """
    pyramid = [(first, second)]
    while len(pyramid) < LEVELS and min(pyramid[-1][0].shape[1:]) >= 2 * SMALLEST:
        pyramid.append(tuple(_halved(x) for x in pyramid[-1]))  # type: ignore[arg-type]
    flow = jnp.zeros((*pyramid[-1][0].shape, 2), jnp.float32)
    for a, b in reversed(pyramid):
        if flow.shape[1:3] != a.shape[1:]:
            flow = 2.0 * flow.repeat(2, 1).repeat(2, 2)[:, : a.shape[1], : a.shape[2]]
        blur = [_window(size) for size in a.shape[1:]]
        # A loop in the program, not in Python: a third of the code to compile.
        flow = jax.lax.fori_loop(0, ITERATIONS, lambda _, u, a=a, b=b, blur=blur: _refine(a, b, u, blur), flow)
    return flow


def _refine(a: jax.Array, b: jax.Array, flow: jax.Array, blur: list[np.ndarray]) -> jax.Array:
    """`flow` [N, H, W, 2] after one more least-squares step."""
    warped = _warp(b, flow)
    dy, dx = gradients((a + warped) / 2)
    dt = warped - a

    def window(x):
        x = jnp.einsum("ij,njw->niw", blur[0], x, precision="highest")
        return jnp.einsum("ij,nhj->nhi", blur[1], x, precision="highest")

    xx, yy, xy = window(dx * dx) + FLAT, window(dy * dy) + FLAT, window(dx * dy)
    xt, yt = window(dx * dt), window(dy * dt)
    determinant = xx * yy - xy * xy
    step = jnp.stack([yy * xt - xy * yt, xx * yt - xy * xt], -1) / -determinant[..., None]
    return flow + jnp.clip(step, -2.0, 2.0)  # linear in the motion: beyond a pixel or two it is a guess


def gradients(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Central differences along the last two axes (rows, columns); one-sided at the borders, as a half."""
    pad = [(0, 0)] * (x.ndim - 2)
    padded = jnp.pad(x, [*pad, (1, 1), (1, 1)], mode="edge")
    return (
        (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2,
        (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2,
    )


def _halved(x: jax.Array) -> jax.Array:
    """[N, H, W] to half the size, rounded up: means of 2 x 2 pixels."""
    x = jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2)], mode="edge")
    return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2).mean((2, 4))


def _window(size: int) -> np.ndarray:
    """Gaussian weights [size, size]; rows sum to one, so that borders average fewer pixels."""
    place = np.arange(size)
    weights = np.exp(-0.5 * ((place[:, None] - place) / WINDOW) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _warp(x: jax.Array, flow: jax.Array) -> jax.Array:
    """x [N, H, W] read at (column + dx, row + dy), bilinear; beyond the border is the border."""
    rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in x.shape[1:]), indexing="ij")

    def one(picture, u):
        places = [rows + u[..., 1], columns + u[..., 0]]
        return jax.scipy.ndimage.map_coordinates(picture, places, order=1, mode="nearest")

    return jax.vmap(one)(x, flow)
