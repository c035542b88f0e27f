"""Where the generated world's thing is in every frame of a clip, from pixels alone.

Walls, floors and screens are nearly grey and things are not. A pixel that shows share `a` of a thing's colour k before
grey has the chroma ``a k`` (what is left of a colour without its mean), so that ``a = <chroma, k> / |k|^2`` is how much of
the thing it shows, whatever the grey is: areas and centres come out finer than a pixel. A thing is told from the small
distractor by its size. The screen is found from what the world fixes about it: it is down in the first and last frames,
up around the middle, wider than the middle half of the frame, and shut below its upper edge.

A frame in which the thing touches the screen or the border shows part of it, and no centre or shape is taken from there.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.data.worlds import COLOURS, SHAPES, WorldConfig
from jaxdiff.data.worlds.render import outlines
from jaxdiff.data.worlds.scene import HIDDEN, PALETTE, since_switch
from jaxdiff.errors import ConfigError

SMALLEST = 0.0296
"""Share of the frame from which on a patch is a thing: the smallest thing covers .034 of it, the largest distractor .025."""

OPAQUE = 0.5  # of a pixel's colour from which on it belongs to a patch; a fainter ghost is none
PLAIN = 0.12  # length of the chroma of what is neither thing nor distractor; tints reach .10
STANDS_OUT = 0.08  # by how much a screen's colour differs from the wall's, at least; in the world .2
CHUNK = 32  # clips at once


@dataclasses.dataclass(frozen=True)
class Track:
    """What was found in N clips of T frames; lengths are fractions of the frame, y points down.

    Attributes
    ----------
    found : bool [N, T], a patch of the size of a thing, whole or partly hidden.
    clear : bool [N, T], found and whole.
    second : bool [N, T], another such patch, whole as well.
    position : [N, T, 2], centre (x, y); nan where not clear.
    area : [N, T], share of the frame; nan where not clear.
    colour, shape : int [N, T], indices into COLOURS and SHAPES; -1 where not clear.
    screen : bool [N, T, H, W], what the screen covers.
    """

    found: np.ndarray
    clear: np.ndarray
    second: np.ndarray
    position: np.ndarray
    area: np.ndarray
    colour: np.ndarray
    shape: np.ndarray
    screen: np.ndarray

    def shuffled(self, seed: int = 0) -> "Track":
        """The track of the same frames in an order drawn for every clip.

        Frames are tracked one by one, so that this is the track of the shuffled clip, with the screen still known.
        """
        clips, frames = self.found.shape
        order = np.argsort(np.random.default_rng(seed).random((clips, frames)), axis=1)
        at = np.arange(clips)[:, None]
        return Track(**{f.name: getattr(self, f.name)[at, order] for f in dataclasses.fields(self)})


def world_of(video: np.ndarray) -> WorldConfig:
    """The world whose clips have this length and size.

    Raises
    ------
    ConfigError : no world has.
    """
    if video.ndim != 5 or video.shape[2] != video.shape[3] or video.shape[4] != 3 or video.dtype != np.uint8:
        raise ConfigError(f"clips of the generated world are uint8 [N, T, S, S, 3], got {video.dtype} {video.shape}")
    return WorldConfig(frames=video.shape[1], size=video.shape[2])


def track(video: Any) -> Track:
    """Track clips uint8 [N, T, S, S, 3].

    Raises
    ------
    ConfigError : their length or size is none of a world's.
    """
    video = np.asarray(video)
    config = world_of(video)
    parts = [_track(video[i : i + CHUNK], config) for i in range(0, len(video), CHUNK)]
    return Track(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Track)})


def _track(video: np.ndarray, config: WorldConfig) -> Track:
    shape = video.shape[:4]
    rgb = video.astype(np.float32) / 255
    chroma = rgb - rgb.mean(-1, keepdims=True)
    screen = _screen(rgb, np.linalg.norm(chroma, axis=-1) < PLAIN, config)
    amount, colour = amounts(chroma)
    flat = (shape[0] * shape[1], *shape[2:])
    found = patches(colour.reshape(flat), amount.max(-1).reshape(flat) > OPAQUE)
    first, other = (
        _describe(patch, amount.reshape(*flat, -1), colour.reshape(flat), screen.reshape(flat)) for patch in found
    )
    frames = shape[:2]
    clear = first.clear.reshape(frames)
    return Track(
        found=first.found.reshape(frames),
        clear=clear,
        second=other.clear.reshape(frames),
        position=np.where(clear[..., None], first.position.reshape(*frames, 2), np.nan),
        area=np.where(clear, first.area.reshape(frames), np.nan),
        colour=np.where(clear, first.colour.reshape(frames), -1),
        shape=np.where(clear, first.shape.reshape(frames), -1),
        screen=screen,
    )


def amounts(chroma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pixels' colours without their means [..., 3]: how much of each colour of the palette they show [..., 6], zero but for
    the one whose hue they have; and which that is."""
    palette = np.asarray(PALETTE, np.float32)
    keys = palette - palette.mean(1, keepdims=True)
    length = np.linalg.norm(keys, axis=1)
    along = chroma @ (keys / length[:, None]).T
    nearest = along.argmax(-1)
    amount = np.clip(along / length, 0, 1)
    return amount * (nearest[..., None] == np.arange(len(COLOURS))), nearest


# ----------------------------------------------------------------------------------------------------- the screen


