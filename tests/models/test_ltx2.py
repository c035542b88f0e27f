"""LTX-2 against recorded outputs of diffusers, through a checkpoint folder and the real loader.

The weights are rebuilt from names and shapes (`tests.reference.random_state`); the recording is made by
`python -m tests.parity.record_ltx2`.
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
from jaxdiff.models.ltx2 import (
    LTX2,
    LTX2VAE,
    LTX2Connectors,
    LTX2ConnectorsConfig,
    LTX2Transformer,
    LTX2TransformerConfig,
    LTX2VAEConfig,
)
from jaxdiff.models.ltx2.transformer import audio_rotations, video_rotations
from jaxdiff.models.network import Network
from tests.reference import LTX_SHIFTED, ltx2_inputs, ltx2_states, random_state, relative_error, write_folder

GOLDENS = Path(__file__).parent.parent / "goldens"
DESCRIBED = json.loads((GOLDENS / "ltx2.json").read_text())
SITES = ("self_attention_out", "cross_attention_out", "mlp_out", "block_out")


def golden() -> dict:
    with np.load(GOLDENS / "ltx2.npz") as file:
        return dict(file)


def part(described):
    return described["config"], random_state(described["shapes"], described["seed"])


def load(path, name, *others):
    components = {other: part(DESCRIBED[other]) for other in others}
    described = DESCRIBED["transformers"][name]
    folder = write_folder(
        path / "m", pipeline="LTX2Pipeline", scheduler=LTX_SHIFTED, transformer=part(described), **components
    )
    return jaxdiff.load(folder)


def with_audio(given, **extra) -> Conditioning:
    extra = {"audio_latents": given.audio, "audio_text": given.audio_text, **extra}
    return Conditioning(text=given.text, text_mask=given.mask, extra=extra)


@pytest.fixture(scope="module", params=DESCRIBED["transformers"])
def case(request, tmp_path_factory):
    """(name, pipeline, inputs)."""
    described = DESCRIBED["transformers"][request.param]
    pipeline = load(tmp_path_factory.mktemp("ltx2"), request.param)
    return request.param, pipeline, ltx2_inputs(described["config"], described["grid"])


def test_both_outputs_and_every_site_equal_the_recorded_ones_of_diffusers(case):
    name, pipeline, given = case
    recorded, taps = golden(), tuple(Tap(site) for site in SITES)

    @jax.jit
    def both(network, given):
        return network(
            given.latents, given.timestep, given.text, given.mask,
            audio=given.audio, audio_text=given.audio_text, taps=taps,
        )  # fmt: skip

    video, audio, captured = both(pipeline.transformer, given)
    # Two correct float32 runs differ by a few 1e-6 of the largest value; the bar for a port is 1e-4.
    assert relative_error(video, recorded[f"{name}/video"]) <= 1e-5
    assert relative_error(audio, recorded[f"{name}/audio"]) <= 1e-5
    for site in SITES:
        for got, expected in zip(captured[f"{site}.mean"].mean(1), recorded[f"{name}/{site}"], strict=True):
            assert relative_error(got, expected) <= 1e-5
    assert relative_error(pipeline.denoise(given.latents, given.timestep, with_audio(given)), video) <= 1e-6


def test_without_audio_the_output_is_that_of_isolated_modalities(case):
    name, pipeline, given = case
    recorded = golden()
    cond = Conditioning(text=given.text, text_mask=given.mask)
    alone = pipeline.denoise(given.latents, given.timestep, cond)
    assert relative_error(alone, recorded[f"{name}/alone"]) <= 1e-5
    assert relative_error(alone, recorded[f"{name}/video"]) > 1e-2
    told = dataclasses.replace(cond, extra={"audio_text": given.audio_text})
    np.testing.assert_array_equal(pipeline.denoise(given.latents, given.timestep, told), alone)


def test_rotations_of_the_published_widths_are_the_recorded_ones():
    config, recorded = LTX2TransformerConfig.ltx_2_0(), golden()
    tables = jax.jit(lambda: [table for x in _rotations(config) for table in (x.cos, x.sin)])()
    for number, table in enumerate(tables):
        # Angles reach 15,000: one rounding more in a position, and this would be 1e-3.
        ours = table.reshape(len(table), -1)[:, ::97]
        np.testing.assert_allclose(ours, recorded[f"rotation_{number}"], atol=1e-6)


def _rotations(config):
    return *video_rotations(config, (16, 1, 1), 24.0), *audio_rotations(config, 126)


# ---------------------------------------------------------------------------------------------------- a whole folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(pipeline with connectors and VAE, inputs)."""
    config = DESCRIBED["transformers"]["split"]["config"]
    pipeline = load(tmp_path_factory.mktemp("ltx2"), "split", "connectors", "vae")
    return pipeline, ltx2_inputs(config, (3, 2, 2))


