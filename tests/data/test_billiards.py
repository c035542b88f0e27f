"""Generated billiards: exact collisions, exact masks, pairs that differ in the driver alone."""

import numpy as np
import pytest

from jaxdiff.data.worlds.billiards import BilliardConfig, billiards, energy, momentum, simulate
from jaxdiff.errors import ConfigError

CONFIG = BilliardConfig(discs=3, radius=(0.1, 0.13))


@pytest.fixture(scope="module")
def drawn():
    return billiards(CONFIG, 5, 12)


def two(velocity, radius=(0.1, 0.1), x=((0.2, 0.5), (0.6, 0.5)), frames=9):
    return simulate(np.array([x]), np.array([velocity]), np.array([radius]), frames)


def test_equal_discs_exchange_their_velocities_and_others_follow_the_closed_form():
    motion = two([(0.05, 0.0), (0.0, 0.0)])  # 0.2 apart at speed 0.05
    assert motion.contact[0, 0, 1] == pytest.approx(4, abs=1e-12)
    np.testing.assert_allclose(motion.velocity[0, -1], [(0, 0), (0.05, 0)], atol=1e-15)
    np.testing.assert_allclose(motion.position[0, -1], [(0.4, 0.5), (0.8, 0.5)], atol=1e-12)
    heavy = two([(0.05, 0.0), (0.0, 0.0)], (0.1, 0.05), frames=6)
    m, n = 0.1**2, 0.05**2
    np.testing.assert_allclose(heavy.velocity[0, -1, :, 0], 0.05 * np.array([(m - n) / (m + n), 2 * m / (m + n)]))
    oblique = two([(0.05, 0.0), (0.0, 0.0)], x=((0.2, 0.4), (0.5, 0.5)))
    push, left = oblique.velocity[0, -1, 1], oblique.velocity[0, -1, 0]
    assert abs(push @ left) < 1e-15 and abs(push[0] / push[1]) == pytest.approx(
        3**0.5
    )  # equal masses part at a right angle


def test_a_wall_turns_one_axis_around_at_the_right_moment():
    motion = two([(-0.04, 0.02), (0.0, 0.0)], frames=4)  # 0.1 from the wall: there after 2.5 frames
    np.testing.assert_allclose(motion.velocity[0, :, 0], [(-0.04, 0.02), (-0.04, 0.02), (-0.04, 0.02), (0.04, 0.02)])
    np.testing.assert_allclose(motion.position[0, 3, 0], (0.12, 0.56), atol=1e-12)


def test_energy_never_changes_and_momentum_only_at_walls(drawn):
    found = energy(drawn.motion, drawn.radius)
    np.testing.assert_allclose(found, found[:, :1] * np.ones(found.shape[1]), rtol=1e-12)
    x, r = drawn.motion.position, drawn.radius[:, None, :, None]
    assert (x >= r - 1e-9).all() and (x <= 1 - r + 1e-9).all()
    step = np.abs(np.diff(momentum(drawn.motion, drawn.radius), axis=1))
    near = ((x - r < 0.12) | (1 - r - x < 0.12)).any(2)  # along that axis some disc may have touched a wall
    assert (step[~(near[:, 1:] | near[:, :-1])] < 1e-15).all() and step.max() > 1e-3


def test_discs_never_overlap_and_masks_are_the_pixels_that_they_cover(drawn):
    x, r = drawn.motion.position, drawn.radius
    gaps = np.linalg.norm(x[:, :, :, None] - x[:, :, None], axis=-1) - (r[:, :, None] + r[:, None])[:, None]
    gaps += 2 * r.max() * np.eye(3)
    assert gaps.min() > -1e-9 and (drawn.masks.sum(2) <= 1).all()
    place = (np.arange(32) + 0.5) / 32
    for clip, frame, disc in ((0, 0, 0), (3, 16, 1), (7, 9, 2)):
        cx, cy = x[clip, frame, disc]
        covered = np.hypot(place[None] - cx, place[:, None] - cy) <= r[clip, disc]
        np.testing.assert_array_equal(drawn.masks[clip, frame, disc], covered)
        shown = drawn.video[clip, frame][covered]
        assert np.abs(shown.astype(int) - np.median(shown, 0)).max(1).mean() < 40  # one colour, but for the edge


def test_a_pair_begins_with_one_picture_and_only_one_of_it_hits(drawn):
    assert np.array_equal(drawn.video[::2, 0], drawn.video[1::2, 0])
    assert drawn.hit[::2].all() and not drawn.hit[1::2].any()
    assert (drawn.motion.velocity[:, 0, 1:] == 0).all()
    moved = np.linalg.norm(drawn.motion.position[:, -1, 1] - drawn.motion.position[:, 0, 1], axis=-1)
    assert (moved[::2] >= 0.08).all() and (moved[1::2] == 0).all()
    when = drawn.motion.contact[::2, 0, 1]
    assert (when >= 0.2 * 16).all() and (when <= 0.6 * 16).all()


def test_a_pair_is_the_same_whatever_is_drawn_beside_it(drawn):
    some = billiards(CONFIG, 5, 2, start=7)
    np.testing.assert_array_equal(some.video, drawn.video[14:18])
    np.testing.assert_array_equal(some.masks, drawn.masks[14:18])
    assert not np.array_equal(billiards(CONFIG, 6, 1).video, drawn.video[:2])


def test_numbers_that_no_world_has_are_refused():
    for wrong in ({"frames": 16}, {"size": 20}, {"discs": 1}, {"radius": (0.2, 0.1)}, {"speed": (0.0, 1.0)}):
        with pytest.raises(ConfigError, match="BilliardConfig"):
            BilliardConfig(**wrong)
    with pytest.raises(ConfigError, match="pairs=0"):
        billiards(CONFIG, 0, 0)
    with pytest.raises(ConfigError, match="no first picture"):
        billiards(BilliardConfig(speed=(0.01, 0.02)), 0, 1)
