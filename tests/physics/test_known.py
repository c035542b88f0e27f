"""Motion known in closed form obeys every law that is measured, and looks like what its tracks say."""

import dataclasses

import numpy as np
import pytest

from jaxdiff.physics.known import collided, discs, drawn, dropped, known_scenes
from jaxdiff.physics.mechanics import measure_tracks


@pytest.mark.parametrize(
    ("frames", "size", "fps"), [(163, (256, 256), 30.0), (30, (64, 80), 24.0), (49, (213, 320), 8.0)]
)
@pytest.mark.parametrize("scale", [True, False])
def test_known_scenes_break_no_law_at_any_length_size_and_rate(frames, size, fps, scale):
    for i, tracks in enumerate(known_scenes(4, frames, size, fps, 9.81).tracks):
        found = measure_tracks(tracks if scale else dataclasses.replace(tracks, scale=None))
        numbers = {name: float(value[0]) for name, value in found.items()}
        assert numbers["gain"] < 1e-9
        assert numbers["mass"] < 1e-9
        if i % 2:
            assert numbers["collisions"] == 0
            assert numbers["momentum"] < 1e-9
        else:
            assert numbers["flight"] < 1e-9
            assert not scale or numbers["gravity"] < 1e-9
            assert not numbers["events"]  # bounces have a cause


def test_a_drop_falls_bounces_by_its_restitution_and_rests():
    gravity, height = 8.0, 4.0
    hit = np.sqrt(2 * height / gravity)
    assert dropped([0, hit / 2, hit], height, gravity) == pytest.approx([0, height / 4, height])
    top = hit + 0.5 * hit  # restitution .5: half the time up, a quarter of the height
    assert dropped([top, hit + hit], height, gravity, 0.5) == pytest.approx([height * 0.75, height])
    assert dropped([100.0], height, gravity, 0.5) == pytest.approx([height])
    assert dropped([0.1], height, gravity, speed=3.0) == pytest.approx([0.3 + 0.04])


def test_discs_that_do_not_meet_go_straight_on():
    time, places = np.linspace(0, 2, 5), np.array([[0.0, 0.0], [10.0, 9.0]])
    speeds = np.array([[4.0, 0.0], [0.0, 0.0]])
    path = collided(time, places, speeds, np.ones(2), np.ones(2))
    assert path == pytest.approx(places + speeds * time[:, None, None])


def test_drawn_discs_cover_their_area():
    areas = discs(np.array([[[20.3, 16.8]]]), np.array([7.0]), (32, 40)).sum((1, 2))
    assert areas == pytest.approx(np.pi * 49, rel=2e-3)  # the edge is a straight line over a pixel
    tracks = known_scenes(1, 8, (64, 80), 24.0, 9.81).tracks[0]
    video = drawn(tracks, (64, 80))
    assert video.shape == (1, 8, 64, 80, 3)
    x, y = tracks.positions[0, 0, 0].astype(int)
    assert np.ptp(video[0, 0, y, x].astype(int)) > 100  # in colour, the wall is grey
    assert (drawn(tracks, (64, 80)) == video).all()
