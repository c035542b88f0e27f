"""Where the moving things of a plain clip are, from pixels alone, if its camera stands still.

The background is the median over time, or what fits the neighbourhood where a thing stays for long. What differs from it,
connected, is a region; a region's pixels count in full inside and by their contrast along its edge, so that areas and centres
are finer than a pixel where things are of one colour. Regions of neighbouring frames are one thing by place, size and colour.
Regions that run together hide both things until they part.

What this cannot do: tell a thing that is hidden from one that vanishes, things apart that always touch, a thing from its
shadow, or see one that never leaves its own place. A clip that it cannot read is refused with the reason, to be counted.
"""

import dataclasses
import itertools

import numpy as np
from scipy import ndimage, optimize

from jaxdiff.errors import ConfigError
from jaxdiff.physics.tracks import Tracks

SIDE = 320  # pixels of the longer side in which regions are searched
SHORTEST = 8  # frames
CONTRAST, TREMBLES = 14.0, 5.0  # of 255: least difference from the background, and how many times its usual change
BRIEFLY = 0.03  # share of the frames in which something else is seen: more is no noise
SMALLEST = 3e-4  # share of the frame
RAGGED = 0.6  # share of the frame that may differ from the background, in the median frame
BLOCKS, MOVED, SHIFTED = (
    4,
    0.5,
    0.05,
)  # blocks a side; share of them that may move; by how much another place must fit better
LOST = 6  # frames for which a thing that is not seen is waited for
SEEN, THINGS = 0.1, 8  # share of the frames (and five) in which a thing must be seen; most things kept
GROWN = 1.2  # times a thing's area, from which on its region is of two things
ALIKE = 2.2  # dearest pair of regions that may be one thing: distance in reaches + doublings of area + colour in 80ths of 255


@dataclasses.dataclass(frozen=True)
class Found:
    """Tracks of one clip (N = 1), or None and the `reason` why there are none."""

    tracks: Tracks | None
    reason: str = ""


@dataclasses.dataclass
class _Region:
    centre: np.ndarray  # (x, y), pixels of the small frame
    area: float
    colour: np.ndarray
    border: bool


@dataclasses.dataclass
class _Thing:
    """A thing as it is followed: its region in every frame that shows it alone, in time."""

    regions: dict[int, _Region] = dataclasses.field(default_factory=dict)
    merged: list[int] = dataclasses.field(default_factory=list)  # frames in which it is hidden by or in another
    together: int = -1  # the last frame in which one region was surely of it and another
    carried: list[np.ndarray] = dataclasses.field(
        default_factory=list
    )  # where that region was, since it was last alone

    @property
    def latest(self) -> list[int]:
        """The last two frames that show it, the last one first."""
        return list(itertools.islice(reversed(self.regions), 2))

    @property
    def waited(self) -> int:
        """The last frame in which it was seen, alone or with another."""
        return max(self.latest[0], self.together)

    @property
    def area(self) -> float:
        return float(np.median([region.area for region in self.regions.values()]))

    @property
    def path(self) -> np.ndarray:
        return np.array([region.centre for region in self.regions.values()])

    def rests(self) -> bool:
        path = self.path
        still = max(1.0, 0.2 * np.sqrt(self.area / np.pi))
        return bool(np.linalg.norm(path - np.median(path, axis=0), axis=1).max() < still)

    def expected(self, t: int) -> np.ndarray:
        """Where it should be: straight on, or, since it ran together with another, where it was in their region."""
        last, *before = self.latest
        here = self.regions[last].centre
        if self.together > last:
            return here + self.carried[-1] - self.carried[0]
        if not before or self.merged[-1:] > [last]:
            return here
        return here + (here - self.regions[before[0]].centre) / (last - before[0]) * (t - last)


def track_plain(video: np.ndarray, fps: float, scale: float | None = None) -> Found:
    """Track the moving things of a clip uint8 [T, H, W, 3].

    Raises
    ------
    ConfigError : it is no such clip.
    """
    video = np.asarray(video)
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise ConfigError(f"clips are uint8 [T, H, W, 3], got {video.dtype} {video.shape}")
    if len(video) < SHORTEST:
        return Found(None, f"too short: {len(video)} frames, and {SHORTEST} are needed")
    small, factor = reduced(video)
    if (share := moving_share(small)) > MOVED:
        return Found(None, f"the camera moves: {100 * share:.0f} % of the picture's parts shift")
    masks, contrast = _foreground(small)
    if (covered := float(np.median(masks.mean((1, 2))))) > RAGGED:
        return Found(
            None, f"no still background: {100 * covered:.0f} % of the picture differs from its median over time"
        )
    things = _followed(masks, contrast, small)
    things = [thing for thing in things if len(thing.regions) >= max(5, SEEN * len(video)) and not thing.rests()]
    things = sorted(things, key=lambda thing: -len(thing.regions))[:THINGS]
    if not things:
        return Found(None, "nothing moves, or nothing long enough to follow")
    positions, areas = (np.stack(part, 1)[None] for part in zip(*(_filled(t, len(video)) for t in things), strict=True))
    return Found(Tracks(positions * factor, areas * factor**2, fps, scale))


