"""Feature sets with the structures that break solvers and folds: what every test here draws from."""

import numpy as np


def groups_of(clips: int, size: int = 4) -> np.ndarray:
    return np.arange(clips) // size


def labels_of(clips: int) -> np.ndarray:
    """Two impossible and two possible clips per scene."""
    return np.tile([False, False, True, True], clips // 4)


def noise(candidates: int, clips: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((candidates, clips, width), np.float32)


def gaussians(candidates: int, clips: int, width: int, distance: float, seed: int) -> np.ndarray:
    """Unit normal classes whose means are `distance` apart along one direction: Bayes accuracy Phi(distance / 2)."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(width)
    direction /= np.linalg.norm(direction)
    side = np.where(labels_of(clips), 0.5, -0.5)[:, None]
    return noise(candidates, clips, width, seed + 1) + np.float32(distance * side * direction)


def features(kind: str, clips: int, width: int, seed: int = 0) -> np.ndarray:
    """[clips, width] float32 with a weak signal in every feature.

    plain: independent normal. decaying: eigenvalues over four decades. scenes: the four clips of a scene nearly
    equal. heavy: lognormal, so that training variances differ between folds. outlier: one clip holds one huge
    value, so that some folds see it and others do not. offset: far from zero, one feature constant.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((clips, width))
    if kind == "decaying":
        x = x * np.geomspace(1, 1e-2, width) @ np.linalg.qr(rng.standard_normal((width, width)))[0]
    elif kind == "scenes":
        x = np.repeat(rng.standard_normal((clips // 4, width)), 4, 0) + 0.01 * x
    elif kind == "heavy":
        x = np.exp(x)
    x = x + 0.1 * np.where(labels_of(clips), 1, -1)[:, None] * x.std(0) * rng.standard_normal(width)
    if kind == "outlier":
        x[5, 3] = 1e4
    elif kind == "offset":
        x = x + 300
        x[:, 1] = 7
    return x.astype(np.float32)


KINDS = ("plain", "decaying", "scenes", "heavy", "outlier", "offset")


def objective(x, y, penalty, coefficients, intercept, rows) -> float:
    """The stated objective in float64, written out from its definition."""
    x, y = np.asarray(x, np.float64)[rows], np.asarray(y)[rows]
    margins = x @ coefficients + intercept
    weights = coefficients * x.std(0)  # on standardised features
    return np.logaddexp(0, np.where(y, -margins, margins)).sum() + 0.5 * penalty * weights @ weights


def best_intercept(x, y, coefficients, rows) -> float:
    """The intercept that minimises the loss given the weights, in float64, by bisection on its derivative."""
    margins = np.asarray(x, np.float64)[rows] @ coefficients
    low, high = -margins.max() - 50, -margins.min() + 50
    for _ in range(200):
        middle = (low + high) / 2
        rates = 0.5 * (1 + np.tanh((margins + middle) / 2))
        low, high = (middle, high) if rates.sum() < np.asarray(y)[rows].sum() else (low, middle)
    return (low + high) / 2
