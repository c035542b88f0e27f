import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.probes import controls
from tests.probes.scenes import groups_of, labels_of


def test_shuffled_labels_stay_balanced_in_every_scene():
    y, groups = labels_of(80), groups_of(80)
    shuffled = controls.shuffle_labels(y, groups, seed=0)
    np.testing.assert_array_equal(np.bincount(groups, shuffled), 2)
    assert 0.2 < np.mean(shuffled == y) < 0.8
    np.testing.assert_array_equal(shuffled, controls.shuffle_labels(y, groups, seed=0))


def test_gaussian_features_are_independent_of_each_other():
    x = controls.gaussian_features(3, 500, 4, seed=1)
    assert x.shape == (3, 500, 4) and x.dtype == np.float32
    correlation = np.corrcoef(np.moveaxis(x, 1, 2).reshape(12, 500))
    # Twelve rows of 500 draws: 5 standard errors.
    assert np.abs(correlation - np.eye(12)).max() < 5 / np.sqrt(500)


def test_projections_are_linear_keep_size_and_do_not_depend_on_their_number():
    x = np.random.default_rng(0).standard_normal((50, 400)).astype(np.float32)
    few, many = controls.random_projections(x, 2, 30), controls.random_projections(x, 5, 30)
    assert many.shape == (5, 50, 30)
    np.testing.assert_array_equal(few, many[:2])
    assert np.any(many[0] != many[1])
    np.testing.assert_allclose(controls.random_projections(2 * x, 2, 30), 2 * few, rtol=1e-5)
    assert np.mean(many**2) == pytest.approx(np.mean(x**2), rel=0.1)


def test_products_between_frames_see_what_no_frame_alone_carries():
    # before and after are +-1 by equal chance; the label is whether they agree.
    before, after = np.repeat([1.0, -1.0], 2), np.tile([1.0, -1.0], 2)
    means = np.stack([np.stack([before, after], 1)] * 2, 2)  # [4 clips, 2 frames, 2 channels]
    products = controls.between_frame_products(means)
    assert products.shape == (4, 2 * 3)
    agree = before == after
    assert np.all(products[agree] == 0) and np.all(np.abs(products[~agree]) == 1)
    # Adding a constant to a clip's channel changes nothing.
    np.testing.assert_allclose(controls.between_frame_products(means + 5), products, atol=1e-5)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: controls.shuffle_labels(labels_of(8), np.arange(8)), "cannot be exchanged"),
        (lambda: controls.gaussian_features(0, 5, 5), "at least 1"),
        (lambda: controls.random_projections(np.zeros((5, 5)), 0, 2), "at least 1"),
        (lambda: controls.between_frame_products(np.zeros((5, 5))), r"expected \[clips, T', C\]"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ConfigError, match=says):
        call()
