"""Classical readings of the pixels: optical flow, what changes from frame to frame, and frames in a bag.

Optical flow is our own, Lucas and Kanade's least squares (1981) on a pyramid (after Bouguet, 2001) with Gaussian
windows. It is not a learned flow and not OpenCV's, and its numbers are not those of papers that used either.

Of every feature here each pair of neighbouring frames (or each frame) is one summand or one entry of its own. Where
matched clips are the same frames put together differently, and the switch is hidden, linear probes on them are at
chance by construction; where a change is visible, flow and differences see it, which is what they are for.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.taps import Grid

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LEVELS = 3  # of the pyramid, fewer for small frames:
SMALLEST = 16  # pixels of the short side of its coarsest level
ITERATIONS = 3  # of warping and solving, a level
WINDOW = 2.0  # standard deviation of the Gaussian window, pixels of the level
FLAT = 1e-4  # added to the structure tensor's diagonal (intensities in [0, 1]): no motion where there is no texture

DIRECTIONS = 8
SPEEDS = (1 / 256, 1 / 64, 1 / 16)  # edges of the magnitude bins, in short sides of the frame per pair of frames
BINS = 1 + DIRECTIONS * len(SPEEDS)
CELLS = 4  # rows and columns of the grids
COLOURS = 8  # bins a channel of the colour histogram


def baseline_features(video: jax.Array, latents: jax.Array | None = None) -> dict[str, jax.Array]:
    """Features of the pixels alone, one vector a clip.

    Parameters
    ----------
    video : uint8 [B, T, H, W, 3]
    latents : not looked at; readings of a clip are called with both.

    Returns
    -------
    "flow.pairs" : [B, (T - 1) * BINS], of each pair of neighbouring frames the share of pixels that stand still and, by
        direction (8) and speed (3), that move
    "flow.mean" : [B, BINS], its average over pairs
    "difference.pairs" : [B, (T - 1) * 16], mean squared difference of brightness on a 4 x 4 grid
    "difference.mean" : [B, 16], its average over pairs
    "frame_bag.mean" : [B, 16 * 7 + 24], `frame_features` averaged over frames: what no order of frames can change
    """
    frames = video.astype(jnp.float32) / 255.0
    luma = frames @ jnp.asarray(LUMA, jnp.float32)
    first, second = luma[:, :-1], luma[:, 1:]
    batch, pairs, height, width = first.shape

    flow = lucas_kanade(first.reshape(-1, height, width), second.reshape(-1, height, width))
    histogram = flow_histogram(flow).reshape(batch, pairs, BINS)
    difference = _cells(jnp.square(second - first)[..., None])
    return {
        "flow.pairs": histogram.reshape(batch, -1),
        "flow.mean": histogram.mean(1),
        "difference.pairs": difference.reshape(batch, -1),
        "difference.mean": difference.reshape(batch, pairs, -1).mean(1),
        "frame_bag.mean": frame_features(frames).mean(1),
    }


def frame_features(frames: jax.Array) -> jax.Array:
    """What each frame shows: [B, T, 136] of frames [B, T, H, W, 3] in [0, 1].

    On a 4 x 4 grid the mean colour, the mean squared colour and the gradient energy; and a colour histogram.
    """
    luma = frames @ jnp.asarray(LUMA, jnp.float32)
    dy, dx = _gradients(luma)
    local = _cells(jnp.concatenate([frames, frames**2, (dx**2 + dy**2)[..., None]], -1))
    level = jnp.minimum((frames * COLOURS).astype(jnp.int32), COLOURS - 1)
    histogram = jnp.stack([(level == k).mean((2, 3)) for k in range(COLOURS)], -1)
    return jnp.concatenate([local.reshape(*local.shape[:2], -1), histogram.reshape(*local.shape[:2], -1)], -1)


def _cells(x: jax.Array) -> jax.Array:
    """Means over a 4 x 4 grid of every frame: [B, T, 4, 4, C] of x [B, T, H, W, C]."""
    batch, frames, height, width, channels = x.shape
    return Grid(CELLS, CELLS)(x.reshape(batch, -1, channels), (frames, height, width))


def flow_histogram(flow: jax.Array) -> jax.Array:
    """Shares of pixels by motion, [N, BINS] of flow [N, H, W, 2] (dx, dy) in pixels; they sum to one.

    Bin 0 stands still; bin ``1 + 8 s + d`` has speed class s and direction d, counted from +x (right) towards +y (down).
    """
    speed = jnp.linalg.norm(flow, axis=-1) / min(flow.shape[1:3])
    angle = jnp.arctan2(flow[..., 1], flow[..., 0]) / (2 * jnp.pi) * DIRECTIONS
    direction = jnp.round(angle).astype(jnp.int32) % DIRECTIONS
    place = sum((speed >= edge).astype(jnp.int32) for edge in SPEEDS)
    index = jnp.where(place == 0, 0, 1 + DIRECTIONS * (place - 1) + direction)
    return jnp.stack([(index == k).mean((1, 2)) for k in range(BINS)], -1)


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
    dy, dx = _gradients((a + warped) / 2)
    dt = warped - a

    def window(x):
        x = jnp.einsum("ij,njw->niw", blur[0], x, precision="highest")
        return jnp.einsum("ij,nhj->nhi", blur[1], x, precision="highest")

    xx, yy, xy = window(dx * dx) + FLAT, window(dy * dy) + FLAT, window(dx * dy)
    xt, yt = window(dx * dt), window(dy * dt)
    determinant = xx * yy - xy * xy
    step = jnp.stack([yy * xt - xy * yt, xx * yt - xy * xt], -1) / -determinant[..., None]
    return flow + jnp.clip(step, -2.0, 2.0)  # linear in the motion: beyond a pixel or two it is a guess


def _gradients(x: jax.Array) -> tuple[jax.Array, jax.Array]:
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
