"""Nested cross-validation that keeps scenes together and chooses everything inside."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes import statistics
from jaxdiff.probes.folds import check_classes, grouped_folds, nested_splits
from jaxdiff.probes.inputs import (
    check_features,
    check_groups,
    check_labels,
    check_penalties,
    named_candidates,
    one_per_clip,
)
from jaxdiff.probes.linear import LinearProbe
from jaxdiff.probes.permutation import CROSSED
from jaxdiff.probes.solver import fit_all

PENALTIES = tuple(10.0**k for k in range(-2, 6))

NESTED = (
    "the fitted probes, the folds and the cells that the inner folds chose; only scenes are drawn anew, so "
    "the spread that other training scenes would bring is not in it"
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the inner folds of one outer fold chose, and their accuracy for it (an optimistic one)."""

    repeat: int
    fold: int
    name: str
    candidate: int
    penalty: float
    inner_accuracy: float


@dataclasses.dataclass(frozen=True)
class NestedResult:
    """Outcome of `nested_cross_validate`: n clips, R repeats, O outer folds, C candidates, P penalties.

    Attributes
    ----------
    accuracy : float
        Share of held-out clips told right by probes whose cell and penalty were chosen without them.
    interval : Interval
        95 % cluster bootstrap over groups; says what it is conditional on.
    pairwise, pairwise_interval : float, Interval; or None where no group holds both labels
        The same for (True, False) pairs inside a group.
    training_accuracy : float
        Of the chosen probes on the clips that they were fitted on: what they can memorise.
    chosen : tuple of Choice
        One for each repeat and outer fold.
    predictions : [R, n] float32
        Held-out margins, log odds. Different folds hold different probes: compare inside groups, not across.
    folds : [R, n] int
        The outer fold in which each clip was held out.
    labels, groups : [n]
        As given (labels as bool).
    penalties : [P]
    grid, grid_interval : dict name -> [C], [C, 2]
        Outer accuracy of every cell with only its penalty chosen inside, for the heatmap, and its intervals
        (`permutation.CROSSED` wider than a bootstrap's: no choice makes the folds independent). The best cell of the grid is a best of many and is biased upwards.
    mean_accuracy, mean_interval : dict name -> float, Interval
        Mean over all cells: a score without any choice of cell.
    cells : dict name -> [R, C, n] float32
        Held-out margins behind `grid`, for `permutation.max_statistic`.
    inner_accuracy, outer_accuracy : dict name -> [R, O, C, P]
        Accuracy on the inner validation folds, and on the outer test fold after refitting, for every penalty.
    """

    accuracy: float
    interval: statistics.Interval
    pairwise: float | None
    pairwise_interval: statistics.Interval | None
    training_accuracy: float
    chosen: tuple[Choice, ...]
    predictions: np.ndarray
    folds: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    penalties: np.ndarray
    grid: dict[str, np.ndarray]
    grid_interval: dict[str, np.ndarray]
    mean_accuracy: dict[str, float]
    mean_interval: dict[str, statistics.Interval]
    cells: dict[str, np.ndarray]
    inner_accuracy: dict[str, np.ndarray]
    outer_accuracy: dict[str, np.ndarray]

    @property
    def hits(self) -> np.ndarray:
        """[n] share of repeats that told each clip right; what `statistics.paired_difference` takes."""
        return statistics.hits(self.predictions, self.labels).mean(0)


