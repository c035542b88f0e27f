"""PISA's three numbers of a falling thing (arXiv 2503.09595), as its code computes them and with failures counted.

Masks of the one thing that falls, generated and true, a frame each. With diagonal ``d = sqrt(2) H`` of square frames::

    L2       distance of the centroids / d
    Chamfer  (mean distance of generated pixels to the nearest true one + the same the other way) / d
    IoU      |both| / |either|, 1 where both are empty

As published ("compatible"), L2 is the mean over frames *and coordinates* of the absolute difference, which is no Euclidean
distance; a frame in which the thing is missing has no L2 and no Chamfer distance and is left out, as is a clip without a
single frame that has one. A model whose thing vanishes is then scored on the frames before. Corrected, the distance is
Euclidean, and a missing (or spurious) thing costs the most that there is: L2 1, Chamfer 2, IoU 0.
"""

import warnings
from collections.abc import Mapping

import numpy as np

from jaxdiff.errors import ConfigError

WORST = {"l2": 1.0, "chamfer": 2.0, "iou": 0.0}
AT_ONCE = 4_000_000  # pairs of pixels whose distances are in memory together


def resampled(frames: int, fps: float, truth_frames: int, truth_fps: float) -> np.ndarray:
    """Which true frame is compared with each generated one, ``int(i fps_truth / fps)``, as far as the truth goes."""
    if not (fps > 0 and truth_fps > 0):
        raise ConfigError(f"frame rates must be positive, got {fps:g} and {truth_fps:g}")
    index = (np.arange(frames) * (truth_fps / fps)).astype(int)
    return index[index < truth_frames]


def pisa_metrics(masks: np.ndarray, truth: np.ndarray, *, compatible: bool = False) -> dict[str, np.ndarray]:
    """The numbers of every clip.

    Parameters
    ----------
    masks, truth : bool [N, T, H, W], the falling thing as generated and as it is, frame by frame (see `resampled`).
    compatible : as the published code, see the module.

    Returns
    -------
    "l2", "chamfer", "iou" : float64 [N]; compatible: nan for clips that the published average leaves out.
    "missing" : float64 [N], share of the frames in which one has the thing and the other has not.

    Raises
    ------
    ConfigError : masks of other shapes or types, or a truth without the thing in any frame.
    """
    masks, truth = np.asarray(masks), np.asarray(truth)
    if masks.shape != truth.shape or masks.ndim != 4 or masks.dtype != bool or truth.dtype != bool:
        raise ConfigError(
            f"masks must be bool [N, T, H, W], generated and true alike, got {masks.dtype} {masks.shape} and {truth.dtype} "
            f"{truth.shape}; clips of different length are compared on the frames of `resampled`"
        )
    if empty := [str(i) for i in np.flatnonzero(~truth.any((1, 2, 3)))]:
        raise ConfigError(
            f"the true mask of clip(s) {', '.join(empty[:8])} is empty in every frame: nothing falls there"
        )
    there = masks.any((2, 3)), truth.any((2, 3))
    both, neither = there[0] & there[1], ~there[0] & ~there[1]
    l2, chamfer = np.full((2, *both.shape), np.nan)
    height, width = masks.shape[2:]
    # The published code divides by the height alone; of square frames both are the diagonal.
    diagonal = np.sqrt(2.0) * height if compatible else np.hypot(height, width)
    for i, t in np.argwhere(both):
        a, b = np.argwhere(masks[i, t]).astype(float), np.argwhere(truth[i, t]).astype(float)
        step = a.mean(0) - b.mean(0)
        l2[i, t] = (np.abs(step).mean() if compatible else np.hypot(*step)) / diagonal
        chamfer[i, t] = (_nearest(a, b).mean() + _nearest(b, a).mean()) / diagonal
    union = (masks | truth).sum((2, 3))
    iou = np.where(neither, 1.0, (masks & truth).sum((2, 3)) / np.maximum(union, 1))
    found = {"l2": l2, "chamfer": chamfer, "iou": iou}
    if not compatible:
        odd = there[0] != there[1]
        found = {name: np.where(odd, WORST[name], values) for name, values in found.items()}
    return {name: _mean(values, 1) for name, values in found.items()} | {"missing": (there[0] != there[1]).mean(1)}


def average(scores: Mapping[str, np.ndarray]) -> dict[str, float | int]:
    """Means over clips, those left out that have no number, and "failures", the clips in which a frame misses the thing."""
    means: dict[str, float | int] = {name: float(_mean(values, 0)) for name, values in scores.items()}
    return means | {"failures": int((scores["missing"] > 0).sum()), "left_out": int(np.isnan(scores["l2"]).sum())}


def _nearest(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of every point of a [n, 2] to the nearest of b [m, 2]."""
    rows = max(1, AT_ONCE // len(b))
    parts = [a[i : i + rows] for i in range(0, len(a), rows)]
    return np.concatenate([np.sqrt(np.square(part[:, None] - b).sum(-1).min(1)) for part in parts])


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no number is none
        return np.nanmean(values, axis)
