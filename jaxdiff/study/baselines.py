"""Classical readings of the pixels: optical flow, what changes from frame to frame, and frames in a bag.

Optical flow is our own, `jaxdiff.kernels.lucas_kanade`. It is not a learned flow and not OpenCV's, and its numbers are not
those of papers that used either.

Of every feature here each pair of neighbouring frames (or each frame) is one summand or one entry of its own. Where
matched clips are the same frames put together differently, and the switch is hidden, linear probes on them are at
chance by construction; where a change is visible, flow and differences see it, which is what they are for.
"""

import jax
import jax.numpy as jnp

from jaxdiff.kernels.optical_flow import gradients, lucas_kanade
from jaxdiff.taps import Grid

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

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
    dy, dx = gradients(luma)
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
