"""LTX-Video against recorded outputs of diffusers, through a checkpoint folder and the real loader.

The weights are rebuilt from names and shapes (`tests.reference.random_state`); the recording is made by
`python -m tests.parity.record_ltx`.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Conditioning, Edit, Tap
from jaxdiff.errors import ConfigError
from jaxdiff.flow.schedule import FlowMatchEuler, Schedule
from jaxdiff.models.ltx.family import LTX
from jaxdiff.models.ltx.transformer import LTXTransformer, LTXTransformerConfig
from jaxdiff.models.network import Network
from tests.reference import LTX_PLAIN, LTX_SHIFTED, ltx_inputs, random_state, relative_error, write_folder

GOLDENS = Path(__file__).parent.parent / "goldens"
DESCRIBED = json.loads((GOLDENS / "ltx.json").read_text())
SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")


def golden() -> dict:
    with np.load(GOLDENS / "ltx.npz") as file:
        return dict(file)


def folder(path, name, pipeline="LTXPipeline", scheduler=LTX_SHIFTED, **others):
    described = DESCRIBED["transformers"][name]
    state = random_state(described["shapes"], described["seed"])
    return write_folder(
        path / "m", pipeline=pipeline, scheduler=scheduler, transformer=(described["config"], state), **others
    )


@pytest.fixture(scope="module", params=DESCRIBED["transformers"])
def case(request, tmp_path_factory):
    """(name, pipeline, latents, timestep, conditioning)."""
    described = DESCRIBED["transformers"][request.param]
    latents, timestep, text, mask = ltx_inputs(described["config"], described["grid"])
    pipeline = jaxdiff.load(folder(tmp_path_factory.mktemp("ltx"), request.param))
    return request.param, pipeline, latents, timestep, Conditioning(text=text, text_mask=mask)


def test_output_and_every_site_equal_the_recorded_ones_of_diffusers(case):
    name, pipeline, latents, timestep, cond = case
    recorded = golden()
    taps = tuple(Tap(site) for site in SITES)
    ours, captured = jax.jit(pipeline.family.denoise, static_argnames="taps")(
        pipeline.transformer, latents, timestep, cond, taps=taps
    )
    # Two correct float32 runs differ by a few 1e-6 of the largest value; the bar for a port is 1e-4.
    assert relative_error(ours, recorded[f"{name}/output"]) <= 1e-5
    for site in SITES:
        for got, expected in zip(captured[f"{site}.mean"].mean(1), recorded[f"{name}/{site}"], strict=True):
            assert relative_error(got, expected) <= 1e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(pipeline, latents, conditioning without mask or rate)."""
    described = DESCRIBED["transformers"]["2b"]
    latents, _, text, _ = ltx_inputs(described["config"], (3, 2, 2))
    return jaxdiff.load(folder(tmp_path_factory.mktemp("ltx"), "2b")), latents, Conditioning(text=text)


def test_masked_text_does_not_matter_and_the_rest_does(tiny):
    pipeline, latents, cond = tiny
    mask = np.arange(6) < np.array([[4], [4]])
    masked = dataclasses.replace(cond, text_mask=mask)
    short = Conditioning(text=cond.text[:, :4])
    said = pipeline.denoise(latents, 500.0, masked)
    np.testing.assert_allclose(said, pipeline.denoise(latents, 500.0, short), atol=1e-5)
    assert np.abs(said - pipeline.denoise(latents, 500.0, cond)).max() > 1e-2


def test_every_clip_may_have_a_frame_rate_of_its_own_and_25_is_the_default(tiny):
    pipeline, latents, cond = tiny
    both = pipeline.denoise(latents, 500.0, dataclasses.replace(cond, fps=jnp.array([12.0, 25.0])))
    default = pipeline.denoise(latents, 500.0, cond)
    np.testing.assert_allclose(both[1], default[1], atol=1e-5)
    assert np.abs(both[0] - default[0]).max() > 1e-2
    slow = pipeline.denoise(latents, 500.0, dataclasses.replace(cond, fps=12.0))
    np.testing.assert_allclose(both[0], slow[0], atol=1e-5)


def test_a_batch_row_does_not_depend_on_the_others(tiny):
    pipeline, latents, cond = tiny
    changed = latents.copy()
    changed[1] = 0.0
    np.testing.assert_array_equal(pipeline.denoise(changed, 500.0, cond)[0], pipeline.denoise(latents, 500.0, cond)[0])


def test_edits_write_and_attention_maps_are_read(tiny):
    pipeline, latents, cond = tiny
    taps = (Tap("self_attention_map"), Tap("block_out", blocks=(-1,)))

    def run(edits):
        return jax.jit(lambda p, x, c: p.evaluate(x, 0.5, c, taps=taps, edits=edits))(pipeline, latents, cond)

    velocity, captured = run(())
    maps = captured["self_attention_map.frame_map"]
    assert maps.shape == (2, 2, 4, 3, 3)
    np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-5)
    edited, after = run((Edit("cross_attention_out", (1,), lambda h, key, sigma: 0 * h),))
    assert np.abs(edited - velocity).max() > 1e-2
    np.testing.assert_array_equal(after["self_attention_map.frame_map"][0], maps[0])


