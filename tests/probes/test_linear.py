import numpy as np
import pytest

from jaxdiff.errors import ConfigError, NonFiniteError
from jaxdiff.probes import LinearProbe
from tests.probes.scenes import features, labels_of, objective

EVERY = slice(None)


def by_plain_newton(x, y, penalty):
    """An independent minimum: undamped Newton on all D + 1 unknowns, along a path of shrinking penalties."""
    std = x.std(0)
    z = np.concatenate([(x - x.mean(0)) / np.where(std > 0, std, 1), np.ones((len(x), 1))], 1)
    w = np.zeros(z.shape[1])
    for now in [*np.geomspace(1e4, penalty, 12), *[penalty] * 8]:
        ridge = np.full(z.shape[1], now)
        ridge[-1] = 0
        p = 1 / (1 + np.exp(-z @ w))
        hessian = (z * (p * (1 - p))[:, None]).T @ z + np.diag(ridge)
        w = w - np.linalg.solve(hessian, z.T @ (p - y) + ridge * w)
    margins = z @ w
    return np.logaddexp(0, np.where(y, -margins, margins)).sum() + 0.5 * penalty * w[:-1] @ w[:-1], margins


@pytest.mark.parametrize("width", [6, 90])
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e4])
def test_the_minimum_is_reached_with_fewer_and_with_more_features_than_clips(width, penalty):
    x, y = features("plain", 80, width).astype(np.float64), labels_of(80)
    probe = LinearProbe(penalty).fit(x, y)
    value, margins = by_plain_newton(x, y, penalty)
    # Both stop at float64 rounding of a sum of 80 terms.
    assert probe.objective_ == pytest.approx(value, rel=1e-10)
    np.testing.assert_allclose(probe.decision_function(x), margins, atol=1e-5 * np.abs(margins).max())


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e4])
def test_the_stated_objective_has_no_gradient_at_the_solution(penalty):
    x, y = features("heavy", 60, 20).astype(np.float64), labels_of(60)
    probe = LinearProbe(penalty).fit(x, y)
    std = x.std(0)

    def value(coefficients, intercept):
        return objective(x, y, penalty, coefficients, intercept, EVERY)

    assert probe.objective_ == pytest.approx(value(probe.coef_, probe.intercept_), rel=1e-12)
    wrong = 1 / (1 + np.exp(probe.decision_function(x))) - ~y  # derivative of the loss by the margin, negated
    by_weight = -((x - x.mean(0)) / std).T @ wrong + penalty * probe.coef_ * std
    # In units of the gradient at w = 0, which is what Newton's method brings down.
    scale = np.abs(((x - x.mean(0)) / std).T @ (y - 0.5)).max()
    assert np.abs(by_weight).max() < 1e-5 * scale
    assert abs(wrong.sum()) < 1e-5


def test_the_intercept_is_not_penalised():
    rng = np.random.default_rng(0)
    y = np.arange(100) < 90
    probe = LinearProbe(1e9).fit(rng.standard_normal((100, 5)), y)
    # With all weights pressed to zero the intercept alone gives the base rate.
    assert probe.decision_function(np.zeros((1, 5)))[0] == pytest.approx(np.log(90 / 10), abs=1e-4)


def test_units_and_offsets_of_features_do_not_matter():
    x, y = features("plain", 80, 12).astype(np.float64), labels_of(80)
    scale, shift = np.geomspace(1e-6, 1e6, 12), np.linspace(-50, 50, 12)
    plain = LinearProbe(0.3).fit(x, y).decision_function(x)
    moved = x * scale + shift * scale
    np.testing.assert_allclose(LinearProbe(0.3).fit(moved, y).decision_function(moved), plain, rtol=1e-6)


def test_held_out_clips_have_no_part_in_standardisation():
    x, y = features("plain", 80, 12), labels_of(80)
    probe = LinearProbe(1.0).fit(x[:60], y[:60])
    np.testing.assert_allclose(probe.mean_, x[:60].astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(probe.scale_, x[:60].astype(np.float64).std(0), rtol=1e-12)


def test_a_feature_that_is_constant_in_training_has_no_weight():
    x, y = features("plain", 60, 5), labels_of(60)
    without = LinearProbe().fit(x, y).decision_function(x)
    # Not exactly constant in float32, but by rounding only.
    still = np.float32(1000) + np.random.default_rng(0).choice([0, 6.1e-5], (60, 1)).astype(np.float32)
    probe = LinearProbe().fit(np.concatenate([x, still], 1), y)
    assert probe.coef_[-1] == 0
    elsewhere = np.concatenate([x, np.full((60, 1), 1e6, np.float32)], 1)
    np.testing.assert_allclose(probe.decision_function(elsewhere), without, rtol=1e-9, atol=1e-9)


def test_labels_come_back_in_their_own_type():
    x, y = features("plain", 40, 5), labels_of(40)
    assert LinearProbe().fit(x, y).predict(x).dtype == bool
    numbers = LinearProbe().fit(x, y.astype(int)).predict(x)
    assert set(numbers.tolist()) <= {0, 1} and numbers.dtype == int
    assert LinearProbe().fit(x, y).score(x, y) == np.mean(numbers == y)


def test_two_fits_are_bit_identical():
    x, y = features("heavy", 60, 90), labels_of(60)
    one, two = LinearProbe(0.1).fit(x, y), LinearProbe(0.1).fit(x, y)
    assert one.coef_.tobytes() == two.coef_.tobytes() and one.intercept_ == two.intercept_


@pytest.mark.parametrize(
    "change, error, says",
    [
        (lambda x, y: (x[:, 0], y), ConfigError, r"expected \[clips, D\]"),
        (lambda x, y: (x[:0], y[:0]), ConfigError, "empty"),
        (lambda x, y: (x, y[:-1]), ConfigError, "39 labels for 40 clips"),
        (lambda x, y: (x, y[:, None]), ConfigError, "one label per clip"),
        (lambda x, y: (x, y + 1), ConfigError, "labels are False/True or 0/1"),
        (lambda x, y: (x, y & False), ConfigError, "one class only"),
        (lambda x, y: (np.where(np.arange(40)[:, None] == 7, np.nan, x), y), NonFiniteError, "clip 7"),
        (lambda x, y: (np.where(x == x[3, 2], np.inf, x), y), NonFiniteError, "clip 3, feature 2"),
        (lambda x, y: (np.full(x.shape, "block 3"), y), ConfigError, "real numbers"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, y = features("plain", 40, 5), labels_of(40)
    x, y = change(x, y)
    with pytest.raises(error, match=says):
        LinearProbe().fit(x, y)


@pytest.mark.parametrize("penalty", [0, -1, np.nan, np.inf])
def test_a_penalty_that_is_no_strength_is_refused(penalty):
    with pytest.raises(ConfigError, match="positive finite"):
        LinearProbe(penalty)


def test_using_an_unfitted_probe_or_other_features_says_so():
    x, y = features("plain", 40, 5), labels_of(40)
    with pytest.raises(ConfigError, match="not fitted"):
        LinearProbe().predict(x)
    with pytest.raises(ConfigError, match="4 features; the probe was fitted on 5"):
        LinearProbe().fit(x, y).predict(x[:, :4])
