"""All numbers of `metrics` and `collisions` of a clip at once, as one table."""

from collections.abc import Sequence

import numpy as np

from jaxdiff.physics.collisions import RESTITUTION, Event, collisions, consistency
from jaxdiff.physics.metrics import GRAVITY, Metric, energy, energy_error, gravity_fit, mass_variance, noise
from jaxdiff.physics.tracks import Tracks

MECHANICS: dict[str, Metric] = {
    "energy": Metric("energy error", "rms change of kinetic and potential energy, of the largest that there is"),
    "gain": Metric("energy gain", "largest rise of the energy above what it had fallen to, of the same"),
    "gravity": Metric("gravity residual", "distance of the fitted gravity from 9.81 m/s², of it (needs the scale)"),
    "flight": Metric("flight misfit", "1 - R² of parabolas of one gravity, of heights between contacts"),
    "mass": Metric("area variance", "variance of the area over its squared mean"),
    "collisions": Metric("inconsistent events", "contacts and kicks that break one of the next four"),
    "momentum": Metric("momentum residual", "change of the sum of momenta in a contact, of their size"),
    "restitution": Metric("restitution", "contacts whose restitution is not between 0 and 1"),
    "penetration": Metric("penetration", "how deep things are in one another, of the smaller radius"),
    "causality": Metric("causality", "events that are a contact without a jump, or a jump without a contact"),
    "missing": Metric("missed frames", "frames in which a thing that should be seen is not found"),
}
SHARES = ("collisions", "restitution", "causality", "missing")
"""Which of them cannot be more than 1."""
DETAILS = ("things", "events", "fitted_gravity")
"""What `measure_tracks` gives beside the metrics: counts, and the gravity, in metres (pixels) per second squared."""


def measure_tracks(
    tracks: Tracks, floor: float | None = None, deviation: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Every metric of every clip.

    Parameters
    ----------
    floor : the row, in pixels, on which things bounce and rest; None where nobody knows.
    deviation : of the noise, see `collisions`.

    Where there is no scale, energies are told by the gravity that was fitted, and by none where nothing flies.

    Returns
    -------
    the keys of `MECHANICS` and `DETAILS` -> float64 [N], nan where not defined; of things the mean.
    """
    clips = len(tracks.positions)
    tremor = noise(tracks) if deviation is None else deviation
    fit = gravity_fit(tracks, floor, tremor)
    value = _mean(fit.value)
    gravity = np.full(clips, GRAVITY) if tracks.scale is not None else np.nan_to_num(value)
    error, gain = energy_error(energy(tracks, gravity))
    walls = None if floor is None else (-np.inf, -np.inf, np.inf, floor)
    events = [_only(tracks, n, np.nan_to_num(fit.value), walls, tremor) for n in range(clips)]
    contacts = [[event for event in clip if len(event.things) == 2] for clip in events]

    def over(groups: Sequence[Sequence[Event]], of) -> np.ndarray:
        return np.array([np.mean([of(event) for event in group]) if group else np.nan for group in groups])

    known = tracks.scale is not None
    return {
        "energy": error,
        "gain": gain,
        "gravity": _mean(fit.residual()) if known else np.full(clips, np.nan),
        "flight": 1 - _mean(fit.r2),
        "mass": _mean(mass_variance(tracks.areas)),
        "collisions": 1 - np.concatenate([consistency(clip, 1) for clip in events]),
        "momentum": over(contacts, lambda event: event.momentum),
        "restitution": over(contacts, lambda event: not -1e-9 <= event.restitution <= 1 + RESTITUTION),
        "penetration": over(contacts, lambda event: event.penetration),
        "causality": over(events, lambda event: not event.causal),
        "missing": tracks.missing(),
        "things": tracks.there.sum(1).astype(np.float64),
        "events": np.array([len(clip) for clip in events], np.float64),
        "fitted_gravity": value,
    }


def _only(
    tracks: Tracks, n: int, pull: np.ndarray, walls: tuple[float, float, float, float] | None, deviation: np.ndarray
) -> tuple[Event, ...]:
    """Events of one clip, numbered 0; things fall in it as they were found to, the others are carried."""
    part = slice(n, n + 1)
    one = Tracks(
        tracks.positions[part], tracks.areas[part], tracks.fps, tracks.scale, tracks.radii[part], tracks.masses[part]
    )
    return collisions(one, pull[part], walls, deviation[part])


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over things [N, K] -> [N] of what is known; nan where nothing is."""
    known = np.isfinite(values)
    return np.where(known.any(1), np.where(known, values, 0.0).sum(1) / np.maximum(known.sum(1), 1), np.nan)
