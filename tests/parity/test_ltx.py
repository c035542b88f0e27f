"""LTX-Video against diffusers, live: transformer, schedules and whole samples, through folders and `jaxdiff.load`."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxdiff
from jaxdiff import Conditioning, Tap
from jaxdiff.flow.schedule import FlowMatchEuler
from ports.writer import save_pipeline
from tests.parity import ltx_reference as reference
from tests.reference import LTX_PLAIN, LTX_SHIFTED, ltx_inputs, relative_error

# FlowMatchEulerDiscreteScheduler (diffusers 0.42.1) makes an array of a tensor in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")


def exact(x, grid):
    return x.astype(jnp.float32)


TAPS = tuple(Tap(site, exact, name=site) for site in SITES)


@pytest.fixture(scope="module", params=reference.CASES)
def case(request, tmp_path_factory):
    """(reference model, folder, its inputs)."""
    changes, grid = reference.CASES[request.param]
    model = reference.transformer(request.param)
    folder = reference.save(tmp_path_factory.mktemp("ltx"), model)
    return model, folder, ltx_inputs({**reference.TINY, **changes}, grid)


@jax.jit
def evaluate(pipeline, latents, timestep, cond):
    return pipeline.family.denoise(pipeline.transformer, latents, timestep, cond, taps=TAPS)


def test_output_and_every_site_of_every_block_equal_diffusers(case):
    model, folder, (latents, timestep, text, mask) = case
    said, sites = reference.run(model, latents, timestep, text, mask, fps=24.0)
    cond = Conditioning(text=text, text_mask=mask, fps=24.0)
    ours, captured = evaluate(jaxdiff.load(folder), latents, timestep, cond)
    assert ours.shape == said.shape
    # The bar is 1e-4; two correct float32 runs differ by a few 1e-6 of the largest value.
    assert relative_error(ours, said) <= 1e-5
    for site in SITES:
        for block, (got, expected) in enumerate(zip(captured[site], sites[site], strict=True)):
            assert relative_error(got, expected) <= 1e-5, (site, block)


def test_positions_and_defaults_are_those_of_either_pipeline(case):
    model, folder, (latents, timestep, text, mask) = case
    pipeline = jaxdiff.load(folder)
    everything = np.ones_like(mask)
    outputs = []
    for causal in (False, True):
        family = type(pipeline.family)(causal_positions=causal)
        ours, _ = jax.jit(family.denoise)(pipeline.transformer, latents, timestep, Conditioning(text=text))
        said, _ = reference.run(model, latents, timestep, text, everything, causal=causal)  # fps 25, the default
        assert relative_error(ours, said) <= 1e-5
        outputs.append(said)
    if latents.shape[1] > 1:
        assert relative_error(*outputs) > 1e-2


def test_every_token_may_have_a_timestep_of_its_own(case):
    model, folder, (latents, _, text, mask) = case
    timestep = np.random.default_rng(3).uniform(0, 1000, (len(latents), latents[0, ..., 0].size)).astype(np.float32)
    said, _ = reference.run(model, latents, timestep, text, mask)
    pipeline = jaxdiff.load(folder)
    ours, _ = evaluate(pipeline, latents, jnp.asarray(timestep), Conditioning(text=text, text_mask=mask))
    assert relative_error(ours, said) <= 1e-5


def test_bfloat16_is_as_close_to_float32_as_the_reference_in_bfloat16(case):
    model, folder, (latents, timestep, text, mask) = case
    truth, _ = reference.run(model, latents, timestep, text, mask)
    pipeline = jaxdiff.load(folder, dtype=jnp.bfloat16)
    ours = pipeline.denoise(latents, timestep, Conditioning(text=text, text_mask=mask)).astype(jnp.float32)
    theirs, _ = reference.run(model.to(torch.bfloat16), latents, timestep, text, mask)
    model.to(torch.float32)

    def rms(x):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - truth) ** 2))

    assert 0 < rms(ours) <= 1.5 * rms(theirs)


@pytest.mark.parametrize("steps, tokens", list(itertools.product((2, 7, 40), (60, 2500, 7392))))
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("spacing", ["even", "scheduler"])
def test_dynamically_shifted_grids_equal_the_scheduler_bit_for_bit(steps, tokens, linear, spacing):
    config = LTX_SHIFTED | {"time_shift_type": "linear" if linear else "exponential"}
    sigmas, timesteps = reference.grid_and_timesteps(config, spacing, steps, tokens)
    _equal(config, spacing, steps, tokens, sigmas, timesteps)
    assert sigmas[-2] == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 30, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("spacing", ["even", "linear_quadratic"])
def test_statically_shifted_grids_equal_the_scheduler_bit_for_bit(steps, shift, spacing):
    config = LTX_PLAIN | {"shift": shift}
    sigmas, timesteps = reference.grid_and_timesteps(config, spacing, steps, 60)
    _equal(config, spacing, steps, None, sigmas, timesteps if shift == 1.0 else sigmas[:-1] * 1000)


def _equal(config, spacing, steps, tokens, sigmas, timesteps):
    schedule = dataclasses.replace(FlowMatchEuler.from_config(config), spacing=spacing)
    grid = schedule.grid(steps, tokens=tokens)
    np.testing.assert_array_equal(grid.astype(np.float32), sigmas)
    # Of linear-quadratic steps the scheduler divides the timesteps it was given by 1000, and we multiply again.
    np.testing.assert_allclose(schedule.timestep(schedule.rounded(grid[:-1])), timesteps, rtol=2e-7)


@pytest.fixture(scope="module", params=reference.PIPELINES)
def whole(request, tmp_path_factory):
    """(reference pipeline, its folder)."""
    made = reference.pipeline(request.param)
    folder = tmp_path_factory.mktemp("ltx")
    made.save_pretrained(folder)
    return made, folder


def test_a_guided_sample_and_its_video_equal_those_of_the_pipeline(whole):
    made, folder = whole
    (noise, _, text, mask), (_, _, negative, negative_mask) = (
        ltx_inputs(reference.TINY, (2, 1, 2), seed=seed) for seed in (7, 8)
    )
    negative_mask = negative_mask[::-1].copy()
    latents, video = reference.sample(made, noise, text, mask, negative, negative_mask, steps=5, guidance=3.0, fps=24)
    pipeline = jaxdiff.load(folder)
    ours = jaxdiff.sample(
        pipeline,
        noise,
        Conditioning(text=text, text_mask=mask, fps=24.0),
        negative=Conditioning(text=negative, text_mask=negative_mask, fps=24.0),
        guidance_scale=3.0,
        steps=5,
    )
    assert relative_error(ours.latents, latents) <= 1e-4  # the bar of a whole sample is 1e-3
    decoded = np.clip(np.asarray(pipeline.decode(ours.latents)) / 2 + 0.5, 0, 1)
    assert decoded.shape == video.shape
    assert np.abs(decoded - video).max() <= 1e-4
    assert np.mean((video > 0) & (video < 1)) > 0.5  # little of it is clipped, where errors would hide


def test_what_we_write_diffusers_reads_as_the_same_model(whole, tmp_path):
    made, folder = whole
    pipeline = jaxdiff.load(folder)
    written = save_pipeline(pipeline, tmp_path / "ours")
    again = type(made).from_pretrained(written, text_encoder=None, tokenizer=None)
    for part in ("transformer", "vae"):
        ours, theirs = getattr(again, part).state_dict(), getattr(made, part).state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert (
        dict(again.scheduler.config).items()
        >= {k: v for k, v in made.scheduler.config.items() if not k.startswith("_")}.items()
    )
    loaded = jaxdiff.load(written)
    assert (loaded.schedule, loaded.family) == (pipeline.schedule, pipeline.family)
    jax.tree.map(np.testing.assert_array_equal, loaded, pipeline)
