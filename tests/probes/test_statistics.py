from itertools import product

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.probes import Interval, permutation, statistics
from tests.probes.scenes import groups_of, labels_of

Y = np.array([True, True, False, False, True, True, False, False])
GROUPS = np.array(list("aaaabbbb"))


def test_accuracy_counts_signs_and_halves_ties():
    margins = np.array([1.0, -1.0, -2.0, 0.0])
    np.testing.assert_array_equal(statistics.hits(margins, Y[:4]), [1, 0, 1, 0.5])
    assert statistics.accuracy(margins, Y[:4]) == 0.625
    assert statistics.accuracy(np.stack([margins, np.zeros(4)]), Y[:4]) == 0.5625


def test_pairs_are_compared_inside_groups_only():
    # In a: 1 of 4 pairs right, one tied. In b, whose margins all exceed a's: all four right.
    margins = np.array([0.0, -5.0, 0.0, -1.0, 13.0, 12.0, 11.0, 10.0])
    assert statistics.pairwise_accuracy(margins, Y, GROUPS) == (1.5 + 4) / 8
    shuffled = np.random.default_rng(0).permutation(8)
    again = statistics.pairwise_accuracy(margins[shuffled], Y[shuffled], GROUPS[shuffled])
    assert again == (1.5 + 4) / 8
    # A shift of a whole scene changes nothing.
    assert statistics.pairwise_accuracy(margins + (GROUPS == "a") * 99, Y, GROUPS) == again


def test_auc_is_the_share_of_all_pairs_ranked_right():
    rng = np.random.default_rng(0)
    margins, y = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    difference = margins[y][:, None] - margins[~y][None]
    share = np.mean((difference > 0) + 0.5 * (difference == 0))
    assert statistics.auc(margins, y) == pytest.approx(share, abs=1e-12)
    assert statistics.absolute_error(margins, y) == pytest.approx(1 - share, abs=1e-12)
    assert statistics.auc(np.stack([margins, -margins]), y) == pytest.approx(0.5, abs=1e-12)


def test_relative_error_compares_the_sums_of_a_quadruplet():
    # a: possible sum 1 < impossible sum 3, an error; b: 5 > 4, none.
    margins = np.array([3.0, -2.0, 2.0, 1.0, 5.0, 0.0, 1.0, 3.0])
    assert statistics.relative_error(margins, Y, GROUPS) == 0.5
    assert statistics.relative_error(np.zeros(8), Y, GROUPS) == 0.5
    assert statistics.relative_error(np.where(Y, 1.0, -1.0), Y, GROUPS) == 0
    # Groups with one label say nothing.
    assert statistics.relative_error(margins[:6], Y[:6], GROUPS[:6]) == 1


def test_the_cluster_bootstrap_covers_where_a_bootstrap_over_clips_does_not():
    rng = np.random.default_rng(0)
    groups = groups_of(160)
    clustered = naive = 0
    for _ in range(200):
        scene = rng.uniform(0.2, 0.8, 40)  # scenes are easy or hard; the mean over all scenes is .5
        values = (rng.random(160) < scene[groups]).astype(float)
        values[groups % 2 == 0] = np.repeat(scene[::2] > 0.5, 4)  # half of them all or nothing
        clustered += 0.5 in statistics.cluster_bootstrap(values, groups, draws=1000)
        naive += 0.5 in statistics.cluster_bootstrap(values, np.arange(160), draws=1000)
    # Binomial standard error 1.5 %.
    assert 0.90 <= clustered / 200 <= 0.99
    assert naive / 200 < 0.85


def test_the_bootstrap_has_the_width_of_the_standard_error_over_groups():
    rng = np.random.default_rng(1)
    values, groups = rng.random(400), groups_of(400)
    means = values.reshape(100, 4).mean(1)
    low, high = statistics.cluster_bootstrap(values, groups)
    assert high - low == pytest.approx(2 * 1.96 * means.std(ddof=1) / 10, rel=0.05)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_intervals_of_many_cells_are_those_of_each():
    rng = np.random.default_rng(1)
    values, groups = rng.random((3, 80)), groups_of(80)
    together = statistics.bootstrap_cells(values, groups, draws=500, seed=3)
    for row, interval in zip(values, together, strict=True):
        alone = statistics.cluster_bootstrap(row, groups, draws=500, seed=3)
        np.testing.assert_allclose(interval, tuple(alone), rtol=1e-5)


def test_a_paired_difference_cancels_what_scenes_share():
    rng = np.random.default_rng(2)
    groups = groups_of(200)
    a = rng.random(50)[groups]
    b = a - 0.05 + 0.01 * rng.standard_normal(200)
    value, interval = statistics.paired_difference(a, b, groups)
    assert value == pytest.approx(0.05, abs=0.005)
    assert 0.05 in interval and 0 not in interval
    unpaired = statistics.cluster_bootstrap(a, groups)
    assert interval.high - interval.low < 0.1 * (unpaired.high - unpaired.low)


def test_where_all_groups_agree_the_interval_still_has_a_width():
    low, high = statistics.cluster_bootstrap(np.ones(120), groups_of(120))
    assert (low, high) == statistics.wilson_interval(30, 30)
    assert 0.85 < low < 0.9 and high == 1


