"""Intervals over seeds and scenes: what they contain, and how they differ from intervals over scenes alone."""

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.probes import statistics
from jaxdiff.study.two_level import Crossing, two_level

PAIRS = [(f"seed{t}", f"world{w}") for t in range(3) for w in range(3)]
CROSSED = Crossing(tuple(t for t, _ in PAIRS), tuple(w for _, w in PAIRS))


def runs(rng, seed_spread, scenes=30):
    """Hits of each run per scene, [1, scenes] of 4 clips, with accuracies that differ between training seeds."""
    level = dict(zip(sorted(set(CROSSED.training)), 0.65 + seed_spread * rng.standard_normal(3), strict=True))
    return [rng.binomial(4, level[name], (1, scenes)).astype(float) for name in CROSSED.training]


def test_value_is_the_pooled_share_and_cells_are_independent():
    rng = np.random.default_rng(0)
    first, second = runs(rng, 0.0), runs(rng, 0.05)
    sizes = [np.full(30, 4.0)] * 9
    both = two_level(CROSSED, [np.concatenate(pair) for pair in zip(first, second, strict=True)], sizes, draws=200)
    for found, sums in zip(both, (first, second), strict=True):
        assert found.value == pytest.approx(np.sum(sums) / (9 * 30 * 4))
        assert found == two_level(CROSSED, sums, sizes, draws=200)[0]
        assert found.low < found.value < found.high


def test_one_run_gives_the_interval_over_scenes():
    hits = np.random.default_rng(1).binomial(4, 0.6, (1, 60)).astype(float)
    found = two_level(Crossing(("a",), ("w",)), [hits], [np.full(60, 4.0)])[0]
    clips = np.concatenate([np.arange(4) < count for count in hits[0]])
    low, high = statistics.cluster_bootstrap(clips, np.repeat(np.arange(60), 4))
    # Both are bootstraps of thousands of draws, one of them widened by sqrt(60 / 59).
    assert found.low == pytest.approx(low, abs=0.01) and found.high == pytest.approx(high, abs=0.01)


def test_intervals_cover_a_new_seed_where_those_over_scenes_alone_do_not():
    rng, covered, scenes_alone = np.random.default_rng(2), 0, 0
    sizes = [np.full(30, 4.0)] * 9
    single = Crossing(("a",), ("w",))
    for trial in range(100):
        sums = runs(rng, 0.06)
        found = two_level(CROSSED, sums, sizes, draws=300, seed=trial)[0]
        covered += found.low <= 0.65 <= found.high
        alone = two_level(single, [np.concatenate(sums, 1)], [np.concatenate(sizes)], draws=300, seed=trial)[0]
        scenes_alone += alone.low <= 0.65 <= alone.high
    # Three seeds cannot give 95: a percentile bootstrap of three, widened, covers about 85.
    assert covered >= 78, covered
    assert scenes_alone <= 65, scenes_alone


def test_a_missing_pair_is_allowed():
    rng = np.random.default_rng(3)
    some = Crossing(CROSSED.training[:-1], CROSSED.world[:-1])
    found = two_level(some, runs(rng, 0.0)[:-1], [np.full(30, 4.0)] * 8, draws=300)[0]
    assert found.low < found.value < found.high


def test_runs_of_one_world_must_share_its_scenes():
    sums = [np.ones((1, 4)), np.ones((1, 5))]
    with pytest.raises(ConfigError, match=r"\[4, 5\] scenes"):
        two_level(Crossing(("a", "b"), ("w", "w")), sums, [np.ones(4), np.ones(5)])


def test_the_caveat_counts_the_draws_that_differ():
    # Multisets of 3 out of 3 things: 10.
    assert "training seeds: 3 (a bootstrap of 3 has 10 different draws)" in CROSSED.caveat()
    assert CROSSED.widening == pytest.approx(np.sqrt(3 / 2))
    assert "scenes only" in Crossing(("a",), ("w",)).caveat()
    assert "one world, not resampled" in Crossing(("a", "b"), ("w", "w")).caveat()
