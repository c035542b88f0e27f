"""How far the motion of things is from mechanics: energy, gravity, mass. Collisions are in `jaxdiff.physics.collisions`.

Nothing is published under these names; the definitions are ours. With h the height, v the velocity (central differences,
which are exact on parabolas), A the area and 1/2 I w^2 left out, since a centre does not show rotation::

    E(t) = sum_i m_i |v_i|^2 / 2 + m_i g h_i
    energy error  = rms_t(E - E_0) / max(max_t KE, max_t |PE - PE_0|)
    energy gain   = max_t (E - min_{s <= t} E) / the same           what no dissipation excuses
    gravity       = g of y = a + b t + g t^2 / 2, one for all flights of a thing, a and b for each
    mass variance = Var_t(A) / mean_t(A)^2

Everything happens between contacts. A contact is a spike of the second difference of a centre: gravity, friction and slopes
make it constant, or step, and no force but a blow makes it jump and return. What is measured is only as good as the tracks:
stand the share of frames in which the thing was missed, the value on known motion and the value on shuffled frames beside
every number.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.physics.tracks import Tracks

GRAVITY = 9.81
SURE = 5.0  # standard deviations from which on a change is no noise
SLIGHT = 0.15  # of a thing's rms speed: below it no change is a blow, however still the noise
ROUNDING = 1e-6  # of a radius
AROUND = 3  # frames to either side whose median is a second difference's neighbourhood
FLIGHT = 5  # frames that say what gravity is: more than a parabola has unknowns
STILL = 0.05  # of a radius: a thing whose height changes by less is carried


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a number is told: its `name`, a `title` that says it all, and whether it counts against the clip."""

    name: str
    title: str
    violation: bool = True


# ------------------------------------------------------------------------------------------------------------- contacts


def noise(tracks: Tracks) -> np.ndarray:
    """Standard deviation of a coordinate of a centre, the noisier one, in pixels, [N, K]; 0 with too few frames to say.

    Robust, from fourth differences: smooth motion has next to none, and those of noise are sqrt(70) times as wide.
    """
    fourth = np.abs(np.diff(tracks.positions, n=4, axis=1))  # [N, T - 4, K, 2]
    typical = _nan_median(fourth) if fourth.shape[1] else np.zeros((*tracks.there.shape, 2))
    return 1.4826 * np.nan_to_num(typical).max(-1) / np.sqrt(70.0)


def jumps(tracks: Tracks, deviation: np.ndarray | None = None) -> np.ndarray:
    """By how much the velocity jumps, [N, T, K, 2] in pixels a frame; 0 where that may be noise of this `deviation` [N, K].

    The second difference less the median of those around it, where that is longer than `SURE` standard deviations and `SLIGHT`
    of the thing's speed. A blow between two frames shows in both.
    """
    positions = tracks.positions
    found = np.zeros(positions.shape)
    frames = positions.shape[1]
    if frames < 3:
        return found
    second = positions[:, 2:] - 2 * positions[:, 1:-1] + positions[:, :-2]  # of frames 1 .. T - 2
    limit = SURE * np.sqrt(6.0) * (noise(tracks) if deviation is None else deviation)
    limit = limit + SLIGHT * _speed(tracks) + ROUNDING * np.nan_to_num(tracks.radii)
    last = second.shape[1]
    for t in range(last):
        start = max(min(t - AROUND, last - 2 * AROUND - 1), 0)
        # Order statistics by hand: a frame that is not seen has no second difference, and must not count as one.
        usual = _nan_median(second[:, start : start + 2 * AROUND + 1])
        change = np.nan_to_num(second[:, t] - usual)
        found[:, t + 1] = np.where((np.linalg.norm(change, axis=-1) > limit)[..., None], change, 0.0)
    return found


def _speed(tracks: Tracks) -> np.ndarray:
    """Root mean square speed of every thing, [N, K] in pixels a frame; 0 where nobody knows."""
    square = np.square(np.diff(tracks.positions, axis=1)).sum(-1)
    known = np.isfinite(square)
    return np.sqrt(np.where(known, square, 0.0).sum(1) / np.maximum(known.sum(1), 1))


