"""The CogVideoX VAE: recorded outputs of diffusers (`python -m tests.parity.record_cogvideox_vae`), its chunks, and what
it refuses.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.models.cogvideox import CogVideoXVAE, CogVideoXVAEConfig, image_latents
from jaxdiff.models.cogvideox.vae_layers import enlarged
from jaxdiff.models.network import Network
from ports.folder import load_network
from tests.models.vaes import COGVIDEOX as SMALL
from tests.models.vaes import noise, random_vae
from tests.reference import random_state, relative_error, write_component

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = json.loads((GOLDENS / "cogvideox_vae.json").read_text())


@pytest.fixture(scope="module")
def small():
    return random_vae(CogVideoXVAE, SMALL)


@jax.jit
def encode(network, video):
    return network(video, method="encode")


@jax.jit
def decode(network, latents):
    return network(latents, method="decode", clamp=False)


@pytest.mark.parametrize("name", CASES)
def test_moments_and_video_equal_the_recorded_ones_of_diffusers(name, tmp_path):
    described = CASES[name]
    write_component(tmp_path / "vae", described["config"], random_state(described["shapes"], described["seed"]))
    vae = load_network(tmp_path / "vae")
    with np.load(GOLDENS / "cogvideox_vae.npz") as file:
        moments, video = file[f"{name}/moments"], file[f"{name}/video"]
    clip = np.random.default_rng(described["video"][1]).uniform(-1, 1, described["video"]).astype(np.float32)
    # float32 runs differ by a few 1e-6 of the largest value; the bar for a port is 1e-4.
    assert relative_error(encode(vae, clip), moments) <= 2e-5
    assert relative_error(decode(vae, np.split(moments, 2, axis=-1)[0]), video) <= 2e-5


@pytest.fixture(scope="module")
def coded(small):
    """A clip of two chunks and its moments, and its latents' video."""
    video, latents = noise(1, 17, 8, 8, 3), noise(1, 5, 2, 2, 4)
    return video, np.asarray(encode(small, video)), latents, np.asarray(decode(small, latents))


def test_a_chunk_depends_on_no_later_one_and_on_all_of_its_own(small, coded):
    video, moments, latents, decoded = coded
    changed = video.copy()
    changed[:, 9] += 0.5  # the first frame of the second chunk
    difference = np.abs(moments - encode(small, changed))
    np.testing.assert_array_equal(difference[:, :3], 0)
    assert (difference[:, 3:].max(axis=(0, 2, 3, 4)) > 1e-4).all()
    changed = video.copy()
    changed[:, 8] += 0.5  # the last frame of the first chunk: the norms carry it to the chunk's first
    assert (np.abs(moments - encode(small, changed)).max(axis=(0, 2, 3, 4)) > 1e-5).all()

    changed = latents.copy()
    changed[:, 3] += 0.5
    difference = np.abs(decoded - decode(small, changed))
    np.testing.assert_array_equal(difference[:, :9], 0)
    assert (difference[:, 9:].max(axis=(0, 2, 3, 4)) > 1e-4).all()


def test_a_clip_does_not_depend_on_its_neighbours(small, coded):
    video, moments, _, _ = coded
    both = encode(small, np.concatenate([video, 0 * video]))
    assert relative_error(both[0], moments[0]) <= 1e-5  # another batch size, another order of sums


@pytest.mark.parametrize(("frames", "made"), [(1, 1), (3, 9), (4, 16), (5, 17)])
def test_an_even_number_of_latent_frames_has_no_first_frame(frames, made):
    network = Network.abstract(CogVideoXVAE, SMALL)
    latents = jax.ShapeDtypeStruct((2, frames, 2, 3, 4), jnp.float32)
    assert jax.eval_shape(decode, network, latents).shape == (2, made, 8, 12, 3)


