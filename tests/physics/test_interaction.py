"""What a controlled clip does: numbers that true clips reach, and that wrong ones do not."""

import numpy as np
import pytest

from jaxdiff.data.worlds.billiards import BilliardConfig, billiards
from jaxdiff.errors import ConfigError
from jaxdiff.physics.interaction import correlation, displacement, energy_gain, iou, motion_fidelity, track_discs
from jaxdiff.study.control import given_masks
from jaxdiff.study.control_scores import MEASURES, billiard_scores, interval


@pytest.fixture(scope="module")
def truth():
    return billiards(BilliardConfig(), 3, 16)


@pytest.fixture(scope="module")
def tracks(truth):
    return track_discs(truth.video, truth.colour, truth.radius)


def test_discs_are_found_where_they_are(truth, tracks):
    assert tracks.found.all()
    assert np.abs(tracks.position - truth.motion.position).max() < 0.5 / 32
    assert iou(tracks.masks[:, :, 0], truth.masks[:, :, 0]).min() > 0.97
    nothing = track_discs(np.full_like(truth.video, 90), truth.colour, truth.radius)
    assert not nothing.found.any()
    with pytest.raises(ConfigError, match="uint8"):
        track_discs(truth.video / 255, truth.colour, truth.radius)


def test_masks_overlap_as_much_as_they_share_and_the_given_first_frame_does_not_count():
    a, b = np.zeros((3, 4, 8, 8), bool), np.zeros((3, 4, 8, 8), bool)
    a[:, :, :4], b[0, :, 2:6] = True, True
    b[1, :, :4] = True
    b[1, 0] = False
    np.testing.assert_allclose(iou(a, b), [1 / 3, 1, 0])
    assert np.isnan(iou(b[2:], b[2:])).all()


def test_motion_is_like_itself_and_unlike_itself_run_backwards(truth):  # f
    x = truth.motion.position
    np.testing.assert_allclose(motion_fidelity(x, x), 1)
    assert motion_fidelity(x[:, ::-1], x).mean() < 0.5
    line = np.zeros((1, 9, 2, 2))
    line[0, :, 0, 0] = 0.05 * np.arange(9)
    assert motion_fidelity(line[:, ::-1], line) == pytest.approx(-1)
    across = line[..., ::-1]
    assert motion_fidelity(across, line) == pytest.approx(0)
    assert motion_fidelity(0 * line, line) == pytest.approx(0) and np.isnan(motion_fidelity(0 * line, 0 * line)).all()
    lost = line.copy()
    lost[:, 4:] = np.nan
    assert motion_fidelity(lost, line) == pytest.approx(3 / 8)  # of the frames in which the true one moves
    with pytest.raises(ConfigError, match="different length"):
        motion_fidelity(line, line[:, :5])


def test_a_push_is_seen_in_the_disc_that_was_hit_and_in_no_other(truth, tracks):  # e, on true clips
    found, true = displacement(tracks.position), displacement(truth.motion.position)
    assert correlation(found[::2], true[::2]) > 0.99
    assert np.abs(found[1::2]).max() < 0.01 and np.isnan(correlation(true[1::2], true[::2]))
    rng = np.random.default_rng(0)
    assert abs(correlation(rng.standard_normal((400, 2)), rng.standard_normal((400, 2)))) < 0.15
    gone = np.where(np.arange(17)[:, None, None] > 3, np.nan, truth.motion.position)
    np.testing.assert_allclose(displacement(gone), truth.motion.position[:, 3, 1] - truth.motion.position[:, 0, 1])


def test_energy_that_comes_from_nowhere_is_seen(truth):
    x, r = truth.motion.position, truth.radius
    assert np.median(energy_gain(x, r)) < 0.05
    late = 0.2 * np.where(np.arange(17) > 8, np.arange(17) - 8.0, 0.0)[:, None]
    pushed = x[:1].copy()
    pushed[0, :, 1] += late * (1.0, 0.0)
    assert energy_gain(pushed, r[:1]) > 1
    assert np.isnan(energy_gain(np.zeros((1, 17, 2, 2)), r[:1])).all()


def test_scores_of_true_clips_are_what_can_be_reached_and_those_of_the_wrong_clip_are_not(truth):
    own = billiard_scores(truth.video, truth)
    assert set(own) == set(MEASURES)
    assert own["driver"][0] > 0.97 and own["propagation"][0] > 0.99 and own["fidelity"][0] > 0.95
    assert own["moved"][0] == 0 and own["lost"][0] == 0 and np.isnan(own["psnr"][0])
    swapped = truth.video.reshape(-1, 2, *truth.video.shape[1:])[:, ::-1].reshape(truth.video.shape)
    wrong = billiard_scores(swapped, truth)
    assert wrong["driver"][0] == pytest.approx(own["other"][0]) and wrong["other"][0] == pytest.approx(own["driver"][0])
    assert wrong["driver"][0] < 0.5 and np.isnan(wrong["propagation"][0]) and wrong["psnr"][0] < 30
    assert wrong["counterfactual"][0] > 0.99  # a clip that was told to miss and hits


def test_intervals_hold_what_they_are_of_and_sets_are_told_the_masks_that_they_are_named_after(truth):
    values = np.random.default_rng(0).standard_normal(200)
    value, low, high = interval(lambda rows: float(values[rows].mean()), 200)
    assert low < value < high and high - low == pytest.approx(4 * values.std() / 200**0.5, rel=0.15)
    driver = truth.masks[:, :, 0]
    assert given_masks("backbone", driver) is None and not given_masks("zeroed", driver).any()
    assert given_masks("control", driver) is driver
    other = given_masks("shuffled", driver)
    assert all(not np.array_equal(other[i, 0], driver[i, 0]) for i in range(len(driver)))  # other first pictures
