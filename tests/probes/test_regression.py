"""Ridge regression: the closed form is the minimum, and what is chosen is chosen without the clips it is scored on."""

import numpy as np
import pytest

from jaxdiff.errors import ConfigError, NonFiniteError
from jaxdiff.probes.regression import RidgeProbe, nested_ridge, r2_difference, shuffle_targets


@pytest.mark.parametrize(("clips", "width"), [(30, 7), (12, 40)])
def test_the_gradient_vanishes_at_the_fit_whichever_side_is_decomposed(clips, width):
    rng = np.random.default_rng(0)
    X, y = rng.normal(3, 2, (clips, width)), rng.normal(size=(clips, 2))
    X[:, 1] = 5.0  # constant: no weight
    found = RidgeProbe(penalty=3.0).fit(X, y).predict(X)
    scale = X.std(0)
    Z = np.where(scale > 0, (X - X.mean(0)) / np.where(scale > 0, scale, 1), 0)
    weights = np.linalg.solve(Z.T @ Z + 3.0 * np.eye(width), Z.T @ (y - y.mean(0)))
    np.testing.assert_allclose(found, Z @ weights + y.mean(0), atol=1e-10)  # float64
    alone = RidgeProbe(penalty=3.0).fit(X, y[:, 0]).predict(X)
    np.testing.assert_allclose(alone, found[:, 0], atol=1e-12)


def scenes(clips=160, width=6, noise=0.5, seed=0):
    """Three candidates of which the last tells "a" up to noise; nothing tells "b"."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(3, clips, width)).astype(np.float32)
    weights = rng.normal(size=width)
    weights /= np.linalg.norm(weights)
    y = {"a": X[2] @ weights + noise * rng.normal(size=clips), "b": rng.normal(size=clips)}
    return X, y, np.arange(clips)


def test_a_target_of_known_r2_is_recovered_and_noise_is_not():
    X, y, groups = scenes()
    result = nested_ridge({"x": X}, y, groups, outer=4, inner=3, draws=500)
    truth = 1 / (1 + 0.5**2)
    assert result.r2["a"] == pytest.approx(truth, abs=0.08)  # 160 clips: sd of R2 is about 0.03
    assert truth in result.interval["a"]
    assert {c.candidate for c in result.chosen if c.target == "a"} == {2}
    assert result.r2["b"] < 0.05 and result.interval["b"].low < 0.0
    assert result.grid["x"].shape == (3, 2) and result.grid["x"][:2, 0].max() < 0.1
    low, high = result.grid_interval["x"][2, 0]
    assert low < result.grid["x"][2, 0] < high


def test_shuffled_targets_are_not_read():
    X, y, groups = scenes()
    dealt = shuffle_targets(y, seed=1)
    assert sorted(dealt["a"]) == sorted(y["a"]) and not np.array_equal(dealt["a"], y["a"])
    pairs = set(zip(y["a"], y["b"], strict=True))
    assert set(zip(dealt["a"], dealt["b"], strict=True)) == pairs  # a clip's targets stay together
    result = nested_ridge(X, dealt, groups, outer=4, inner=3, draws=500)
    assert max(result.r2.values()) < 0.05


def test_what_only_siblings_share_is_not_read():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 4)
    mark = rng.normal(size=(20, 30))
    X = (mark[groups] + 0.05 * rng.normal(size=(80, 30)))[None]
    y = {"a": rng.normal(size=20)[groups]}
    assert nested_ridge(X, y, groups, outer=4, inner=3, draws=200).r2["a"] < 0.1
    assert nested_ridge(X, y, np.arange(80), outer=4, inner=3, draws=200).r2["a"] > 0.7


def test_predicting_the_mean_of_the_training_clips_scores_zero():
    X, y, groups = scenes()
    result = nested_ridge(X, y, groups, penalties=[1e12], outer=4, inner=3, draws=200)
    assert result.r2 == pytest.approx({"a": 0.0, "b": 0.0}, abs=1e-6)


def test_a_difference_is_paired_over_groups():
    X, y, groups = scenes()
    settings = {"outer": 4, "inner": 3, "draws": 500}
    good, bad = nested_ridge(X, y, groups, **settings), nested_ridge(X[:2], y, groups, **settings)
    value, interval = r2_difference(good, bad, draws=500)["a"]
    assert value == pytest.approx(good.r2["a"] - bad.r2["a"]) and interval.low > 0.3
    same, interval = r2_difference(good, good, draws=500)["a"]
    assert same == 0.0 and tuple(interval) == (0.0, 0.0)
    with pytest.raises(ConfigError, match="other targets"):
        r2_difference(good, nested_ridge(X, shuffle_targets(y), groups, **settings))


def test_it_is_deterministic():
    X, y, groups = scenes(60)
    first, second = (nested_ridge(X, y, groups, outer=3, inner=2, repeats=2, seed=4, draws=100) for _ in range(2))
    assert first.chosen == second.chosen and first.r2 == second.r2
    np.testing.assert_array_equal(first.predictions, second.predictions)
    assert len(first.chosen) == 2 * 3 * 2


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"a": [1.0] * 160}, ConfigError, "for all clips"),
        ({"a": [1.0] * 3}, ConfigError, "160 clips"),
        ({"a": [np.nan] + [1.0] * 159}, NonFiniteError, "target 0 of clip 0"),
        ({}, ConfigError, "no targets"),
    ],
)
def test_unusable_targets_are_refused(change, error, told):
    X, _, groups = scenes()
    with pytest.raises(error, match=told):
        nested_ridge(X, change, groups)
