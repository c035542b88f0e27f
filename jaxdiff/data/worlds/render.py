"""Anti-aliased pictures of a scene, with what they show known exactly.

Layers, from far to near: wall, floor, distractor, thing, screen. A layer covers a pixel by `clip(1/2 - d, 0,
1)`, `d` being the signed distance of the pixel's centre from the layer's outline in pixels; layers are
composited from far to near.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxdiff.data.worlds.scene import PALETTE, Stage, Thing, WorldConfig, screen_edge, trajectory

LAYERS = ("wall", "floor", "distractor", "object", "screen")
"""What the values 0..4 of a mask mean."""

DISTANCES = (6000.0, 2000.0, 5000.0, 4000.0, 3000.0)
"""Millimetres from the camera, by layer; the floor's holds at the lower edge and grows to the wall's."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frames:
    """A rendered clip (leading batch axes allowed) and its ground truth."""

    video: jax.Array  # uint8 [T, H, W, 3]
    masks: jax.Array  # uint8 [T, H, W], index into LAYERS: the layer that most of the pixel shows
    depth: jax.Array  # float32 [T, H, W], millimetres; an ordering, not optics
    positions: jax.Array  # float32 [T, 2], exact centre of the thing (x, y) as fractions of the frame
    visibility: jax.Array  # float32 [T], share of the thing's area inside the frame that nothing covers; 0 when absent


def normalise(video: jax.Array) -> jax.Array:
    """uint8 pixels as float32 in [-1, 1], the range that the VAEs take."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def _cover(distance):
    return jnp.clip(0.5 - distance, 0.0, 1.0)


def _pixels(config):
    centres = (jnp.arange(config.size) + 0.5) / config.size
    return centres[None, None, :], centres[None, :, None]  # x [1, 1, W], y [1, H, 1]


def outlines(dx: jax.Array, dy: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Signed distances from the outlines of SHAPES of radius r of points at (dx, dy) from the centre, in the order of SHAPES."""
    disc = jnp.sqrt(dx * dx + dy * dy) - r
    square = jnp.maximum(jnp.abs(dx), jnp.abs(dy)) - 0.88 * r
    triangle = jnp.maximum(dy - r, (2.0 * jnp.abs(dx) - dy - r) * 5.0**-0.5)
    return disc, square, triangle


def _thing_cover(config: WorldConfig, thing: Thing) -> tuple[jax.Array, jax.Array]:
    """Coverage `[T, H, W]` of one thing, inside the square of half side `radius`, and its centre `[T, 2]`."""
    centre = trajectory(config, thing)
    x, y = _pixels(config)
    dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    disc, square, triangle = outlines(dx, dy, thing.radius)
    distance = jnp.where(thing.shape == 0, disc, jnp.where(thing.shape == 1, square, triangle))
    return _cover(distance * config.size) * thing.present, centre


def _screen_cover(config: WorldConfig, stage: Stage) -> jax.Array:
    x, y = _pixels(config)
    across = _cover((jnp.abs(x - stage.screen_x) - stage.screen_half) * config.size)
    return across * _cover((screen_edge(config, stage)[:, None, None] - y) * config.size)


def _layers(config, stage, thing):
    """Coverage of the four layers before the wall, and the thing's centres."""
    _, y = _pixels(config)
    floor = jnp.broadcast_to(_cover((stage.horizon - y) * config.size), (config.frames, config.size, config.size))
    distractor, _ = _thing_cover(config, stage.distractor)
    body, centre = _thing_cover(config, thing)
    return (floor, distractor, body, _screen_cover(config, stage)), centre


def render_video(config: WorldConfig, stage: Stage, thing: Thing) -> jax.Array:
    """The pictures alone, uint8 `[T, H, W, 3]`: what a training step needs."""
    (floor, distractor, body, screen), _ = _layers(config, stage, thing)
    palette = jnp.asarray(PALETTE, jnp.float32)
    colours = (stage.floor, palette[stage.distractor.colour], palette[thing.colour], stage.screen)
    video = jnp.broadcast_to(stage.wall, (config.frames, config.size, config.size, 3))
    for cover, colour in zip((floor, distractor, body, screen), colours, strict=True):
        video = video + cover[..., None] * (colour - video)
    return jnp.round(video * 255.0).astype(jnp.uint8)


def render(config: WorldConfig, stage: Stage, thing: Thing) -> Frames:
    """The pictures and the ground truth of one clip in which `thing` stays what it is."""
    covers, centre = _layers(config, stage, thing)
    shown, weights = jnp.ones_like(covers[0]), []
    for cover in reversed(covers):
        weights.append(shown * cover)
        shown = shown * (1.0 - cover)
    weights = jnp.stack([shown, *reversed(weights)], -1)  # [T, H, W, layer], in the order of LAYERS; sums to 1
    masks = jnp.argmax(weights, -1)
    _, y = _pixels(config)
    near, far = DISTANCES[1], DISTANCES[0]
    floor = near + (far - near) * jnp.clip((1.0 - y) / (1.0 - stage.horizon), 0.0, 1.0)
    depth = jnp.where(masks == 1, floor, jnp.asarray(DISTANCES, jnp.float32)[masks])
    area = covers[2].sum((1, 2))
    return Frames(
        video=render_video(config, stage, thing),
        masks=masks.astype(jnp.uint8),
        depth=depth,
        positions=centre,
        visibility=jnp.where(area > 0, weights[..., 3].sum((1, 2)) / jnp.maximum(area, 1e-6), 0.0),
    )
