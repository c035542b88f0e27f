"""Whether things that meet do as mechanics says, and things that turn have a reason to.

An event is a contact of two things at a speed that is not noise, or a jump of a velocity for which there is no contact (a
kick). With u the relative velocity along the line between the centres when they touch, before and after (') the contact::

    momentum     |sum p' - sum p| / sum |p|          gravity's share taken out
    restitution  e = -u' / u, in [0, 1]              -1 where one passes through the other
    penetration  how deep one is in the other, of the smaller radius
    causal       no contact without a jump, no jump without a contact

An event is consistent if all four hold. The definitions and limits are ours; `Event` lists the terms.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxdiff.physics.metrics import ROUNDING, SLIGHT, SURE, jumps, noise, runs
from jaxdiff.physics.tracks import Tracks

TOUCH = 0.1  # of the mean radius: a gap at which things touch, since radii are of discs and things are not
WINDOW = 3  # frames that tell a velocity before or after a contact
NEAR = 2  # frames between a jump and the contact that explains it
MOMENTUM, RESTITUTION, PENETRATION = 0.15, 0.1, 0.2  # largest residual, excess of e over 1, depth of a consistent event


@dataclasses.dataclass(frozen=True)
class Event:
    """A contact of two `things`, or a kick of one, in a `frame` of a `clip`. Terms of a kick but `causal` are nan."""

    clip: int
    frame: int
    things: tuple[int, ...]
    causal: bool
    momentum: float = math.nan
    restitution: float = math.nan
    penetration: float = math.nan

    @property
    def consistent(self) -> bool:
        """All terms hold."""
        return (
            self.causal
            and self.momentum <= MOMENTUM
            and self.restitution + 1e-9 >= 0
            and self.restitution <= 1 + RESTITUTION
            and self.penetration <= PENETRATION
        )


def collisions(
    tracks: Tracks,
    gravity: float | np.ndarray = 0.0,
    walls: tuple[float, float, float, float] | None = None,
    deviation: np.ndarray | None = None,
) -> tuple[Event, ...]:
    """Every event of every clip, in time.

    Parameters
    ----------
    gravity : downward acceleration between contacts, metres (pixels without a scale) per second squared: of all things, or
        [N, K], 0 of those that something carries.
    walls : (left, top, right, bottom) in pixels, infinite where there is none: a jump of a thing that touches one is explained.
        None: nobody knows where the ground is, and a jump upward is taken for a bounce off it.
    deviation : of the noise of the centres, [N, K] in pixels; None: from the tracks. Shuffled ones are all noise, and only
        show what their events would be with that of the ordered ones.
    """
    tremor = noise(tracks) if deviation is None else deviation
    changes = jumps(tracks, tremor)
    # Pixels per frame squared.
    pull = np.broadcast_to(np.asarray(gravity) / tracks.metres / tracks.fps**2, tracks.there.shape)
    events = []
    for n in range(len(tracks.positions)):
        things = np.flatnonzero(tracks.there[n])
        explained = np.zeros(tracks.areas.shape[1:], bool)  # [T, K], near a contact
        centres = {k: _whole(tracks.positions[n, :, k]) for k in things}
        for at, i in enumerate(things):
            for j in things[at + 1 :]:
                radii, pair = tracks.radii[n, [i, j]], [int(i), int(j)]
                path = np.stack([centres[i], centres[j]], 1)
                seen = tracks.visible[n][:, pair].all(1)
                for start, stop in runs(_touching(path, seen, radii)):
                    explained[max(start - NEAR, 0) : stop + NEAR, pair] = True
                    sd = float(np.hypot(*tremor[n, pair]))
                    event = _judged(path, seen, radii, tracks.masses[n, pair], (start, stop - 1), pull[n, pair], sd)
                    if event is not None:
                        events.append(dataclasses.replace(event, clip=n, things=tuple(pair)))
        for k in things:
            for start, stop in runs((changes[n, :, k] != 0).any(-1)):
                reason = explained[start:stop, k].any() or _hit_wall(
                    centres[k][max(start - 1, 0) : stop + 1],
                    changes[n, start:stop, k],
                    float(tracks.radii[n, k]),
                    walls,
                )
                if not reason:
                    events.append(Event(n, start, (int(k),), causal=False))
    return tuple(sorted(events, key=lambda event: (event.clip, event.frame, event.things)))


def consistency(events: Sequence[Event], clips: int) -> np.ndarray:
    """[clips], share of a clip's events that are consistent; nan where nothing happens."""
    held = [[event.consistent for event in events if event.clip == n] for n in range(clips)]
    return np.array([np.mean(clip) if clip else np.nan for clip in held])


def _whole(path: np.ndarray) -> np.ndarray:
    """A path [T, 2] with straight lines through the frames in which it is not seen; nan before the first and after the last."""
    known = np.isfinite(path).all(-1)
    time = np.arange(len(path))
    lines = [np.interp(time, time[known], path[known, axis], left=np.nan, right=np.nan) for axis in (0, 1)]
    return np.stack(lines, -1)


