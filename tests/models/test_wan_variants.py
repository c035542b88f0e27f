"""Wan's image-to-video, TI2V and two-expert checkpoints against recorded outputs of diffusers, through folders.

The weights are rebuilt from names and shapes; the recording is made by `python -m tests.parity.record_wan_variants`.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff import Conditioning, Tap
from jaxdiff.errors import CheckpointError, ConfigError, MissingDataError
from jaxdiff.flow import ExpertGuidance
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig
from ports.folder import load_network
from tests import wan_variants as variants
from tests.reference import random_state, relative_error, write_component

RECORDED = json.loads((variants.GOLDENS / "wan_variants.json").read_text())
SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")


@pytest.fixture(scope="module")
def golden():
    with np.load(variants.GOLDENS / "wan_variants.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Pipelines by name, each loaded once."""
    loaded = {}

    def pipeline(name):
        if name not in loaded:
            folder = variants.write_pipeline(tmp_path_factory.mktemp("wan") / "m", RECORDED, name)
            loaded[name] = jaxdiff.load(folder)
        return loaded[name]

    return pipeline


@pytest.mark.parametrize("name", variants.TRANSFORMERS)
def test_the_output_and_every_site_equal_the_recorded_ones_of_diffusers(name, golden, tmp_path):
    described = RECORDED["networks"][name]
    write_component(tmp_path / "t", described["config"], random_state(described["shapes"]))
    taps = tuple(Tap(site) for site in SITES)
    inputs = variants.transformer_inputs(name)
    run = jax.jit(lambda network, *args: network(*args, taps=taps))
    output, captured = run(load_network(tmp_path / "t"), *inputs)
    # Two correct float32 runs differ by a few 1e-7 of the largest value; the bar for a port is 1e-4.
    assert relative_error(output, golden[f"transformer/{name}/output"]) <= 1e-5
    for site in SITES:
        recorded = golden[f"transformer/{name}/{site}"]
        for ours, expected in zip(captured[f"{site}.mean"].mean(1), recorded, strict=True):
            assert relative_error(ours, expected) <= 1e-5, site


def told(pipeline, name):
    """Noise, conditioning, negative text and guidance of a recorded sample."""
    noise, texts, image, last = variants.sample_inputs(name)
    frames = None if image is None else variants.FRAMES
    cond = pipeline.condition(text=texts[0], image=image, last_image=last, frames=frames)
    scale = variants.SCALE
    if pipeline.boundary is not None:
        scale = ExpertGuidance(scale, variants.SCALE_2, pipeline.boundary)
    return noise, cond, texts[1], scale


@pytest.mark.parametrize("name", variants.PIPELINES)
def test_a_guided_sample_equals_the_recorded_one_of_diffusers(name, golden, load):
    pipeline = load(name)
    noise, cond, negative, scale = told(pipeline, name)
    end = jaxdiff.sample(pipeline, noise, cond, negative=negative, guidance_scale=scale, steps=variants.STEPS).latents
    assert relative_error(end, golden[f"pipeline/{name}"]) <= 1e-4  # the bar is 1e-3


@pytest.mark.parametrize("name", ["i2v_14b", "ti2v_5b_image", "i2v_a14b"])
def test_an_image_may_be_the_first_frame_of_a_video_and_of_any_dtype(name, load):
    pipeline = load(name)
    _, texts, image, _ = variants.sample_inputs(name)
    video = np.random.default_rng(9).integers(0, 256, (1, variants.FRAMES, *image.shape), dtype=np.uint8)
    video[:, 0] = image
    one = pipeline.condition(text=texts[0], image=image, frames=variants.FRAMES)
    other = pipeline.condition(text=texts[0], image=jnp.asarray(video, jnp.float32) / 127.5 - 1)
    for field in ("image_latents", "image_embeds"):
        if getattr(one, field) is not None:
            np.testing.assert_allclose(getattr(other, field), getattr(one, field), atol=1e-5)
    assert other.image_latents.shape[1] == (1 if name == "ti2v_5b_image" else variants.GRID[0])


