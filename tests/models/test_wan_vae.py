"""The Wan VAE, 2.1 and 2.2: recorded outputs of diffusers, and the properties of its streaming.

The weights are rebuilt from names and shapes (`tests.reference.random_state`); the recording is made by
`python -m tests.parity.record_wan_vae`.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.wan.vae import WanVAE, WanVAEConfig
from ports.folder import load_network
from tests.models.vaes import WAN as SMALL
from tests.models.vaes import noise, random_vae
from tests.reference import random_state, relative_error, write_component

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = json.loads((GOLDENS / "wan_vae.json").read_text())
RESIDUAL = dataclasses.replace(
    SMALL, is_residual=True, decoder_base_dim=8, patch_size=2, in_channels=12, out_channels=12
)


@pytest.fixture(scope="module")
def small():
    return random_vae(WanVAE, SMALL)


@pytest.fixture(scope="module", params=[SMALL, RESIDUAL], ids=["2.1", "2.2"])
def either(request, small):
    """A network of each architecture, and pixels per latent pixel."""
    config = request.param
    network = small if config == SMALL else random_vae(WanVAE, config)
    return network, config.spatial_stride


@functools.partial(jax.jit, static_argnames="chunk")
def encode(network, video, chunk=1):
    return network(video, method="encode", chunk=chunk)


@functools.partial(jax.jit, static_argnames=("chunk", "clamp"))
def decode(network, latents, chunk=1, clamp=False):
    return network(latents, method="decode", chunk=chunk, clamp=clamp)


@pytest.mark.parametrize("name", CASES)
def test_moments_and_video_equal_the_recorded_ones_of_diffusers(name, tmp_path):
    described = CASES[name]
    state = random_state(described["shapes"], described["seed"])
    write_component(tmp_path / "vae", described["config"], state)
    vae = load_network(tmp_path / "vae")
    with np.load(GOLDENS / "wan_vae.npz") as file:
        moments, video = file[f"{name}/moments"], file[f"{name}/video"]
    clip = np.random.default_rng(described["video"][1]).uniform(-1, 1, described["video"]).astype(np.float32)
    # float32 runs differ by a few 1e-6 of the largest value; the bar for a port is 1e-4.
    assert relative_error(encode(vae, clip), moments) <= 2e-5
    assert relative_error(decode(vae, np.split(moments, 2, axis=-1)[0])[:, :, :, ::3], video) <= 2e-5


def test_larger_chunks_give_the_same_result(either):
    network, stride = either
    chunk = 3  # leaves a remainder of one
    video, latents = noise(2, 17, 2 * stride, 3 * stride, 3), noise(2, 5, 2, 3, 4)
    assert relative_error(encode(network, video, chunk), encode(network, video)) <= 1e-5  # float32 rounding
    assert relative_error(decode(network, latents, chunk), decode(network, latents)) <= 1e-5


def test_a_latent_frame_depends_on_no_later_frame_and_on_its_own_last_one(either):
    network, stride = either
    video = noise(1, 13, 2 * stride, 2 * stride, 3)
    changed = video.copy()
    changed[:, 8] += 0.5
    before, after = np.asarray(encode(network, video)), np.asarray(encode(network, changed))
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert (np.abs(before - after)[:, 2:].max(axis=(0, 2, 3, 4)) > 1e-4).all()


def test_a_video_frame_depends_on_no_later_latent_frame(either):
    network, _ = either
    latents = noise(1, 4, 2, 2, 4)
    changed = latents.copy()
    changed[:, 2] += 0.5
    before, after = np.asarray(decode(network, latents)), np.asarray(decode(network, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before - after)[:, 5:].max(axis=(0, 2, 3, 4)) > 1e-4).all()


def test_a_clip_does_not_depend_on_its_neighbours(small):
    video = noise(2, 5, 8, 8, 3)
    changed = video.copy()
    changed[1] = 0.0
    np.testing.assert_array_equal(encode(small, video)[0], encode(small, changed)[0])


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_intermediate_memory_does_not_grow_with_length(either, method):
    network, stride = either

    def memory(count, chunk=1):
        """Bytes between input and output, and bytes of input and output, for `count` latent frames."""
        shape = (1, 4 * count - 3, 8 * stride, 8 * stride, 3) if method == "encode" else (1, count, 8, 8, 4)
        call = jax.jit(lambda n, x: n(x, method=method, chunk=chunk))
        used = call.lower(network, jax.ShapeDtypeStruct(shape, jnp.float32)).compile().memory_analysis()
        return used.temp_size_in_bytes, used.argument_size_in_bytes + used.output_size_in_bytes

    (short, ends), (long, long_ends) = memory(5), memory(17)
    # Input and output may each exist twice more, laid out by chunks; everything else stays.
    assert long - short <= 2 * (long_ends - ends) + 0.1 * short
    whole, _ = memory(17, chunk=16)
    assert whole - short > 4 * (long_ends - ends) + 0.1 * short  # what the bound would catch


@pytest.mark.parametrize(
    "config, time, space",
    [
        (SMALL, 4, 4),
        (dataclasses.replace(SMALL, dim_mult=(1, 2, 1)), 4, 4),
        (dataclasses.replace(SMALL, dim_mult=(1, 1), temperal_downsample=(True,)), 2, 2),
        (RESIDUAL, 4, 8),
        (dataclasses.replace(RESIDUAL, temperal_downsample=(False, True)), 2, 8),
        (dataclasses.replace(RESIDUAL, patch_size=None, in_channels=3, out_channels=3), 4, 4),
    ],
)
def test_strides_follow_from_the_configuration(config, time, space):
    network = Network.abstract(WanVAE, config)
    assert (config.temporal_stride, config.spatial_stride) == (time, space)
    video = jax.ShapeDtypeStruct((2, 1 + 3 * time, 2 * space, 3 * space, 3), jnp.float32)
    moments = jax.eval_shape(lambda n, v: n(v, method="encode"), network, video)
    assert moments.shape == (2, 4, 2, 3, 8)
    latents = jax.ShapeDtypeStruct((*moments.shape[:-1], 4), jnp.float32)
    assert jax.eval_shape(lambda n, z: n(z, method="decode"), network, latents).shape == video.shape


@pytest.mark.parametrize("config", [SMALL, RESIDUAL], ids=["2.1", "2.2"])
def test_results_come_in_the_dtype_of_the_weights(config):
    network = Network.abstract(WanVAE, config, jnp.bfloat16)
    video = jax.ShapeDtypeStruct((1, 5, 8, 8, 3), jnp.float32)
    moments = jax.eval_shape(lambda n, v: n(v, method="encode"), network, video)
    assert moments.dtype == jnp.bfloat16
    latents = jax.ShapeDtypeStruct((1, 2, 2, 2, 4), jnp.float32)
    assert jax.eval_shape(lambda n, z: n(z, method="decode"), network, latents).dtype == jnp.bfloat16


def test_decoding_clamps_unless_told_otherwise(small):
    latents = 10 * noise(1, 2, 2, 2, 4)
    raw = np.asarray(decode(small, latents))
    assert np.abs(raw).max() > 1
    np.testing.assert_array_equal(decode(small, latents, clamp=True), raw.clip(-1, 1))


def test_normalise_has_the_configured_statistics_and_an_inverse(small):
    mean, std = (np.array(values, np.float32) for values in (SMALL.latents_mean, SMALL.latents_std))
    latents = noise(1, 2, 2, 2, 4)
    np.testing.assert_allclose(small(latents, method="normalise"), (latents - mean) / std, rtol=1e-6)
    np.testing.assert_allclose(small(latents, method="denormalise"), latents * std + mean, rtol=1e-6)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 8, 16, 16, 3), "8 frames do not fit 4k\\+1; the nearest lengths that do are 5 and 9"),
        ((1, 9, 18, 16, 3), "18x16 pixels do not fit: height and width must be multiples of 4"),
        ((1, 9, 16, 16, 4), "video must be \\[B, T, H, W, 3\\], got \\(1, 9, 16, 16, 4\\)"),
        ((9, 16, 16, 3), "video must be"),
    ],
)
def test_videos_that_do_not_fit_are_refused(small, shape, message):
    with pytest.raises(ConfigError, match=message):
        small(jnp.zeros(shape), method="encode")


@pytest.mark.parametrize("shape", [(1, 2, 2, 2, 5), (2, 2, 2, 4), (1, 0, 2, 2, 4)])
def test_latents_that_do_not_fit_are_refused(small, shape):
    with pytest.raises(ConfigError, match="latents must be \\[B, T', H', W', 4\\]"):
        small(jnp.zeros(shape), method="decode")


@pytest.mark.parametrize(
    "config, parameters, space",
    [(WanVAEConfig.wan2_1(), 126_892_531, 8), (WanVAEConfig.wan2_2(), 704_688_668, 16)],
    ids=["2.1", "2.2"],
)
def test_published_presets_have_the_published_size_and_strides(config, parameters, space):
    network = Network.abstract(WanVAE, config)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == parameters
    video = jax.ShapeDtypeStruct((1, 81, 5 * space, 3 * space, 3), jnp.float32)
    moments = jax.eval_shape(lambda n, v: n(v, method="encode"), network, video)
    assert moments.shape == (1, 21, 5, 3, 2 * config.z_dim)
    latents = jax.ShapeDtypeStruct((1, 21, 5, 3, config.z_dim), jnp.float32)
    assert jax.eval_shape(lambda n, z: n(z, method="decode"), network, latents).shape == video.shape


@pytest.mark.parametrize(
    "values, message",
    [
        ({"patch_size": 2}, "in_channels=3 must be a multiple of patch_size\\*\\*2=4"),
        ({"is_residual": True, "dim_mult": [1, 2, 4, 8]}, "is_residual cannot resample from 384 to 768 channels"),
        ({"is_residual": True, "dim_mult": [3, 3, 1, 5]}, "is_residual cannot resample from 96 to 288 channels"),
        ({"attn_scales": [0.5]}, "attn_scales=\\(0.5,\\) is not supported"),
        ({"z_dims": 4}, "unknown configuration key 'z_dims'.*did you mean 'z_dim'"),
        ({"z_dim": 4}, "latents_mean has 16 entries and needs 4"),
        ({"dim_mult": [1, 2]}, "temperal_downsample has 3 entries and needs 1"),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        WanVAEConfig.from_dict(values)


@pytest.mark.parametrize("config", [WanVAEConfig.wan2_1(), WanVAEConfig.wan2_2()], ids=["2.1", "2.2"])
def test_a_published_configuration_is_read_as_it_is(config):
    again = WanVAEConfig.from_dict({"_class_name": "AutoencoderKLWan", **dataclasses.asdict(config)})
    assert again == config
    assert hash(again) == hash(config)
