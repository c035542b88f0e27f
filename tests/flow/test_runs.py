"""Runs as programs: traced once, memory by captures, and under a caller's transformations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import Tap
from jaxdiff.errors import ConfigError
from jaxdiff.flow import invert, sample
from tests.flow.pipelines import INVERTERS, LAYERS, ROUNDING, TAPS, Sink, close, inputs, toy


def test_nothing_of_equal_shape_is_traced_twice(log):
    x, text = inputs()
    negative = jnp.zeros_like(text)

    def calls(pipeline, x, sigmas, capture_at, scale, offset):
        for solver in ("euler", "ab2"):
            invert(pipeline, x, text, sigmas=sigmas, solver=solver, taps=TAPS, capture_at=capture_at)
        invert(
            pipeline,
            x,
            text,
            sigmas=sigmas,
            taps=TAPS,
            capture_at=capture_at,
            sink=Sink(jnp.arange(2) + offset),
        )
        sample(pipeline, x, text, sigmas=sigmas[::-1], guidance_scale=scale, negative=negative)

    calls(toy(0), x, np.linspace(0, 1, 7), (0, 2), 2.0, 0)
    traces = log.traces
    # other weights, latents, grid, captured steps, guidance and clips
    calls(toy(1), x + 1, np.linspace(0, 0.9, 7) ** 2, (3, 5), 4.0, 5)
    assert traces
    assert log.traces == traces


def test_memory_grows_with_captured_steps_and_not_with_steps():
    pipeline, (x, text) = toy(), inputs()
    tap = (Tap("block_out", "full"),)

    def bytes_used(steps, captured):
        run = jax.jit(lambda x: invert(pipeline, x, text, steps=steps, taps=tap, capture_at=range(captured)))
        memory = run.lower(x).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    one = LAYERS * x.size * 2  # bfloat16
    base = bytes_used(20, 4)
    # A step more costs a few scalars of grid; a capture more costs what it holds (up to alignment).
    assert abs(bytes_used(160, 4) - base) < 140 * 100
    assert abs(bytes_used(20, 16) - base - 12 * one) < 0.25 * one
    assert base > 4 * one


def test_runs_under_a_callers_jit_vmap_and_grad():
    pipeline, (x, text) = toy(), inputs()

    def run(pipeline, x, solver="heun"):
        return invert(pipeline, x, text, steps=3, solver=solver, taps=TAPS, capture_at=[0, 2])

    want = run(pipeline, x)
    jitted = jax.jit(run)(pipeline, x)
    np.testing.assert_allclose(jitted.latents, want.latents, **ROUNDING)
    close(jitted.captured, want.captured)
    assert jitted.evaluations == want.evaluations

    stacked = jnp.stack([x, x + 0.5, x - 0.5])
    mapped = jax.vmap(run, (None, 0))(pipeline, stacked)
    np.testing.assert_allclose(mapped.latents[0], want.latents, **ROUNDING)
    np.testing.assert_allclose(mapped.latents[2], run(pipeline, stacked[2]).latents, **ROUNDING)

    def loss(pipeline):
        trajectory = run(pipeline, x)
        return jnp.sum(trajectory.latents**2) + jnp.sum(trajectory.captured["block_out.mean"] ** 2)

    slope = jax.grad(loss)(pipeline).weights
    step = jax.random.normal(jax.random.key(3), slope.shape)
    up, down = (loss(dataclasses.replace(pipeline, weights=pipeline.weights + s * step)) for s in (1e-2, -1e-2))
    # central difference in float32
    np.testing.assert_allclose(jnp.sum(slope * step), (up - down) / 2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", INVERTERS)
def test_every_solver_has_a_gradient(name):
    pipeline, (x, text) = toy(), inputs()
    slope = jax.grad(lambda x: invert(pipeline, x, text, steps=2, solver=name).latents.sum())(x)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 0


def test_a_traced_grid_is_taken_as_it_is():
    pipeline, (x, text) = toy(), inputs()
    grid = np.linspace(0, 1, 5)
    run = jax.jit(lambda sigmas: invert(pipeline, x, text, sigmas=sigmas, taps=TAPS, capture_at=[1]))(grid)
    want = invert(pipeline, x, text, sigmas=grid, taps=TAPS, capture_at=[1])
    np.testing.assert_allclose(run.latents, want.latents, **ROUNDING)
    assert run.capture_sigmas == pytest.approx(0.25)
    with pytest.raises(ConfigError, match="traced sigmas"):
        jax.jit(lambda sigmas: sample(pipeline, x, text, sigmas=sigmas).latents)(grid[::-1])
