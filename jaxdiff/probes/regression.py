"""Linear regression of numbers on features: ridge, solved in closed form, with everything chosen in inner folds."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError, NonFiniteError
from jaxdiff.probes.cross_validation import NESTED
from jaxdiff.probes.folds import grouped_folds
from jaxdiff.probes.inputs import check_features, check_groups, check_penalties, named_candidates
from jaxdiff.probes.linear import CONSTANT
from jaxdiff.probes.statistics import Interval

PENALTIES = tuple(10.0**k for k in range(-1, 7))
DRAWS = 2000


class RidgeProbe:
    r"""L2-penalised least squares on standardised features, for several targets at once.

    With z = (x - mean) / std, both over the training clips,

        minimise over w, b   sum_i (y_i - w . z_i - b)^2  +  penalty * |w|^2 .

    The intercept is not penalised. A feature that is constant on the training clips (std <= 1e-6 of its root mean
    square) gets no weight. One eigendecomposition, of the smaller of the two Gram matrices, in float64.

    Parameters
    ----------
    penalty : float
        Strength of the L2 penalty, > 0.
    """

    def __init__(self, penalty: float = 1.0):
        self.penalty = float(check_penalties([penalty])[0])

    def fit(self, X: Any, y: Any) -> "RidgeProbe":
        """Fit on `X` [n, D] and `y` [n] or [n, T]; raises ConfigError and NonFiniteError on unusable input."""
        self._flat = np.ndim(y) == 1
        self._ridge = _Ridge(check_features(X, ndim=2), check_targets(y, len(X)))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predictions [n] or [n, T], as `y` was."""
        found = self._ridge.predict(check_features(X, ndim=2), np.array([self.penalty]))[0]
        return found[:, 0] if self._flat else found


class _Ridge:
    """Everything of the fits on one set of clips [n, D] that does not depend on the penalty."""

    def __init__(self, X: np.ndarray, y: np.ndarray):
        X = X.astype(np.float64)
        self.mean, self.scale = X.mean(0), X.std(0)
        self.scale[self.scale <= CONSTANT * np.sqrt(np.mean(X**2, 0))] = np.inf
        self.centre = y.mean(0)
        Z, y = (X - self.mean) / self.scale, y - self.centre
        self.basis = Z.T if len(Z) <= Z.shape[1] else None  # the weights' space: spanned by clips, or all of it
        gram = Z @ Z.T if self.basis is not None else Z.T @ Z
        values, self.vectors = np.linalg.eigh(gram)
        self.values = np.maximum(values, 0.0)  # rounding makes some of those that are zero negative
        self.turned = self.vectors.T @ (y if self.basis is not None else Z.T @ y)

    def predict(self, X: np.ndarray, penalties: np.ndarray) -> np.ndarray:
        """[P, clips, T]."""
        Z = (X - self.mean) / self.scale
        left = (Z if self.basis is None else Z @ self.basis) @ self.vectors
        return self.centre + left @ (self.turned / (self.values[:, None] + penalties[:, None, None]))


@dataclasses.dataclass(frozen=True)
class RegressionChoice:
    """What the inner folds of one outer fold chose for a target, and their R2 for it (an optimistic one)."""

    repeat: int
    fold: int
    target: str
    name: str
    candidate: int
    penalty: float
    inner_r2: float


@dataclasses.dataclass(frozen=True)
class RegressionResult:
    """Outcome of `nested_ridge`: n clips, R repeats, C candidates, T targets.

    Attributes
    ----------
    targets : tuple of str
    r2, interval : dict target -> float, Interval
        ``1 - sum (y - prediction)^2 / sum (y - mean)^2`` over held-out clips, with the mean of the clips that were
        fitted on: 0 is what knowing nothing but them gives, and it can be negative. 95 % cluster bootstrap over
        groups.
    chosen : tuple of RegressionChoice
    predictions : [R, n, T] float64, held out.
    values : [n, T], as given.
    groups : [n]
    grid, grid_interval : dict name -> [C, T], [C, T, 2]
        R2 of every candidate with only its penalty chosen inside. The best of them is a best of many.
    errors, spread : [n, T]
        The two sums' terms, averaged over repeats; what `r2_difference` takes.
    """

    targets: tuple[str, ...]
    r2: dict[str, float]
    interval: dict[str, Interval]
    chosen: tuple[RegressionChoice, ...]
    predictions: np.ndarray
    values: np.ndarray
    groups: np.ndarray
    grid: dict[str, np.ndarray]
    grid_interval: dict[str, np.ndarray]
    errors: np.ndarray
    spread: np.ndarray


