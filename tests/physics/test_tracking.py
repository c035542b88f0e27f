"""The tracker, on clips whose truth the world tells."""

import numpy as np
import pytest

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.data.worlds.scene import PALETTE
from jaxdiff.errors import ConfigError
from jaxdiff.physics import measure, track, truth_errors
from jaxdiff.physics.reference import Reference, references

CONFIG = WorldConfig()


@pytest.fixture(scope="module")
def clips():
    return references(CONFIG, seed=7, scenes=8)


@pytest.fixture(scope="module")
def tracks(clips):
    return tuple(track(part.video) for part in clips)


def test_true_clips_are_tracked_within_a_quarter_of_a_pixel(clips, tracks):
    errors = truth_errors(tracks[0], clips[0].truth)
    assert errors["missed"] < 0.01
    assert errors["false"] < 0.01
    assert errors["position"] < 0.25 / CONFIG.size
    assert errors["colour"] == 0
    assert errors["shape"] < 0.02


def test_the_metrics_tell_true_clips_from_swapped_and_from_shuffled_ones(clips, tracks):
    (true, swapped), words = tracks, clips[0].words
    right = {name: np.nanmean(values) for name, values in measure(true, words, CONFIG).items()}
    shuffled = {name: np.nanmean(values) for name, values in measure(true.shuffled(), words, CONFIG).items()}
    wrong = {name: np.nanmean(values) for name, values in measure(swapped, clips[1].words, CONFIG).items()}
    assert right["permanence"] < 0.02 < 0.05 < wrong["permanence"]
    assert right["colour"] == 0
    assert wrong["colour"] > 0.05
    assert right["shape"] < 0.02 < 0.05 < wrong["shape"]
    assert 4 * right["velocity"] < min(wrong["velocity"], shuffled["velocity"])
    assert 2 * right["bounce"] < min(wrong["bounce"], shuffled["bounce"])


def drawn(x, opacity=1.0, radius=5.0):
    """A red disc at (x, 16) pixels on grey, anti-aliased: uint8 [1, 17, 32, 32, 3]."""
    place = np.arange(32) + 0.5
    away = np.hypot(place[None, None, :] - np.asarray(x)[:, None, None], place[None, :, None] - 16)
    cover = opacity * np.clip(0.5 + radius - away, 0, 1)[..., None]
    return np.round(255 * (0.5 + cover * (np.array(PALETTE[0]) - 0.5))).astype(np.uint8)[None]


def known(x) -> Reference:
    """A clip of `drawn` with its truth."""
    x = np.asarray(x)
    truth = {
        "positions": np.stack([x / 32, np.full(17, 0.5)], -1)[None],
        "visibility": np.ones((1, 17)),
        "colour": np.zeros(1, int),
        "shape": np.zeros(1, int),
    }
    return Reference(drawn(x), np.array([[0, 6, 10]]), truth)


def test_the_centre_of_a_disc_is_found_to_a_few_hundredths_of_a_pixel():
    x = np.linspace(10, 22, 17)
    found = track(drawn(x))
    assert found.clear.all()
    assert not found.screen.any()
    np.testing.assert_allclose(32 * found.position[0], np.stack([x, np.full(17, 16)], -1), atol=0.03)
    np.testing.assert_allclose(found.area, np.pi * 25 / 1024, rtol=0.01)
    assert (found.colour == 0).all()
    assert (found.shape == 0).all()


def test_a_ghost_is_no_thing_and_a_disc_at_the_border_is_not_whole():
    assert not track(drawn(np.full(17, 16.0), opacity=0.4)).found.any()
    half = track(drawn(np.full(17, 2.0)))
    assert half.found.all()
    assert not half.clear.any()


def test_two_things_are_two():
    both = np.where(np.arange(32)[None, None, None, :, None] < 16, drawn(np.full(17, 8.0)), drawn(np.full(17, 24.0)))
    assert track(both).second.all()


def test_the_tracks_of_shuffled_frames_are_those_of_the_shuffled_clip():
    found = track(drawn(np.linspace(10, 22, 17)))
    order = np.argsort(np.random.default_rng(3).random((1, 17)), axis=1)[0]
    again = track(drawn(np.linspace(10, 22, 17))[:, order])
    np.testing.assert_allclose(found.shuffled(3).position, again.position, atol=1e-6)


def test_clips_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match="uint8"):
        track(np.zeros((1, 17, 32, 32, 3), np.float32))
    with pytest.raises(ConfigError, match="4k\\+1 frames"):
        track(np.zeros((1, 16, 32, 32, 3), np.uint8))