def test_condition_sends_the_states_through_the_connectors_and_leaves_no_mask(tiny):
    pipeline, given = tiny
    states, mask = ltx2_states(DESCRIBED["connectors"]["config"])
    recorded = golden()
    for shaped in (states, states.reshape(*states.shape[:2], -1)):
        cond = pipeline.condition(text=shaped, text_mask=mask, fps=24.0)
        assert relative_error(cond.text, recorded["text"]) <= 1e-5
        assert relative_error(cond.extra["audio_text"], recorded["audio_text"]) <= 1e-5
        assert (cond.text_mask, cond.fps) == (None, 24.0)
    ready = pipeline.condition(text=given.text, text_mask=given.mask)
    np.testing.assert_array_equal(ready.text, given.text)
    np.testing.assert_array_equal(ready.text_mask, given.mask)
    assert ready.extra is None


def test_padding_does_not_reach_the_connectors(tiny):
    pipeline, _ = tiny
    states, mask = ltx2_states(DESCRIBED["connectors"]["config"])
    other = np.where(mask[:, :, None, None], states, 100.0).astype(np.float32)
    first, second = (pipeline.condition(text=text, text_mask=mask) for text in (states, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((1, 8, 12, 2), (1, 8), r"must be \[B, N, 12, 3\] or \[B, N, 36\]"),
        ((1, 6, 36), (1, 6), "has 6 tokens; pad it to a multiple of 4"),
        ((1, 8, 36), (1, 7), r"text_mask must be \[1, 8\]"),
    ],
)
def test_states_that_the_connectors_cannot_take_are_refused(tiny, shape, mask, message):
    with pytest.raises(ConfigError, match=message):
        tiny[0].condition(text=np.zeros(shape, np.float32), text_mask=np.ones(mask, bool))


def test_a_prompt_names_the_text_encoder_that_is_not_ported(tiny):
    with pytest.raises(MissingDataError, match="the text encoder of ltx2 is not ported"):
        tiny[0].condition("a ball")


def test_moments_and_video_equal_the_recorded_ones_of_diffusers(tiny):
    recorded, size, vae = golden(), DESCRIBED["video"], tiny[0].vae
    shape = (1, size["frames"], size["height"], size["width"], 3)
    clip = np.random.default_rng(size["frames"]).uniform(-1, 1, shape).astype(np.float32)
    moments = jax.jit(lambda vae, x: vae(x, method="encode"))(vae, clip)
    assert relative_error(moments, recorded["moments"]) <= 2e-5
    mean = np.split(recorded["moments"], 2, axis=-1)[0]
    decoded = jax.jit(lambda vae, x: vae(x, method="decode"))(vae, mean)
    assert relative_error(decoded[:, :, ::5, ::5], recorded["decoded"]) <= 5e-5
    with pytest.raises(ConfigError, match="at least 2 rows and columns"):
        vae(mean[:, :, :1], method="decode")


