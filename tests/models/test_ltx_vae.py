"""The LTX-Video VAE of every version: recorded outputs of diffusers, and what must hold of it.

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

from jaxdiff.errors import ConfigError
from jaxdiff.models.ltx.vae import LTXVAE
from jaxdiff.models.ltx.vae_config import LTXVAEConfig
from jaxdiff.models.network import Network
from ports.folder import load_network
from tests.reference import random_state, relative_error, write_component

GOLDENS = Path(__file__).parent.parent / "goldens"
DESCRIBED = json.loads((GOLDENS / "ltx.json").read_text())


def clip(frames, height=32, width=64):
    """As `tests.parity.ltx_vae_reference.video` makes it."""
    return np.random.default_rng(frames).uniform(-1, 1, (1, frames, height, width, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=DESCRIBED["vaes"])
def case(request, tmp_path_factory):
    """(name, network)."""
    described = DESCRIBED["vaes"][request.param]
    path = tmp_path_factory.mktemp("vae") / "vae"
    write_component(path, described["config"], random_state(described["shapes"], described["seed"]))
    return request.param, load_network(path)


@jax.jit
def encode(network, video):
    return network(video, method="encode")


@jax.jit
def decode(network, latents, timestep=0.0, key=None):
    return network(latents, method="decode", timestep=timestep, key=key)


def test_moments_and_video_equal_the_recorded_ones_of_diffusers(case):
    name, vae = case
    with np.load(GOLDENS / "ltx.npz") as file:
        moments, video = file[f"{name}/moments"], file[f"{name}/video"]
    # float32 runs differ by a few 1e-6 of the largest value; the bar for a port is 1e-4.
    assert relative_error(encode(vae, clip(9)), moments) <= 2e-5
    ours = decode(vae, np.split(moments, 2, axis=-1)[0], DESCRIBED["timestep"])
    assert relative_error(ours[:, :, ::3, ::3], video) <= 5e-5


def test_noise_needs_a_key_and_a_decoder_that_wants_it(case):
    _, vae = case
    latents = np.random.default_rng(0).standard_normal((2, 2, 1, 2, 4)).astype(np.float32)
    config = vae.config
    quiet = decode(vae, latents, 300.0)
    np.testing.assert_array_equal(decode(vae, latents, 300.0), quiet)
    noisy = [decode(vae, latents, jnp.array([0.0, 0.5]), jax.random.key(seed)) for seed in (0, 1)]
    differs = np.abs(noisy[0] - noisy[1]).max(axis=(1, 2, 3, 4)) > 0
    told, injects = config.timestep_conditioning, any(config.decoder_inject_noise)
    np.testing.assert_array_equal(differs, [injects, injects or told])  # the first clip's noise_scale is 0


def test_a_causal_encoder_sees_no_later_frame(case):
    _, vae = case
    if not vae.config.encoder_causal:
        return
    video = clip(9)
    changed = video.copy()
    changed[:, 1:] = 0.0
    before, after = encode(vae, video), encode(vae, changed)
    np.testing.assert_allclose(before[:, 0], after[:, 0], atol=1e-6)
    assert np.abs(before - after)[:, 1].max() > 1e-3


def test_normalise_has_the_checkpoints_statistics_and_an_inverse(case):
    _, vae = case
    mean, std = np.asarray(vae.params["latents_mean"]), np.asarray(vae.params["latents_std"])
    latents = np.random.default_rng(0).standard_normal((1, 2, 1, 2, 4)).astype(np.float32)
    factor = vae.config.scaling_factor
    np.testing.assert_allclose(vae(latents, method="normalise"), (latents - mean) * factor / std, rtol=1e-5)
    np.testing.assert_allclose(vae(latents, method="denormalise"), latents * std / factor + mean, rtol=1e-5)


PUBLISHED = {"0.9.0": (LTXVAEConfig.v0_9_0(), 419_193_649), "0.9.1": (LTXVAEConfig.v0_9_1(), 934_976_434)}
PUBLISHED["0.9.5"] = (LTXVAEConfig.v0_9_5(), 1_246_913_522)


@pytest.mark.parametrize("version", PUBLISHED)
def test_presets_have_the_published_size_and_strides(version):
    config, parameters = PUBLISHED[version]
    network = Network.abstract(LTXVAE, config)
    statistics = 2 * config.latent_channels  # buffers of the reference, which its count leaves out
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == parameters + statistics
    video = jax.ShapeDtypeStruct((1, 17, 64, 96, 3), jnp.float32)
    moments = jax.eval_shape(lambda n, v: n(v, method="encode"), network, video)
    assert moments.shape == (1, 3, 2, 3, 256)
    latents = jax.ShapeDtypeStruct((1, 3, 2, 3, 128), jnp.float32)
    assert jax.eval_shape(lambda n, z: n(z, method="decode"), network, latents).shape == video.shape


def test_results_come_in_the_dtype_of_the_weights():
    config = LTXVAEConfig.from_dict(
        {key: value for key, value in DESCRIBED["vaes"]["0.9.1"]["config"].items() if key != "_class_name"}
    )
    network = Network.abstract(LTXVAE, config, jnp.bfloat16)
    moments = jax.eval_shape(lambda n, v: n(v, method="encode"), network, jnp.zeros((1, 9, 32, 32, 3)))
    assert moments.dtype == jnp.bfloat16
    video = jax.eval_shape(
        lambda n, z: n(z, method="decode", key=jax.random.key(0)), network, jnp.zeros((1, 2, 1, 1, 4))
    )
    assert video.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size_t": 2}, "patch_size_t=2 is not supported"),
        ({"patch_size": 2}, r"strides \(time, space\) of the encoder are \(8, 16\)"),
        ({"decoder_spatio_temporal_scaling": [True] * 4}, r"those of the decoder \(16, 64\)"),
        ({"layers_per_block": [1, 1]}, "layers_per_block has 2 entries and needs 5"),
        ({"downsample_type": ["conv", "conv", "conv", "pool"]}, "downsample_type holds 'pool'"),
        ({"timestep_conditioning": True}, "cannot change its width other than by upsample_factor"),
        ({"down_block_types": ["LTXVideo095DownBlock3D"] + ["LTXVideoDownBlock3D"] * 3}, "cannot go from 128 to 256"),
        ({"latent_channel": 4}, "did you mean 'latent_channels'"),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        LTXVAEConfig.from_dict(values)


@pytest.mark.parametrize("version", PUBLISHED)
def test_a_published_configuration_is_read_as_it_is(version):
    config = PUBLISHED[version][0]
    assert LTXVAEConfig.from_dict({"_class_name": "AutoencoderKLLTXVideo", **dataclasses.asdict(config)}) == config


def test_shapes_that_do_not_fit_are_refused(case):
    _, vae = case
    with pytest.raises(ConfigError, match="8 frames do not fit 8k\\+1; the nearest lengths that do are 1 and 9"):
        vae(jnp.zeros((1, 8, 32, 32, 3)), method="encode")
    with pytest.raises(ConfigError, match="multiples of 32"):
        vae(jnp.zeros((1, 9, 32, 48, 3)), method="encode")
    with pytest.raises(ConfigError, match="latents must be \\[B, T', H', W', 4\\]"):
        vae(jnp.zeros((1, 2, 1, 1, 5)), method="decode")
