"""Intervals over scenes *and* seeds: what would another training run, another world and other scenes have given?

Runs are pairs (training seed, world); scenes are nested in worlds and shared by the training seeds that met the world.
A draw takes training seeds, worlds, and inside every drawn world scenes, each with replacement, and pools what was drawn.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.report.study import Estimate

DRAWS = 4000


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Which run is which.

    training, world : [runs], names of the training seed and of the world of each run. Not every pair need be there.
    """

    training: tuple[str, ...]
    world: tuple[str, ...]

    @property
    def seeds(self) -> int:
        return len(set(self.training))

    @property
    def worlds(self) -> int:
        return len(set(self.world))

    @property
    def widening(self) -> float:
        """What a percentile interval must be widened by, because a bootstrap of m things shows (m - 1) / m of their
        variance; taken at the coarser of the two levels, so that the other one comes out too wide."""
        least = min((m for m in (self.seeds, self.worlds) if m > 1), default=math.inf)
        return math.sqrt(1 / (1 - 1 / least))

    def caveat(self) -> str:
        """How much to believe, in words."""

        def distinct(count: int) -> str:
            return f"{count} (a bootstrap of {count} has {math.comb(2 * count - 1, count)} different draws)"

        if self.seeds == 1 and self.worlds == 1:
            return "one training seed and one world: the intervals know scenes only"
        alone = [
            f"one {what}, not resampled" for what, m in (("training seed", self.seeds), ("world", self.worlds)) if m < 2
        ]
        many = [
            f"{what}: {distinct(m)}" for what, m in (("training seeds", self.seeds), ("worlds", self.worlds)) if m > 1
        ]
        return (
            f"resampled are {'; '.join([*many, *alone])}; and scenes inside worlds. So few seeds make a coarse interval: "
            f"it is widened by {self.widening:.2f}, and the lowest and the highest run stand beside it"
        )


def two_level(
    crossing: Crossing, sums: Sequence[np.ndarray], sizes: Sequence[np.ndarray], *, draws: int = DRAWS, seed: int = 0
) -> list[Estimate]:
    """Estimate and 95 % interval of total `sums` over total `sizes`, for each of K numbers at once.

    Parameters
    ----------
    sums : for each run [K, G], G scenes of its world in the same order in every run of that world.
    sizes : for each run [G], what a scene counts (clips, or pairs); 0 leaves it out.

    Raises
    ------
    ConfigError : runs of one world have different numbers of scenes.
    """
    trainings, training = np.unique(crossing.training, return_inverse=True)
    worlds, world = np.unique(crossing.world, return_inverse=True)
    for w, name in enumerate(worlds):
        counts = {len(size) for size, at in zip(sizes, world, strict=True) if at == w}
        if len(counts) > 1:
            raise ConfigError(f"runs on {name} have {sorted(counts)} scenes; give runs that used the same scenes")
    total = np.sum([size.sum() for size in sizes])
    values = np.sum([part.sum(1) for part in sums], axis=0) / total
    rng = np.random.default_rng(seed)
    took = np.stack([np.bincount(row, minlength=len(trainings)) for row in _picks(rng, len(trainings), draws)])
    picks = _picks(rng, len(worlds), draws)
    top, bottom = np.zeros((draws, len(values))), np.zeros(draws)
    for w in range(len(worlds)):
        draw, _ = np.nonzero(picks == w)  # a world that is drawn twice has its scenes drawn twice
        runs = np.flatnonzero(world == w)
        scenes = len(sizes[int(runs[0])])
        weights = rng.multinomial(scenes, np.full(scenes, 1 / scenes), len(draw)).astype(np.float64)
        for run in map(int, runs):
            times = took[draw, training[run]]
            np.add.at(top, draw, times[:, None] * (weights @ np.asarray(sums[run], np.float64).T))
            np.add.at(bottom, draw, times * (weights @ np.asarray(sizes[run], np.float64)))
    met = bottom > 0  # a draw may hit only pairs that were not run
    ends = np.quantile(top[met] / bottom[met, None], [0.025, 0.975], axis=0)
    ends = values + (ends - values) * crossing.widening
    return [Estimate(float(v), float(low), float(high)) for v, low, high in zip(values, *ends, strict=True)]


def _picks(rng: np.random.Generator, count: int, draws: int) -> np.ndarray:
    return rng.integers(count, size=(draws, count))
