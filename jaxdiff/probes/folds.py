"""Folds that keep scenes together."""

from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes.inputs import check_groups, check_labels, one_per_clip


def grouped_folds(groups: Any, folds: int, *, strata: Any = None, y: Any = None, seed: Any = 0) -> np.ndarray:
    """Deal groups to `folds` folds: fold number [n] of each clip.

    No group straddles two folds. A stratum is one value of `strata` [n], constant inside a group, together
    with the group's share of True labels where `y` is given. Inside each, groups are shuffled by `seed`,
    larger ones first, and each goes to the fold with the fewest clips of the stratum, then the fewest clips.

    Raises
    ------
    ConfigError
        Fewer groups than folds, fewer than 2 folds, or a group that spans several strata.
    """
    groups = np.asarray(groups)
    codes = check_groups(groups, len(groups))
    sizes = np.bincount(codes)
    if folds < 2:
        raise ConfigError(f"{folds} folds; cross-validation needs at least 2")
    if len(sizes) < folds:
        raise ConfigError(
            f"{len(sizes)} groups cannot fill {folds} folds: each fold needs a group of its own; "
            "use fewer folds or more scenes"
        )
    stratum = np.zeros(len(sizes), int)
    if strata is not None:
        _, of_clip = np.unique(one_per_clip(strata, len(codes), "strata"), return_inverse=True)
        stratum = np.zeros(len(sizes), int)
        stratum[codes] = of_clip
        astray = np.flatnonzero(stratum[codes] != of_clip)
        if len(astray):
            raise ConfigError(f"group {groups[astray[0]]!r} has clips of several strata; give one stratum per group")
    if y is not None:
        shares = np.bincount(codes, check_labels(y, len(codes), both=False)) / sizes
        _, stratum = np.unique(np.stack([stratum, shares]), axis=1, return_inverse=True)
    rng = np.random.default_rng(seed)
    fold_of = np.empty(len(sizes), int)
    total = np.zeros(folds, int)
    for value in np.unique(stratum):
        held = np.zeros(folds, int)
        shuffled = rng.permutation(np.flatnonzero(stratum == value))
        for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
            fold = min(range(folds), key=lambda f: (held[f], total[f], f))
            fold_of[group] = fold
            held[fold] += sizes[group]
            total[fold] += sizes[group]
    return fold_of[codes]


def nested_splits(
    groups: np.ndarray, y: np.ndarray, strata: Any, outer: int, inner: int, repeats: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks train, held [R, O, I + 1, n] and outer folds [R, n]; the last split is the outer fold itself."""
    clips = len(y)
    train = np.zeros((repeats, outer, inner + 1, clips), bool)
    held = np.zeros_like(train)
    folds = np.zeros((repeats, clips), int)
    for repeat in range(repeats):
        folds[repeat] = grouped_folds(groups, outer, strata=strata, y=y, seed=(seed, repeat))
        for fold in range(outer):
            out = folds[repeat] == fold
            inside = np.flatnonzero(~out)
            try:
                split = grouped_folds(
                    groups[inside],
                    inner,
                    strata=None if strata is None else np.asarray(strata)[inside],
                    y=y[inside],
                    seed=(seed, repeat, fold),
                )
            except ConfigError as error:
                raise ConfigError(f"inside outer fold {fold}: {error}") from error
            for k in range(inner):
                train[repeat, fold, k, inside[split != k]] = True
                held[repeat, fold, k, inside[split == k]] = True
            train[repeat, fold, -1] = ~out
            held[repeat, fold, -1] = out
    check_classes(train, y)
    return train, held, folds


def check_classes(train: np.ndarray, y: np.ndarray) -> None:
    """Every split must be fitted on both classes."""
    positive = (train & y).sum(-1)
    bad = np.argwhere((positive == 0) | (positive == train.sum(-1)))
    if len(bad):
        raise ConfigError(
            f"{len(bad)} splits (the first: {tuple(bad[0].tolist())}) have one class only to fit on; "
            "use fewer folds, or more scenes of the rarer class"
        )
