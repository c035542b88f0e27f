"""PISA's metrics on masks whose answer is known, as published and with failures counted."""

import dataclasses
import types

import numpy as np
import pytest

from jaxdiff.data.worlds.drop import DropConfig
from jaxdiff.errors import ConfigError
from jaxdiff.physics.pisa import average, pisa_metrics, resampled
from jaxdiff.pipeline import outline
from jaxdiff.store import LatentBatch
from jaxdiff.study.models import ASSETS
from jaxdiff.study.pisa import DropClips, DropTasks, PisaConfig

SIZE = 40
DIAGONAL = np.sqrt(2) * SIZE


def squares(*corners, side=6):
    """A square a frame with its upper left corner at (row, column), or None for a frame without."""
    masks = np.zeros((len(corners), SIZE, SIZE), bool)
    for mask, corner in zip(masks, corners, strict=True):
        if corner is not None:
            mask[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    return masks[None]


TRUE = squares((5, 5), (10, 5), (20, 5))


def test_the_truth_beside_itself_is_perfect():
    for compatible in (True, False):
        found = pisa_metrics(TRUE, TRUE, compatible=compatible)
        assert (found["l2"], found["chamfer"], found["iou"], found["missing"]) == ([0], [0], [1], [0])


def test_a_shift_has_the_distance_overlap_and_nearest_neighbours_that_geometry_says():
    moved = squares((5, 8), (10, 8), (20, 8))  # 3 to the right: half of each square is on the other
    found = pisa_metrics(moved, TRUE)
    assert found["l2"][0] == pytest.approx(3 / DIAGONAL)
    assert found["iou"][0] == pytest.approx(18 / 54)
    # columns at 0 (three times), 1, 2 and 3 pixels from the nearest column of the other square, in both directions
    assert found["chamfer"][0] == pytest.approx(2 * (1 + 2 + 3) / 6 / DIAGONAL)
    published = pisa_metrics(moved, TRUE, compatible=True)
    assert published["l2"][0] == pytest.approx(3 / 2 / DIAGONAL)  # the mean over coordinates halves it
    assert published["chamfer"] == found["chamfer"] and published["iou"] == found["iou"]
    slanted = pisa_metrics(squares((8, 9), (13, 9), (23, 9)), TRUE)
    assert slanted["l2"][0] == pytest.approx(5 / DIAGONAL)  # 3, 4, 5


def test_a_thing_that_vanishes_improves_the_published_numbers_and_not_the_corrected_ones():
    late = squares((5, 5), (10, 5), (32, 5))
    gone = squares((5, 5), (10, 5), None)
    never = squares(None, None, None)
    masks, truth = np.concatenate([late, gone, never]), np.concatenate([TRUE] * 3)
    published, found = pisa_metrics(masks, truth, compatible=True), pisa_metrics(masks, truth)
    assert published["l2"][1] == published["chamfer"][1] == 0 < published["l2"][0]
    assert np.isnan(published["l2"][2]) and np.isnan(published["chamfer"][2]) and published["iou"][2] == 0
    assert found["l2"][1] == pytest.approx(1 / 3) and found["chamfer"][1] == pytest.approx(2 / 3)
    assert found["l2"][2] == 1 and found["chamfer"][2] == 2 and found["iou"][2] == 0
    np.testing.assert_allclose(found["missing"], [0, 1 / 3, 1])
    means = average(found)
    assert means["failures"] == 2 and means["left_out"] == 0
    assert means["l2"] == pytest.approx((12 / DIAGONAL / 3 + 1 / 3 + 1) / 3)
    means = average(published)
    assert means["left_out"] == 1 and means["l2"] == pytest.approx(published["l2"][:2].mean())


def test_frames_where_neither_has_the_thing_agree():
    found = pisa_metrics(squares((5, 5), None), squares((5, 5), None))
    assert found["iou"] == [1] and found["l2"] == [0] and found["missing"] == [0]


def test_true_frames_are_picked_as_published():
    np.testing.assert_array_equal(resampled(5, 16, 100, 120), [0, 7, 15, 22, 30])
    np.testing.assert_array_equal(resampled(5, 8, 8, 16), [0, 2, 4, 6])  # as far as the truth goes


def test_masks_that_cannot_be_compared_are_refused():
    with pytest.raises(ConfigError, match="alike"):
        pisa_metrics(TRUE[:, :2], TRUE)
    with pytest.raises(ConfigError, match="bool"):
        pisa_metrics(TRUE.astype(float), TRUE.astype(float))
    with pytest.raises(ConfigError, match=r"clip\(s\) 1 is empty"):
        pisa_metrics(np.concatenate([TRUE, TRUE]), np.concatenate([TRUE, squares(None, None, None)]))
    with pytest.raises(ConfigError, match="frame rates"):
        resampled(5, 0, 100, 120)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rewards": ("flow", "taste")}, "each of segmentation, flow, depth"),
        ({"reward_clips": 4000}, "are taken from"),
        ({"steps": 0}, "--steps=0"),
        ({"backward": "last"}, "number of steps"),
        ({"far_height": (0.4, 0.9)}, "outside the frame"),
        ({"rewards": (), "raft": "raft.safetensors"}, "not among --rewards"),
        ({"seed": -1}, "--seed=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PisaConfig("nano", **wrong)


def test_the_nano_model_continues_first_frames_of_falls_and_others_say_why_not():
    nano = outline(ASSETS / "nano")
    config = PisaConfig("nano")
    assert config.check(nano).family.expand_timesteps
    with pytest.raises(ConfigError, match="unknown to the generated world"):
        PisaConfig("nano", prompt="a ball falls").check(nano)
    with pytest.raises(ConfigError, match="two networks"):
        config.check(dataclasses.replace(nano, transformer_2=nano.transformer))


def test_what_rewards_are_given_is_the_fall_itself(tmp_path):
    source = DropClips(DropConfig(), 3, 4, "")
    text, latents = np.zeros((4, 3, 16), np.float32), np.arange(4, dtype=np.float32)[:, None, None, None, None]
    store = types.SimpleNamespace(read=lambda i: LatentBatch(np.repeat(latents, 5, 1)[i], text[i], None))
    task = DropTasks(store, source.drawn, 4).read(np.array([2, 0]))
    assert task.cond.image_latents.shape == (2, 1, 1, 1, 1) and task.cond.image_latents[:, 0, 0, 0, 0].tolist() == [
        2,
        0,
    ]
    np.testing.assert_allclose((task.target.video + 1) * 127.5, source.drawn.video[[2, 0]], atol=1e-3)
    np.testing.assert_array_equal(task.target.masks, source.drawn.masks[[2, 0]])
