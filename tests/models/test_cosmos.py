"""Cosmos against recorded outputs of diffusers, through a checkpoint folder and the real loader.

The weights are rebuilt from names and shapes (`tests.reference.random_state`); the recording is made by
`python -m tests.parity.record_cosmos`.
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
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.flow import FixedPoint
from jaxdiff.models.cosmos import Cosmos, CosmosTransformer, CosmosTransformerConfig
from jaxdiff.models.network import Network
from jaxdiff.taps import SITES
from tests.reference import COSMOS_EDM, COSMOS_UNIPC, cosmos_inputs, random_state, relative_error, write_folder

GOLDENS = Path(__file__).parent.parent / "goldens"
DESCRIBED = json.loads((GOLDENS / "cosmos.json").read_text())
TRANSFORMERS = DESCRIBED["transformers"]
READ = tuple(site for site in SITES if site not in ("block_in", "self_attention_map"))
FPS = 12.0


def golden() -> dict:
    with np.load(GOLDENS / "cosmos.npz") as file:
        return dict(file)


def load(path, name):
    described, vae = TRANSFORMERS[name], DESCRIBED["vae"]
    folder = write_folder(
        path / "m",
        pipeline=described["pipeline"],
        scheduler=COSMOS_UNIPC if name == "predict2.5" else COSMOS_EDM,
        transformer=(described["config"], random_state(described["shapes"])),
        vae=(vae["config"], random_state(vae["shapes"], 1)),
    )
    return jaxdiff.load(folder)


@pytest.fixture(scope="module", params=TRANSFORMERS)
def case(request, tmp_path_factory):
    """(name, pipeline, inputs, conditioning)."""
    described = TRANSFORMERS[request.param]
    given = cosmos_inputs(described["config"], described["grid"])
    cond = Conditioning(text=given.text)
    pipeline = load(tmp_path_factory.mktemp("cosmos"), request.param)
    if pipeline.transformer.config.continues:
        cond = dataclasses.replace(cond, image_latents=given.given, fps=FPS)
    return request.param, pipeline, given, cond


def test_output_and_every_site_equal_the_recorded_ones_of_diffusers(case):
    name, pipeline, given, cond = case
    recorded = golden()
    taps = tuple(Tap(site) for site in READ)
    ours, captured = jax.jit(pipeline.family.denoise, static_argnames="taps")(
        pipeline.transformer, given.latents, given.timestep, cond, taps=taps
    )
    # Two correct float32 runs differ by a few 1e-6 of the largest value; the bar for a port is 1e-4.
    assert relative_error(ours, recorded[f"{name}/output"]) <= 1e-5
    for site in READ:
        for got, expected in zip(captured[f"{site}.mean"].mean(1), recorded[f"{name}/{site}"], strict=True):
            assert relative_error(got, expected) <= 1e-5


def test_every_site_is_read_and_written(case):
    _, pipeline, given, cond = case
    assert jaxdiff.tap_sites(pipeline) == SITES
    written = [site for site in SITES if site != "self_attention_map"]
    taps = (*(Tap(site) for site in SITES), Tap("block_out", "frame_mean", blocks=(-1,)))

    @jax.jit
    def run(pipeline, x, cond, strengths):
        # One channel: what is added to all of them, a layer norm takes away.
        edits = tuple(
            Edit(site, (1,), lambda h, key, sigma, s=strength: h.at[..., 0].add(s))
            for site, strength in zip(written, strengths, strict=True)
        )
        return pipeline.evaluate(x, 0.5, cond, taps=taps, edits=edits)

    none = np.zeros(len(written), np.float32)
    velocity, captured = run(pipeline, given.latents, cond, none)
    np.testing.assert_allclose(velocity, pipeline.velocity(given.latents, 0.5, cond), atol=1e-5)
    shapes = pipeline.tap_shapes(taps, given.latents.shape, cond)
    assert {key: value.shape for key, value in captured.items()} == {key: value.shape for key, value in shapes.items()}
    np.testing.assert_allclose(captured["self_attention_map.frame_map"].sum(-1), 1.0, atol=1e-5)
    for i, site in enumerate(written):
        edited, after = run(pipeline, given.latents, cond, 3.0 * (np.arange(len(written)) == i).astype(np.float32))
        assert np.abs(edited - velocity).max() > 1e-3, site
        np.testing.assert_array_equal(after["block_out.mean"][0], captured["block_out.mean"][0])


# ------------------------------------------------------------------------------------------------ frames that are given


@pytest.fixture(scope="module")
def continuing(tmp_path_factory):
    """(pipeline, inputs, conditioning) of Predict2 Video2World."""
    described = TRANSFORMERS["video2world"]
    given = cosmos_inputs(described["config"], described["grid"], batch=1)
    return (
        load(tmp_path_factory.mktemp("cosmos"), "video2world"),
        given,
        Conditioning(given.text, image_latents=given.given),
    )


def test_given_frames_are_seen_clean_whatever_the_state_holds_there(continuing):
    pipeline, given, cond = continuing
    other = given.latents.copy()
    other[:, :2] = 5.0
    at = [pipeline.velocity(x, 0.5, cond) for x in (given.latents, other)]
    np.testing.assert_array_equal(at[0][:, 2:], at[1][:, 2:])
    np.testing.assert_allclose(at[1][:, :2], (other[:, :2] - given.given) / 0.5, rtol=1e-6)
    none = dataclasses.replace(cond, image_latents=given.given[:, :0])
    assert np.abs(pipeline.velocity(given.latents, 0.5, none)[:, 2:] - at[0][:, 2:]).max() > 1e-3


def test_sampling_ends_in_the_given_frames_and_inversion_stays_in_them(continuing):
    pipeline, given, cond = continuing
    end = jaxdiff.sample(pipeline, given.latents, cond, steps=4).latents
    np.testing.assert_allclose(end[:, :2], given.given, atol=1e-5)
    up = jaxdiff.invert(pipeline, end, cond, steps=4).latents
    np.testing.assert_allclose(up[:, :2], end[:, :2], atol=1e-3)


def test_a_picture_is_its_latents_in_the_first_frame(continuing):
    pipeline, given, _ = continuing
    made = pipeline.with_image(Conditioning(given.text), given.video, frames=9)
    np.testing.assert_allclose(made.image_latents, pipeline.encode(given.video)[:, :1], atol=1e-5)
    assert made.image_latents.shape == (1, 1, *given.latents.shape[2:])
    assert np.isfinite(pipeline.velocity(given.latents, 0.5, made)).all()
    with pytest.raises(ConfigError, match="takes no last_image"):
        pipeline.condition(text=given.text, image=given.video, frames=9, last_image=given.video)


def test_predict2_5_follows_the_published_line_to_given_frames_and_samples_without_any(tmp_path):
    pipeline = load(tmp_path, "predict2.5")
    given = cosmos_inputs(TRANSFORMERS["predict2.5"]["config"], (3, 4, 4), batch=1)
    cond = Conditioning(given.text, image_latents=given.given)
    end = jaxdiff.sample(pipeline, given.latents, cond, steps=3).latents
    line = given.latents[:, :2] - 200 / 201 * (given.latents[:, :2] - given.given)
    np.testing.assert_allclose(end[:, :2], line, atol=1e-5)
    assert np.isfinite(jaxdiff.sample(pipeline, given.latents, given.text, steps=3).latents).all()


# --------------------------------------------------------------------------------------------------- samples, inversion


@pytest.mark.parametrize(
    ("sample", "name", "steps", "guidance"),
    [
        ("text2image", "text2image", 4, 7.0),
        ("video2world", "video2world", 4, 7.0),
        ("2.5_text2world", "predict2.5", 5, 3.0),
        ("2.5_video2world", "predict2.5", 5, 3.0),
    ],
)
def test_a_guided_sample_equals_the_recorded_one_of_the_pipeline(sample, name, steps, guidance, tmp_path):
    pipeline, described = load(tmp_path, name), TRANSFORMERS[name]
    given, other = (cosmos_inputs(described["config"], described["grid"], batch=1, seed=seed) for seed in (7, 8))
    cond = Conditioning(text=given.text)
    if sample.endswith("video2world"):
        cond = dataclasses.replace(cond, image_latents=pipeline.encode(given.video))
    if name == "video2world":
        cond = dataclasses.replace(cond, fps=FPS)
    asked = {"guidance_scale": 1 + guidance, "negative": dataclasses.replace(cond, text=other.text)}
    if name == "predict2.5":
        end = jaxdiff.sample(pipeline, given.latents, cond, steps=steps, **asked).latents
    else:
        noise, grid = pipeline.schedule.sigma_max * given.latents, pipeline.schedule.grid(steps)
        end = jaxdiff.sample(pipeline, noise, cond, sigmas=grid[:-1], **asked).latents / (1 - grid[-2])
    assert relative_error(end, golden()[f"{sample}/sample"]) <= 1e-4  # the bar of a whole sample is 1e-3


@pytest.mark.parametrize("case", ["text2image", "predict2.5"], indirect=True)
def test_inversion_states_its_end_and_its_round_trip_is_exact(case):
    _, pipeline, given, cond = case
    latents, steps = given.latents.copy(), 40
    if cond.image_latents is not None:
        latents[:, :2] = cond.image_latents  # the clip's own first frames
    solver = FixedPoint(25)
    up = jaxdiff.invert(
        pipeline, latents, cond, steps=steps, solver=solver, taps=[Tap("block_out")], capture_at=[0, -1]
    )
    assert up.sigmas[0] == 0.0
    assert up.sigmas[-1] == pytest.approx(pipeline.schedule.sigma_max, abs=1e-6)
    assert up.captured["block_out.mean"].shape[0] == 2
    assert relative_error(up.latents, latents) > 0.1
    down = jaxdiff.sample(pipeline, up.latents, cond, sigmas=up.sigmas[::-1], labels="sigma")
    # float32 over 40 steps of a random network, which is steeper than a trained one.
    assert relative_error(down.latents, latents) <= 1e-3


# ------------------------------------------------------------------------------------------------- positions, text, size


def test_frame_rates_scale_positions_in_time_only_and_24_leaves_them(continuing):
    pipeline, given, cond = continuing

    def said(fps, x=given.latents):
        return pipeline.denoise(x, 0.5, dataclasses.replace(cond, fps=fps))

    np.testing.assert_allclose(said(None), said(16.0), atol=1e-6)  # the published pipeline's own rate
    assert np.abs(said(16.0) - said(24.0)).max() > 1e-4
    both = pipeline.denoise(np.repeat(given.latents, 2, 0), 0.5, dataclasses.replace(cond, fps=jnp.array([16.0, 24.0])))
    np.testing.assert_allclose(both, np.concatenate([said(16.0), said(24.0)]), atol=1e-5)


def test_the_prompts_of_predict2_5_are_refused_with_what_to_do(tmp_path):
    load(tmp_path, "predict2.5")
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    index |= {
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "safety_checker": ["cosmos_guardrail", "CosmosSafetyChecker"],
    }
    (tmp_path / "m" / "model_index.json").write_text(json.dumps(index))
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / "m" / name).mkdir()
    pipeline = jaxdiff.load(tmp_path / "m")
    with pytest.raises(MissingDataError, match=r"text encoder of cosmos_predict2_5 is not ported.*\[B, N, 20\]"):
        pipeline.condition("a red ball")


PUBLISHED = {
    "predict2_2b_text2image": 1_956_405_248,
    "predict2_14b_text2image": 14_265_265_152,
    "predict2_2b_video2world": 1_956_413_440,
    "predict2_14b_video2world": 14_265_285_632,
    "predict2_5_2b": 2_059_174_912,
    "predict2_5_14b": 14_368_047_104,
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_number_of_parameters(preset):
    config = getattr(CosmosTransformerConfig, preset)()
    network = Network.abstract(CosmosTransformer, config, jnp.bfloat16)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == PUBLISHED[preset]
    assert CosmosTransformerConfig.from_dict(dataclasses.asdict(config)) == config


def test_depth_is_scanned_over():
    def call(network, latents, timestep, text):
        return Cosmos().denoise(network, latents, timestep, Conditioning(text=text))

    def equations(layers):
        config = dataclasses.replace(CosmosTransformerConfig.predict2_2b_text2image(), num_layers=layers)
        network = Network.abstract(CosmosTransformer, config)
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 2, 4, 4, 16), (1,), (1, 4, 1024)))
        return str(jax.make_jaxpr(call)(network, *shapes)).count("\n")

    assert equations(28) == equations(2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"controlnet_block_every_n": 7}, "controlnet_block_every_n=7 belongs to Cosmos-Transfer"),
        ({"img_context_dim_in": 1152}, "img_context_dim_in=1152 belongs to Cosmos-Transfer"),
        ({"extra_pos_embed_type": "sincos"}, "extra_pos_embed_type='sincos' is not supported"),
        ({"patch_size": [2, 2, 2]}, "a patch must be one latent frame"),
        ({"attention_head_dim": 10}, "attention_head_dim=10 must be even and at least 12"),
        ({"use_crossattn_projection": True, "text_embed_dim": 512}, "which must be text_embed_dim=512"),
        ({"in_channels": 18}, "in_channels=18 must be out_channels=16, or one more"),
        ({"rope_scales": [1, 1, 1]}, "did you mean 'rope_scale'"),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        CosmosTransformerConfig.from_dict(values)


TEXT = jnp.zeros((1, 6, 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": jnp.zeros((1, 6, 11))}, r"text embeddings must be \[1 or 1, N, 12\]"),
        ({"text_mask": jnp.ones((1, 6))}, "text_mask is set, but cosmos_predict2_video2world uses only"),
        ({"fps": jnp.ones(3)}, "fps must be one number or one a clip"),
        ({"image_latents": None}, "this checkpoint continues a video: pipeline.condition"),
        ({"image_latents": jnp.zeros((1, 4, 4, 6, 4))}, r"image_latents must be .*up to 3"),
        ({"extra": {"padding": 0}}, "may hold padding_mask, got padding"),
        ({"extra": {"padding_mask": jnp.zeros((1, 2, 3))}}, r"padding_mask must be \[1 or 1, 4, 6\]"),
    ],
)
def test_conditioning_that_does_not_fit_is_refused(continuing, changes, message):
    pipeline, given, _ = continuing
    cond = Conditioning(TEXT, image_latents=jnp.asarray(given.given))
    with pytest.raises(ConfigError, match=message):
        pipeline.denoise(given.latents, 0.5, dataclasses.replace(cond, **changes))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 6, 3), "latents must be"),
        ((1, 3, 5, 6, 4), "multiples of the patch size"),
        ((1, 3, 4, 60, 4), r"\(3, 2, 30\) tokens, and this checkpoint has positions for \(24, 24, 24\)"),
    ],
)
def test_latents_that_do_not_fit_are_refused(continuing, shape, message):
    pipeline, _, _ = continuing
    given = jnp.zeros((1, 1, *shape[2:]))
    with pytest.raises(ConfigError, match=message):
        pipeline.denoise(jnp.zeros(shape), 0.5, Conditioning(TEXT, image_latents=given))


def test_a_pipeline_class_and_a_transformer_of_different_kinds_are_refused(continuing):
    pipeline, given, cond = continuing
    wrong = dataclasses.replace(pipeline, family=Cosmos())
    with pytest.raises(ConfigError, match="does not go with a transformer of in_channels=5, out_channels=4"):
        wrong.denoise(given.latents, 0.5, cond)
