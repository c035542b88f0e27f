"""Are the clips that were inverted badly the ones that the probe gets wrong?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.probes.inputs import check_groups
from jaxdiff.report.study import Estimate

DRAWS = 2000


def clip_errors(records: Mapping[int, Mapping[str, Any]], clips: Sequence[int]) -> np.ndarray:
    """`coarse_error` of the clips' records, nan where it was not measured: [n]."""
    return np.array([records[i].get("coarse_error", np.nan) for i in clips], float)


def rank_correlation(error: np.ndarray, wrong: np.ndarray, groups: Any, *, seed: int = 0) -> Estimate:
    """Pearson correlation of the errors' ranks with being wrong, and its 95 % bootstrap interval over scenes.

    Ranks, because one clip far out would decide the correlation of the errors themselves; ties share their mean rank,
    and ranks are those of the whole sample in every draw.

    Parameters
    ----------
    error : [n] finite.
    wrong : [n] in [0, 1], for example the share of repeats that told the clip wrong.
    groups : [n], scenes; drawn whole.

    Returns
    -------
    Estimate, all nan where errors or mistakes do not vary.
    """
    _, place, counts = np.unique(np.asarray(error, float), return_inverse=True, return_counts=True)
    x = (np.cumsum(counts) - (counts - 1) / 2)[place]
    y = np.asarray(wrong, float)
    # Centred and scaled once, so that the sums of squares below cannot cancel.
    x, y = ((v - v.mean()) / (v.std() or 1.0) for v in (x, y))
    codes = check_groups(groups, len(x))
    sums = np.stack([np.bincount(codes, v) for v in (np.ones_like(x), x, y, x * x, y * y, x * y)])
    scenes = sums.shape[1]
    picks = np.random.default_rng(seed).integers(scenes, size=(DRAWS, scenes))
    drawn = np.stack([np.bincount(row, minlength=scenes) for row in picks])

    def correlation(totals):
        n, sx, sy, xx, yy, xy = totals
        spread = (n * xx - sx**2) * (n * yy - sy**2)
        flat = spread <= 1e-12 * n**4  # of a draw in which one of the two is constant
        return np.where(flat, np.nan, (n * xy - sx * sy) / np.sqrt(np.where(flat, 1.0, spread)))

    samples = correlation(sums @ drawn.T)
    samples = samples[np.isfinite(samples)]
    value = float(correlation(sums.sum(1)))
    if not np.isfinite(value) or not len(samples):
        return Estimate(np.nan)
    low, high = np.quantile(samples, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
