"""The probing protocol of the paper, as its released code runs it: kept to measure what the protocol adds.

The Invisible Hand of Physics (arXiv 2606.05328): for each block and step, nn.Linear(D, 2) on token means,
softmax cross-entropy, Adam at 1e-3, 50 epochs, no weight decay, no standardisation, the last epoch. Batches are of 32
in the released code and of 4 in the paper's first version; one fold is reported per seed, 40 % of the scenes in the
paper and 20 % by the code's default, and there are five seeds. Two numbers are reported: the best block of each seed on
its reported fold, and the mean over blocks at t = 0.5. Choosing on the fold that is reported is biased upwards: with 60
cells and 48 test clips, features without any signal score about .65. `nested_cross_validate` is the protocol without
that.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdiff.errors import ConfigError
from jaxdiff.probes import statistics
from jaxdiff.probes.inputs import check_groups, check_labels, named_candidates, one_per_clip


@dataclasses.dataclass(frozen=True)
class PublishedResult:
    """Outcome of `published_protocol`; S seeds, C candidates of a set, n clips.

    Attributes
    ----------
    best : float
        Each seed's best cell, of all blocks and levels, on its own reported fold, averaged over seeds. Optimistic.
    best_by_seed : [S]
    best_error : float
        Standard error of `best` over seeds, as the paper reports it; nan for one seed. It knows nothing of
        scenes, and seeds share clips, so it is no interval for new scenes.
    best_cells : tuple of (name, candidate), one per seed
    mean : float
        Mean over all cells and seeds, free of the choice.
    mean_error : float
        Standard error of `mean` over seeds; nan for one seed.
    best_pairwise : float or None
        Best cell by pairwise accuracy of each seed, averaged; None where no test group holds both labels.
    accuracy : dict name -> [S, C]
        On the reported fold.
    pairwise : dict name -> [S, C], or empty
    training_accuracy : dict name -> [S, C]
    margins : dict name -> [S, C, n] float32
        Logit of True minus logit of False, training clips included; `test` says which were reported.
    test : [S, n] bool
    """

    best: float
    best_by_seed: np.ndarray
    best_error: float
    best_cells: tuple[tuple[str, int], ...]
    mean: float
    mean_error: float
    best_pairwise: float | None
    accuracy: dict[str, np.ndarray]
    pairwise: dict[str, np.ndarray]
    training_accuracy: dict[str, np.ndarray]
    margins: dict[str, np.ndarray]
    test: np.ndarray

    def only(self, cells: Mapping[str, Sequence[int]]) -> "PublishedResult":
        """The same probes reported for some of the cells, name -> candidates: for the blocks of one level, say."""

        def part(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: table[name][:, list(kept)] for name, kept in cells.items() if name in table}

        names = {name: list(kept) for name, kept in cells.items()}
        some = _summary(part(self.accuracy), part(self.pairwise))
        some["best_cells"] = tuple((name, names[name][cell]) for name, cell in some["best_cells"])
        return dataclasses.replace(
            self, **some, training_accuracy=part(self.training_accuracy), margins=part(self.margins)
        )


def published_protocol(
    X: Any,
    y: Any,
    groups: Any,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    test_fraction: float = 0.4,
    strata: Any = None,
    grouped: bool = True,
    epochs: int = 50,
    batch: int = 32,
    learning_rate: float = 1e-3,
) -> PublishedResult:
    """Train and report a linear softmax probe per cell the way the paper does; all cells of a set at once.

    Parameters
    ----------
    X : [candidates, n, D], or dict name -> such an array
        Features as they are: nothing is standardised.
    y : [n] bool or 0/1
    groups : [n]
        Scene of each clip.
    seeds
        One split, initialisation and order of batches each.
    test_fraction : float
        Share of groups (of clips if not `grouped`) in the reported fold.
    strata : [n], optional
        Category of each clip; each is split in the same proportion.
    grouped : bool
        False splits by clip, as the paper's first version seems to have done: siblings of test clips are then
        trained on, and share every background pixel with them.
    epochs, batch, learning_rate
        Those of the released code by default; the paper's first version has batches of 4.

    Raises
    ------
    ConfigError
        Shapes disagree, labels are not binary, or a split leaves one side empty or one class to train on.
    NonFiniteError
        A feature is NaN or infinite; names where.
    """
    sets = named_candidates(X)
    clips = next(iter(sets.values())).shape[1]
    y = check_labels(y, clips)
    codes = check_groups(groups, clips)
    if not len(seeds) or epochs < 1 or batch < 1:
        raise ConfigError(f"{len(seeds)} seeds, {epochs} epochs, batches of {batch}; each is at least 1")
    splits = [_split(codes if grouped else np.arange(clips), test_fraction, strata, seed) for seed in seeds]
    for seed, test in zip(seeds, splits, strict=True):
        if len(set(y[~test].tolist())) < 2:
            raise ConfigError(f"seed {seed} leaves one class only to train on; use more scenes")
    margins: dict[str, list] = {name: [] for name in sets}
    for index, (name, array) in enumerate(sets.items()):
        features = jnp.asarray(array, jnp.float32)
        for seed, test in zip(seeds, splits, strict=True):
            order, present = _batches(np.flatnonzero(~test), epochs, batch, seed)
            key = jax.random.fold_in(jax.random.key(seed), index)
            fitted = _train(features, jnp.asarray(y, jnp.int32), order, present, key, learning_rate)
            margins[name].append(np.asarray(fitted))
    return _report({name: np.stack(m) for name, m in margins.items()}, y, codes, np.stack(splits))


def _split(groups: np.ndarray, fraction: float, strata: Any, seed: int) -> np.ndarray:
    """Which clips are reported, [n] bool: `fraction` of the groups of each stratum, some on each side."""
    if not 0 < fraction < 1:
        raise ConfigError(f"test_fraction is {fraction}; give a share between 0 and 1")
    groups = check_groups(groups, len(groups))
    first = np.unique(groups, return_index=True)[1]
    stratum = np.zeros(len(first), int)
    if strata is not None:
        stratum = np.unique(one_per_clip(strata, len(groups), "strata")[first], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    test = np.zeros(len(first), bool)
    for value in np.unique(stratum):
        members = rng.permutation(np.flatnonzero(stratum == value))
        test[members[: round(fraction * len(members))]] = True
    if test.all() or not test.any():
        raise ConfigError(f"{len(first)} groups cannot be split {fraction:g} to {1 - fraction:g}; use more scenes")
    return test[groups]


def _batches(train: np.ndarray, epochs: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips [steps, batch] in a new order every epoch, and which entries of short last batches are real."""
    rng = np.random.default_rng([seed, 1])
    steps = -(-len(train) // batch)
    order = np.zeros((epochs, steps * batch), np.int32)
    order[:, : len(train)] = [rng.permutation(train) for _ in range(epochs)]
    present = np.broadcast_to(np.arange(steps * batch) < len(train), order.shape)
    return order.reshape(-1, batch), present.reshape(-1, batch).astype(np.float32)


@functools.partial(jax.jit, static_argnames="learning_rate")
def _train(X, y, order, present, key, learning_rate):
    """Margins [C, n] of one probe per cell of X [C, n, D] after all steps of `order` [steps, batch]."""
    cells, _, width = X.shape
    # nn.Linear's own initialisation, weights and bias alike.
    bound = 1 / np.sqrt(width)
    first, second = jax.random.split(key)
    probes = {
        "kernel": jax.random.uniform(first, (cells, width, 2), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(second, (cells, 1, 2), minval=-bound, maxval=bound),
    }
    adam = optax.adam(learning_rate)

    def loss(probes, clips, weight):
        logits = jnp.einsum("cbd,cdk->cbk", X[:, clips], probes["kernel"]) + probes["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y[clips][None])
        # Summed over cells: each then has the gradient that it would have alone.
        return (losses * weight).sum() / weight.sum()

    def step(carry, now):
        probes, moments = carry
        updates, moments = adam.update(jax.grad(loss)(probes, *now), moments)
        return (optax.apply_updates(probes, updates), moments), None

    with jax.default_matmul_precision("highest"):
        (probes, _), _ = jax.lax.scan(step, (probes, adam.init(probes)), (order, present))
        logits = jnp.einsum("cnd,cdk->cnk", X, probes["kernel"]) + probes["bias"]
    return logits[..., 1] - logits[..., 0]


def _report(margins: dict[str, np.ndarray], y: np.ndarray, groups: np.ndarray, test: np.ndarray) -> PublishedResult:
    """Numbers of the paper from margins [S, C, n] and the reported clips `test` [S, n]."""

    def over(clips, score):
        return {
            name: np.stack([score(of_seed[:, c], y[c], groups[c]) for of_seed, c in zip(m, clips, strict=True)])
            for name, m in margins.items()
        }

    def rates(m, label, _):
        return statistics.hits(m, label).mean(1)

    paired = all(any(len(set(y[c & (groups == g)].tolist())) == 2 for g in np.unique(groups[c])) for c in test)
    return PublishedResult(
        **_summary(over(test, rates), over(test, statistics.pairwise_accuracies) if paired else {}),
        training_accuracy=over(~test, rates),
        margins=margins,
        test=test,
    )


def _summary(accuracy: dict[str, np.ndarray], pairwise: dict[str, np.ndarray]) -> dict[str, Any]:
    """Fields of `PublishedResult` that follow from the accuracies [S, C] of every set."""

    def error(values):
        return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")

    cells = [(name, cell) for name, table in accuracy.items() for cell in range(table.shape[1])]
    table = np.concatenate(list(accuracy.values()), axis=1)  # [S, cells of all sets]
    best, mean = table.max(1), table.mean(1)
    return {
        "best": float(best.mean()),
        "best_by_seed": best,
        "best_error": error(best),
        "best_cells": tuple(cells[i] for i in table.argmax(1)),
        "mean": float(mean.mean()),
        "mean_error": error(mean),
        "best_pairwise": float(np.concatenate(list(pairwise.values()), axis=1).max(1).mean()) if pairwise else None,
        "accuracy": accuracy,
        "pairwise": pairwise,
    }