def test_held_audio_changes_the_video_and_its_timestep_does_too(tiny):
    pipeline, given = tiny
    joint = pipeline.denoise(given.latents, 500.0, with_audio(given))
    same = pipeline.denoise(given.latents, 500.0, with_audio(given, audio_timestep=500.0))
    np.testing.assert_allclose(same, joint, atol=1e-5)
    clean = pipeline.denoise(given.latents, 500.0, with_audio(given, audio_timestep=jnp.array([0.0, 500.0])))
    assert np.abs(clean[0] - joint[0]).max() > 1e-3
    np.testing.assert_allclose(clean[1], joint[1], atol=1e-5)


def test_a_batch_row_does_not_depend_on_the_others_and_may_have_a_rate_of_its_own(tiny):
    pipeline, given = tiny
    changed = given.latents.copy()
    changed[1] = 0.0
    cond = with_audio(given)
    default = pipeline.denoise(given.latents, 500.0, cond)
    np.testing.assert_allclose(pipeline.denoise(changed, 500.0, cond)[0], default[0], atol=1e-5)
    both = pipeline.denoise(given.latents, 500.0, dataclasses.replace(cond, fps=jnp.array([12.0, 24.0])))
    np.testing.assert_allclose(both[1], default[1], atol=1e-5)
    assert np.abs(both[0] - default[0]).max() > 1e-2


@pytest.mark.parametrize("audio", [False, True])
def test_edits_write_and_attention_maps_are_read(tiny, audio):
    pipeline, given = tiny
    taps = (Tap("self_attention_map"), Tap("block_in"), Tap("block_out"))
    cond = with_audio(given) if audio else Conditioning(text=given.text)

    def run(edits):
        return jax.jit(lambda p, x, c: p.evaluate(x, 0.5, c, taps=taps, edits=edits))(pipeline, given.latents, cond)

    velocity, captured = run(())
    maps = captured["self_attention_map.frame_map"]
    assert maps.shape == (2, 2, 4, 3, 3)
    np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(captured["block_in.mean"][1], captured["block_out.mean"][0], atol=1e-6)
    edited, after = run((Edit("mlp_out", (1,), lambda h, key, sigma: 0 * h),))
    assert np.abs(edited - velocity).max() > 1e-2
    np.testing.assert_array_equal(after["self_attention_map.frame_map"], maps)


@pytest.mark.parametrize("audio", [False, True])
def test_an_inversion_comes_back(tiny, audio):
    pipeline, given = tiny
    cond = with_audio(given) if audio else Conditioning(text=given.text)
    steps = {"steps": 6, "solver": FixedPoint(60)}
    there = jaxdiff.invert(pipeline, given.latents, cond, taps=(Tap("block_out"),), **steps)
    assert there.captured["block_out.mean"].shape == (6, 2, 2, 32)
    np.testing.assert_array_equal(there.sigmas[::-1], pipeline.schedule.grid(6, tokens=3 * 2 * 2))
    back = jaxdiff.sample(pipeline, there.latents, cond, steps=6, solver="euler")
    assert relative_error(there.latents, given.latents) > 1e-2
    assert relative_error(back.latents, given.latents) <= 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": jnp.zeros((2, 6, 36))}, r"text embeddings must be \[2 or 1, N, 12\], as the connectors make them"),
        ({"text_mask": jnp.ones((1, 5))}, r"text_mask must be \[2 or 1, 6\]"),
        ({"fps": jnp.ones(3)}, "fps must be one number or one a clip"),
        ({"image_latents": jnp.ones(3)}, "image_latents is set"),
        ({"extra": {"audio": 1}}, "may hold audio_latents, audio_text, audio_timestep, got audio"),
        ({"extra": {"audio_timestep": 1.0}}, "audio_timestep is set, and there are no audio_latents"),
        ({"extra": {"audio_latents": jnp.ones((2, 5, 16))}}, "audio_latents need audio_text"),
        ({"extra": {"audio_text": jnp.ones((2, 5, 12))}}, r"audio_text must be \[2 or 1, 6, 12\]"),
        ({"extra": {"audio_latents": jnp.ones((2, 5, 15))}}, r"audio_latents must be \[2 or 1, L, 16\]"),
    ],
)
def test_conditioning_that_does_not_fit_is_refused(tiny, change, message):
    pipeline, given = tiny
    cond = Conditioning(text=given.text)
    with pytest.raises(ConfigError, match=message):
        pipeline.denoise(given.latents, 500.0, dataclasses.replace(cond, **change))
    with pytest.raises(ConfigError, match="latents must be"):
        pipeline.denoise(given.latents[..., :3], 500.0, cond)


