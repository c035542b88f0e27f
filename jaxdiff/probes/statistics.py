"""What a probe's margins are worth: accuracies, intervals over scenes, and tests that keep scenes together.

Conventions: `margins` [n] or [repeats, n] are positive where the probe says True ("possible"), `y` [n] is
bool, `groups` [n] names the scene (quadruplet) of each clip. Clips of one scene are not independent, so
everything that speaks of uncertainty draws whole groups. No interval here refits anything: each one says so in
`conditional_on`.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes.inputs import check_groups, check_labels, one_per_clip

GIVEN_FITS = "the fitted probes and the folds they were fitted on; only scenes are drawn anew"
DRAWS = 10_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval that unpacks to `low, high` and says what it takes for granted.

    `value in interval` asks whether it covers a number.
    """

    low: float
    high: float
    level: float = 0.95
    conditional_on: str = GIVEN_FITS

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.high))

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


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


def _margins(margins: Any, clips: int) -> np.ndarray:
    margins = np.asarray(margins)
    if margins.ndim < 1 or margins.shape[-1] != clips:
        raise ConfigError(f"margins have shape {margins.shape} for {clips} clips; expected [n] or [..., n]")
    if not np.all(np.isfinite(margins)):
        raise ConfigError(f"{int((~np.isfinite(margins)).sum())} margins are not finite; pass held-out clips only")
    return margins


def hits(margins: Any, y: Any) -> np.ndarray:
    """1 where the margin has the label's sign, 0 where not, 0.5 for a margin of 0; shape of `margins`."""
    y = check_labels(y, both=False)
    return 0.5 + 0.5 * np.sign(_margins(margins, len(y))) * np.where(y, 1, -1)


def accuracy(margins: Any, y: Any) -> float:
    """Share of clips told right, over repeats where there are several."""
    return float(hits(margins, y).mean())