@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17, 21, 49])
def test_every_length_4k_plus_1_has_k_plus_1_latent_frames(frames):
    network = Network.abstract(CogVideoXVAE, SMALL)
    video = jax.ShapeDtypeStruct((2, frames, 8, 12, 3), jnp.float32)
    assert jax.eval_shape(encode, network, video).shape == (2, 1 + frames // 4, 2, 3, 8)


def test_enlarging_repeats_all_but_the_first_of_an_odd_number_of_frames():
    x = np.arange(3.0).reshape(1, 3, 1, 1, 1)
    big = np.asarray(enlarged(x, (1, 9, 2, 4, 7)))
    assert big.shape == (1, 9, 2, 4, 1)
    np.testing.assert_array_equal(big[0, :, 1, 3, 0], [0, 1, 1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(np.asarray(enlarged(x[:, :2], (1, 4, 1, 1, 7))).ravel(), [0, 0, 1, 1])
    np.testing.assert_array_equal(np.asarray(enlarged(x[:, :1], (1, 1, 1, 1, 7))).ravel(), [0])


def test_latents_and_those_of_an_image_are_scaled_as_published(small):
    latents = noise(1, 2, 2, 2, 4)
    for invert in (False, True):
        vae = dataclasses.replace(
            small, config=dataclasses.replace(SMALL, scaling_factor=0.7, invert_scale_latents=invert)
        )
        np.testing.assert_allclose(vae(latents, method="normalise"), 0.7 * latents, rtol=1e-6)
        np.testing.assert_allclose(vae(latents, method="denormalise"), latents / 0.7, rtol=1e-6)
        factor = 1 / 0.7 if invert else 0.7
        np.testing.assert_allclose(vae(latents, method="normalise_image"), factor * latents, rtol=1e-6)


def test_image_latents_are_those_of_the_first_frame_and_zeros(small):
    image = noise(2, 8, 8, 3)
    made = np.asarray(image_latents(small, image, 3))
    assert made.shape == (2, 3, 2, 2, 4)
    np.testing.assert_array_equal(made[:, 1:], 0)
    mean = np.split(np.asarray(small(image[:, None], method="encode")), 2, axis=-1)[0]
    assert relative_error(made[:, :1], SMALL.scaling_factor * mean) <= 1e-6


def test_decoding_clamps_unless_told_otherwise(small, coded):
    _, _, latents, raw = coded
    assert np.abs(raw).max() > 1
    clamped = jax.jit(lambda n, z: n(z, method="decode"))(small, latents)
    np.testing.assert_array_equal(clamped, raw.clip(-1, 1))


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_shapes_that_do_not_fit_are_refused(small, method):
    wrong = {
        "encode": [
            ((1, 8, 8, 8, 3), "8 frames do not fit 4k"),
            ((1, 9, 8, 6, 3), "multiples of 4"),
            ((9, 8, 8, 3), "T"),
        ],
        "decode": [
            ((1, 2, 2, 2, 5), "\\[B, T', H', W', 4\\]"),
            ((2, 2, 2, 4), "latents"),
            ((1, 0, 2, 2, 4), "latents"),
        ],
    }
    for shape, message in wrong[method]:
        with pytest.raises(ConfigError, match=message):
            small(jnp.zeros(shape), method=method)


@pytest.mark.parametrize("name", ["cogvideox_2b", "cogvideox_5b", "cogvideox1_5_5b"])
def test_published_presets_have_the_published_size(name):
    config = getattr(CogVideoXVAEConfig, name)()
    params = Network.abstract(CogVideoXVAE, config).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 215_583_907
    assert (config.temporal_stride, config.spatial_stride) == (4, 8)
    assert (
        CogVideoXVAEConfig.from_dict({"_class_name": "AutoencoderKLCogVideoX", **dataclasses.asdict(config)}) == config
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_quant_conv": True}, "use_quant_conv=True is not supported"),
        ({"temporal_compression_ratio": 8}, "temporal_compression_ratio=8 is not supported, only 4"),
        ({"shift_factor": 0.1}, "shift_factor=0.1 is not supported"),
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"block_out_channels": [128, 256]}, "down_block_types"),
        ({"block_out_channels": [128, 256, 256, 500]}, "must be multiples of norm_num_groups=32"),
        ({"scaling_facto": 1.0}, "did you mean 'scaling_factor'"),
    ],
)
def test_configurations_that_are_not_supported_are_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        CogVideoXVAEConfig.from_dict(values)
