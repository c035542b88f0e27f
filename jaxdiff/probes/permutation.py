"""Tests that keep scenes together: labels exchanged inside scenes, models exchanged scene by scene."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes.inputs import check_groups, check_labels, check_margins, one_per_clip

DRAWS = 10_000

# Out-of-fold hits of one cell are not independent between folds even where there is nothing to find. A linear probe's
# margin of clip j is a sum over training clips i of k_ij s_i, so that s_j margin_j and s_i margin_i share the term
# k_ij s_i s_j wherever i and j lie in different folds. Their signs then correlate by (2 / pi) / N for N training clips,
# and the variance of an accuracy is 1 + 2 / pi times that of independent hits, however many clips, folds or features.
# (Measured on noise, n = 120: 1.62.) Choosing the cell anew in every fold takes nearly all of it away.
CROSSED = float(np.sqrt(1 + 2 / np.pi))


class Permutations(NamedTuple):
    """A permutation test: share of relabelings at least as good, the statistic, its null distribution."""

    p: float
    statistic: float
    null: np.ndarray


class MaxStatistic(NamedTuple):
    """Family-wise test of many cells: adjusted p [cells], and the accuracy that gives p <= .05."""

    p: np.ndarray
    threshold: float
    null: np.ndarray


def permute_labels(y: Any, groups: Any, draws: int, *, seed: Any = 0) -> np.ndarray:
    """Labels exchanged inside groups, uniformly over all labelings (six for a quadruplet): bool [draws, n].

    This keeps everything that a scene shares, and is the exact null of "no clip is told from its siblings".

    Raises
    ------
    ConfigError
        No group holds both labels, so that nothing can be exchanged.
    """
    y = check_labels(y)
    codes = check_groups(groups, len(y))
    sizes, positive = np.bincount(codes), np.bincount(codes, y)
    if not np.any((positive > 0) & (positive < sizes)):
        raise ConfigError(
            "no group holds both labels, so labels cannot be exchanged inside groups; give the groups that "
            "match possible with impossible clips"
        )
    rng = np.random.default_rng(seed)
    order = np.argsort(codes, kind="stable")
    starts = np.cumsum(sizes) - sizes
    permuted = np.empty((draws, len(y)), bool)
    for size in np.unique(sizes):
        clips = order[starts[sizes == size][:, None] + np.arange(size)]  # [groups of this size, size]
        for part in np.array_split(np.arange(draws), max(1, draws * clips.size // 2**22)):
            turn = np.argsort(rng.random((len(part), *clips.shape), dtype=np.float32), axis=-1)
            permuted[part[:, None, None], clips] = np.take_along_axis(
                np.broadcast_to(y[clips], turn.shape), turn, axis=-1
            )
    return permuted


@functools.lru_cache(maxsize=16)
def _exchanged(y: bytes, codes: bytes, draws: int, seed: tuple[int, int]) -> np.ndarray:
    """+1 and -1 of `permute_labels` [draws, n] int8; kept, because a study tests many sources on the same draws."""
    labels = permute_labels(np.frombuffer(y, bool), np.frombuffer(codes, np.int64), draws, seed=seed)
    return 2 * labels.astype(np.int8) - 1


def _null_accuracies(signs: np.ndarray, y: np.ndarray, groups: Any, draws: int, seed: int) -> np.ndarray:
    """Accuracies [draws, cells] of margins' signs [cells, n] under labels exchanged inside groups."""
    null = np.empty((draws, len(signs)), np.float32)
    signs = signs.T.astype(np.float32)
    of_clip = y.tobytes(), check_groups(groups, len(y)).astype(np.int64).tobytes()
    for start in range(0, draws, 1000):
        count = min(1000, draws - start)
        labels = _exchanged(*of_clip, count, (seed, start)).astype(np.float32)
        null[start : start + count] = 0.5 + (labels @ signs) / (2 * len(y))
    return null


def permutation_test(margins: Any, y: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0) -> Permutations:
    """Is the accuracy higher than under labels exchanged inside groups? One-sided.

    p = (1 + relabelings at least as accurate) / (1 + draws). Given the fits: margins stay as they are.
    For the null of the whole procedure, fit `nested_cross_validate_each` on `permute_labels`.
    """
    y = check_labels(y)
    signs = np.sign(check_margins(margins, len(y))).reshape(-1, len(y)).mean(0)
    null = _null_accuracies(signs[None], y, groups, draws, seed)[:, 0]
    statistic = float(0.5 + 0.5 * np.mean(signs * np.where(y, 1, -1)))
    return Permutations(float((1 + np.sum(null >= statistic - 1e-6)) / (1 + draws)), statistic, null)


def max_statistic(margins: Any, y: Any, groups: Any, *, draws: int = 2000, seed: int = 0) -> MaxStatistic:
    """Which cells of a grid beat the best of a grid that has nothing to say?

    `margins` [cells, n] or [repeats, cells, n] out of fold. Every draw exchanges labels inside groups, the
    same way for all cells, and keeps the best cell's accuracy; a cell's p is the share of draws whose best is
    at least as good. This controls the chance of a single false cell however cells are correlated. Given the
    fits, but for one thing: deviations of the null from one half are widened by `CROSSED`, because out-of-fold
    margins have learnt from the labels of the other folds. Without that 12 to 20 % of grids of noise had a cell with
    p <= .05 (n = 120, 60 cells); with it 0.5 %, so the test is on the safe side.
    """
    y = check_labels(y)
    margins = check_margins(margins, len(y))
    if margins.ndim not in (2, 3):
        raise ConfigError(f"margins have shape {margins.shape}; expected [cells, n] or [repeats, cells, n]")
    signs = np.sign(margins) if margins.ndim == 2 else np.sign(margins).mean(0)
    null = 0.5 + CROSSED * (_null_accuracies(signs, y, groups, draws, seed).max(1) - 0.5)
    observed = 0.5 + (signs * np.where(y, 1, -1)).mean(1) / 2
    p = (1 + (null[None] >= observed[:, None] - 1e-6).sum(1)) / (1 + draws)
    # The smallest accuracy that at most a twentieth of the draws (the observed one included) reach.
    rank = int(np.floor(0.05 * (1 + draws))) - 1
    ordered = np.sort(null)[::-1]
    return MaxStatistic(p, float(ordered[rank]) if rank >= 0 else np.inf, null)


def exchange_test(a: Any, b: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0) -> Permutations:
    """Do two models differ on the same clips? Two-sided; `statistic` is the mean of `a` minus that of `b`, [n] each.

    Were there no difference, a scene's answers of one model could as well be the other's: every draw exchanges them in
    half of the scenes. p = (1 + draws with at least as large a difference) / (1 + draws). Given the fits.
    """
    a = np.asarray(a, np.float64)
    difference = a - one_per_clip(np.asarray(b, np.float64), len(a), "b")
    sums = np.bincount(check_groups(groups, len(a)), difference) / len(a)
    signs = np.random.default_rng(seed).integers(2, size=(draws, len(sums)), dtype=np.int8) * 2.0 - 1
    null = signs @ sums
    statistic = float(sums.sum())
    reached = np.sum(np.abs(null) >= abs(statistic) - 1e-9)
    return Permutations(float((1 + reached) / (1 + draws)), statistic, null)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p values of several tests: one at most .05 is a false one in at most a twentieth of families."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
