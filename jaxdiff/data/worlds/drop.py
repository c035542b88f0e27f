"""Things that are held in the air, let go, fall, bounce and settle, with everything exact: PISA's task at nano scale.

PISA (arXiv 2503.09595) shows a picture of an object held in mid-air, at rest, and asks for its fall. Here wall, floor and
things are those of the generated world; the floor is seen edge-on, so that the first picture says how far a thing falls.
Gravity and restitution are the same in all clips: the first picture decides the rest.

Lengths are fractions of the frame, y points down, time is in frames. With h the height, g gravity and e the restitution::

    y(t) = y0 + g t^2 / 2                    until the impact at t1 = sqrt(2 h / g), at the speed g t1
    y(t) = y0 + h - e^n g t1 s + g s^2 / 2   in bounce n, s after its start, for 2 e^n t1
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data.worlds.render import DISTANCES, outlines
from jaxdiff.data.worlds.scene import COLOURS, PALETTE, SHAPES
from jaxdiff.errors import ConfigError

BOUNCES = 12  # after which a thing rests; of restitution .6 the last one is 1e-5 of the height
LOWEST_POINTS = (1.0, 0.88, 1.0)  # below the centre, in radii, by shape
GROUND = (0.82, 0.92)
MARGIN = 0.02  # between a thing and the border, or another's column
CHUNK = 32  # clips drawn in one call
Array = Any  # of JAX where it is traced, of NumPy from `drops`
PROMPT = ""  # the same for all clips, as PISA's; a model of the generated world has no word for falling


@dataclass(frozen=True)
class DropConfig:
    """The simulator's numbers.

    Parameters
    ----------
    frames, size : length of a clip and side of the frame in pixels.
    objects : how many things fall, side by side, each in a colour of its own.
    radius : range, fractions of the frame.
    height : range of the distance from where a thing is held to its first contact.
    gravity : fractions of the frame per frame squared, of a clip of 17 frames; longer clips show the same in more frames.
    restitution : speed after a contact over the speed before.
    """

    frames: int = 17
    size: int = 32
    objects: int = 1
    radius: tuple[float, float] = (0.09, 0.13)
    height: tuple[float, float] = (0.15, 0.35)
    gravity: float = 0.012
    restitution: float = 0.3

    def __post_init__(self):
        if self.frames < 5 or self.size < 16:
            raise ConfigError(f"DropConfig: frames={self.frames} (at least 5), size={self.size} (at least 16)")
        if self.objects not in (1, 2):  # of three, two may have hues that a segmentation by colour mixes up
            raise ConfigError(f"DropConfig: objects={self.objects}; one or two things fall")
        widest = 0.5 / self.objects - MARGIN
        if not 0.03 <= self.radius[0] <= self.radius[1] <= widest:
            raise ConfigError(
                f"DropConfig: radius={self.radius} must be an increasing pair within [0.03, {widest:.3g}], or "
                f"{self.objects} things do not fit beside each other"
            )
        highest = GROUND[0] - 2 * self.radius[1] - MARGIN
        if not 0 < self.height[0] <= self.height[1] <= highest:
            raise ConfigError(
                f"DropConfig: height={self.height} must be an increasing pair within (0, {highest:.3g}], or things of radius "
                f"{self.radius[1]:g} would be held outside the frame"
            )
        if not (self.gravity > 0 and 0 <= self.restitution <= 0.6):
            raise ConfigError(
                f"DropConfig: gravity={self.gravity} must be positive and restitution={self.restitution} in [0, 0.6], or "
                "things do not settle"
            )

    @property
    def acceleration(self) -> float:
        """Gravity per frame squared of clips of this length."""
        return self.gravity * (16 / (self.frames - 1)) ** 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scene:
    """What decides a clip; O things."""

    colour: jax.Array  # int32 [O], index into COLOURS
    shape: jax.Array  # int32 [O], index into SHAPES
    radius: jax.Array  # [O]
    x: jax.Array  # [O]
    height: jax.Array  # [O]
    ground: jax.Array  # where the floor begins, and things land
    wall: jax.Array  # [3]
    floor: jax.Array  # [3]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drops:
    """Clips and their ground truth; all leaves have the leading axis B."""

    video: Array  # uint8 [B, T, H, W, 3]
    masks: Array  # float32 [B, T, H, W, O], share of the pixel that a thing covers
    flow: Array  # float32 [B, T - 1, H, W, 2], pixels to the next frame (x, y) of what most of the pixel shows
    depth: Array  # float32 [B, T, H, W], millimetres
    positions: Array  # float32 [B, T, O, 2], exact centres (x, y)
    impact: Array  # float32 [B, O], time of the first contact
    scene: Scene


def impact_time(height: jax.Array, gravity: float) -> jax.Array:
    """``sqrt(2 h / g)``: when a thing that is let go at time 0 first touches the ground."""
    return jnp.sqrt(2.0 * height / gravity)


def fallen(time: jax.Array, height: jax.Array, gravity: float, restitution: float) -> jax.Array:
    """How far below its start a thing is at a time, after `BOUNCES` bounces at rest at `height`; see the module."""
    start = impact_time(height, gravity)
    speed = gravity * start
    distance = jnp.where(time < start, 0.5 * gravity * time * time, height)
    for _ in range(BOUNCES):
        speed = restitution * speed
        since, duration = time - start, 2.0 * speed / gravity
        above = speed * since - 0.5 * gravity * since * since
        distance = jnp.where((since >= 0) & (since < duration), height - above, distance)
        start = start + duration
    return distance


def trajectories(config: DropConfig, scene: Scene) -> jax.Array:
    """Exact centres in every frame, [T, O, 2] as (x, y)."""
    time = jnp.arange(config.frames, dtype=jnp.float32)[:, None]
    rest = scene.ground - jnp.asarray(LOWEST_POINTS)[scene.shape] * scene.radius
    y = rest - scene.height + fallen(time, scene.height, config.acceleration, config.restitution)
    return jnp.stack([jnp.broadcast_to(scene.x, y.shape), y], -1)


def sample_scene(key: jax.Array, config: DropConfig) -> Scene:
    """Draw a scene. Pure and traceable."""
    n = config.objects
    keys = jax.random.split(key, 6)
    look = jax.random.uniform(keys[0], (10,))
    grey = 0.35 + 0.3 * look[0]
    low, high = config.radius
    radius = jax.random.uniform(keys[1], (n,), minval=low, maxval=high)
    room = 0.5 / n - radius - MARGIN
    # Colours that follow each other: a segmentation by colour must be able to tell two things apart.
    colour = (jax.random.randint(keys[4], (), 0, len(COLOURS)) + jnp.arange(n)) % len(COLOURS)
    return Scene(
        colour=colour,
        shape=jax.random.randint(keys[5], (n,), 0, len(SHAPES)),
        radius=radius,
        x=(jnp.arange(n) + 0.5) / n + room * jax.random.uniform(keys[2], (n,), minval=-1.0),
        height=jax.random.uniform(keys[3], (n,), minval=config.height[0], maxval=config.height[1]),
        ground=GROUND[0] + (GROUND[1] - GROUND[0]) * look[1],
        wall=jnp.clip(grey + 0.12 * look[2:5] - 0.06, 0.0, 1.0),
        floor=jnp.clip(grey * (0.65 + 0.2 * look[5]) + 0.12 * look[6:9] - 0.06, 0.0, 1.0),
    )


def simulate(config: DropConfig, scene: Scene) -> Drops:
    """The clip of one scene, leaves without the axis B."""
    centre = trajectories(config, scene)
    place = (jnp.arange(config.size) + 0.5) / config.size
    dx = place[None, None, None, :] - centre[:, :, 0, None, None]  # [T, O, 1, W]
    dy = place[None, None, :, None] - centre[:, :, 1, None, None]
    away = jnp.stack(outlines(dx, dy, scene.radius[:, None, None]), 0)
    away = jnp.take_along_axis(away, scene.shape[None, None, :, None, None], 0)[0]  # [T, O, H, W]
    masks = jnp.moveaxis(jnp.clip(0.5 - away * config.size, 0.0, 1.0), 1, -1)
    ground = jnp.clip(0.5 - (scene.ground - place) * config.size, 0.0, 1.0)[:, None, None]
    video = jnp.broadcast_to(scene.wall + ground * (scene.floor - scene.wall), (*masks.shape[:3], 3))
    moved = jnp.zeros((*masks.shape[:3], 2))
    far, near = DISTANCES[0], DISTANCES[1]
    depth = jnp.where(
        place[:, None] < scene.ground, far, near + (far - near) * (1 - place[:, None]) / (1 - scene.ground)
    )
    depth = jnp.broadcast_to(depth, masks.shape[:3])
    step = config.size * jnp.diff(centre, axis=0, append=centre[-1:])  # [T, O, 2], pixels
    for i in range(config.objects):
        cover = masks[..., i]
        video = video + cover[..., None] * (jnp.asarray(PALETTE, jnp.float32)[scene.colour[i]] - video)
        moved = jnp.where(cover[..., None] > 0.5, step[:, i, None, None], moved)
        depth = jnp.where(cover > 0.5, DISTANCES[3], depth)
    return Drops(
        video=jnp.round(video * 255.0).astype(jnp.uint8),
        masks=masks,
        flow=moved[:-1],
        depth=depth,
        positions=centre,
        impact=impact_time(scene.height, config.acceleration),
        scene=scene,
    )


@partial(jax.jit, static_argnums=0)
def _drawn(config: DropConfig, keys: jax.Array) -> Drops:
    return jax.vmap(lambda key: simulate(config, sample_scene(key, config)))(keys)


def drops(config: DropConfig, seed: int, count: int, start: int = 0) -> Drops:
    """Clips number `start` to ``start + count - 1`` of a seed, in NumPy; a clip is the same whatever is drawn beside it.

    Raises
    ------
    ConfigError : fewer than one clip, or a negative seed.
    """
    if count < 1 or seed < 0 or start < 0:
        raise ConfigError(f"drops: count={count} must be at least 1, seed={seed} and start={start} at least 0")
    root = jax.random.key(seed, impl="threefry2x32")
    keys = jax.vmap(partial(jax.random.fold_in, root))(jnp.arange(start, start + -(-count // CHUNK) * CHUNK))
    parts = [jax.device_get(_drawn(config, keys[i : i + CHUNK])) for i in range(0, count, CHUNK)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)