def reduced(video: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 frames whose longer side is at most `SIDE`, means of squares of pixels; and the squares' side."""
    factor = -(-max(video.shape[1:3]) // SIDE)
    height, width = (n // factor * factor for n in video.shape[1:3])
    shape = (len(video), height // factor, factor, width // factor, factor, 3)
    return video[:, :height, :width].reshape(shape).mean((2, 4), dtype=np.float32), factor


def moving_share(small: np.ndarray) -> float:
    """Share of the blocks with structure that fit better elsewhere in a later frame, at the worst of eight moments."""
    grey = small.mean(-1)
    height, width = (n // BLOCKS for n in grey.shape[1:])
    if min(height, width) < 8:
        return 0.0
    window = np.outer(np.hanning(height), np.hanning(width))
    at = np.unique(np.linspace(0, len(grey) - 1, 9).round().astype(int))

    def blocks(t: int) -> np.ndarray:
        cut = grey[t, : BLOCKS * height, : BLOCKS * width].reshape(BLOCKS, height, BLOCKS, width).swapaxes(1, 2)
        cut = cut.reshape(-1, height, width)
        return (cut - cut.mean((1, 2), keepdims=True)) * window

    worst = 0.0
    for now, then in itertools.pairwise(at):
        a, b = blocks(now), blocks(then)
        strength = np.sqrt(np.square(a).sum((1, 2)) * np.square(b).sum((1, 2)))
        plain = strength < 9.0 * np.square(window).sum()  # a block of 3 grey levels rms has no structure to follow
        fit = (
            np.fft.irfft2(np.fft.rfft2(a).conj() * np.fft.rfft2(b), a.shape[1:])
            / np.maximum(strength, 1e-9)[:, None, None]
        )
        better = fit.max((1, 2)) > fit[:, 0, 0] + SHIFTED
        if (~plain).sum() >= BLOCKS:
            worst = max(worst, float(better[~plain].mean()))
    return worst


def _background(small: np.ndarray) -> np.ndarray:
    """What stands behind everything, [H, W, 3].

    The median over time, but where a pixel shows two things for a while each: there, the one that is more like the surely
    still pixels around. So a thing that rests for most of the clip, or passes slowly, does not become background.
    """
    frames = small[:: max(len(small) // 60, 1)]
    median = np.median(frames, axis=0)
    change = np.abs(frames - median).max(-1)
    apart = change > CONTRAST
    unsure = ndimage.binary_dilation(apart.mean(0) > BRIEFLY, iterations=2)
    if not unsure.any() or unsure.all():
        return median
    around = np.zeros_like(median)
    left = unsure.copy()
    for reach in (4, 16, 64):
        weight = ndimage.gaussian_filter((~unsure).astype(np.float32), reach)
        fill = ndimage.gaussian_filter(np.where(unsure[..., None], 0, median), (reach, reach, 0))
        near = left & (weight > 0.05)
        around[near] = fill[near] / weight[near][:, None]
        left &= ~near
    seen = unsure & ~left
    shown, wanted = frames[:, seen], around[seen]  # [T, pixels, 3]
    nearest = shown[np.abs(shown - wanted).sum(-1).argmin(0), np.arange(shown.shape[1])]
    alike = np.abs(shown - nearest).max(-1) < CONTRAST
    other = (shown * alike[..., None]).sum(0) / alike.sum(0)[:, None]
    # With a doubt, what is seen longer.
    better = np.abs(other - wanted).sum(-1) < np.abs(median[seen] - wanted).sum(-1) / 2
    median[seen] = np.where((better & (alike.mean(0) > BRIEFLY))[:, None], other, median[seen])
    return median


def _foreground(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What differs from the background, bool [T, H, W], and by how much, of 255."""
    change = small - _background(small)
    change -= np.median(change, axis=(1, 2), keepdims=True)  # the exposure
    contrast = np.abs(change).max(-1)
    # Where a thing stays for long, the quarter is not the background's.
    usual = np.minimum(np.quantile(contrast, 0.25, axis=0), CONTRAST / 3)
    smooth = ndimage.uniform_filter(contrast, (0, 3, 3))
    masks = smooth > CONTRAST + TREMBLES * usual
    cross = ndimage.generate_binary_structure(2, 1)
    for mask in masks:
        opened = ndimage.binary_opening(mask, cross)
        mask[:] = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(opened, 2), cross)[2:-2, 2:-2])
    return masks, contrast


def _regions(mask: np.ndarray, contrast: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, list[_Region]]:
    """Connected regions of one frame: their labels, and what they are."""
    label = ndimage.label(mask, np.ones((3, 3)))[0]
    found: list[_Region] = []
    kept = np.zeros_like(label)
    for number, where in enumerate(ndimage.find_objects(label), 1):
        part = label[where] == number
        if part.sum() < max(SMALLEST * mask.size, 6):
            continue
        rows, columns = (slice(max(s.start - 2, 0), s.stop + 2) for s in where)
        part = label[rows, columns] == number
        inside = ndimage.binary_erosion(part, np.ones((3, 3)), border_value=1)
        core = inside if inside.any() else part
        edge = (
            ndimage.binary_dilation(part, np.ones((3, 3)), iterations=2) & ~core & (label[rows, columns] * ~part == 0)
        )
        strength = float(np.median(contrast[rows, columns][core]))
        share = np.where(core, 1.0, np.where(edge, np.clip(contrast[rows, columns] / strength, 0, 1), 0.0))
        # Faint edges are the background's own changes.
        share[share < 0.15] = 0.0
        area = float(share.sum())
        y, x = (np.arange(s.start, s.start + n) + 0.5 for s, n in zip((rows, columns), share.shape, strict=True))
        border = (
            where[0].start == 0
            or where[1].start == 0
            or where[0].stop == mask.shape[0]
            or where[1].stop == mask.shape[1]
        )
        kept[label == number] = len(found) + 1
        found.append(
            _Region(
                np.array([share.sum(0) @ x, share.sum(1) @ y]) / area,
                area,
                frame[rows, columns][core].mean(0),
                border,
            )
        )
    return kept, found


def _followed(masks: np.ndarray, contrast: np.ndarray, small: np.ndarray) -> list[_Thing]:
    """Regions joined to things over time."""
    things: list[_Thing] = []
    for t, (mask, by, frame) in enumerate(zip(masks, contrast, small, strict=True)):
        label, regions = _regions(mask, by, frame)
        active = [thing for thing in things if t - thing.waited <= LOST]
        expected = [thing.expected(t) for thing in active]
        owner: dict[int, _Thing] = {}
        if active and regions:
            cost = np.array([[_unlike(a, e, r, t) for r in regions] for a, e in zip(active, expected, strict=True)])
            for i, j in zip(*optimize.linear_sum_assignment(np.minimum(cost, 2 * ALIKE)), strict=True):
                if cost[i, j] <= ALIKE:
                    owner[int(j)] = active[i]
        taken = {id(thing) for thing in owner.values()}
        inside: dict[int, list[_Thing]] = {}
        for thing, place in zip(active, expected, strict=True):
            if id(thing) not in taken and len(thing.regions) >= 3 and (number := _at(label, place)):
                inside.setdefault(number - 1, []).append(thing)
        for j, region in enumerate(regions):
            grown = j in owner and region.area > GROWN * owner[j].regions[owner[j].latest[0]].area
            for thing in inside.get(j, ()):
                thing.merged.append(t)  # behind what has the region, or in it
            if j in inside and (grown or (j not in owner and len(inside[j]) > 1)):
                for thing in (*inside[j], *([owner[j]] if j in owner else [])):
                    if thing.together < thing.latest[0]:
                        thing.carried.clear()
                    thing.together = t
                    thing.carried.append(region.centre)
                if j in owner:
                    owner[j].merged.append(t)
            elif j in owner:
                owner[j].regions[t] = region
            else:
                things.append(_Thing({t: region}))
    return things


def _at(label: np.ndarray, place: np.ndarray) -> int:
    x, y = (int(np.clip(v, 0, n - 1)) for v, n in zip(place, label.shape[::-1], strict=True))
    return int(label[y, x])


def _unlike(thing: _Thing, expected: np.ndarray, region: _Region, t: int) -> float:
    """How dear it is to take a region for a thing."""
    last, *before = thing.latest
    known = thing.regions[last]
    speed = float(np.linalg.norm(known.centre - thing.regions[before[0]].centre)) if before else 0.0
    reach = 2.0 + np.sqrt(known.area / np.pi) + speed * (t - last)
    doublings = abs(np.log2(region.area / known.area))
    colour = float(np.abs(region.colour - known.colour).max()) / 80
    return float(np.linalg.norm(region.centre - expected)) / reach + doublings + colour


def _filled(thing: _Thing, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres [T, 2] and areas [T] of one thing: see `Tracks` for what 0 and nan mean."""
    positions, areas = np.full((frames, 2), np.nan), np.zeros(frames)
    for t, region in thing.regions.items():
        positions[t] = np.nan if region.border else region.centre
        areas[t] = np.nan if region.border else region.area
    areas[thing.merged] = np.nan
    first, last = min(thing.regions), max(thing.regions)
    # What comes over the border was outside before, and what goes over it is after.
    if thing.regions[first].border:
        areas[:first] = np.nan
    if thing.regions[last].border:
        areas[last + 1 :] = np.nan
    return positions, areas