def _touching(path: np.ndarray, seen: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """bool [T]: two things [T, 2, 2] touch here, or will before the next frame that shows both, or did since the last.

    Between such frames they are taken to go on as they came: a blow that falls between two shows in neither's gap. Trackers
    see things that touch as one, so that the blow may be hidden for several frames.
    """
    gap = np.linalg.norm(path[:, 1] - path[:, 0], axis=-1) - radii.sum()
    limit = TOUCH * radii.mean()
    touching = np.zeros(len(path), bool)
    shown = np.flatnonzero(seen)
    if len(shown) < 2:
        return touching
    for before, first, last, after in zip(
        [*shown[:1], *shown[:-2]], shown[:-1], shown[1:], [*shown[2:], *shown[-1:]], strict=True
    ):
        ahead = (gap[first] - gap[before]) / max(first - before, 1) * (last - first)
        behind = (gap[last] - gap[after]) / max(after - last, 1) * (last - first)
        if gap[first] + min(ahead, 0) <= limit or gap[last] + min(behind, 0) <= limit:
            touching[first : last + 1] = True
    return touching


def _judged(
    path: np.ndarray,
    seen: np.ndarray,
    radii: np.ndarray,
    masses: np.ndarray,
    ends: tuple[int, int],
    pull: np.ndarray,
    sd: float,
) -> Event | None:
    """The event of one contact, from frame `ends[0]` to `ends[1]`; None where it is none or cannot be told."""
    first, last = ends
    before = [t for t in range(first, max(first - 2 * WINDOW, -1), -1) if seen[t]][:WINDOW]
    after = [t for t in range(last, min(last + 2 * WINDOW, len(path))) if seen[t]][:WINDOW]
    if len(before) < 2 or len(after) < 2:
        return None
    (place, speed), (_, left) = _motion(path, before, first, pull), _motion(path, after, last, pull)
    apart, closing = place[1] - place[0], speed[1] - speed[0]
    normal = _normal(apart, closing, radii.sum())
    towards, away = closing @ normal, (left[1] - left[0]) @ normal
    # A slope of n equally spaced points has the variance 12 / (n^3 - n) of one point's.
    slope = max(np.sqrt(12 / (len(part) ** 3 - len(part))) for part in (before, after))
    limit = SURE * sd * slope + SLIGHT * np.linalg.norm(closing) + ROUNDING * radii.mean()
    if towards > -limit:
        return None  # they rest against each other, or move apart
    fallen = np.stack([np.zeros(2), pull * (last - first)], -1)
    momentum = (masses[:, None] * (left - speed - fallen)).sum(0)
    carried = (masses * np.linalg.norm(speed, axis=-1)).sum()
    inside = path[first : last + 1]
    depth = radii.sum() - np.linalg.norm(inside[:, 1] - inside[:, 0], axis=-1)
    jumped = np.linalg.norm(left - speed - fallen, axis=-1).max() > limit
    return Event(
        clip=-1,
        frame=first,
        things=(),
        causal=bool(jumped),
        momentum=float(np.linalg.norm(momentum) / carried),
        restitution=float(-away / towards),
        penetration=float(max(np.nanmax(depth), 0.0) / radii.min()),
    )


def _motion(path: np.ndarray, frames: list[int], now: int, pull: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and velocities [2, 2] in frame `now`, least squares over `frames` of straight lines but for gravity."""
    time = np.array(frames, np.float64) - now
    fallen = np.zeros((len(time), 2, 2))
    fallen[..., 1] = pull * time[:, None] ** 2 / 2
    design = np.stack([np.ones_like(time), time], 1)
    solved = np.linalg.lstsq(design, (path[frames] - fallen).reshape(len(time), 4), rcond=None)[0]
    return solved[0].reshape(2, 2), solved[1].reshape(2, 2)


def _normal(apart: np.ndarray, closing: np.ndarray, reach: float) -> np.ndarray:
    """Direction from one centre to the other when their distance is `reach`, or where they are nearest if it never is."""
    a, b, c = closing @ closing, apart @ closing, apart @ apart - reach**2
    if a > 0:
        apart = apart + closing * ((-b - np.sqrt(max(b * b - a * c, 0.0))) / a)
    return apart / max(float(np.linalg.norm(apart)), 1e-9)


def _hit_wall(
    path: np.ndarray, change: np.ndarray, radius: float, walls: tuple[float, float, float, float] | None
) -> bool:
    """Whether a jump is a bounce: off a wall that the thing touches, or upward where nobody knows the walls."""
    total = change.sum(0)
    if walls is None:
        return bool(total[1] < 0 and abs(total[1]) > abs(total[0]))
    reach = radius * (1 + TOUCH) + np.nanmax(np.abs(np.diff(path, axis=0)), axis=0, initial=0.0)
    low, high = np.nanmin(path, axis=0) - reach, np.nanmax(path, axis=0) + reach
    return bool((low <= walls[:2]).any() or (high >= walls[2:]).any())