def _nan_median(values: np.ndarray) -> np.ndarray:
    """Median over axis 1 of what is finite; nan where nothing is."""
    count = np.isfinite(values).sum(1)
    ordered = np.sort(values, axis=1)  # nan last
    middle = [np.maximum(count - 1, 0) // 2, count // 2]
    low, high = (np.take_along_axis(ordered, np.minimum(i, values.shape[1] - 1)[:, None], 1)[:, 0] for i in middle)
    return np.where(count > 0, (low + high) / 2, np.nan)


def free(tracks: Tracks) -> np.ndarray:
    """bool [N, T, K]: the thing is seen, and nothing hits it in this frame or the ones beside it.

    A blow between two frames shows in both, but in one perhaps too little to be told from noise.
    """
    hit = np.asarray(jumps(tracks).any(-1))
    beside = np.zeros_like(hit)
    beside[:, 1:] |= hit[:, :-1]
    beside[:, :-1] |= hit[:, 1:]
    return tracks.visible & ~hit & ~beside


def runs(flags: np.ndarray) -> Iterator[tuple[int, int]]:
    """[start, stop) of every run of true values of a vector."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


# -------------------------------------------------------------------------------------------------------------- gravity


@dataclasses.dataclass(frozen=True)
class Gravity:
    """A fit to the flights of every thing; all [N, K], nan where a thing does not fly.

    Attributes
    ----------
    value : downward acceleration, metres (pixels without a scale) per second squared.
    deviation : standard deviation of `value`, from the residuals. With noise s in T frames, asymptotically
        ``s sqrt(720) / (dt^2 T^2.5)``.
    r2 : share of the variance of the heights about every flight's mean that the parabolas explain.
    """

    value: np.ndarray
    deviation: np.ndarray
    r2: np.ndarray

    def residual(self, gravity: float = GRAVITY) -> np.ndarray:
        """``|g_hat - g| / g``: 1 for a thing that floats."""
        return np.abs(self.value - gravity) / gravity


def gravity_fit(tracks: Tracks, floor: float | None = None, deviation: np.ndarray | None = None) -> Gravity:
    """Fit gravity to flights, split at contacts.

    Parameters
    ----------
    floor : the row, in pixels, on which things stand or bounce. A thing that does not touch it flies, even if it hangs
        still. None: nobody knows, and a thing at constant height is taken to be carried by something.
    deviation : of the noise of the centres, [N, K] in pixels, beyond which a height changes; None: from the tracks.
    """
    found = np.full((3, *tracks.there.shape), np.nan)
    usable, tremor = free(tracks), noise(tracks) if deviation is None else deviation
    time = np.arange(tracks.positions.shape[1]) / tracks.fps
    for n, k in np.argwhere(tracks.there):
        y, radius = tracks.positions[n, :, k, 1], tracks.radii[n, k]
        up = usable[n, :, k]
        if floor is not None:
            up = up & ~(y + radius > floor - STILL * radius)  # ~ of >: nan is not seen anyway
        flights = [slice(*ends) for ends in runs(up) if ends[1] - ends[0] >= FLIGHT]
        if floor is None:
            least = max(STILL * radius, 2 * SURE * tremor[n, k])
            flights = [part for part in flights if np.ptp(y[part]) > least]
        if flights:
            found[:, n, k] = _common_parabola([time[part] for part in flights], [y[part] for part in flights])
    return Gravity(found[0] * tracks.metres, found[1] * tracks.metres, found[2])


def _common_parabola(times: list[np.ndarray], heights: list[np.ndarray]) -> tuple[float, float, float]:
    """Least squares of ``y = a_s + b_s t + g t^2 / 2`` over segments s: g, its standard deviation, R^2."""
    inner = outer = square = total = 0.0
    rest, freedom = [], -1
    for t, y in zip(times, heights, strict=True):
        lines = np.linalg.qr(np.stack([np.ones_like(t), t - t.mean()], 1))[0]
        curve = t**2 / 2
        curve, bent = (v - lines @ (lines.T @ v) for v in (curve, y))
        inner, outer = inner + curve @ bent, outer + curve @ curve
        total += float(np.square(y - y.mean()).sum())
        rest.append((curve, bent))
        freedom += len(t) - 2
    gravity = inner / outer
    square = sum(float(np.square(bent - gravity * curve).sum()) for curve, bent in rest)
    deviation = np.sqrt(square / max(freedom, 1) / outer)
    # Heights that are equal to rounding have no variance to explain.
    tiny = 1e-18 * sum(float(np.square(y).sum()) for y in heights)
    return float(gravity), float(deviation), 1 - square / total if total > tiny else float("nan")


# --------------------------------------------------------------------------------------------------------------- energy


@dataclasses.dataclass(frozen=True)
class Energy:
    """Of all things of a clip together, [N, T]; nan in frames in which one is not seen, is hit, or has no neighbours.

    Masses are areas where nobody knows better, so that only ratios mean something.
    """

    kinetic: np.ndarray
    potential: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """``KE + PE``."""
        return self.kinetic + self.potential


def energy(tracks: Tracks, gravity: float | np.ndarray) -> Energy:
    """Kinetic and potential energy.

    Parameters
    ----------
    gravity : downward acceleration, metres (pixels without a scale) per second squared, one or [N].
    """
    gravity = np.broadcast_to(np.asarray(gravity, np.float64), len(tracks.positions))
    places = tracks.positions * tracks.metres
    speeds = np.full(places.shape, np.nan)
    speeds[:, 1:-1] = (places[:, 2:] - places[:, :-2]) * tracks.fps / 2
    usable = (free(tracks) & np.isfinite(speeds).all(-1)) | ~tracks.there[:, None]
    usable = np.asarray(usable.all(2)) & np.asarray(tracks.there.any(1))[:, None]
    masses = np.where(tracks.there, tracks.masses, 0.0)[:, None]
    kinetic = (masses * np.square(np.nan_to_num(speeds)).sum(-1) / 2).sum(-1)
    potential = -(masses * gravity[:, None, None] * np.nan_to_num(places[..., 1])).sum(-1)  # y points down
    return Energy(np.where(usable, kinetic, np.nan), np.where(usable, potential, np.nan))


def energy_error(found: Energy) -> tuple[np.ndarray, np.ndarray]:
    """Energy error and energy gain, [N] each; see the module. 0 where nothing moves; nan with fewer than two frames."""
    error, gain = np.full((2, len(found.kinetic)), np.nan)
    for n, (kinetic, potential) in enumerate(zip(found.kinetic, found.potential, strict=True)):
        known = np.isfinite(kinetic)
        if known.sum() < 2:
            continue
        kinetic, potential = kinetic[known], potential[known]
        scale = max(kinetic.max(), np.abs(potential - potential[0]).max())
        total = kinetic + potential
        change = (
            np.stack([total - total[0], total - np.minimum.accumulate(total)]) / scale if scale else np.zeros((2, 1))
        )
        error[n], gain[n] = np.sqrt(np.mean(np.square(change[0]))), change[1].max()
    return error, gain


# ----------------------------------------------------------------------------------------------------------------- mass


def mass_variance(amounts: np.ndarray) -> np.ndarray:
    """``Var_t(A) / mean_t(A)^2`` of [N, T, K] -> [N, K], over frames that know it; nan where no frame does.

    Of a thing A is its area (`Tracks.areas`), and a thing that is gone after the share f of the frames has ``(1 - f) / f``;
    of a fluid A is the total density of a frame, as one thing.

    Raises
    ------
    ConfigError : another shape.
    """
    amounts = np.asarray(amounts, np.float64)
    if amounts.ndim != 3:
        raise ConfigError(f"amounts are [N, T, K], got {amounts.shape}")
    known = np.isfinite(amounts)
    count = np.maximum(known.sum(1), 1)
    mean = np.where(known, amounts, 0.0).sum(1) / count
    variance = np.where(known, np.square(amounts - mean[:, None]), 0.0).sum(1) / count
    return np.where(mean > 0, variance / np.where(mean > 0, mean, 1.0) ** 2, np.nan)
