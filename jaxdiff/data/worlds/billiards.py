"""Elastic discs in a box, in pairs of clips that begin with the same picture: in one the driver hits a resting disc, in the
other it misses.

Between two events every disc moves straight. The next wall or contact is the root of a linear or quadratic equation, so that
motion has no time step and no error but float64's. A disc of radius r has mass r^2. A contact turns the normal part of the
relative velocity around and keeps momentum and energy, as a wall keeps energy. Discs never overlap, so that their masks are
exact: pixels whose centre a disc covers.

Lengths are fractions of the frame, y points down, time is in frames. The driver is disc 0, the one that it is aimed at disc 1.
"""

import dataclasses

import numpy as np

from jaxdiff.data.worlds.scene import COLOURS, PALETTE
from jaxdiff.errors import ConfigError

HIT_WITHIN = (0.2, 0.6)  # of the clip: there is time to see the driver come, and the other disc go
MOVED = 0.08  # how far the disc that is hit must be at the end from where it lay
APART = 0.04  # gap between two discs, and between a disc and a wall, in the first frame
_CANDIDATES = 48  # velocities tried for a first picture
_ATTEMPTS = 200  # first pictures tried for a pair
_EVENTS = 10_000


@dataclasses.dataclass(frozen=True)
class BilliardConfig:
    """The world's numbers.

    Parameters
    ----------
    frames, size : clip length (`4k + 1`, at least 9), and side of the frame in pixels (a multiple of 8, at least 32).
    discs : the driver and those that rest at first.
    radius : range of their radii.
    speed : range of the driver's speed, per clip.
    """

    frames: int = 17
    size: int = 32
    discs: int = 2
    radius: tuple[float, float] = (0.12, 0.16)
    speed: tuple[float, float] = (0.55, 0.9)

    def __post_init__(self):
        if self.frames < 9 or self.frames % 4 != 1 or self.size < 32 or self.size % 8:
            raise ConfigError(
                f"BilliardConfig: frames={self.frames} must be 4k+1 and at least 9, size={self.size} a multiple of 8 and at "
                "least 32"
            )
        if not 2 <= self.discs <= 4:
            raise ConfigError(f"BilliardConfig: discs={self.discs}; there are from 2 to 4")
        if not 0.05 <= self.radius[0] <= self.radius[1] <= 0.18 or not 0 < self.speed[0] <= self.speed[1] <= 4:
            raise ConfigError(
                f"BilliardConfig: radius={self.radius} must be an increasing pair within [0.05, 0.18], and speed={self.speed} "
                "one within (0, 4]"
            )


@dataclasses.dataclass(frozen=True)
class Motion:
    """Where discs are, leading axes [N].

    Attributes
    ----------
    position, velocity : float64 [N, T, K, 2]
    contact : float64 [N, K, K], time of the first contact of two discs; inf where there is none.
    """

    position: np.ndarray
    velocity: np.ndarray
    contact: np.ndarray


@dataclasses.dataclass(frozen=True)
class Billiards:
    """Rendered clips and all that is true of them; clip 2i is the hit of pair i, clip 2i + 1 the miss.

    Attributes
    ----------
    video : uint8 [N, T, H, W, 3]
    masks : bool [N, T, K, H, W]
    motion : see `Motion`
    radius : float64 [N, K]
    colour : int [N, K], indices into COLOURS; the discs of a clip differ.
    """

    video: np.ndarray
    masks: np.ndarray
    motion: Motion
    radius: np.ndarray
    colour: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """bool [N], whether the driver touches the disc that it is aimed at."""
        return np.isfinite(self.motion.contact[:, 0, 1])


def simulate(position: np.ndarray, velocity: np.ndarray, radius: np.ndarray, frames: int) -> Motion:
    """Elastic motion of discs in the unit box, exact between and at events.

    Parameters
    ----------
    position, velocity : [N, K, 2], at frame 0; the velocity per frame.
    radius : [N, K]; a disc's mass is its square.
    frames : T.
    """
    x, v, r = (np.array(value, np.float64) for value in (position, velocity, radius))
    rows, count = np.arange(len(x)), x.shape[1]
    first, second = np.triu_indices(count, 1)
    contact = np.full((len(x), count, count), np.inf)
    xs, vs, now = [x.copy()], [v.copy()], np.zeros(len(x))
    for frame in range(1, frames):
        for _ in range(_EVENTS):
            left = frame - now
            if not (left > 0).any():
                break
            walls = _until_walls(x, v, r).reshape(len(x), -1)
            pairs = _until_contacts(x, v, r, first, second)
            waits = np.concatenate([walls, pairs], 1)
            which = waits.argmin(1)
            wait = waits[rows, which]
            happens = wait <= left
            step = np.where(happens, wait, left)
            x = x + v * step[:, None, None]
            now = np.where(happens, now + step, frame)
            at = rows[happens & (which < walls.shape[1])]
            disc, axis = np.divmod(which[at], 2)
            v[at, disc, axis] *= -1
            at = rows[happens & (which >= walls.shape[1])]
            i, j = (side[which[at] - walls.shape[1]] for side in (first, second))
            v[at, i], v[at, j] = _after(x[at, i], x[at, j], v[at, i], v[at, j], r[at, i], r[at, j])
            contact[at, i, j] = contact[at, j, i] = np.minimum(contact[at, i, j], now[at])
        else:
            raise RuntimeError(f"more than {_EVENTS} contacts between two frames")
        xs.append(x.copy())
        vs.append(v.copy())
    return Motion(np.stack(xs, 1), np.stack(vs, 1), contact)


