"""What a probe's margins are worth: accuracies and rankings, with intervals over scenes.

Conventions: `margins` [n] or [repeats, n] are positive where the probe says True ("possible"), `y` [n] is
bool, `groups` [n] names the scene (quadruplet) of each clip. Clips of one scene are not independent, so
everything that speaks of uncertainty draws whole groups. No interval here refits anything: each one says so in
`conditional_on`. Where pairs are compared inside sets smaller than a group (InfLevel), `matched` [n] names them.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes.inputs import check_groups, check_labels, check_margins, one_per_clip

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


def hits(margins: Any, y: Any) -> np.ndarray:
    """1 where the margin has the label's sign, 0 where not, 0.5 for a margin of 0; shape of `margins`."""
    y = check_labels(y, both=False)
    return 0.5 + 0.5 * np.sign(check_margins(margins, len(y))) * np.where(y, 1, -1)


def accuracy(margins: Any, y: Any) -> float:
    """Share of clips told right, over repeats where there are several."""
    return float(hits(margins, y).mean())


def _pairs(margins: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per group: pairs ranked right, ties one half, [rows, G] of margins [rows, n]; and pairs, [G]."""
    count = groups.max() + 1
    order = np.argsort(groups, kind="stable")
    right, pairs = np.zeros((len(margins), count)), np.zeros(count)
    for group, clips in enumerate(np.split(order, np.cumsum(np.bincount(groups))[:-1])):
        difference = margins[:, clips[y[clips]], None] - margins[:, None, clips[~y[clips]]]
        pairs[group] = difference[0].size
        right[:, group] = (0.5 + 0.5 * np.sign(difference)).sum((1, 2))
    return right, pairs


def pairwise_accuracy(margins: Any, y: Any, groups: Any) -> float:
    """Share of (True, False) pairs inside a group whose True clip has the larger margin; ties count one half.

    Raises ConfigError where no group holds both labels.
    """
    right, pairs = pairs_by_group(margins, y, groups)
    return float(right.sum() / pairs.sum())


def pairwise_accuracies(margins: Any, y: Any, groups: Any) -> np.ndarray:
    """`pairwise_accuracy` of each row of `margins` [rows, n]."""
    y = check_labels(y)
    right, pairs = _pairs(check_margins(margins, len(y)), y, check_groups(groups, len(y)))
    _some_pairs(pairs)
    return right.sum(1) / pairs.sum()


def pairwise_interval(
    margins: Any,
    y: Any,
    groups: Any,
    *,
    matched: Any = None,
    draws: int = DRAWS,
    seed: int = 0,
    conditional_on: str = GIVEN_FITS,
) -> Interval:
    """95 % cluster bootstrap interval of `pairwise_accuracy`: of the pairs inside `matched`, over `groups`."""
    right, pairs = pairs_by_group(margins, y, groups, matched)
    return _intervals(right[None], pairs, draws, seed, conditional_on)[0]


def pairs_by_group(margins: Any, y: Any, groups: Any, matched: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Of every group, in the order of `np.unique(groups)`: pairs ranked right (mean over repeats) and pairs, both [G].

    Their sums' ratio is `pairwise_accuracy`. With `matched` [n], sets that lie inside the groups, only clips of one such
    set are paired. Raises ConfigError where no group (no set) holds both labels.
    """
    y = check_labels(y)
    margins = check_margins(margins, len(y)).reshape(-1, len(y))
    _, codes = np.unique(one_per_clip(groups, len(y), "groups"), return_inverse=True)
    sets = codes if matched is None else check_groups(matched, len(y))
    right, pairs = _pairs(margins, y, sets)
    _some_pairs(pairs)
    of_set = np.zeros(len(pairs), int)
    of_set[sets] = codes
    if np.any(of_set[sets] != codes):
        raise ConfigError("a matched set has clips of several groups; give sets that lie inside groups")
    count = codes.max() + 1
    return np.bincount(of_set, right.mean(0), count), np.bincount(of_set, pairs, count)


def _some_pairs(pairs: np.ndarray) -> None:
    if not pairs.sum():
        raise ConfigError("no group holds both labels, so there are no pairs to compare; use accuracy or auc")


def auc(margins: Any, y: Any) -> float:
    """Area under the ROC curve over all clips, ties one half; the mean over repeats.

    Margins of different outer folds come from different probes, so that pooling them adds noise: on
    out-of-fold predictions prefer `pairwise_accuracy`.
    """
    y = check_labels(y)
    margins = check_margins(margins, len(y)).reshape(-1, len(y))
    areas = []
    for row in margins:
        values, rank = np.unique(row, return_inverse=True)
        negative = np.bincount(rank[~y], minlength=len(values))
        below = np.cumsum(negative) - 0.5 * negative
        areas.append(below[rank[y]].mean() / negative.sum())
    return float(np.mean(areas))


def auc_by_groups(margins: Any, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """What `auc` is made of: pairs ranked right [G, G], mean over repeats, of True clips of the first group and False
    clips of the second; and True and False clips of each group [2, G]. Groups in the order of `np.unique`."""
    y = check_labels(y)
    margins = check_margins(margins, len(y)).reshape(-1, len(y))
    _, codes = np.unique(one_per_clip(groups, len(y), "groups"), return_inverse=True)
    count = codes.max() + 1
    right = np.zeros((count, count))
    for row in margins:
        rank = np.unique(row, return_inverse=True)[1]
        order = np.argsort(rank[~y], kind="stable")
        ranks = rank[~y][order]
        # How many False clips of each group lie below a rank, for all ranks that occur.
        below = np.zeros((len(order) + 1, count))
        below[np.arange(1, len(order) + 1), codes[~y][order]] = 1
        below = below.cumsum(0)
        smaller, upto = (np.searchsorted(ranks, rank[y], side) for side in ("left", "right"))
        np.add.at(right, codes[y], 0.5 * (below[smaller] + below[upto]))
    sizes = np.stack([np.bincount(codes[which], minlength=count) for which in (y, ~y)])
    return right / len(margins), sizes.astype(float)


def _drawn_areas(drawn: np.ndarray, right: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`auc` of each bootstrap sample `drawn` [draws, G]; nan where a sample has one class only."""
    positive, negative = (drawn @ part.astype(np.float32) for part in sizes)
    pairs = positive * negative
    return ((drawn @ right.astype(np.float32)) * drawn).sum(1) / np.where(pairs > 0, pairs, np.nan)


def auc_interval(
    margins: Any, y: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0, conditional_on: str = GIVEN_FITS
) -> Interval:
    """95 % cluster bootstrap interval of `auc`, widened as all of them are (`cluster_bootstrap`)."""
    right, sizes = auc_by_groups(margins, y, groups)
    value, count = float(right.sum() / sizes.sum(1).prod()), len(right)
    samples = _drawn_areas(_draw_groups(count, draws, seed), right, sizes)
    samples = samples[np.isfinite(samples)]
    if count < 2 or not len(samples) or np.ptp(samples) < 1e-6:
        return Interval(*wilson_interval(value * count, count), conditional_on=conditional_on)
    return _share(_percentiles(samples, value, count, conditional_on))


def _share(interval: Interval) -> Interval:
    """Cut off where no share can be; widening may pass it."""
    return dataclasses.replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))


def auc_difference(
    a: Any, b: Any, y: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0, conditional_on: str = GIVEN_FITS
) -> tuple[float, Interval]:
    """`auc` of margins `a` minus that of `b` on the same clips, and its interval: the same groups are drawn for both."""
    parts = [auc_by_groups(margins, y, groups) for margins in (a, b)]
    value = float(np.subtract(*(right.sum() / sizes.sum(1).prod() for right, sizes in parts)))
    drawn = _draw_groups(len(parts[0][0]), draws, seed)
    samples = np.subtract(*(_drawn_areas(drawn, *part) for part in parts))
    return value, _percentiles(samples[np.isfinite(samples)], value, drawn.shape[1], conditional_on)


def _percentiles(samples: np.ndarray, value: float, count: int, conditional_on: str) -> Interval:
    low, high = np.quantile(samples, [0.025, 0.975]).astype(np.float64) if len(samples) else (value, value)
    wider = np.sqrt(count / (count - 1)) if count > 1 else 1.0
    return Interval(float(value + (low - value) * wider), float(value + (high - value) * wider), 0.95, conditional_on)


def absolute_error(margins: Any, y: Any) -> float:
    """IntPhys absolute error rate: 1 - AUC of plausibility over all clips (Riochet et al., eq. 2)."""
    return 1 - auc(margins, y)


def relative_error(margins: Any, y: Any, groups: Any) -> float:
    """IntPhys relative error rate: share of groups whose possible clips are, summed, less plausible (eq. 1).

    Means stand for sums where a group is unbalanced; ties count one half; groups of one label are left out.
    """
    errors, counts = _relative_errors(margins, y, groups)
    return float(errors.sum() / counts.sum())


def relative_error_interval(
    margins: Any, y: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0, conditional_on: str = GIVEN_FITS
) -> Interval:
    """95 % cluster bootstrap interval of `relative_error`."""
    errors, counts = _relative_errors(margins, y, groups)
    return _share(_intervals(errors[None], counts, draws, seed, conditional_on)[0])


def _relative_errors(margins: Any, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """Errors (mean over repeats) and 1 or 0, whether the group holds both labels: [G] each."""
    y = check_labels(y)
    codes = check_groups(groups, len(y))
    margins = check_margins(margins, len(y)).reshape(-1, len(y))
    positive, negative = np.bincount(codes[y], minlength=codes.max() + 1), np.bincount(codes[~y])
    negative = np.pad(negative, (0, len(positive) - len(negative)))
    both = (positive > 0) & (negative > 0)
    if not both.any():
        raise ConfigError("no group holds both labels, so the relative error is not defined; use absolute_error")
    weight = np.where(y, 1 / np.maximum(positive, 1)[codes], -1 / np.maximum(negative, 1)[codes])
    gaps = np.stack([np.bincount(codes, row * weight) for row in margins])
    return np.where(both, 0.5 - 0.5 * np.sign(gaps), 0).mean(0), both.astype(float)


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


def bootstrap_cells(
    values: np.ndarray, groups: Any, *, draws: int = DRAWS, seed: int = 0, wider: float = 1.0
) -> np.ndarray:
    """`cluster_bootstrap` of each row of `values` [cells, n] on the same draws: [cells, 2] lows, highs.

    `wider` stretches the intervals about the means, inside [0, 1]: by `permutation.CROSSED` for out-of-fold hits of cells
    that were not chosen in the folds.
    """
    values = np.asarray(values, np.float64)
    codes = check_groups(groups, values.shape[1])
    sums = np.stack([np.bincount(codes, row) for row in values])
    ends = np.array([tuple(i) for i in _intervals(sums, np.bincount(codes), draws, seed, GIVEN_FITS)])
    if wider == 1:
        return ends
    means = values.mean(1, keepdims=True)
    return np.clip(means + wider * (ends - means), 0, 1)


def paired_difference(
    a: Any, b: Any, groups: Any, *, draws: int = DRAWS, seed: int = 0, conditional_on: str = GIVEN_FITS
) -> tuple[float, Interval]:
    """Mean of `a` minus mean of `b`, hits of two models on the same clips, and its bootstrap interval.

    The same groups are drawn for both, so what they share (hard scenes) cancels.
    """
    a = np.asarray(a, np.float64)
    difference = a - one_per_clip(np.asarray(b, np.float64), len(a), "b")
    codes = check_groups(groups, len(a))
    return difference_of_sums(
        np.bincount(codes, difference), np.bincount(codes), draws=draws, seed=seed, conditional_on=conditional_on
    )


def difference_of_sums(
    sums: Any, sizes: Any, *, draws: int = DRAWS, seed: int = 0, conditional_on: str = GIVEN_FITS
) -> tuple[float, Interval]:
    """Total of a paired difference's `sums` [G] over that of `sizes` [G], with its bootstrap interval over groups.

    Where all groups say the same, the interval is as wide, on both sides, as Wilson's of none in G.
    """
    sums, sizes = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    value, interval = float(sums.sum() / sizes.sum()), _intervals(sums[None], sizes, draws, seed, conditional_on)[0]
    kept = sizes > 0
    if np.ptp(sums[kept] / sizes[kept]) < 1e-9:
        most = wilson_interval(0, int(kept.sum()))[1]
        interval = dataclasses.replace(interval, low=value - most, high=value + most)
    return value, interval


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