def nested_cross_validate(
    X: Any,
    y: Any,
    groups: Any,
    *,
    penalties: Any = PENALTIES,
    outer: int = 5,
    inner: int = 5,
    repeats: int = 1,
    seed: int = 0,
    strata: Any = None,
    matched: Any = None,
    draws: int = statistics.DRAWS,
) -> NestedResult:
    """Accuracy of a linear probe whose candidate and penalty are chosen without the clips it is scored on.

    For each outer fold: every candidate and penalty is fitted on each inner split of the remaining groups;
    the pair with the most inner validation hits (ties: the smaller log loss, then the earlier candidate and
    the stronger penalty) is refitted on all of them and predicts the held-out fold. Features are standardised
    by the clips of each fit alone. All fits of a candidate are one batched solve on the device (`solver`).

    Parameters
    ----------
    X : [candidates, n, D], or dict name -> such an array
        Feature sets to choose among (blocks, sigmas, poolings); D may differ between names.
    y : [n] bool or 0/1
    groups : [n]
        Scene of each clip; scenes are never split.
    penalties : [P]
        L2 strengths as in `LinearProbe`.
    outer, inner, repeats, seed
        Folds and how often to deal them anew; repeat r has its own folds. Deterministic by `seed`.
    strata : [n], optional
        Category of each clip, balanced over folds.
    matched : [n], optional
        Sets inside the groups within which pairs are compared; the groups themselves by default.
    draws : int
        Bootstrap draws for the intervals.

    Raises
    ------
    ConfigError
        Shapes disagree, labels are not binary, there are fewer groups than folds, or a split leaves one class
        only to fit on.
    NonFiniteError
        A feature is NaN or infinite; names where.
    CheckFailed
        A fit did not converge.
    """
    sets = named_candidates(X)
    y = check_labels(y, next(iter(sets.values())).shape[1])
    return nested_cross_validate_each(
        sets, y[None], groups, penalties=penalties, outer=outer, inner=inner, repeats=repeats, seed=seed,
        strata=strata, matched=matched, draws=draws,
    )[0]  # fmt: skip


def nested_cross_validate_each(
    X: Any,
    labels: Any,
    groups: Any,
    *,
    penalties: Any = PENALTIES,
    outer: int = 5,
    inner: int = 5,
    repeats: int = 1,
    seed: int | Sequence[int] = 0,
    strata: Any = None,
    matched: Any = None,
    draws: int = statistics.DRAWS,
) -> list[NestedResult]:
    """`nested_cross_validate` of several labelings `labels` [L, n] of the same clips, all in one batched solve.

    On labels exchanged inside groups (`permutation.permute_labels`) this is the null of the whole procedure, every choice
    and every fit included. `seed` is one for all, or one a labeling; everything else is as there.
    """
    sets = named_candidates(X)
    clips = next(iter(sets.values())).shape[1]
    checked = [check_labels(y, clips) for y in labels]
    groups = np.asarray(groups)
    check_groups(groups, clips)
    penalties = check_penalties(penalties)
    if repeats < 1:
        raise ConfigError(f"{repeats} repeats; at least 1 is needed")
    seeds = [seed] * len(checked) if isinstance(seed, int | np.integer) else list(seed)
    if not checked or len(seeds) != len(checked):
        raise ConfigError(f"{len(seeds)} seeds for {len(checked)} labelings; give at least one labeling, one seed each")
    penalties = penalties[np.argsort(-penalties, kind="stable")]
    splits = [nested_splits(groups, y, strata, outer, inner, repeats, s) for y, s in zip(checked, seeds, strict=True)]
    # Labelings ride on the axis of repeats.
    train, held, folds = (np.concatenate(part) for part in zip(*splits, strict=True))
    every = np.repeat(checked, repeats, axis=0)
    scores = {name: _score_set(array, every, train, held, penalties) for name, array in sets.items()}
    parts = [slice(k * repeats, (k + 1) * repeats) for k in range(len(checked))]
    return [
        _judge(
            {name: score.of(part) for name, score in scores.items()},
            y, groups, train[part], held[part], folds[part], penalties, matched, draws,
        )
        for y, part in zip(checked, parts, strict=True)
    ]  # fmt: skip


class _Scores(NamedTuple):
    """Sums of hits and losses [R, O, I + 1, C, P], training hits [R, O, C, P], margins [R, C, P, n].

    Training hits and margins (of held-out clips) are those of the outer folds.
    """

    hits: np.ndarray
    losses: np.ndarray
    training: np.ndarray
    margins: np.ndarray

    def of(self, repeats: slice) -> "_Scores":
        return _Scores(*(part[repeats] for part in self))