# ---------------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("kind", "module", "config"),
    [
        ("transformer", LTX2Transformer, LTX2TransformerConfig.ltx_2_0()),
        ("connectors", LTX2Connectors, LTX2ConnectorsConfig.ltx_2_0()),
        ("vae", LTX2VAE, LTX2VAEConfig.ltx_2_0()),
    ],
)
def test_presets_have_the_published_number_of_parameters(kind, module, config):
    published = {"transformer": 18_876_174_592, "connectors": 1_431_475_200, "vae": 1_222_479_601}
    network = Network.abstract(module, config, jnp.bfloat16)
    statistics = 2 * config.latent_channels if kind == "vae" else 0  # buffers, which the reference does not count
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == published[kind] + statistics
    assert DESCRIBED["parameters"][kind] == published[kind]


@pytest.mark.parametrize("audio", [False, True])
def test_depth_is_scanned_over(audio):
    def call(network, latents, timestep, text, sound):
        extra = {"audio_latents": sound, "audio_text": text} if audio else None
        return LTX2().denoise(network, latents, timestep, Conditioning(text=text, extra=extra))

    def equations(layers):
        config = dataclasses.replace(LTX2TransformerConfig.ltx_2_0(), num_layers=layers)
        network = Network.abstract(LTX2Transformer, config)
        sizes = ((1, 2, 2, 2, 128), (1,), (1, 4, 3840), (1, 3, 128))
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sizes)
        return str(jax.make_jaxpr(call)(network, *shapes)).count(" = ")

    assert equations(48) == equations(2)


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (
            LTX2TransformerConfig,
            {"gated_attn": True},
            "gated_attn=True is not supported, only False, which LTX-2.0 has",
        ),
        (LTX2TransformerConfig, {"use_prompt_embeddings": False}, "use_prompt_embeddings=False is not supported"),
        (LTX2TransformerConfig, {"cross_attention_dim": 1024}, "cross_attention_dim=1024 is not supported, only 4096"),
        (LTX2TransformerConfig, {"rope_type": "spilt"}, "rope_type='spilt' is not supported"),
        (LTX2TransformerConfig, {"num_layer": 2}, "did you mean 'num_layers'"),
        (
            LTX2TransformerConfig,
            {"rope_type": "split", "num_attention_heads": 3, "cross_attention_dim": 384},
            "2048 channels in 3 heads cannot be rotated in pairs",
        ),
        (LTX2ConnectorsConfig, {"per_modality_projections": True}, "per_modality_projections=True is not supported"),
        (
            LTX2ConnectorsConfig,
            {"audio_connector_attention_head_dim": 64},
            "audio connector has 30 heads of 64 channels",
        ),
        (LTX2ConnectorsConfig, {"video_connector_num_learnable_registers": None}, "only a positive number"),
        (LTX2VAEConfig, {"decoder_spatial_padding_mode": "circular"}, "only 'reflect' or 'zeros'"),
        (LTX2VAEConfig, {"timestep_conditioning": True}, "timestep_conditioning=True is not supported"),
        (LTX2VAEConfig, {"decoder_block_out_channels": [256, 512, 512]}, "changes its width other than by"),
        (LTX2VAEConfig, {"patch_size": 2}, "both must be"),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_name(config, values, message):
    with pytest.raises(ConfigError, match=message):
        config.from_dict(values)


def test_one_value_for_all_blocks_of_the_vae_is_the_list_of_it():
    one = LTX2VAEConfig(
        spatio_temporal_scaling=True, decoder_spatio_temporal_scaling=True, upsample_residual=True,
        decoder_inject_noise=False,
    )  # fmt: skip
    assert one.layout == LTX2VAEConfig().layout