def nested_ridge(
    X: Any,
    y: Any,
    groups: Any,
    *,
    penalties: Any = PENALTIES,
    outer: int = 5,
    inner: int = 5,
    repeats: int = 1,
    seed: int = 0,
    draws: int = DRAWS,
) -> RegressionResult:
    """R2 of a linear read-out whose candidate and penalty are chosen without the clips that it is scored on.

    As `nested_cross_validate`, for numbers: for each outer fold and target, the candidate and penalty with the least
    squared error over the inner folds (ties: the earlier candidate, the stronger penalty) are refitted on all clips
    outside the fold, and predict it. Features are standardised by the clips of each fit alone. On the host, in float64;
    each fit is one eigendecomposition for all penalties and targets.

    Parameters
    ----------
    X : [candidates, n, D], or dict name -> such an array
    y : dict target -> [n]
    groups : [n]
        Clips of one group are never split.
    penalties, outer, inner, repeats, seed, draws
        As in `nested_cross_validate`, with penalties as in `RidgeProbe`.

    Raises
    ------
    ConfigError
        Shapes disagree, a target is constant, or there are fewer groups than folds.
    NonFiniteError
        A feature or target is NaN or infinite.
    """
    sets = named_candidates(X)
    clips = next(iter(sets.values())).shape[1]
    names, values = _named_targets(y, clips)
    groups = np.asarray(groups)
    codes = check_groups(groups, clips)
    penalties = np.sort(check_penalties(penalties))[::-1]
    if repeats < 1:
        raise ConfigError(f"{repeats} repeats; at least 1 is needed")
    cells = {name: np.zeros((repeats, len(a), clips, len(names))) for name, a in sets.items()}
    predictions, baseline = np.zeros((2, repeats, clips, len(names)))
    chosen = []
    for repeat, fold, out, splits in _outer_folds(groups, outer, inner, repeats, seed):
        baseline[repeat, out] = values[~out].mean(0)
        spread = sum(((values[held] - values[train].mean(0)) ** 2).sum(0) for train, held in splits)
        best: list[tuple[float, str, int, int]] = [(np.inf, "", 0, 0)] * len(names)
        for name, array in sets.items():
            for candidate, x in enumerate(array):
                errors = _inner_errors(x, values, splits, penalties)  # [P, T]
                refit = _Ridge(x[~out], values[~out]).predict(x[out], penalties)
                for t, at in enumerate(errors.argmin(0)):
                    cells[name][repeat, candidate, out, t] = refit[at, :, t]
                    if errors[at, t] < best[t][0]:
                        best[t] = (float(errors[at, t]), name, candidate, int(at))
        for t, (error, name, candidate, at) in enumerate(best):
            predictions[repeat, out, t] = cells[name][repeat, candidate, out, t]
            rate = 1 - error / float(spread[t])
            chosen.append(RegressionChoice(repeat, fold, names[t], name, candidate, float(penalties[at]), rate))
    errors = ((predictions - values) ** 2).mean(0)
    spread = ((baseline - values) ** 2).mean(0)
    score = functools.partial(_r2, spread=spread, codes=codes, draws=draws)
    r2, ends = score(errors[None])
    grids = {name: score(((cell - values) ** 2).mean(0)) for name, cell in cells.items()}
    return RegressionResult(
        names,
        {name: float(r2[0, t]) for t, name in enumerate(names)},
        {name: _interval(ends[0, t]) for t, name in enumerate(names)},
        tuple(chosen),
        predictions,
        values,
        groups,
        {name: grid for name, (grid, _) in grids.items()},
        {name: low_high for name, (_, low_high) in grids.items()},
        errors,
        spread,
    )


def _outer_folds(groups, outer, inner, repeats, seed):
    """(repeat, fold, held out [n], inner splits as (train, held) masks [n]) of every outer fold."""
    for repeat in range(repeats):
        folds = grouped_folds(groups, outer, seed=(seed, repeat))
        for fold in range(outer):
            out = folds == fold
            inside = np.flatnonzero(~out)
            try:
                split = grouped_folds(groups[inside], inner, seed=(seed, repeat, fold))
            except ConfigError as error:
                raise ConfigError(f"inside outer fold {fold}: {error}") from error
            splits = []
            for k in range(inner):
                held = np.zeros(len(groups), bool)
                held[inside[split == k]] = True
                splits.append((~out & ~held, held))
            yield repeat, fold, out, splits


