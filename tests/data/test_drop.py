"""The drop simulator: motion in closed form, and masks, flow and depth that are what the pictures show."""

import numpy as np
import pytest

from jaxdiff.data.worlds.drop import DropConfig, drops, fallen, impact_time
from jaxdiff.data.worlds.render import DISTANCES
from jaxdiff.data.worlds.scene import PALETTE
from jaxdiff.errors import ConfigError

CONFIG = DropConfig(objects=2)


@pytest.fixture(scope="module")
def clips():
    return drops(CONFIG, 3, 8)


def test_things_fall_by_half_g_t_squared_until_the_time_of_impact(clips):
    time = np.arange(CONFIG.frames)[:, None, None]
    y = np.moveaxis(clips.positions[..., 1], 0, 1)  # [T, B, O]
    airborne = time < clips.impact
    expected = y[0] + 0.5 * CONFIG.acceleration * time**2
    assert airborne.sum(0).min() >= 4
    np.testing.assert_allclose(y[airborne], expected[airborne], atol=1e-6)
    for clip, thing in np.ndindex(*clips.impact.shape):
        frames = np.flatnonzero(airborne[:, clip, thing])
        fitted = 2 * np.polyfit(frames, y[frames, clip, thing], 2)[0]
        assert fitted == pytest.approx(CONFIG.acceleration, rel=1e-4)
    np.testing.assert_allclose(clips.impact, np.sqrt(2 * clips.scene.height / CONFIG.acceleration), rtol=1e-6)


def test_a_bounce_rises_to_the_square_of_the_restitution_and_the_thing_comes_to_rest():
    g, e, height = 0.012, 0.5, 0.3
    first = float(impact_time(height, g))
    time = np.linspace(0, 8 * first, 20001)
    depth = np.asarray(fallen(time, height, g, e))
    assert depth.max() <= height + 1e-6 and (depth >= -1e-6).all()
    for n in (1, 2):  # flight n lasts 2 e^n t1, and is highest in its middle
        start = first * (1 + 2 * sum(e**k for k in range(1, n)))
        middle = start + e**n * first
        assert float(fallen(middle, height, g, e)) == pytest.approx(height * (1 - e ** (2 * n)), abs=1e-6)
        assert float(fallen(start + 2 * e**n * first, height, g, e)) == pytest.approx(height, abs=1e-5)
    np.testing.assert_allclose(depth[time > first * (1 + 2 * e / (1 - e))], height, atol=1e-6)
    assert np.abs(np.diff(depth)).max() < 1.01 * g * first * (time[1] - time[0])  # it never jumps


def test_things_end_on_the_ground_and_never_below_it(clips):
    rows = (np.arange(CONFIG.size) + 0.5) / CONFIG.size
    lowest = np.where((clips.masks > 0.5).any(3), rows[:, None], 0).max(2)  # [B, T, O]
    assert (lowest <= clips.scene.ground[:, None, None]).all()
    assert (lowest[:, -1] >= clips.scene.ground[:, None] - 2 / CONFIG.size).all()


def test_masks_are_the_things_areas_and_centres(clips):
    area = clips.masks.sum((2, 3)) / CONFIG.size**2
    exact = np.array([np.pi, 1.76**2, 2.0])[clips.scene.shape] * clips.scene.radius**2
    np.testing.assert_allclose(area, np.broadcast_to(exact[:, None], area.shape), rtol=0.06)  # corners are rounded off
    place = (np.arange(CONFIG.size) + 0.5) / CONFIG.size
    x = np.einsum("bthwo,w->bto", clips.masks, place) / clips.masks.sum((2, 3))
    np.testing.assert_allclose(x, clips.positions[..., 0], atol=0.2 / CONFIG.size)


def test_pictures_show_each_thing_in_its_colour_where_its_mask_is(clips):
    for i in range(CONFIG.objects):
        covered = clips.masks[..., i] == 1
        colour = np.asarray(PALETTE)[clips.scene.colour[:, i]][:, None, None, None]
        wrong = np.abs(clips.video / 255 - colour).max(-1)[covered]
        assert covered.any((1, 2, 3)).all() and wrong.max() < 0.003
    assert (clips.scene.colour[:, 0] != clips.scene.colour[:, 1]).all()


def test_flow_is_the_motion_of_the_thing_that_a_pixel_shows_and_depth_its_distance(clips):
    step = CONFIG.size * np.diff(clips.positions, axis=1)
    nothing = ~(clips.masks > 0.5).any(-1)
    assert not clips.flow[nothing[:, :-1]].any() and (clips.depth[nothing] != DISTANCES[3]).all()
    for i in range(CONFIG.objects):
        covered = clips.masks[..., i] > 0.5
        b, t, *_ = np.nonzero(covered[:, :-1])
        np.testing.assert_allclose(clips.flow[covered[:, :-1]], step[b, t, i], atol=1e-5)
        assert (clips.depth[covered] == DISTANCES[3]).all()


def test_a_clip_is_the_same_whatever_is_drawn_beside_it(clips):
    alone = drops(CONFIG, 3, 1, start=5)
    np.testing.assert_array_equal(alone.video[0], clips.video[5])
    assert (clips.video[4] != clips.video[5]).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 4}, "frames=4"),
        ({"objects": 3}, "objects=3"),
        ({"radius": (0.2, 0.3), "objects": 2}, "beside each other"),
        ({"height": (0.1, 0.9)}, "outside the frame"),
        ({"restitution": 0.9}, "settle"),
    ],
)
def test_scenes_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        DropConfig(**wrong)