def test_wilson_intervals_have_their_known_values():
    # Newcombe (1998), table I, method 3.
    np.testing.assert_allclose(statistics.wilson_interval(81, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(statistics.wilson_interval(0, 20), (0, 0.1611), atol=5e-5)
    np.testing.assert_allclose(statistics.wilson_interval(1, 29), (0.0061, 0.1718), atol=5e-5)


def test_intervals_say_what_they_are_conditional_on():
    interval = statistics.cluster_bootstrap(np.arange(8.0), GROUPS)
    assert "fitted probes" in interval.conditional_on and interval.level == 0.95
    assert tuple(Interval(0.1, 0.2)) == (0.1, 0.2) and 0.15 in Interval(0.1, 0.2)


def test_relabelings_are_uniform_over_the_six_of_each_quadruplet():
    order = np.random.default_rng(0).permutation(8)
    draws = permutation.permute_labels(Y[order], GROUPS[order], 12_000, seed=1)
    for group in "ab":
        patterns, counts = np.unique(draws[:, GROUPS[order] == group], axis=0, return_counts=True)
        assert len(patterns) == 6 and set(patterns.sum(1).tolist()) == {2}
        # 2000 expected each; 5 standard deviations of a multinomial count.
        assert np.all(np.abs(counts - 2000) < 5 * np.sqrt(2000 * 5 / 6))


def test_relabeling_keeps_groups_of_any_size_and_is_deterministic():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 6, 12)))
    y = rng.random(len(groups)) < 0.5
    draws = permutation.permute_labels(y, groups, 50, seed=3)
    for group in range(12):
        assert np.all(draws[:, groups == group].sum(1) == y[groups == group].sum())
    np.testing.assert_array_equal(draws, permutation.permute_labels(y, groups, 50, seed=3))
    assert np.any(draws != permutation.permute_labels(y, groups, 50, seed=4))


def test_the_permutation_p_is_the_exact_share_of_labelings():
    margins = np.array([2.0, 1.0, -1.0, 0.5, 1.0, -1.0, -3.0, -2.0])
    labelings = [np.array(p) for p in product([False, True], repeat=4) if sum(p) == 2]
    null = np.array(
        [np.mean((margins > 0) == np.concatenate([first, second])) for first, second in product(labelings, repeat=2)]
    )
    exact = np.mean(null >= np.mean((margins > 0) == Y) - 1e-9)
    test = permutation.permutation_test(margins, Y, GROUPS, draws=20_000)
    assert test.statistic == 0.75
    assert test.p == pytest.approx(exact, abs=0.015)
    assert test.null.mean() == pytest.approx(0.5, abs=0.01)


def test_a_real_signal_has_a_small_p_and_the_max_statistic_finds_its_cell():
    rng = np.random.default_rng(0)
    y, groups = labels_of(160), groups_of(160)
    cells = rng.standard_normal((20, 160))
    cells[7] += np.where(y, 0.7, -0.7)
    found = permutation.max_statistic(cells, y, groups, draws=1000)
    single = permutation.permutation_test(cells[7], y, groups, draws=1000)
    assert single.p < 0.01
    assert found.p[7] <= 0.05 and np.all(np.delete(found.p, 7) > 0.05)
    # Family-wise p values are never smaller than a cell's own, and the threshold agrees with them.
    assert found.p[7] >= single.p
    reached = np.array([statistics.accuracy(cell, y) >= found.threshold - 1e-6 for cell in cells])
    np.testing.assert_array_equal(found.p <= 0.05, reached)
    repeated = permutation.max_statistic(np.stack([cells, cells]), y, groups, draws=1000)
    np.testing.assert_array_equal(repeated.p, found.p)


def test_categories_are_scored_apart():
    margins = np.array([1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 1.0])
    found = statistics.by_category(margins, Y, GROUPS, np.where(GROUPS == "a", "O1", "O2"))
    assert list(found) == ["O1", "O2"]
    assert found["O1"][0] == 1 and found["O2"][0] == 0.5
    assert isinstance(found["O1"][1], Interval)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: statistics.accuracy(np.zeros(7), Y), r"\(7,\) for 8 clips"),
        (lambda: statistics.accuracy(np.full(8, np.nan), Y), "not finite"),
        (lambda: statistics.auc(np.zeros(4), Y[:4] | True), "one class only"),
        (lambda: statistics.pairwise_accuracy(np.zeros(8), Y, np.arange(8)), "no pairs"),
        (lambda: statistics.relative_error(np.zeros(8), Y, np.arange(8)), "not defined"),
        (lambda: permutation.permutation_test(np.zeros(8), Y, np.arange(8)), "cannot be exchanged"),
        (lambda: permutation.max_statistic(np.zeros(8), Y, GROUPS), r"expected \[cells, n\]"),
        (lambda: statistics.cluster_bootstrap(np.zeros(8), GROUPS[:7]), "one group per clip"),
        (lambda: statistics.paired_difference(np.zeros(8), np.zeros(7), GROUPS), r"b has shape \(7,\)"),
        (lambda: statistics.wilson_interval(5, 4), "5 successes in 4 trials"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ConfigError, match=says):
        call()