def test_an_inversion_of_ti2v_stays_in_its_image_and_sampling_returns_to_the_clip(load):
    pipeline = load("ti2v_5b_image")
    noise, cond, _, _ = told(pipeline, "ti2v_5b_image")
    clip = jnp.concatenate([cond.image_latents, jnp.asarray(noise)[:, 1:]], 1)
    there = jaxdiff.invert(pipeline, clip, cond, steps=8, solver="fixed_point")
    np.testing.assert_array_equal(there.latents[:, 0], clip[:, 0])
    assert float(jnp.abs(there.latents[:, 1:] - clip[:, 1:]).max()) > 0.1
    back = jaxdiff.sample(pipeline, there.latents, cond, sigmas=there.sigmas[::-1], labels="sigma")
    assert relative_error(back.latents, clip) <= 1e-4


def test_without_an_image_ti2v_is_told_one_timestep(load):
    pipeline = load("ti2v_5b")
    noise, texts, *_ = variants.sample_inputs("ti2v_5b")
    plain = dataclasses.replace(pipeline, family=Wan())
    np.testing.assert_array_equal(pipeline.velocity(noise, 0.5, texts[0]), plain.velocity(noise, 0.5, texts[0]))


def test_raw_output_is_the_networks_own_in_every_frame(load):
    pipeline = load("ti2v_5b_image")
    noise, cond, _, _ = told(pipeline, "ti2v_5b_image")
    raw, velocity = pipeline.denoise(noise, 500.0, cond), pipeline.velocity(noise, 0.5, cond)
    np.testing.assert_array_equal(raw[:, 1:], velocity[:, 1:])
    line = (noise[:, :1] - cond.image_latents) / 0.5
    np.testing.assert_allclose(velocity[:, :1], line, rtol=1e-6)
    assert float(jnp.abs(raw[:, :1] - line).max()) > 0.1


@pytest.mark.parametrize("name", ["i2v_14b", "ti2v_5b_image", "i2v_a14b"])
def test_a_leading_one_of_an_image_serves_every_clip(name, load):
    pipeline = load(name)
    noise, cond, _, _ = told(pipeline, name)
    two = np.concatenate([noise, noise[:, :, ::-1]])
    each = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), cond)
    np.testing.assert_array_equal(pipeline.velocity(two, 0.5, cond), pipeline.velocity(two, 0.5, each))


@pytest.mark.parametrize("name", variants.PIPELINES)
def test_shapes_of_taps_are_known_without_a_conditioning(name, load):
    pipeline = load(name)
    noise, cond, _, _ = told(pipeline, name)
    taps = (Tap("block_out"), Tap("self_attention_map"))
    shapes = pipeline.tap_shapes(taps, noise.shape)
    assert shapes == pipeline.tap_shapes(taps, noise.shape, cond)
    captured = jax.jit(lambda p, x, c: p.evaluate(x, 0.9, c, taps=taps)[1])(pipeline, noise, cond)
    assert {key: value.shape for key, value in captured.items()} == {key: s.shape for key, s in shapes.items()}


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("i2v_14b", {"image_latents": None}, "continues an image"),
        ("i2v_14b", {"image_embeds": None}, "attends to the tokens of an image"),
        (
            "i2v_14b",
            {"image_latents": np.zeros((1, 3, 4, 6, 4), np.float32)},
            r"image_latents must be \[1, 3, 4, 6, 8\]",
        ),
        ("i2v_14b", {"image_embeds": np.zeros((1, 5, 7), np.float32)}, r"image_embeds must be"),
        ("flf2v_14b", {"image_embeds": np.zeros((1, 5, 16), np.float32)}, "last_image"),
        ("ti2v_5b_image", {"image_latents": np.zeros((1, 2, 4, 6, 4), np.float32)}, "image_latents must be"),
        ("ti2v_5b_image", {"image_embeds": np.zeros((1, 5, 16), np.float32)}, "image_embeds is set"),
        ("t2v_a14b", {"image_latents": np.zeros((1, 3, 4, 6, 8), np.float32)}, "image_latents is set"),
    ],
)
def test_conditioning_that_does_not_fit_is_refused(name, changes, says, load):
    pipeline = load(name)
    noise, cond, _, _ = told(pipeline, name)
    with pytest.raises(ConfigError, match=says):
        pipeline.velocity(noise, 0.5, dataclasses.replace(cond, **changes))


