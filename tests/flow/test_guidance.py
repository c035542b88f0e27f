"""Guidance: two evaluations as one batch."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import DynamicGuidance, integrate, sample
from jaxdiff.flow.guidance import pair
from tests.flow.pipelines import ROUNDING, TAPS, WAN, close, inputs, toy


def test_guidance_mixes_two_evaluations_and_taps_see_the_conditional_one():
    pipeline, (x, text) = toy(), inputs()
    negative = jnp.zeros_like(text[:1])

    def field(x, sigma):
        conditional = pipeline.evaluate(x, sigma, text)[0]
        unconditional = pipeline.evaluate(x, sigma, negative)[0]
        return unconditional + 3.5 * (conditional - unconditional)

    run = sample(
        pipeline, x, text, guidance_scale=3.5, negative=negative, steps=4, solver="euler", labels="sigma", taps=TAPS,
        capture_at=[0],
    )  # fmt: skip
    np.testing.assert_allclose(run.latents, integrate(field, x, WAN.grid(4)), **ROUNDING)
    plain = sample(pipeline, x, text, steps=4, solver="euler", labels="sigma", taps=TAPS, capture_at=[0])
    close(run.captured, plain.captured)
    assert np.abs(plain.latents - run.latents).max() > 0.1


def test_guidance_scale_one_is_no_guidance(log):
    pipeline, (x, text) = toy(), inputs()
    plain = sample(pipeline, x, text, steps=4)
    traces = log.traces
    off = sample(pipeline, x, text, guidance_scale=1.0, negative=jnp.zeros_like(text), steps=4)
    np.testing.assert_array_equal(plain.latents, off.latents)
    assert log.traces == traces


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        (None, "needs negative="),
        (jnp.zeros((1, 2, 4)), r"negative.text has the shape \(2, 2, 4\), but cond's is \(2, 3, 4\)"),
        (Conditioning(text=jnp.zeros((1, 3, 4)), fps=25.0), r"\['text'\] and the other \['fps', 'text'\]"),
    ],
)
def test_guidance_without_a_fitting_negative_is_refused(negative, message):
    pipeline, (x, text) = toy(), inputs()
    with pytest.raises(ConfigError, match=message):
        sample(pipeline, x, text, guidance_scale=2.0, negative=negative, steps=2)


def test_a_function_gives_every_step_its_own_scale():
    pipeline, (x, text) = toy(), inputs()
    negative, seen = jnp.zeros_like(text), []

    def rising(timesteps, steps):
        seen.append((timesteps, steps))
        return 1 + np.arange(len(timesteps))

    run = sample(pipeline, x, text, guidance_scale=rising, negative=negative, steps=3, solver="euler")
    grid = WAN.grid(3)
    np.testing.assert_array_equal(seen[0][0], np.trunc(1000 * grid[:-1]))
    assert seen[0][1] == 3
    state = x
    for i, scale in enumerate((1.0, 2.0, 3.0)):  # one step at a time, at that scale
        state = sample(pipeline, state, text, guidance_scale=scale, negative=negative, sigmas=grid[i : i + 2]).latents
    np.testing.assert_allclose(run.latents, state, **ROUNDING)
    with pytest.raises(ConfigError, match=r"gives an array \(\) for 3 steps"):
        sample(pipeline, x, text, guidance_scale=lambda t, n: 2.0, negative=negative, steps=3)


def test_captures_that_are_put_in_do_not_change_dynamic_scales_elsewhere():
    pipeline, (x, text) = toy(), inputs()
    seen = []

    def scale(timesteps, steps):
        seen.append(dict(zip(timesteps.tolist(), DynamicGuidance(6.0)(timesteps, steps).tolist(), strict=True)))
        return DynamicGuidance(6.0)(timesteps, steps)

    for sigmas in (None, [0.3]):
        sample(
            pipeline, x, text, guidance_scale=scale, negative=0 * text, steps=5, taps=TAPS, capture_sigmas=sigmas
        )  # fmt: skip
    assert len(seen[1]) == 6
    assert seen[1].items() > seen[0].items()


def test_dynamic_guidance_is_the_published_formula():
    timesteps = [999, 799, 599, 399, 199]
    for steps in (5, 50):  # of 5 the angle has 12 digits before the point: equal to the last bit or not at all
        want = [1 + 6.0 * ((1 - math.cos(math.pi * ((steps - t) / steps) ** 5.0)) / 2) for t in timesteps]
        np.testing.assert_array_equal(DynamicGuidance(6.0)(np.array(timesteps, np.float32), steps), want)
        assert np.ptp(want) > 1


def test_both_halves_carry_the_image():
    text, image = jnp.zeros((2, 3, 4)), jnp.arange(2.0).reshape(2, 1, 1, 1, 1)
    cond = Conditioning(text=text + 1, image_latents=image, fps=jnp.float32(8.0), extra={"ofs": jnp.full(2, 2.0)})
    both = pair(cond, Conditioning(text=text), 2)
    np.testing.assert_array_equal(both.image_latents.ravel(), [0, 0, 1, 1])
    np.testing.assert_array_equal(both.text[:, 0, 0], [1, 0, 1, 0])
    np.testing.assert_array_equal(both.extra["ofs"], [2, 2, 2, 2])
    other = pair(cond, Conditioning(text=text, image_latents=image + 5), 2)
    np.testing.assert_array_equal(other.image_latents.ravel(), [0, 5, 1, 6])
    masked = Conditioning(text=text, text_mask=jnp.ones((2, 3), bool))
    with pytest.raises(ConfigError, match="text_mask"):  # a text has its own, and none is not all of it
        pair(masked, Conditioning(text=text), 2)
