"""The world's law of motion as a residual, and mechanics of its clips, on drawn discs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.worlds import normalise
from jaxdiff.physics.tracking import track
from jaxdiff.physics.world_mechanics import WORLD_MECHANICS, world_mechanics
from jaxdiff.physics.world_residual import SidewaysMotion
from tests.physics.test_tracking import drawn

STEADY = np.linspace(10, 22, 17)
TURNED = 16 + np.abs(np.arange(17) - 8.0)
ROOT = jax.jit(lambda video: jnp.sqrt(jnp.mean(jnp.square(SidewaysMotion(lambda x: x).of_video(video)), 1)))


def rms(*clips: np.ndarray) -> np.ndarray:
    return np.asarray(ROOT(normalise(jnp.asarray(np.concatenate(clips)))))


def test_the_residual_is_that_of_the_centre_and_knows_nothing_of_frames_in_which_the_thing_is_hidden():
    hidden = drawn(STEADY)
    hidden[:, 6:11, :, 12:] = 128  # a screen over the middle: what is left of the disc has another centre
    steady, turned, behind = rms(drawn(STEADY), drawn(TURNED), hidden)
    line = np.polyval(np.polyfit(np.arange(17), TURNED / 32, 1), np.arange(17))
    assert turned == pytest.approx(np.sqrt(np.mean((TURNED / 32 - line) ** 2)), rel=0.05)
    assert max(steady, behind) < 0.03 * turned


def test_no_clip_gets_better_by_hiding_the_thing():
    video = normalise(jnp.asarray(drawn(TURNED)))
    grey = normalise(jnp.full_like(video, 128))

    def loss(opacity, shift):
        shown = grey + opacity[None, :, None, None, None] * (video - grey)
        moved = shown + shift[None, :, None, None, None] * jnp.gradient(shown, axis=3)  # by pixels, to the left
        return jnp.sum(jnp.square(SidewaysMotion(lambda x: x)(moved)))

    fade, move = jax.jit(jax.grad(loss, (0, 1)))(jnp.ones(17), jnp.zeros(17))
    assert np.abs(fade).max() < 0.05 * np.abs(move).max()


def test_mechanics_of_the_world_know_steady_motion_and_a_kick():
    found = world_mechanics(track(np.concatenate([drawn(STEADY), drawn(np.maximum(STEADY, 2 * STEADY - 16))])))
    assert set(found) == {*WORLD_MECHANICS}
    (steady, kicked), (still, gained) = found["energy"], found["gain"]
    assert steady < 0.05 < 0.3 < kicked and still < 0.15 < 0.5 < gained
    assert np.isnan(found["flight"]).all()  # nothing flies
