"""The numbers of `jaxdiff.physics.metrics` for clips of the generated world: mechanics that knows nothing of that world."""

import numpy as np

from jaxdiff.physics.mechanics import MECHANICS, measure_tracks
from jaxdiff.physics.metrics import Metric
from jaxdiff.physics.tracking import Track
from jaxdiff.physics.tracks import Tracks

WORLD_MECHANICS: dict[str, Metric] = {key: MECHANICS[key] for key in ("energy", "gain", "flight")}
"""Those that a single thing without metres and a known floor has. What strikes it is not seen, so that no event is consistent."""

NOISE = 0.006
"""Standard deviation of a centre that the tracker finds behind the autoencoder, of the frame's side. A constant, since what
trembles in a generated clip is motion."""


def world_mechanics(track: Track) -> dict[str, np.ndarray]:
    """Mechanics of N tracked clips: the keys of `WORLD_MECHANICS` -> float64 [N], nan where not defined.

    Gravity is fitted to each clip; a thing whose height does not change is carried.
    """
    size = track.screen.shape[-1]
    tracks = Tracks(size * track.position[:, :, None], size**2 * track.area[:, :, None], fps=1.0)
    found = measure_tracks(tracks, deviation=np.full(tracks.there.shape, NOISE * size))
    return {key: found[key] for key in WORLD_MECHANICS}
