"""Skill: what it is for predictions whose errors are known, and an oracle that finds translations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.lamo import MotionField, MotionFieldConfig, differences
from jaxdiff.lamo.skill import Skill, errors, matched_shift, skills
from jaxdiff.models.network import Network

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shift", [(0, 1), (2, -1), (0, 0)])
def test_block_matching_knows_a_translation_but_for_what_enters_the_picture(shift):
    scene = RNG.standard_normal((16, 16, 3)).astype(np.float32)
    clip = np.stack([np.roll(scene, (shift[0] * (t // 2), shift[1] * (t // 2)), (0, 1)) for t in range(5)])[None]
    found, true = np.asarray(matched_shift(clip)), np.asarray(differences(clip))
    np.testing.assert_allclose(found[:, :, 4:12, 4:12], true[:, :, 4:12, 4:12], atol=1e-6)
    assert np.mean((found - true) ** 2) <= 0.5 * np.mean(true**2)


def test_block_matching_is_never_worse_than_no_motion_and_takes_blocks_of_any_size():
    clip = RNG.standard_normal((2, 4, 5, 7, 3)).astype(np.float32)
    true = np.asarray(differences(clip))
    one, two = (np.mean((np.asarray(matched_shift(clip, block=b)) - true) ** 2) for b in (1, 2))
    assert one < two <= np.mean(true**2)


def test_errors_are_those_of_their_definition():
    found, true = RNG.standard_normal((2, 3, 2, 4, 4, 5)).astype(np.float32)
    got = errors(found, true)
    flat = found.reshape(3, -1), true.reshape(3, -1)
    np.testing.assert_allclose(got.error, ((flat[0] - flat[1]) ** 2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(got.zero, (flat[1] ** 2).mean(1), rtol=1e-5)
    cosine = (flat[0] * flat[1]).sum(1) / np.linalg.norm(flat[0], axis=1) / np.linalg.norm(flat[1], axis=1)
    np.testing.assert_allclose(got.cosine, cosine, atol=1e-6)
    assert not np.any(errors(0 * found, true).cosine)


def test_half_of_the_motion_has_a_skill_of_three_quarters_and_noise_widens_the_interval():
    true = RNG.standard_normal((40, 2, 4, 4, 3)).astype(np.float32)
    half = Skill.of([errors(0.5 * true[:20], true[:20]), errors(0.5 * true[20:], true[20:])])
    assert half.skill == pytest.approx(0.75, abs=1e-6) and half.cosine == pytest.approx(1.0, abs=1e-6)
    noisy = Skill.of([errors(true + (np.arange(40) % 3)[:, None, None, None, None] * 0.5, true)])
    low, high = noisy.skill_interval
    assert low < noisy.skill < high and 0.05 < high - low < 0.5


def test_a_field_is_measured_beside_what_bounds_it():
    config = MotionFieldConfig(3, 5, width=4, blocks=1, groups=2, condition_width=4, squeeze=2)
    network = Network.abstract(MotionField, config)
    network = network.replace(jax.tree.map(lambda x: jnp.zeros(x.shape), network.params))
    motion = RNG.standard_normal((1, 6, 6, 3)).astype(np.float32)

    def batch(count):  # every clip moves alike, from another start; half of the variance of the pairs is shared
        start = RNG.standard_normal((count, 1, 6, 6, 3)).astype(np.float32)
        steps = np.arange(4)[:, None, None, None] * motion
        return start + steps, RNG.standard_normal((count, 1, 5)).astype(np.float32), None

    found = skills(network, [batch(4), batch(4)], [batch(4), batch(4)])
    assert list(found) == ["field", "field without prompt", "mean", "block matching"]
    assert found["field"].skill == pytest.approx(0.0, abs=1e-6) and found["field"].cosine == 0  # it says nothing
    assert found["mean"].skill == pytest.approx(1.0, abs=1e-5)
    assert found["mean"].mse < 1e-5 < found["block matching"].mse
    assert jnp.isfinite(found["block matching"].skill)
