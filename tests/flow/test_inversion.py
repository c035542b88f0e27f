"""`invert` and `sample`: what they integrate, what the network is told, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import FixedPoint, integrate, invert, sample
from tests.flow.pipelines import INVERTERS, LOG, ROUNDING, TAPS, WAN, Sink, close, inputs, toy


@pytest.mark.parametrize("name", INVERTERS)
def test_invert_integrates_the_pipelines_field_over_the_schedules_grid(name):
    pipeline, (x, text) = toy(), inputs()
    grid = WAN.grid(6)[::-1]
    labels = WAN.rounded(grid) if name == "ddim_label" else grid

    def field(x, sigma, label):
        # integrate labels by the grid's own sigmas; look up what the scheduler would have sent.
        label = jnp.interp(label, grid, labels)
        return pipeline.evaluate(x, sigma, text, label=label)[0]

    run = invert(pipeline, x, text, steps=6, solver=name)
    np.testing.assert_allclose(run.latents, integrate(field, x, grid, name), **ROUNDING)
    np.testing.assert_array_equal(run.sigmas, grid)
    assert run.latents.dtype == jnp.float32
    assert not np.array_equal(run.latents, x)


def test_sample_goes_down_the_same_grid():
    pipeline, (x, text) = toy(), inputs()
    run = sample(pipeline, x, text, steps=6, solver="euler", labels="sigma")
    want = integrate(lambda x, sigma: pipeline.evaluate(x, sigma, text)[0], x, WAN.grid(6))
    np.testing.assert_allclose(run.latents, want, **ROUNDING)
    np.testing.assert_array_equal(run.sigmas, WAN.grid(6))


def test_sample_takes_the_schedulers_steps_on_its_grid_and_euler_on_another():
    pipeline, (x, text) = toy(), inputs()
    end = {solver: sample(pipeline, x, text, steps=6, solver=solver).latents for solver in ("unipc", "euler")}
    np.testing.assert_array_equal(sample(pipeline, x, text, steps=6).latents, end["unipc"])
    np.testing.assert_array_equal(sample(pipeline, x, text, steps=6, solver="scheduler").latents, end["unipc"])
    np.testing.assert_array_equal(sample(pipeline, x, text, sigmas=WAN.grid(6)).latents, end["euler"])
    assert np.abs(end["unipc"] - end["euler"]).max() > 1e-2


def test_start_sigma_leaves_out_what_lies_before_it():
    pipeline, (x, text) = toy(), inputs()
    grid = WAN.grid(6)[::-1]
    run = invert(pipeline, x, text, steps=6, start_sigma=0.6, taps=TAPS, capture_at=[0])
    later = grid[grid > 0.6]
    np.testing.assert_array_equal(run.sigmas, [0.6, *later])
    np.testing.assert_array_equal(run.latents, invert(pipeline, x, text, sigmas=[0.6, *later]).latents)
    assert run.capture_sigmas == 0.6
    assert (run.start_sigma, run.end_sigma) == (0.6, WAN.sigma_max)
    close(
        {name: value[0] for name, value in run.captured.items()},
        pipeline.evaluate(x, 0.6, text, taps=TAPS)[1],
    )
    # A sigma of the grid is taken for that of the grid, and sigma 0 for all of it.
    np.testing.assert_array_equal(invert(pipeline, x, text, steps=6, start_sigma=grid[2] + 3e-6).sigmas, grid[2:])
    np.testing.assert_array_equal(invert(pipeline, x, text, steps=6, start_sigma=0.0).sigmas, grid)


def test_noise_of_a_clip_depends_on_its_key_and_its_place_alone():
    pipeline, (x, text) = toy(), inputs(3)

    def run(x, text, key=None, labels=None):
        return sample(pipeline, x, text, steps=4, solver="dpmpp_2m_sde", key=key, labels=labels).latents

    ends = run(x, text)
    np.testing.assert_array_equal(run(x, text, jax.random.key(0)), ends)  # the default
    np.testing.assert_allclose(run(x[:2], text[:2]), ends[:2], **ROUNDING)
    assert np.abs(run(x, text, jax.random.key(1)) - ends).min() > 1e-6
    same = run(jnp.stack([x[0]] * 3), jnp.stack([text[0]] * 3))
    assert np.abs(same[1] - same[0]).max() > 0.1
    keys = jax.random.split(jax.random.key(5), 3)
    given = run(x, text, keys)
    np.testing.assert_allclose(run(x[::-1], text[::-1], keys[::-1]), given[::-1], **ROUNDING)
    with pytest.raises(ConfigError, match=r"one key or one a clip, \[3\], got \(2,\)"):
        run(x, text, keys[:2])


def test_fixed_point_inversion_is_undone_by_sampling_on_its_grid():
    pipeline, (x, text) = toy(), inputs()
    there = invert(pipeline, x, text, steps=20, solver=FixedPoint(30))
    back = sample(pipeline, there.latents, text, sigmas=there.sigmas[::-1], labels=there.labels)
    np.testing.assert_allclose(back.latents, x, **ROUNDING)
    explicit = invert(pipeline, x, text, steps=20)
    back = sample(pipeline, explicit.latents, text, sigmas=explicit.sigmas[::-1], labels="sigma")
    assert np.abs(back.latents - x).max() > 1e-2


def test_an_explicit_grid_replaces_the_schedules():
    pipeline, (x, text) = toy(), inputs()
    grid = [0.05, 0.2, 0.7]
    run = invert(pipeline, x, text, sigmas=grid)
    np.testing.assert_array_equal(run.sigmas, grid)
    assert run.evaluations == 2


def test_text_may_be_an_array_a_conditioning_or_one_for_all():
    pipeline, (x, text) = toy(), inputs()
    runs = [
        invert(pipeline, x, cond, steps=2).latents
        for cond in (text[:1], np.asarray(text[:1]), Conditioning(text=text[:1]), jnp.repeat(text[:1], 2, 0))
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


# ------------------------------------------------------------------------------------------ what the network is told


def told(run, x, text, **kwargs):
    LOG.timesteps = []
    jax.block_until_ready(run(dataclasses.replace(toy(), listens=True), x, text, **kwargs).latents)
    jax.effects_barrier()
    return LOG.timesteps


def test_samplers_and_ddim_label_send_the_schedulers_integers_and_others_their_own():
    x, text = inputs()
    grid = WAN.grid(4)
    integers = np.trunc(grid * 1000)
    assert told(sample, x, text, steps=4) == list(integers[:4])
    assert told(invert, x, text, steps=4, solver="ddim_label") == list(integers[:4][::-1])
    # float32 timesteps
    np.testing.assert_allclose(told(invert, x, text, steps=4), grid[:0:-1] * 1000, rtol=1e-6)
    assert told(invert, x, text, steps=4, labels="scheduler") == list(integers[:0:-1])
    np.testing.assert_allclose(told(sample, x, text, steps=4, labels="sigma"), grid[:4] * 1000, rtol=1e-6)


def test_intermediate_stages_of_a_sampler_are_rounded_too():
    x, text = inputs()
    grid = WAN.grid(3)
    middles = (grid[:-1] + grid[1:]) / 2
    want = np.trunc(np.stack([grid[:-1], middles], 1).ravel() * 1000)
    assert told(sample, x, text, steps=3, solver="midpoint") == list(want)


@pytest.mark.parametrize("capture_at", [(1, 4), None])
@pytest.mark.parametrize("name", INVERTERS)
def test_evaluations_are_counted(name, capture_at):
    x, text = inputs()
    run = functools.partial(invert, steps=4, solver=name, taps=TAPS, capture_at=capture_at)
    assert run(toy(), x, text).evaluations == len(told(run, x, text))


# ------------------------------------------------------------------------------------------ refused arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "positive integer"),
        ({"sigmas": [1.0, 0.5, 0.0]}, r"invert goes up.*pass sigmas\[::-1\]"),
        ({"sigmas": [0.0, 1.5]}, r"\[0, 1\]"),
        ({"sigmas": [0.0, 0.5, 0.4, 1.0]}, "strictly monotone"),
        ({"solver": "huen"}, "did you mean 'heun'"),
        ({"solver": "dpmpp_2m_sde"}, "only goes down; for an inversion choose euler, .*unipc, dpmpp_2m$"),
        ({"start_sigma": -0.1}, "start_sigma=-0.1 must lie on the grid, from 0.0 to below 0.99"),
        ({"start_sigma": 1.0}, "start_sigma=1.0 must lie on the grid"),
        ({"labels": "rounded"}, "'sigma', 'scheduler' or None"),
        ({"capture_at": [0]}, "no taps="),
        ({"capture_sigmas": [0.5]}, "no taps="),
        ({"sink": Sink(jnp.arange(2))}, "no taps="),
        (
            {"taps": TAPS, "steps": 4, "capture_at": [5]},
            "step 5 does not exist; this grid has steps 0 to 3, and 4",
        ),
        ({"taps": TAPS, "steps": 4, "capture_at": [-5]}, "step -5 does not exist"),
        ({"taps": TAPS, "capture_at": [0.5]}, "go into capture_sigmas"),
        ({"taps": TAPS, "capture_sigmas": [1.2]}, "1.2 lies outside of the grid"),
        ({"taps": TAPS, "capture_sigmas": [np.nan]}, "nan lies outside of the grid"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_runs(arguments, message, log):
    pipeline, (x, text) = toy(), inputs()
    with pytest.raises(ConfigError, match=message):
        invert(pipeline, x, text, **arguments)
    assert log.traces == 0


def test_sample_refuses_a_rising_grid():
    pipeline, (x, text) = toy(), inputs()
    with pytest.raises(ConfigError, match="sample goes down"):
        sample(pipeline, x, text, sigmas=[0.0, 1.0])