def _until_walls(x: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Time until each disc touches a wall, along each axis [N, K, 2]."""
    room = np.where(v > 0, 1 - r[..., None] - x, x - r[..., None])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(v == 0, np.inf, np.maximum(room, 0) / np.abs(v))


def _until_contacts(x: np.ndarray, v: np.ndarray, r: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Time until two discs touch [N, pairs]: the first root of ``|dx + t dv| = r1 + r2``, if they approach."""
    dx, dv = x[:, second] - x[:, first], v[:, second] - v[:, first]
    a, b = np.square(dv).sum(-1), (dx * dv).sum(-1)
    c = np.square(dx).sum(-1) - np.square(r[:, first] + r[:, second])
    root = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        time = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((b < 0) & (root >= 0) & (a > 0), np.maximum(time, 0), np.inf)


def _after(x1, x2, v1, v2, r1, r2) -> tuple[np.ndarray, np.ndarray]:
    """Velocities [n, 2] after two discs met."""
    normal = x2 - x1
    normal = normal / np.linalg.norm(normal, axis=-1, keepdims=True)
    m1, m2 = np.square(r1)[:, None], np.square(r2)[:, None]
    push = 2 * ((v2 - v1) * normal).sum(-1, keepdims=True) * normal / (m1 + m2)
    return v1 + m2 * push, v2 - m1 * push


def energy(motion: Motion, radius: np.ndarray) -> np.ndarray:
    """Kinetic energy in every frame [N, T]: ``sum_k r_k^2 |v_k|^2 / 2``, which never changes."""
    return (np.square(radius)[:, None] * np.square(motion.velocity).sum(-1)).sum(-1) / 2


def momentum(motion: Motion, radius: np.ndarray) -> np.ndarray:
    """``sum_k r_k^2 v_k`` in every frame [N, T, 2], which walls alone change."""
    return (np.square(radius)[:, None, :, None] * motion.velocity).sum(2)


def billiards(config: BilliardConfig, seed: int, pairs: int, start: int = 0) -> Billiards:
    """Pairs `start` to ``start + pairs`` of a world seed; a pair is the same whatever is drawn beside it.

    Raises
    ------
    ConfigError : fewer than one pair, or no pair can be drawn with these numbers.
    """
    if pairs < 1:
        raise ConfigError(f"billiards: pairs={pairs}; at least 1")
    drawn = [_pair(config, seed, start + i) for i in range(pairs)]
    position, velocity, radius, colour, wall = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    motion = simulate(position, velocity, radius, config.frames)
    parts = [slice(i, i + 64) for i in range(0, len(radius), 64)]  # what is drawn at once
    rendered = [_render(config, motion.position[part], radius[part], colour[part], wall[part]) for part in parts]
    video, masks = (np.concatenate(arrays) for arrays in zip(*rendered, strict=True))
    return Billiards(video, masks, motion, radius, colour)


def _pair(config: BilliardConfig, seed: int, number: int):
    """Start, velocities, radii, colours and wall of a hit and a miss, each [2, ...]."""
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng((seed, number, attempt))
        radius = rng.uniform(*config.radius, config.discs)
        x = rng.uniform(radius[:, None] + APART, 1 - radius[:, None] - APART, (config.discs, 2))
        gaps = np.linalg.norm(x[:, None] - x, axis=-1) - radius[:, None] - radius
        if (gaps + 2 * np.eye(config.discs) < APART).any():
            continue
        speed = rng.uniform(*config.speed, _CANDIDATES) / (config.frames - 1)
        towards = np.arctan2(*(x[1] - x[0])[::-1])
        aimed = np.arange(_CANDIDATES) < _CANDIDATES // 2
        angle = towards + rng.uniform(-0.5, 0.5, _CANDIDATES) * np.where(aimed, 1.0, 2 * np.pi)
        v = np.zeros((_CANDIDATES, config.discs, 2))
        v[:, 0] = speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        every = (np.broadcast_to(value, (_CANDIDATES, *value.shape)) for value in (x, radius))
        motion = simulate(next(every), v, next(every), config.frames)
        last = config.frames - 1
        when, others = motion.contact[:, 0, 1], motion.contact[:, 0].min(1)
        moved = np.linalg.norm(motion.position[:, -1, 1] - x[1], axis=-1)
        hits = (when >= HIT_WITHIN[0] * last) & (when <= HIT_WITHIN[1] * last) & (when <= others) & (moved >= MOVED)
        misses = np.isinf(motion.contact).all((1, 2))
        if hits.any() and misses.any():
            chosen = [int(hits.argmax()), int(misses.argmax())]
            colour = rng.permutation(len(COLOURS))[: config.discs]
            wall = np.clip(rng.uniform(0.35, 0.65) + rng.uniform(-0.06, 0.06, 3), 0, 1)
            both = lambda value: np.stack([value, value])  # noqa: E731
            return both(x), v[chosen], both(radius), both(colour), both(wall)
    raise ConfigError(f"BilliardConfig: no first picture of {config} has a hit and a miss; make speed or discs smaller")


def _render(config: BilliardConfig, position, radius, colour, wall) -> tuple[np.ndarray, np.ndarray]:
    """Anti-aliased pictures uint8 [N, T, H, W, 3] and masks bool [N, T, K, H, W]."""
    place = (np.arange(config.size) + 0.5) / config.size
    dx = place[None, :] - position[..., 0, None, None]
    dy = place[:, None] - position[..., 1, None, None]
    distance = (np.sqrt(dx * dx + dy * dy) - radius[:, None, :, None, None]) * config.size
    cover = np.clip(0.5 - distance, 0, 1)[..., None]  # [N, T, K, H, W, 1]
    paint = np.asarray(PALETTE)[colour][:, None, :, None, None]
    background = wall[:, None, None, None] * (1 - cover.sum(2))
    video = background + (cover * paint).sum(2)
    return np.round(np.clip(video, 0, 1) * 255).astype(np.uint8), distance <= 0