def _inner_errors(x, values, splits, penalties):
    """Sums of squared errors over the inner folds, [P, T]."""
    return sum(
        ((_Ridge(x[train], values[train]).predict(x[held], penalties) - values[held]) ** 2).sum(1)
        for train, held in splits
    )


def _r2(errors: np.ndarray, spread: np.ndarray, codes: np.ndarray, draws: int, seed: int = 0):
    """R2 [C, T] and its interval [C, T, 2] from squared errors [C, n, T] and what the mean leaves, [n, T].

    Percentiles of the bootstrap over groups, widened by sqrt(G / (G - 1)) about the estimate as those of accuracies.
    """
    count = codes.max() + 1
    over = np.zeros((count, len(errors), errors.shape[2]))
    under = np.zeros((count, 1, errors.shape[2]))
    np.add.at(over, codes, errors.swapaxes(0, 1))
    np.add.at(under, codes, spread[:, None])
    value = 1 - over.sum(0) / under.sum(0)
    drawn = _draw_groups(count, draws, seed)
    samples = 1 - np.tensordot(drawn, over, 1) / np.tensordot(drawn, under, 1)
    ends = np.quantile(samples, [0.025, 0.975], axis=0)
    ends = value + (ends - value) * np.sqrt(count / max(count - 1, 1))
    return value, np.moveaxis(ends, 0, -1)


def _interval(ends: np.ndarray) -> Interval:
    return Interval(float(ends[0]), float(ends[1]), conditional_on=NESTED)


@functools.lru_cache(maxsize=2)
def _draw_groups(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each group is drawn in each bootstrap sample, [draws, count], not to be written to."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    drawn.flags.writeable = False
    return drawn


def r2_difference(
    a: RegressionResult, b: RegressionResult, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, Interval]]:
    """R2 of `a` minus that of `b`, of equal targets on equal clips, and its interval on the same draws of groups.

    Raises ConfigError where targets or clips differ.
    """
    if a.targets != b.targets or a.values.shape != b.values.shape or not np.array_equal(a.values, b.values):
        raise ConfigError("the two results are of other targets or clips, so that they cannot be paired")
    both = np.stack([a.errors, b.errors])
    # Equal folds leave equal means, so that one denominator serves both and the difference is a single ratio.
    if not np.allclose(a.spread, b.spread):
        raise ConfigError("the two results are of other folds, so that they cannot be paired; give both one seed")
    codes = check_groups(a.groups, len(a.values))
    value, ends = _r2((both[0] - both[1] + a.spread)[None], a.spread, codes, draws, seed)
    return {name: (float(value[0, t]), _interval(ends[0, t])) for t, name in enumerate(a.targets)}


def shuffle_targets(y: Mapping[str, np.ndarray], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Null control: the clips' targets dealt to other clips, all targets of a clip together."""
    names, values = _named_targets(y, None)
    dealt = values[np.random.default_rng(seed).permutation(len(values))]
    return {name: dealt[:, t] for t, name in enumerate(names)}


def check_targets(y: Any, clips: int | None) -> np.ndarray:
    """Targets as float64 [n, T].

    Raises
    ------
    ConfigError
        Another shape, another number of clips, or a target that does not vary.
    NonFiniteError
        A target is NaN or infinite.
    """
    try:
        values = np.asarray(y, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"targets are not numbers: {error}") from error
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or 0 in values.shape or (clips is not None and len(values) != clips):
        raise ConfigError(f"targets have shape {values.shape} for {clips} clips; give [clips] or [clips, targets]")
    if not np.isfinite(values).all():
        where = np.argwhere(~np.isfinite(values))[0]
        raise NonFiniteError(f"target {where[1]} of clip {where[0]} is {values[tuple(where)]}")
    if constant := np.flatnonzero(np.ptp(values, axis=0) == 0).tolist():
        raise ConfigError(f"target {constant[0]} is {values[0, constant[0]]} for all clips; there is nothing to read")
    return values


def _named_targets(y: Mapping[str, np.ndarray], clips: int | None) -> tuple[tuple[str, ...], np.ndarray]:
    if not y:
        raise ConfigError("there are no targets")
    return tuple(y), check_targets(np.stack([np.asarray(v) for v in y.values()], -1), clips)