def _mean(values: np.ndarray, weights: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Weighted mean of [..., 3] over `axes`; zero where there is no weight."""
    total = weights.sum(axes)[..., None]
    return (values * weights[..., None]).sum(axes) / np.maximum(total, 1e-6)


def _screen(rgb: np.ndarray, plain: np.ndarray, config: WorldConfig) -> np.ndarray:
    """What the screen covers, bool [N, T, H, W]: below its edge in each frame, between its sides."""
    size = config.size
    time = np.abs(np.asarray(since_switch(config)))
    down = time > HIDDEN - 0.5 + (0.7 + 3.0) * config.tempo  # the latest start and the slowest screen
    up = time < HIDDEN
    middle = slice(int(0.28 * size), int(np.ceil(0.72 * size)))
    weight = plain.astype(np.float32)
    wall = slice(int(0.1 * size), int(0.7 * size))
    rows = _mean(rgb[:, down], weight[:, down], (1, 3))  # wall and floor depend on y alone: [N, H, 3]
    inside = (slice(None), up, slice(int(0.1 * size), None), middle)
    colour = _mean(rgb[inside], weight[inside], (1, 2, 3))
    step = colour - rows[:, wall].mean(1)  # [N, 3]
    square = np.square(step).sum(-1)
    there = square > STANDS_OUT**2
    # The edge that splits the rows of the middle columns best into background above and screen below.
    here = weight[..., middle].sum(-1)
    profile = _mean(rgb[..., middle, :], weight[..., middle], (3,))  # [N, T, H, 3]
    above, below = (
        here * np.square(profile - picture).sum(-1) for picture in (rows[:, None], colour[:, None, None])
    )  # [N, T, H]
    none = np.zeros((*above.shape[:2], 1), above.dtype)
    cost = np.concatenate([none, above.cumsum(-1)], -1) + np.concatenate(
        [below[..., ::-1].cumsum(-1)[..., ::-1], none], -1
    )
    edge = cost.argmin(-1)  # [N, T], the first row of the screen
    sides = np.einsum(
        "ntywc,nc->nw", (rgb - rows[:, None, :, None])[:, up, wall] * weight[:, up, wall][..., None], step
    )
    sides /= np.maximum(weight[:, up, wall].sum((1, 2)), 1e-6) * np.maximum(square, 1e-6)[:, None]
    below_edge = np.arange(size)[None, None, :, None] >= edge[..., None, None]
    return below_edge & (sides > 0.5)[:, None, None] & there[:, None, None, None]


# ---------------------------------------------------------------------------------------------------- the things


def patches(colour: np.ndarray, solid: np.ndarray, count: int = 2) -> list[np.ndarray]:
    """The largest connected patches of one colour in frames [F, H, W]: `count` masks, the largest first."""
    frames, height, width = solid.shape
    label = np.where(solid, np.arange(1, height * width + 1).reshape(height, width), 0)
    while True:
        best = label.copy()
        for axis in (1, 2):
            for to, of in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
                a, b = ((slice(None),) * axis + (part,) for part in (to, of))
                joined = solid[a] & solid[b] & (colour[a] == colour[b])
                best[a] = np.maximum(best[a], np.where(joined, label[b], 0))
        if np.array_equal(best, label):
            break
        label = best
    places = height * width + 1
    sizes = np.bincount(
        (np.arange(frames)[:, None] * places + label.reshape(frames, -1)).ravel(), minlength=frames * places
    )
    sizes = sizes.reshape(frames, places)
    sizes[:, 0] = 0
    masks = []
    for _ in range(count):
        largest = sizes.argmax(1)
        masks.append((label == largest[:, None, None]) & solid)
        sizes[np.arange(frames), largest] = 0
    return masks


def _grown(mask: np.ndarray) -> np.ndarray:
    """A mask [F, H, W] with its neighbouring pixels."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    height, width = mask.shape[1:]
    return np.any([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)


class _Patch(NamedTuple):
    found: np.ndarray
    clear: np.ndarray
    position: np.ndarray
    area: np.ndarray
    colour: np.ndarray
    shape: np.ndarray


def _describe(patch: np.ndarray, amount: np.ndarray, colour: np.ndarray, screen: np.ndarray) -> _Patch:
    """Size, centre, colour and shape of one patch a frame [F, H, W]."""
    size = patch.shape[1]
    pixels = np.maximum(patch.sum((1, 2)), 1)
    votes = np.stack([(patch & (colour == c)).sum((1, 2)) for c in range(len(COLOURS))], -1)
    which = votes.argmax(-1)
    near = _grown(patch)
    share = np.take_along_axis(amount, which[:, None, None, None], -1)[..., 0] * near
    mass = np.maximum(share.sum((1, 2)), 1e-6)
    area = mass / size**2
    found = (pixels > 1) & (area >= SMALLEST)
    border = patch[:, [0, -1]].any((1, 2)) | patch[:, :, [0, -1]].any((1, 2))
    clear = found & ~border & ~(near & screen).any((1, 2))
    place = (np.arange(size) + 0.5) / size
    x, y = share.sum(1) @ place / mass, share.sum(2) @ place / mass
    # For each shape: the radius that gives the area, the centre that gives the centroid, and how much it is off then.
    radii = np.sqrt(area[:, None] / np.array([np.pi, 1.76**2, 2.0], np.float32))
    drops = np.array([0.0, 0.0, 1 / 3], np.float32) * radii  # a triangle's centroid lies below its centre
    errors = []
    for s in range(len(SHAPES)):
        dx = place[None, None, :] - x[:, None, None]
        dy = place[None, :, None] - (y - drops[:, s])[:, None, None]
        distance = np.asarray(outlines(dx, dy, radii[:, s, None, None])[s])
        errors.append(np.square(share - np.clip(0.5 - distance * size, 0, 1)).sum((1, 2)))
    shape = np.argmin(errors, axis=0)
    centre = np.stack([x, y - np.take_along_axis(drops, shape[:, None], 1)[:, 0]], -1)
    return _Patch(found, clear, centre, area, which, shape)
