"""Classical motion against known motion, and what must be at chance on matched quadruplets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.worlds import WorldConfig, quadruplets
from jaxdiff.probes import LinearProbe
from jaxdiff.probes.controls import between_frame_products
from jaxdiff.probes.folds import grouped_folds
from jaxdiff.study import baselines

SCENES = 8  # a category


@pytest.fixture(scope="module")
def world():
    """Clips of 24 generated scenes, their labels and scenes, and what the baselines make of them."""
    drawn = list(quadruplets(WorldConfig(), 3, SCENES))
    video = np.concatenate([q.frames.video for q in drawn])
    possible = np.concatenate([q.possible for q in drawn])
    features = jax.tree.map(np.asarray, jax.jit(baselines.baseline_features)(video))
    return video, possible, np.repeat(np.arange(len(drawn)), 4), features


def test_features_of_frames_and_pairs_add_up_to_the_same_over_both_classes(world):
    _, possible, scenes, features = world
    for name, values in features.items():
        for scene in range(scenes.max() + 1):
            inside = scenes == scene
            yes, no = values[inside & possible], values[inside & ~possible]
            np.testing.assert_allclose(yes.sum(0), no.sum(0), atol=1e-5, err_msg=name)  # float32 sums
        # and they see the clips
        first = values[possible].reshape(-1, 2, values.shape[1])
        assert np.abs(first[:, 0] - first[:, 1]).max() > 0.01, name


def held_out_accuracy(features, possible, scenes):
    """Of probes with two penalties, on scenes that they have not seen."""
    folds = grouped_folds(scenes, 4)
    margins = np.zeros((2, len(possible)))
    for fold in range(4):
        inside = folds != fold
        for k, penalty in enumerate((1.0, 100.0)):
            probe = LinearProbe(penalty).fit(features[inside], possible[inside])
            margins[k, ~inside] = probe.decision_function(features[~inside])
    return (0.5 + 0.5 * np.sign(margins) * np.where(possible, 1, -1)).mean(1)


def test_a_bag_of_frames_is_at_chance_where_products_of_frames_are_not(world):
    video, possible, scenes, features = world
    # Weights are zero but for rounding, and what rounding tells is a coin thrown 96 times: five deviations.
    for name, values in features.items():
        assert np.abs(held_out_accuracy(values, possible, scenes) - 0.5).max() < 0.26, name
        # Rounding cannot make a margin that counts: the fit does not leave zero.
        assert np.abs(LinearProbe(1.0).fit(values, possible).decision_function(values)).max() < 1e-3, name
    # The same frames, each times each other one: a probe that can find it does.
    colours = np.asarray(baselines.frame_features(jnp.asarray(video[:, ::4], jnp.float32) / 255))[..., -24:]
    crossed = LinearProbe(1.0).fit(between_frame_products(colours), possible)
    assert crossed.score(between_frame_products(colours), possible) > 0.8
    assert held_out_accuracy(between_frame_products(colours), possible, scenes).max() > 0.6


@pytest.mark.parametrize("motion", [(1.5, -0.75), (-3.0, 2.0)])
def test_flow_finds_a_known_motion(motion):
    size = 48
    y, x = np.mgrid[:size, :size].astype(np.float64)
    rng = np.random.default_rng(0)
    waves = [(rng.uniform(-0.45, 0.45, 2), rng.uniform(0, 6)) for _ in range(12)]

    def texture(x, y):
        return 0.5 + 0.03 * sum(np.sin(k[0] * x + k[1] * y + phase) for k, phase in waves)

    dx, dy = motion
    pictures = [texture(x, y), texture(x - dx, y - dy)]
    first, second = (np.float32(p)[None] for p in pictures)
    flow = np.asarray(jax.jit(baselines.lucas_kanade)(first, second))[0, 6:-6, 6:-6]
    assert np.median(np.abs(flow - motion)) < 0.1  # of a pixel
    histogram = np.asarray(baselines.flow_histogram(jnp.asarray(flow)[None]))[0]
    assert histogram.sum() == pytest.approx(1.0)
    direction = round(np.arctan2(dy, dx) / (2 * np.pi) * 8) % 8
    assert histogram.reshape(-1)[1:].reshape(3, 8).sum(0).argmax() == direction


def test_without_texture_or_motion_nothing_moves():
    flat = np.full((1, 32, 32), 0.4, np.float32)
    still = np.random.default_rng(0).random((1, 32, 32), np.float32)
    flow = jax.jit(baselines.lucas_kanade)
    assert np.abs(flow(flat, flat)).max() == 0 and np.abs(flow(still, still)).max() < 1e-4
    np.testing.assert_array_equal(baselines.flow_histogram(flow(flat, flat))[0], np.eye(baselines.BINS)[0])
