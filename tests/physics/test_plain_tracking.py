"""The tracker of plain clips, on drawn clips whose motion is known, and what it refuses."""

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.physics.known import drawn, dropped, known_scenes, tracks_of
from jaxdiff.physics.mechanics import MECHANICS, measure_tracks
from jaxdiff.physics.metrics import mass_variance, noise
from jaxdiff.physics.plain_tracking import reduced, track_plain

SIZE, FPS, FRAMES = (72, 96), 24.0, 36


@pytest.fixture(scope="module")
def known():
    return known_scenes(2, FRAMES, SIZE, FPS, 9.81, seed=3)


@pytest.fixture(scope="module")
def bounced(known):
    exact = known.tracks[0]
    return exact, track_plain(drawn(exact, SIZE)[0], FPS, exact.scale).tracks


def test_a_bouncing_disc_is_followed_to_a_fraction_of_a_pixel(bounced):
    exact, found = bounced
    assert found.positions.shape == (1, FRAMES, 1, 2)
    assert np.abs(found.positions - exact.positions).max() < 0.3
    assert found.missing() == 0
    assert found.radii == pytest.approx(exact.radii, rel=0.03)
    assert mass_variance(found.areas) < 1e-3


def test_its_mechanics_are_those_of_the_exact_track_and_shuffled_ones_are_not(bounced):
    exact, found = bounced
    true, seen = ({key: float(v[0]) for key, v in measure_tracks(t).items()} for t in (exact, found))
    mixed = {key: float(v[0]) for key, v in measure_tracks(found.shuffled(0), deviation=noise(found)).items()}
    assert seen.keys() > MECHANICS.keys()
    assert seen["fitted_gravity"] == pytest.approx(9.81, rel=0.02)
    assert true["fitted_gravity"] == pytest.approx(9.81, rel=1e-9)
    assert seen["energy"] == pytest.approx(true["energy"], abs=0.05)
    assert seen["gain"] < 0.1 < mixed["gain"]
    assert seen["gravity"] < 0.02 < mixed["gravity"]
    assert seen["flight"] < 0.01 < mixed["flight"]
    assert mixed["collisions"] == 1  # nothing but kicks
    assert seen["things"] == 1


def test_a_collision_is_seen_although_the_things_are_one_region_while_they_touch(known):
    exact = known.tracks[1]
    found = track_plain(drawn(exact, SIZE)[0], FPS).tracks
    assert found.there.sum() == 2
    numbers = measure_tracks(found)
    assert numbers["restitution"] == 0  # shares of contacts
    assert numbers["penetration"] < 0.1
    assert numbers["momentum"] < 0.5


def test_a_thing_that_rests_for_most_of_the_clip_is_followed_too():
    time = np.maximum(np.arange(FRAMES) - 24, 0) / FPS  # lies for two thirds, then is off
    path = np.stack([30 + 120 * time, np.full(FRAMES, 40.0)], -1)[:, None]
    found = track_plain(drawn(tracks_of(path, [6.0], FPS), SIZE)[0], FPS).tracks
    assert found.positions.shape[2] == 1
    assert found.missing() == 0
    assert np.nanmax(np.abs(found.positions[0] - path)) < 1


def test_what_vanishes_in_the_open_is_missing_and_what_leaves_the_frame_is_not():
    time = np.arange(FRAMES) / FPS
    path = np.stack([20 + 30 * time, np.full(FRAMES, 40.0)], -1)[:, None]
    path[20:] = np.nan
    found = track_plain(drawn(tracks_of(path, [6.0], FPS), SIZE)[0], FPS).tracks
    assert found.missing() == pytest.approx(16 / 36)
    assert mass_variance(found.areas) == pytest.approx(16 / 20, rel=0.05)
    leaving = np.stack([60 + 60 * time, np.full(FRAMES, 40.0)], -1)[:, None]
    assert track_plain(drawn(tracks_of(leaving, [6.0], FPS), SIZE)[0], FPS).tracks.missing() == 0


def test_clips_that_cannot_be_read_are_refused_with_the_reason():
    still = np.full((FRAMES, 1, 1), 36.0) + np.zeros(2)
    wall = drawn(tracks_of(still, [6.0], FPS), (72, 140))[0]
    assert "nothing moves" in track_plain(wall, FPS).reason
    assert "8 are needed" in track_plain(wall[:7], FPS).reason
    pan = np.stack([wall[t, :, t : t + 96] for t in range(FRAMES)])
    assert "camera moves" in track_plain(pan, FPS).reason
    flicker = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3)).astype(np.uint8)
    assert track_plain(flicker, FPS).tracks is None
    with pytest.raises(ConfigError, match="uint8"):
        track_plain(wall.astype(np.float32), FPS)


def test_large_clips_are_read_small_and_told_in_their_own_pixels():
    time = np.arange(12) / FPS
    path = np.stack([100 + 600 * time, 80 + dropped(time, 500, 900)], -1)[:, None]
    video = drawn(tracks_of(path, [30.0], FPS), (240, 480))[0]
    assert reduced(video)[0].shape == (12, 120, 240, 3)
    found = track_plain(video, FPS).tracks
    assert found.radii == pytest.approx(30, rel=0.05)
    assert np.nanmax(np.abs(found.positions[0] - path)) < 1.5
