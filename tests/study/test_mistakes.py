"""Errors of clips beside the probe's mistakes."""

import numpy as np
import pytest

from jaxdiff.study.mistakes import clip_errors, rank_correlation


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 4)
    error = rng.gamma(2.0, size=200)
    return error, (rng.random(200) < 0.2 + 0.2 * (error > 2)).astype(float), groups


def test_it_is_the_correlation_of_ranks(data):
    error, wrong, groups = data
    found = rank_correlation(error, wrong, groups)
    expected = np.corrcoef(np.argsort(np.argsort(error)), wrong)[0, 1]
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high
    stretched = rank_correlation(np.exp(5 * error), wrong, groups)
    assert stretched == found  # a far outlier counts no more than any other largest clip


def test_ties_share_their_mean_rank():
    found = rank_correlation(np.array([1.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 1.0, 1.0]), np.arange(4))
    assert found.value == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [0, 1, 1, 1])[0, 1])


def test_scenes_are_drawn_whole(data):
    # The clips of a scene are copies of one: four times as many clips, and no more information.
    error, wrong, groups = (values[::4].repeat(4) for values in data)
    whole = rank_correlation(error, wrong, groups)
    alone = rank_correlation(error[::4], wrong[::4], groups[::4])
    assert whole.high - whole.low == pytest.approx(alone.high - alone.low, rel=1e-6)
    free = rank_correlation(error, wrong, np.arange(200))
    assert free.high - free.low < 0.7 * (whole.high - whole.low)  # half as wide, give or take the draws


def test_without_variation_there_is_no_correlation(data):
    error, wrong, groups = data
    assert np.isnan(rank_correlation(np.ones(200), wrong, groups).value)
    assert np.isnan(rank_correlation(error, np.zeros(200), groups).value)


def test_errors_come_in_the_order_of_the_clips_and_missing_ones_are_nan():
    records = {0: {"coarse_error": 0.5}, 1: {"noise_std": 1.0}, 2: {"coarse_error": 0.25}}
    np.testing.assert_array_equal(clip_errors(records, [2, 1, 0]), [0.25, np.nan, 0.5])
