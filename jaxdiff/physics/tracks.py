"""Where the things of clips are and how much of them is seen: what the physical metrics read.

A tracker fills it (`jaxdiff.physics.plain_tracking`), or a simulator, which is how the metrics are tested.
"""

import dataclasses

import numpy as np

from jaxdiff.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Tracks:
    """K things in N clips of T frames. Lengths are pixels, x to the right, y down.

    Parameters
    ----------
    positions : [N, T, K, 2], centres (x, y); nan where the thing is not wholly seen.
    areas : [N, T, K], pixels that it covers. 0: it is missing in the open. nan: it cannot be seen whole (hidden, in touch
        with another, outside the frame), which is held against nobody.
    fps : frames a second.
    scale : metres a pixel; None where nobody knows, and lengths are told in pixels then.
    radii : [N, K], of the disc that collides as the thing does; None: of its median area.
    masses : [N, K]; None: the median areas.

    Raises
    ------
    ConfigError : shapes that do not fit together, or a rate or scale that is not positive.
    """

    positions: np.ndarray
    areas: np.ndarray
    fps: float
    scale: float | None = None
    radii: np.ndarray = None  # type: ignore[assignment]  # filled in below
    masses: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self):
        positions, areas = np.asarray(self.positions, np.float64), np.asarray(self.areas, np.float64)
        if positions.ndim != 4 or positions.shape[-1] != 2 or areas.shape != positions.shape[:3]:
            raise ConfigError(
                f"tracks have positions [N, T, K, 2] and areas [N, T, K], got {positions.shape} and {areas.shape}"
            )
        if not self.fps > 0 or (self.scale is not None and not self.scale > 0):
            raise ConfigError(f"tracks need positive fps and scale, got {self.fps} and {self.scale}")
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "areas", areas)
        for name in ("radii", "masses"):
            given = getattr(self, name)
            # While a thing is missing its area says nothing of its size.
            seen = np.where(self.visible, areas, np.nan) if given is None else None
            value = _median(seen) if seen is not None else np.asarray(given, np.float64)
            if value.shape != (len(positions), positions.shape[2]):
                raise ConfigError(f"{name} are [N, K], here {(len(positions), positions.shape[2])}, got {value.shape}")
            object.__setattr__(self, name, np.sqrt(value / np.pi) if given is None and name == "radii" else value)

    @property
    def visible(self) -> np.ndarray:
        """bool [N, T, K], wholly seen."""
        return np.asarray(np.isfinite(self.positions).all(-1))

    @property
    def there(self) -> np.ndarray:
        """bool [N, K], seen at all; things of a clip that has fewer than K are not."""
        return np.asarray(self.visible.any(1))

    @property
    def metres(self) -> float:
        """Metres a pixel, or 1 where nobody knows."""
        return 1.0 if self.scale is None else self.scale

    def missing(self) -> np.ndarray:
        """[N], share of the frames, of every thing, in which it should be seen and is not; 1 where no thing ever is."""
        owed = np.isfinite(self.areas) & self.there[:, None]
        lost = (owed & ~self.visible).sum((1, 2))
        return np.where(owed.any((1, 2)), lost / np.maximum(owed.sum((1, 2)), 1), 1.0)

    def shuffled(self, seed: int = 0) -> "Tracks":
        """The tracks of the same frames in an order drawn for every clip: what no law holds for."""
        clips, frames = self.positions.shape[:2]
        order = np.argsort(np.random.default_rng(seed).random((clips, frames)), axis=1)
        at = np.arange(clips)[:, None]
        return dataclasses.replace(self, positions=self.positions[at, order], areas=self.areas[at, order])


def _median(values: np.ndarray) -> np.ndarray:
    """Median over the frames [N, T, K] -> [N, K], nan where there is none."""
    found = np.full((len(values), values.shape[2]), np.nan)
    for n, k in np.ndindex(found.shape):
        known = values[n, :, k][np.isfinite(values[n, :, k])]
        if known.size:
            found[n, k] = np.median(known)
    return found