def test_an_image_is_refused_where_it_cannot_be_used(load):
    text = np.zeros((1, 1, 16), np.float32)
    image = variants.picture(0)
    with pytest.raises(ConfigError, match="takes no image"):
        load("t2v_a14b").condition(text=text, image=image, frames=9)
    with pytest.raises(ConfigError, match="frames=T"):
        load("i2v_a14b").condition(text=text, image=image)
    with pytest.raises(ConfigError, match="belong to an image"):
        load("i2v_a14b").condition(text=text, frames=9)
    with pytest.raises(ConfigError, match="an image must be"):
        load("i2v_a14b").condition(text=text, image=image[..., 0], frames=9)
    with pytest.raises(ConfigError, match="uint8, or float"):
        load("i2v_a14b").condition(text=text, image=image.astype(int), frames=9)
    with pytest.raises(ConfigError, match="same shape"):
        load("i2v_a14b").condition(text=text, image=image, last_image=image[:16], frames=9)
    with pytest.raises(ConfigError, match="takes no last_image"):
        load("i2v_14b").condition(text=text, image=image, last_image=image, frames=9)
    for missing in ("image_encoder", "vae"):
        with pytest.raises(MissingDataError, match=missing):
            dataclasses.replace(load("i2v_14b"), **{missing: None}).condition(text=text, image=image, frames=9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_dim": 16}, "image_dim=16 and added_kv_proj_dim=None"),
        ({"image_dim": 16, "added_kv_proj_dim": 7}, "must be the width"),
        ({"pos_embed_seq_len": 10}, "needs an image_dim"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        WanTransformerConfig(**changes)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"boundary_ratio": None}, "there is a transformer_2"),
        ({"boundary_ratio": 7.0}, "boundary_ratio must be a number"),
        ({"expand_timesteps": 1}, "expand_timesteps must be true or false"),
        ({"boundry_ratio": 0.5}, "unknown key 'boundry_ratio'.*did you mean 'boundary_ratio'"),
    ],
)
def test_settings_of_a_folder_that_do_not_fit_are_refused(settings, says, tmp_path):
    folder = variants.write_pipeline(tmp_path / "m", RECORDED, "t2v_a14b")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | settings))
    with pytest.raises((ConfigError, CheckpointError), match=says):
        jaxdiff.load(folder)


def test_a_boundary_without_a_second_network_is_refused(tmp_path):
    folder = variants.write_pipeline(tmp_path / "m", RECORDED, "ti2v_5b")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": 0.5}))
    with pytest.raises(CheckpointError, match=r"boundary_ratio=0\.5, and there is no transformer_2/"):
        jaxdiff.load(folder)


def test_a_pipeline_of_another_kind_than_its_transformer_is_refused(load):
    noise, *_ = variants.sample_inputs("i2v_a14b")
    text = Conditioning(text=jnp.zeros((1, 1, 16)))
    for name, family in (("i2v_a14b", Wan()), ("ti2v_5b", Wan(image_to_video=True))):
        with pytest.raises(ConfigError, match="does not go with a transformer of in_channels"):
            dataclasses.replace(load(name), transformer_2=None, family=family).velocity(noise, 0.5, text)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("i2v_14b", 16_394_878_784),
        ("ti2v_5b", 4_999_787_712),
        ("t2v_a14b", 14_288_491_584),
        ("i2v_a14b", 14_288_901_184),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, parameters):
    network = Network.abstract(WanTransformer, getattr(WanTransformerConfig, preset)(), jnp.bfloat16)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == parameters
