"""On features that hold nothing, the corrected protocol must find nothing, and the published one does find some."""

import numpy as np
import pytest

from jaxdiff.probes import controls, nested_cross_validate, published_protocol, statistics
from tests.probes.scenes import groups_of, labels_of, noise

SETS, CLIPS, CANDIDATES, WIDTH = 40, 120, 60, 6


@pytest.fixture(scope="module")
def outcomes():
    y, groups = labels_of(CLIPS), groups_of(CLIPS)
    found = []
    for seed in range(SETS):
        x = noise(CANDIDATES, CLIPS, WIDTH, seed)
        corrected = nested_cross_validate(
            x, y, groups, penalties=(1.0, 1e2, 1e4), outer=5, inner=3, seed=seed, draws=2000
        )
        # The published choice, with a probe that costs less: the best cell on one reported fold in 60/40.
        published = published_protocol(x, y, groups, seeds=(seed,), epochs=10)
        found.append((corrected, published))
    return found


def test_corrected_accuracy_is_chance(outcomes):
    mean = np.mean([corrected.accuracy for corrected, _ in outcomes])
    # One data set spreads by about 4.6 points, forty by 0.7: three standard errors.
    assert abs(mean - 0.5) < 0.022


def test_the_interval_covers_chance_nearly_as_often_as_it_says(outcomes):
    covered = sum(0.5 in corrected.interval for corrected, _ in outcomes)
    # At 95 % coverage 38 of 40 are expected, and fewer than 34 in one suite of a hundred.
    assert covered >= 34
    widths = [corrected.interval.high - corrected.interval.low for corrected, _ in outcomes]
    # ... without being wide for it: 120 independent clips give 0.18.
    assert np.mean(widths) < 0.22


def test_permutation_p_values_are_rarely_small(outcomes):
    y, groups = labels_of(CLIPS), groups_of(CLIPS)
    p = [statistics.permutation_test(c.predictions, y, groups, draws=1000).p for c, _ in outcomes]
    # Two of 40 expected at .05; more than six in one suite of a hundred.
    assert np.mean(np.array(p) <= 0.05) <= 0.15
    assert 0.3 < np.mean(p) < 0.7


def test_the_max_statistic_accounts_for_the_whole_grid(outcomes):
    y, groups = labels_of(CLIPS), groups_of(CLIPS)
    smallest = [statistics.max_statistic(c.cells["features"], y, groups, draws=500).p.min() for c, _ in outcomes]
    assert np.mean(np.array(smallest) <= 0.05) <= 0.15
    # Cell by cell, most of these grids hold a "discovery".
    naive = [c.grid["features"].max() for c, _ in outcomes]
    assert np.mean(naive) > 0.57


def test_the_best_cell_of_the_reported_fold_is_biased_upwards(outcomes):
    best = np.mean([published.best for _, published in outcomes])
    mean = np.mean([published.mean for _, published in outcomes])
    # Expected maximum of 60 cells on 48 clips: about .65. The mean over cells chooses nothing.
    assert best > 0.6
    assert abs(mean - 0.5) < 0.01
    assert best - np.mean([corrected.accuracy for corrected, _ in outcomes]) > 0.08


def test_a_signal_vanishes_when_labels_are_exchanged_inside_scenes():
    y, groups = labels_of(CLIPS), groups_of(CLIPS)
    x = noise(4, CLIPS, WIDTH, 0) + np.where(y, 0.8, -0.8)[:, None].astype(np.float32)
    arguments = {"penalties": (1.0, 1e2), "outer": 3, "inner": 2, "draws": 500}
    assert nested_cross_validate(x, y, groups, **arguments).accuracy > 0.9
    shuffled = [
        nested_cross_validate(x, controls.shuffle_labels(y, groups, seed=seed), groups, **arguments).accuracy
        for seed in range(8)
    ]
    # Eight data sets of 4.6 points spread.
    assert abs(np.mean(shuffled) - 0.5) < 0.05