def test_depth_is_scanned_over():
    def call(network, latents, timestep, text):
        return LTX().denoise(network, latents, timestep, Conditioning(text=text))

    def equations(layers):
        config = dataclasses.replace(LTXTransformerConfig.ltx_2b(), num_layers=layers)
        network = Network.abstract(LTXTransformer, config)
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 2, 2, 2, 128), (1,), (1, 4, 4096)))
        return str(jax.make_jaxpr(call)(network, *shapes)).count("\n")

    assert equations(28) == equations(2)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(LTXTransformerConfig.ltx_2b(), 1_923_385_472), (LTXTransformerConfig.ltx_13b(), 13_042_569_344)],
    ids=["2B", "13B"],
)
def test_presets_have_the_published_number_of_parameters(config, parameters):
    network = Network.abstract(LTXTransformer, config, jnp.bfloat16)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == parameters


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 2}, "patch_size=2 is not supported, only 1"),
        ({"qk_norm": "rms_norm"}, "qk_norm='rms_norm' is not supported"),
        ({"cross_attention_dim": 1024}, "cross_attention_dim=1024 is not supported, only 2048"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True is not supported"),
        ({"num_layer": 2}, "did you mean 'num_layers'"),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        LTXTransformerConfig.from_dict(values)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (Conditioning(text=jnp.zeros((2, 6, 15))), r"text embeddings must be \[2 or 1, N, 16\]"),
        (Conditioning(text=jnp.zeros((1, 6, 16)), text_mask=jnp.ones((1, 5))), r"text_mask must be \[2 or 1, 6\]"),
        (Conditioning(text=jnp.zeros((1, 6, 16)), fps=jnp.ones(3)), "fps must be one number or one a clip"),
        (Conditioning(text=jnp.zeros((1, 6, 16)), image_latents=jnp.ones(3)), "image_latents is set"),
    ],
)
def test_conditioning_that_does_not_fit_is_refused(tiny, cond, message):
    pipeline, latents, _ = tiny
    with pytest.raises(ConfigError, match=message):
        pipeline.denoise(latents, 500.0, cond)
    with pytest.raises(ConfigError, match="latents must be"):
        pipeline.denoise(latents[..., :3], 500.0, Conditioning(text=jnp.zeros((1, 6, 16))))


# ---------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("number", range(len(DESCRIBED["grids"])))
def test_grids_are_the_recorded_ones_of_the_pipelines_scheduler(number):
    config, spacing, steps, tokens = DESCRIBED["grids"][number]
    schedule = dataclasses.replace(Schedule.from_config(config), spacing=spacing)
    np.testing.assert_array_equal(schedule.grid(steps, tokens=tokens).astype(np.float32), golden()[f"sigmas_{number}"])


def test_the_pipelines_class_says_how_its_steps_are_spaced_and_where_its_latents_are(tmp_path):
    for name, scheduler, spacing, causal in (
        ("LTXPipeline", LTX_SHIFTED, "even", False),
        ("LTXImageToVideoPipeline", LTX_SHIFTED, "even", False),
        ("LTXConditionPipeline", LTX_PLAIN, "linear_quadratic", True),
    ):
        (tmp_path / name).mkdir()
        pipeline = jaxdiff.load(folder(tmp_path / name, "2b", name, scheduler))
        assert (pipeline.schedule.spacing, pipeline.family.causal_positions) == (spacing, causal)


def test_a_dynamic_schedule_needs_the_size_of_the_video_and_says_so():
    schedule = dataclasses.replace(Schedule.from_config(LTX_SHIFTED), spacing="even")
    with pytest.raises(ConfigError, match="grid\\(steps, tokens="):
        schedule.grid(10)
    with pytest.raises(ConfigError, match="at least 2 steps"):
        schedule.grid(1, tokens=60)
    grid = schedule.grid(10, tokens=60)
    assert grid[0] == 1.0
    assert grid[-2] == pytest.approx(0.1, abs=1e-6)
    assert grid[-1] == 0.0
    assert schedule.grid(10, tokens=7392)[5] > grid[5]  # larger videos stay longer in the noise


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": "odd"}, "unknown spacing 'odd'"),
        ({"spacing": "linear_quadratic", "use_dynamic_shifting": True}, "use_dynamic_shifting=True is not supported"),
    ],
)
def test_spacings_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        FlowMatchEuler(**changes)


def test_a_guided_sample_is_the_recorded_one_of_the_pipeline(tiny):
    pipeline, *_ = tiny
    said = DESCRIBED["sample"]
    config = DESCRIBED["transformers"]["2b"]["config"]
    (noise, _, text, mask), (_, _, negative, negative_mask) = (
        ltx_inputs(config, said["grid"], seed=seed) for seed in (7, 8)
    )
    run = jaxdiff.sample(
        pipeline,
        noise,
        Conditioning(text=text, text_mask=mask, fps=said["fps"]),
        negative=Conditioning(text=negative, text_mask=negative_mask, fps=said["fps"]),
        guidance_scale=said["guidance"],
        steps=said["steps"],
    )
    # Differences grow over the steps; the bar for a whole sample is 1e-3.
    assert relative_error(run.latents, golden()["sample"]) <= 1e-4


def test_inversion_begins_with_the_step_from_clean_to_the_terminal_sigma(tiny):
    pipeline, latents, cond = tiny
    run = jaxdiff.invert(pipeline, latents, cond, steps=4, taps=(Tap("block_out"),))
    assert run.sigmas[0] == 0.0
    assert run.sigmas[1] == pytest.approx(0.1, abs=1e-6)
    np.testing.assert_array_equal(run.sigmas[::-1], pipeline.schedule.grid(4, tokens=3 * 2 * 2))
    assert run.captured["block_out.mean"].shape == (4, 2, 2, 32)