def _score_set(X, labels, train, held, penalties) -> _Scores:
    """Fit all splits [R, O, I + 1, n] of all candidates [C, n, D] to `labels` [R, n] and score them on the device, a few
    candidates at a time."""
    shape, clips = train.shape[:-1], train.shape[-1]
    flat_train, flat_held = train.reshape(-1, clips), held.reshape(-1, clips)
    y = np.broadcast_to(labels[:, None, None], train.shape).reshape(-1, clips)
    parts = []
    for _, fits in fit_all(X, y, flat_train, penalties):
        parts.append([np.asarray(part) for part in _score(fits.margins, y, flat_train, flat_held, shape)])
    *sums, margins = (np.concatenate(part) for part in zip(*parts, strict=True))
    hits, losses, training = (part.astype(np.float64) for part in sums)
    by_split = lambda a: np.moveaxis(a.reshape(*a.shape[:2], *shape), (0, 1), (-2, -1))  # noqa: E731
    return _Scores(
        by_split(hits),
        by_split(losses),
        by_split(training)[:, :, -1],
        np.moveaxis(margins, 2, 0),
    )


@functools.partial(jax.jit, static_argnames="shape")
def _score(margins, labels, train, held, shape):
    """Sums over clips of held-out hits, held-out log losses and training hits, [sets, P, F] each.

    And the held-out margins [sets, P, R, n] of each outer fold's last split, put together. `labels`, `train` and `held`
    are [F, n], `shape` is (R, O, I + 1).
    """
    signs = jnp.where(labels, 1.0, -1.0)
    hit = 0.5 + 0.5 * jnp.sign(margins) * signs
    loss = jax.nn.softplus(-signs * margins)
    out = jnp.where(held, margins, 0).reshape(*margins.shape[:2], *shape, -1)[:, :, :, :, -1].sum(3)
    return (
        jnp.where(held, hit, 0).sum(-1),
        jnp.where(held, loss, 0).sum(-1),
        jnp.where(train, hit, 0).sum(-1),
        out,
    )


def _judge(scores, y, groups, train, held, folds, penalties, matched, draws) -> NestedResult:
    """Choose by the inner folds of one labeling, and score the choices by the outer ones."""
    repeats, outer, _, clips = train.shape
    counts = held[:, :, :-1].sum((2, 3))[..., None, None]
    accuracy = {name: score.hits[:, :, :-1].sum(2) / counts for name, score in scores.items()}
    losses = {name: score.losses[:, :, :-1].sum(2) / counts for name, score in scores.items()}
    best = {name: _best(_flat(accuracy[name]), _flat(losses[name])) for name in scores}
    chosen, predictions, training = [], np.zeros((repeats, clips), np.float32), []
    for repeat, fold in np.ndindex(repeats, outer):

        def worth(name, at=(repeat, fold)):
            index = int(best[name][at])
            rate, loss = (float(_flat(part[name])[at][index]) for part in (accuracy, losses))
            return round(rate, 9), -loss

        # max keeps the first of equals, so ties go to the earlier name.
        name = max(scores, key=worth)
        candidate, penalty = (int(i) for i in divmod(int(best[name][repeat, fold]), len(penalties)))
        chosen.append(Choice(repeat, fold, name, candidate, float(penalties[penalty]), worth(name)[0]))
        out = held[repeat, fold, -1]
        predictions[repeat, out] = scores[name].margins[repeat, candidate, penalty, out]
        fitted = scores[name].training[repeat, fold, candidate, penalty]
        training.append(fitted / train[repeat, fold, -1].sum())

    cells = {name: _cells(scores[name].margins, _best(accuracy[name], losses[name]), folds) for name in scores}
    rates = {name: statistics.hits(margins, y).mean(0) for name, margins in cells.items()}
    hits = statistics.hits(predictions, y).mean(0)
    bootstrap = functools.partial(statistics.cluster_bootstrap, groups=groups, draws=draws, conditional_on=NESTED)
    of_cells = functools.partial(statistics.bootstrap_cells, groups=groups, draws=draws, wider=CROSSED)
    codes = check_groups(groups if matched is None else matched, clips)
    paired = np.any((np.bincount(codes, y) > 0) & (np.bincount(codes, ~y) > 0))
    pairwise, pairwise_interval = None, None
    if paired:
        right, pairs = statistics.pairs_by_group(predictions, y, groups, matched)
        pairwise = float(right.sum() / pairs.sum())
        pairwise_interval = statistics.pairwise_interval(
            predictions, y, groups, matched=matched, draws=draws, conditional_on=NESTED
        )
    tested = held[:, :, -1].sum(2)[..., None, None]
    return NestedResult(
        accuracy=float(hits.mean()),
        interval=bootstrap(hits),
        pairwise=pairwise,
        pairwise_interval=pairwise_interval,
        training_accuracy=float(np.mean(training)),
        chosen=tuple(chosen),
        predictions=predictions,
        folds=folds,
        labels=y,
        groups=groups,
        penalties=penalties,
        grid={name: rate.mean(1) for name, rate in rates.items()},
        grid_interval={name: of_cells(rate) for name, rate in rates.items()},
        mean_accuracy={name: float(rate.mean()) for name, rate in rates.items()},
        mean_interval={
            name: statistics.Interval(*of_cells(rate.mean(0, keepdims=True))[0].tolist())
            for name, rate in rates.items()
        },
        cells=cells,
        inner_accuracy=accuracy,
        outer_accuracy={name: score.hits[:, :, -1] / tested for name, score in scores.items()},
    )


