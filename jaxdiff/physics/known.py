"""Motion that is known in closed form, as tracks and as clips: what the metrics and the tracker of plain clips are held to.

Lengths are pixels, y points down, time is in seconds. A thing that falls from height h onto a floor at restitution e hits it
at ``t_1 = sqrt(2 h / g)`` and then every ``2 e^n sqrt(2 h / g)``; two discs meet when their distance is the sum of their radii,
and the parts of their velocities along the line between their centres change as momentum and restitution demand.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxdiff.physics.tracks import Tracks

GREY, TEXTURE, GRAIN = 0.5, 0.08, 0.01  # of a clip's wall: brightness, contrast, noise of a frame


def dropped(
    time: np.ndarray, height: float, gravity: float, restitution: float = 0.0, speed: float = 0.0
) -> np.ndarray:
    """How far below its start a thing is that is let go `height` above the floor (thrown down at `speed`)."""
    time = np.asarray(time, np.float64)
    impact = np.sqrt(speed**2 + 2 * gravity * height)
    start = (impact - speed) / gravity
    below = np.where(time < start, speed * time + gravity * time**2 / 2, height)
    while restitution > 0 and start < time.max():
        impact = restitution * impact
        since, lasts = time - start, 2 * impact / gravity
        if lasts < 1e-9:
            break
        rising = (since >= 0) & (since < lasts)
        below = np.where(rising, height - impact * since + gravity * since**2 / 2, below)
        start += lasts
    return below


def collided(
    time: np.ndarray,
    places: np.ndarray,
    velocities: np.ndarray,
    radii: np.ndarray,
    masses: np.ndarray,
    restitution: float = 1.0,
    depth: float = 0.0,
) -> np.ndarray:
    """Centres [T, 2 things, 2] of two discs that meet: `places`, `velocities` [2, 2] at time 0, `radii`, `masses` [2].

    `depth` is how far one enters the other before the blow, which no real ones do.
    """
    places, velocities = np.asarray(places, np.float64), np.asarray(velocities, np.float64)
    apart, closing = places[1] - places[0], velocities[1] - velocities[0]
    a, b, c = closing @ closing, apart @ closing, apart @ apart - (np.sum(radii) - depth) ** 2
    time = np.asarray(time, np.float64)[:, None, None]
    free = places + velocities * time
    if b >= 0 or b * b < a * c:
        return free  # they never meet
    meet = (-b - np.sqrt(b * b - a * c)) / a
    normal = apart + closing * meet
    normal /= np.linalg.norm(normal)
    m = np.asarray(masses, np.float64)
    impulse = (1 + restitution) * (closing @ normal) / (1 / m[0] + 1 / m[1])
    after = velocities + np.stack([impulse / m[0] * normal, -impulse / m[1] * normal])
    return np.where(time < meet, free, places + velocities * meet + after * (time - meet))


def tracks_of(positions: np.ndarray, radii: Sequence[float] | np.ndarray, fps: float, **others) -> Tracks:
    """Tracks of one clip: centres [T, K, 2] of discs, all of them seen in every frame."""
    positions, radii = np.asarray(positions, np.float64)[None], np.asarray(radii, np.float64)[None]
    areas = np.broadcast_to(np.pi * radii[:, None] ** 2, positions.shape[:3])
    return Tracks(positions, areas, fps, radii=radii, **others)


def discs(centres: np.ndarray, radii: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share of every pixel that discs cover, [T, H, W, K]: anti-aliased over one pixel."""
    rows, columns = (np.arange(n) + 0.5 for n in size)
    dx = columns[None, None, :, None] - centres[:, None, None, :, 0]
    dy = rows[None, :, None, None] - centres[:, None, None, :, 1]
    return np.clip(0.5 + radii - np.hypot(dx, dy), 0.0, 1.0)


def drawn(tracks: Tracks, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """The clips as pictures, uint8 [N, T, H, W, 3]: discs, each in a colour of its own, before a rough wall."""
    rng = np.random.default_rng(seed)
    clips = []
    for centres, radii in zip(tracks.positions, tracks.radii, strict=True):
        wall = GREY + TEXTURE * rng.standard_normal((size[0] // 4 + 1, size[1] // 4 + 1, 1)).repeat(4, 0).repeat(4, 1)
        video = np.broadcast_to(wall[: size[0], : size[1]], (len(centres), *size, 3))
        cover = discs(np.where(np.isfinite(centres), centres, -1e6), np.nan_to_num(radii), size)
        for k in range(cover.shape[-1]):
            hue = rng.permutation([0.05, 0.1 + 0.2 * rng.random(), 0.95])
            video = video + cover[..., k, None] * (hue - video)
        grain = GRAIN * rng.standard_normal((*video.shape[:3], 1))
        clips.append(np.rint(255 * np.clip(video + grain, 0, 1)).astype(np.uint8))
    return np.stack(clips)


@dataclasses.dataclass(frozen=True)
class Known:
    """Clips whose motion is known.

    Attributes
    ----------
    tracks : one a clip, exact; in metres, so that gravity is 9.81 m/s^2.
    floors : the row each clip's things bounce or slide on.
    """

    tracks: tuple[Tracks, ...]
    floors: tuple[float, ...]


def known_scenes(count: int, frames: int, size: tuple[int, int], fps: float, gravity: float, seed: int = 0) -> Known:
    """Draw scenes of clips of this length, size and rate: bouncing discs and, in every other clip, one that slides into
    another at rest.

    `gravity`, in metres per second squared, decides how many metres a pixel is: a fall takes about a third of the clip.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    time = np.arange(frames) / fps
    span = max(frames - 1, 1) / fps
    found, floors = [], []
    for i in range(count):
        floor = height * rng.uniform(0.82, 0.95)
        restitution = rng.uniform(0.7, 0.95)
        # Something falls half of the frame's height in a third of the clip.
        pull = 2 * 0.5 * height / (rng.uniform(0.28, 0.4) * span) ** 2
        if i % 2 == 0:
            radius = min(size) * rng.uniform(0.05, 0.09)
            y = floor - radius - 0.5 * height
            x = width * (0.25 + 0.5 * rng.random()) + (time / span - 0.5) * width * rng.uniform(-0.4, 0.4)
            places = np.stack([x, y + dropped(time, 0.5 * height, pull, restitution)], -1)[:, None]
            radii = np.array([radius])
        else:
            radii = np.full(2, min(size) * rng.uniform(0.05, 0.08))
            start = np.array([[0.12 * width, floor - radii[0]], [0.5 * width, floor - radii[0]]])
            # Late enough to be seen coming, early enough that the wall is seen where both were.
            closing = (start[1, 0] - start[0, 0] - radii.sum()) / (rng.uniform(0.4, 0.5) * span)
            speed = np.array([[closing, 0.0], [0.0, 0.0]])
            places = collided(time, start, speed, radii, radii**2, restitution)
        found.append(tracks_of(places, radii, fps, scale=gravity / pull))
        floors.append(float(floor))
    return Known(tuple(found), tuple(floors))