def _pairs(margins: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per group: pairs ranked right (ties one half, mean over repeats) and pairs, both [G]."""
    count = groups.max() + 1
    order = np.argsort(groups, kind="stable")
    right, pairs = np.zeros(count), np.zeros(count)
    flat = margins.reshape(-1, margins.shape[-1])
    for group, clips in enumerate(np.split(order, np.cumsum(np.bincount(groups))[:-1])):
        difference = flat[:, clips[y[clips]], None] - flat[:, None, clips[~y[clips]]]
        pairs[group] = difference[0].size
        right[group] = (0.5 + 0.5 * np.sign(difference)).sum() / len(flat)
    return right, pairs


def pairwise_accuracy(margins: Any, y: Any, groups: Any) -> float:
    """Share of (True, False) pairs inside a group whose True clip has the larger margin; ties count one half.

    Raises ConfigError where no group holds both labels.
    """
    return _with_pairs(margins, y, groups)[0]


def pairwise_interval(
    margins: Any, y: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0, conditional_on: str = GIVEN_FITS
) -> Interval:
    """95 % cluster bootstrap interval of `pairwise_accuracy`."""
    _, right, pairs = _with_pairs(margins, y, groups)
    return _intervals(right[None], pairs, draws, seed, conditional_on)[0]


def pairs_by_group(margins: Any, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of every group, in the order of `np.unique(groups)`: pairs ranked right (mean over repeats) and pairs, both [G].

    Their sums' ratio is `pairwise_accuracy`. Raises ConfigError where no group holds both labels.
    """
    _, right, pairs = _with_pairs(margins, y, groups)
    return right, pairs


def _with_pairs(margins: Any, y: Any, groups: Any) -> tuple[float, np.ndarray, np.ndarray]:
    y = check_labels(y)
    right, pairs = _pairs(_margins(margins, len(y)), y, check_groups(groups, len(y)))
    if not pairs.sum():
        raise ConfigError("no group holds both labels, so there are no pairs to compare; use accuracy or auc")
    return float(right.sum() / pairs.sum()), right, pairs


def auc(margins: Any, y: Any) -> float:
    """Area under the ROC curve over all clips, ties one half; the mean over repeats.

    Margins of different outer folds come from different probes, so that pooling them adds noise: on
    out-of-fold predictions prefer `pairwise_accuracy`.
    """
    y = check_labels(y)
    margins = _margins(margins, len(y)).reshape(-1, len(y))
    areas = []
    for row in margins:
        values, rank = np.unique(row, return_inverse=True)
        negative = np.bincount(rank[~y], minlength=len(values))
        below = np.cumsum(negative) - 0.5 * negative
        areas.append(below[rank[y]].mean() / negative.sum())
    return float(np.mean(areas))


def absolute_error(margins: Any, y: Any) -> float:
    """IntPhys absolute error rate: 1 - AUC of plausibility over all clips (Riochet et al., eq. 2)."""
    return 1 - auc(margins, y)


def relative_error(margins: Any, y: Any, groups: Any) -> float:
    """IntPhys relative error rate: share of groups whose possible clips are, summed, less plausible (eq. 1).

    Means stand for sums where a group is unbalanced; ties count one half; groups of one label are left out.
    """
    y = check_labels(y)
    codes = check_groups(groups, len(y))
    margins = _margins(margins, len(y)).reshape(-1, len(y))
    positive, negative = np.bincount(codes[y], minlength=codes.max() + 1), np.bincount(codes[~y])
    negative = np.pad(negative, (0, len(positive) - len(negative)))
    both = (positive > 0) & (negative > 0)
    if not both.any():
        raise ConfigError("no group holds both labels, so the relative error is not defined; use absolute_error")
    weight = np.where(y, 1 / np.maximum(positive, 1)[codes], -1 / np.maximum(negative, 1)[codes])
    gaps = np.stack([np.bincount(codes, row * weight) for row in margins])[:, both]
    return float(np.mean(0.5 - 0.5 * np.sign(gaps)))


@functools.lru_cache(maxsize=4)
def _draw_groups(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `count` groups is drawn in each bootstrap sample, [draws, count] float32, not to be written to.

    Kept, because a study asks for hundreds of intervals on the same draws.
    """
    picks = np.random.default_rng(seed).integers(count, size=(draws, count))
    picks += np.arange(draws)[:, None] * count
    drawn = np.bincount(picks.ravel(), minlength=draws * count).reshape(draws, count).astype(np.float32)
    drawn.flags.writeable = False
    return drawn


def _intervals(
    sums: np.ndarray, sizes: np.ndarray, draws: int, seed: int, conditional_on: str, level: float = 0.95
) -> list[Interval]:
    """Cluster bootstrap of sum(sums) / sum(sizes) for every row of `sums` [cells, G], `sizes` [G].

    Percentiles, widened by sqrt(G / (G - 1)) about the estimate, which corrects the bootstrap's small-sample
    variance. Where all groups agree (or there is one), the bootstrap says nothing: Wilson's interval with
    groups for trials stands in.
    """
    kept = sizes > 0
    sums, sizes = sums[:, kept], sizes[kept]
    count = len(sizes)
    estimate = sums.sum(1) / sizes.sum()
    if count > 1:
        drawn = _draw_groups(count, draws, seed)
        samples = (drawn @ sums.T.astype(np.float32)) / (drawn @ sizes.astype(np.float32))[:, None]
        tail = (1 - level) / 2
        ends = np.quantile(samples, [tail, 1 - tail], axis=0).astype(np.float64)
        ends = estimate + (ends - estimate) * np.sqrt(count / (count - 1))
    found = []
    for cell, value in enumerate(estimate):
        rates = sums[cell] / sizes
        if count < 2 or np.ptp(rates) < 1e-9:
            low, high = wilson_interval(value * count, count, level=level) if 0 <= value <= 1 else (value, value)
        else:
            low, high = ends[:, cell]
        found.append(Interval(float(low), float(high), level, conditional_on))
    return found


def cluster_bootstrap(
    values: Any,
    groups: Any,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
    conditional_on: str = GIVEN_FITS,
) -> Interval:
    """Interval of the mean of `values` [n] (hits, say) when whole groups are drawn with replacement.

    Deterministic by `seed`. Raises ConfigError where lengths differ.
    """
    values = np.asarray(values, np.float64)
    codes = check_groups(groups, len(values))
    return _intervals(np.bincount(codes, values)[None], np.bincount(codes), draws, seed, conditional_on, level)[0]


def bootstrap_cells(values: np.ndarray, groups: Any, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """`cluster_bootstrap` of each row of `values` [cells, n] on the same draws: [cells, 2] lows, highs."""
    values = np.asarray(values, np.float64)
    codes = check_groups(groups, values.shape[1])
    sums = np.stack([np.bincount(codes, row) for row in values])
    return np.array([tuple(i) for i in _intervals(sums, np.bincount(codes), draws, seed, GIVEN_FITS)])


def paired_difference(a: Any, b: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, Interval]:
    """Mean of `a` minus mean of `b`, hits of two models on the same clips, and its bootstrap interval.

    The same groups are drawn for both, so what they share (hard scenes) cancels.
    """
    a = np.asarray(a, np.float64)
    difference = a - one_per_clip(np.asarray(b, np.float64), len(a), "b")
    return float(difference.mean()), cluster_bootstrap(difference, groups, draws=draws, seed=seed)


def wilson_interval(successes: float, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; right for independent trials, so give it groups, not clips."""
    if trials < 1 or not 0 <= successes <= trials + 1e-9:
        raise ConfigError(f"{successes:g} successes in {trials} trials; give 0 <= successes <= trials >= 1")
    z = _normal_quantile(0.5 + level / 2)
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * np.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


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


def _null_accuracies(signs: np.ndarray, y: np.ndarray, groups: Any, draws: int, seed: int) -> np.ndarray:
    """Accuracies [draws, cells] of margins' signs [cells, n] under labels exchanged inside groups."""
    null = np.empty((draws, len(signs)), np.float32)
    signs = signs.T.astype(np.float32)
    for start in range(0, draws, 1000):
        count = min(1000, draws - start)
        labels = permute_labels(y, groups, count, seed=(seed, start)).astype(np.float32)
        null[start : start + count] = 0.5 + ((2 * labels - 1) @ signs) / (2 * len(y))
    return null


def permutation_test(margins: Any, y: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0) -> Permutations:
    """Is `accuracy` higher than under labels exchanged inside groups? One-sided.

    p = (1 + relabelings at least as accurate) / (1 + draws). Given the fits: margins stay as they are.
    For the null of the whole procedure, refit on `controls.shuffle_labels`.
    """
    y = check_labels(y)
    signs = np.sign(_margins(margins, len(y))).reshape(-1, len(y)).mean(0)
    null = _null_accuracies(signs[None], y, groups, draws, seed)[:, 0]
    statistic = accuracy(margins, y)
    return Permutations(float((1 + np.sum(null >= statistic - 1e-6)) / (1 + draws)), statistic, null)


def max_statistic(margins: Any, y: Any, groups: Any, *, draws: int = 2000, seed: int = 0) -> MaxStatistic:
    """Which cells of a grid beat the best of a grid that has nothing to say?

    `margins` [cells, n] or [repeats, cells, n] out of fold. Every draw exchanges labels inside groups, the
    same way for all cells, and keeps the best cell's accuracy; a cell's p is the share of draws whose best is
    at least as good. This controls the chance of a single false cell however cells are correlated. Given the
    fits.
    """
    y = check_labels(y)
    margins = _margins(margins, len(y))
    if margins.ndim not in (2, 3):
        raise ConfigError(f"margins have shape {margins.shape}; expected [cells, n] or [repeats, cells, n]")
    signs = np.sign(margins) if margins.ndim == 2 else np.sign(margins).mean(0)
    null = _null_accuracies(signs, y, groups, draws, seed).max(1)
    observed = 0.5 + (signs * np.where(y, 1, -1)).mean(1) / 2
    p = (1 + (null[None] >= observed[:, None] - 1e-6).sum(1)) / (1 + draws)
    # The smallest accuracy that at most a twentieth of the draws (the observed one included) reach.
    rank = int(np.floor(0.05 * (1 + draws))) - 1
    ordered = np.sort(null)[::-1]
    return MaxStatistic(p, float(ordered[rank]) if rank >= 0 else np.inf, null)


def by_category(
    margins: Any, y: Any, groups: Any, categories: Any, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, Interval]]:
    """Accuracy and its interval on the clips of each category, in the order of their names."""
    rates = hits(margins, y)
    rates = rates.reshape(-1, rates.shape[-1]).mean(0)
    categories, groups = (
        one_per_clip(categories, len(rates), "categories"),
        one_per_clip(groups, len(rates), "groups"),
    )
    found = {}
    for name in np.unique(categories):
        clips = categories == name
        found[str(name)] = (
            float(rates[clips].mean()),
            cluster_bootstrap(rates[clips], groups[clips], draws=draws, seed=seed),
        )
    return found
