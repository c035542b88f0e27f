"""Object rewards: zero for the truth, lower the further off, right about areas that are known, and steep enough to climb."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.flow import Backward, integrate
from jaxdiff.physics.rewards import (
    ColourKey,
    DepthReward,
    FlowReward,
    LucasKanade,
    NearThings,
    SegmentationReward,
    Target,
    check_masks,
    mask_loss,
)

SIZE, FRAMES, RADIUS = 48, 4, 7
REWARDS = {
    "segmentation": SegmentationReward(ColourKey(40.0)),
    "flow": FlowReward(LucasKanade()),
    "depth": DepthReward(NearThings()),
}


def clip(shift=0):
    """A red disc that falls ever faster before grey, in whole pixels: nothing is half covered. Shifted down by pixels."""
    y, x = np.mgrid[:SIZE, :SIZE]
    masks = np.stack([np.hypot(x - 20, y - 12 - shift - t * t) <= RADIUS for t in range(FRAMES)])
    colours = np.where(masks[..., None], [0.9, 0.1, 0.1], 0.4 + 0.1 * (y > 40)[..., None]) * 2 - 1
    return np.float32(colours)[None], np.float32(masks)[None, ..., None]


@pytest.fixture(scope="module")
def target():
    return Target(*map(jnp.asarray, clip()))


@pytest.mark.parametrize("name", REWARDS)
def test_the_truth_has_reward_zero_and_shifts_of_1_2_4_8_pixels_ever_less(name, target):
    shifted = np.concatenate([clip(pixels)[0] for pixels in (0, 1, 2, 4, 8)])
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, len(shifted), 0), target)
    found = np.asarray(jax.jit(REWARDS[name])(jnp.asarray(shifted), many))
    assert found[0] == 0.0
    assert (np.diff(found) < 0).all(), found


@pytest.mark.parametrize("name", REWARDS)
def test_a_gradient_reaches_the_pixels_and_is_finite(name, target):
    reward = SegmentationReward(ColourKey()) if name == "segmentation" else REWARDS[name]
    value = jax.jit(jax.grad(lambda video: reward(video, target).sum()))
    found = np.asarray(value(jnp.asarray(clip(2)[0])))
    assert np.isfinite(found).all() and np.abs(found).max() > 1e-6
    blank = np.asarray(value(jnp.full_like(target.video, 0.2)))  # nothing to see: no division by zero
    assert np.isfinite(blank).all()


@pytest.mark.parametrize("apart", [0.3, 1.0, 1.7])
def test_the_segmentation_loss_of_two_discs_is_that_of_the_lens_between_them(apart):
    radius, size = 60.0, 256
    y, x = np.mgrid[:size, :size] + 0.5

    def disc(cx):
        inside = np.clip(radius - np.hypot(x - cx, y - size / 2) + 0.5, 0, 1)
        return jnp.asarray(inside > 0.5, jnp.float32)[None, None, ..., None]

    d = apart * radius
    lens = 2 * radius**2 * np.arccos(d / (2 * radius)) - d / 2 * np.sqrt(4 * radius**2 - d**2)
    expected = 1 - lens / (2 * np.pi * radius**2 - lens)
    found = float(mask_loss(disc(size / 2 - d / 2), disc(size / 2 + d / 2))[0])
    assert found == pytest.approx(expected, rel=0.01)


def test_each_of_two_things_is_followed_by_its_own_colour():
    video, masks = clip()
    other = np.roll(masks, 24, axis=3)
    video = np.where(other > 0.5, np.float32([-0.8, 0.5, -0.7]), video)
    both = Target(jnp.asarray(video), jnp.asarray(np.concatenate([masks, other], -1)))
    logits = ColourKey()(both.video, both.video[:, 0], both.masks[:, 0])
    np.testing.assert_array_equal(logits > 0, both.masks > 0.5)


def test_gradient_ascent_on_a_linear_gaussian_flow_moves_the_samples_mean_to_the_target_monotonically():
    # x = (1 - s) x0 + s eps with x0 ~ N(m, S^2): E[eps - x0 | x] is linear in x, and its flow maps N(0, 1) to N(m, S^2).
    spread, wanted = 0.5, jnp.array([1.5, -2.0])
    noise = jax.random.normal(jax.random.key(0), (256, 2))

    def mean(m):
        def field(x, s):
            variance = (1 - s) ** 2 * spread**2 + s**2
            return (s - (1 - s) * spread**2) / variance * (x - (1 - s) * m) - m

        return integrate(field, noise, np.linspace(1, 0, 9), backward=Backward()).mean(0)

    def reward(m):
        return -jnp.sum(jnp.square(mean(m) - wanted))

    step = jax.jit(lambda m: (m + 0.2 * jax.grad(reward)(m), mean(m)))
    m, away = jnp.zeros(2), []
    for _ in range(20):
        m, where = step(m)
        away.append(float(jnp.linalg.norm(where - wanted)))
    assert (np.diff(away) < 0).all() and away[-1] < 0.01 * away[0]


def test_clips_of_another_length_and_empty_masks_are_refused(target):
    for reward in REWARDS.values():
        with pytest.raises(ConfigError, match="same length"):
            reward(target.video[:, :2], target)
    masks = np.zeros((2, FRAMES, 8, 8, 2))
    masks[..., 2:5, 2:5, :] = 1
    check_masks(masks)
    masks[1, 0, ..., 1] = 0
    with pytest.raises(ConfigError, match="thing 1 is empty in the first frame of clip drop-7"):
        check_masks(masks, ["drop-6", "drop-7"])