def _flat(array: np.ndarray) -> np.ndarray:
    """[R, O, C, P] as [R, O, C * P]."""
    return array.reshape(*array.shape[:2], -1)


def _best(accuracy: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Index along the last axis of the largest accuracy, then the smallest loss, then the first."""
    # Sums of hits are exact; the division may differ in the last bit, and must not break a tie.
    top = accuracy >= accuracy.max(-1, keepdims=True) - 1e-9
    return np.argmin(np.where(top, losses, np.inf), -1)


def _cells(margins: np.ndarray, penalty: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Held-out margins [R, C, n] of every cell out of `margins` [R, C, P, n], each outer fold with the `penalty` [R, O, C]
    that its inner folds chose."""
    of_clip = np.take_along_axis(np.moveaxis(penalty, 1, 2), folds[:, None], 2)  # [R, C, n]
    return np.take_along_axis(margins, of_clip[:, :, None], 2)[:, :, 0]


class LinearProbeCV(LinearProbe):
    """`LinearProbe` whose penalty is chosen by grouped cross-validation, then refitted on everything.

    The score of the chosen penalty on the folds that chose it is optimistic; an honest number needs data that
    the choice has not seen (`nested_cross_validate`).

    Parameters
    ----------
    penalties : [P]
        Strengths to choose among. Most validation hits win, then the smaller log loss, then the stronger.
    folds, seed : int
        How many folds, and how groups are dealt to them.

    Attributes
    ----------
    penalty : float
        The chosen one, once fitted.
    scores_ : dict penalty -> accuracy over the validation folds
    and those of `LinearProbe`.
    """

    def __init__(self, penalties: Any = PENALTIES, *, folds: int = 5, seed: int = 0):
        self.penalties = np.sort(check_penalties(penalties))[::-1]
        self.folds, self.seed = folds, seed

    def __repr__(self) -> str:
        return f"LinearProbeCV(penalties={self.penalties.tolist()}, folds={self.folds}, seed={self.seed})"

    def fit(self, X: Any, y: Any, groups: Any = None, strata: Any = None) -> "LinearProbeCV":
        """Choose the penalty and fit on `X` [n, D], `y` [n]; without `groups` every clip is its own.

        Raises ConfigError and NonFiniteError as `nested_cross_validate` does.
        """
        features = check_features(X, ndim=2)
        label = check_labels(y, len(features))
        groups = np.arange(len(label)) if groups is None else one_per_clip(groups, len(label), "groups")
        fold = grouped_folds(groups, self.folds, strata=strata, y=label, seed=self.seed)
        held = fold == np.arange(self.folds)[:, None]
        check_classes(~held, label)
        scores = _score_set(features[None], label[None], ~held[None, None], held[None, None], self.penalties)
        accuracy = scores.hits[0, 0, :, 0].sum(0) / len(label)
        losses = scores.losses[0, 0, :, 0].sum(0) / len(label)
        best = _best(accuracy, losses)
        self.penalty = float(self.penalties[best])
        self.scores_ = dict(zip(self.penalties.tolist(), accuracy.tolist(), strict=True))
        super().fit(X, y)
        return self
