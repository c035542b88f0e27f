"""The Wan VAE: recorded outputs of diffusers, and the properties of its streaming."""

import dataclasses
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
from tests.reference import random_state, relative_error, write_component

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = json.loads((GOLDENS / "wan_vae.json").read_text())
SMALL = dataclasses.replace(WanVAEConfig.nano(), base_dim=4, z_dim=4, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)


@pytest.fixture(scope="module")
def small():
    return Network.init(WanVAE, SMALL, seed=1)


def clip(frames, size=16, batch=1):
    return np.random.default_rng(frames).uniform(-1, 1, (batch, frames, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_mode_and_video_equal_the_recorded_ones_of_diffusers(name, tmp_path):
    described = CASES[name]
    state = random_state(described["shapes"], described["frames"])
    write_component(tmp_path / "vae", described["config"], state)
    vae = load_network(tmp_path / "vae")
    with np.load(GOLDENS / "wan_vae.npz") as file:
        mode, video = file[f"{name}/mode"], file[f"{name}/video"]
    moments = jax.jit(lambda n, v: n(v, method="encode"))(vae, clip(described["frames"]))
    assert relative_error(jnp.split(moments, 2, axis=-1)[0], mode) <= 2e-5  # float32; the bar for a port is 1e-4
    decoded = jax.jit(lambda n, z: n(z, method="decode"))(vae, 0.1 * mode)
    assert relative_error(decoded, video) <= 2e-5


@pytest.mark.parametrize("chunk", [2, 4])
def test_larger_chunks_give_the_same_result(small, chunk):
    video = clip(17)
    one = small(video, method="encode")
    assert relative_error(small(video, method="encode", chunk=chunk), one) <= 1e-5
    latents = one[..., :4]
    decoded = small(latents, method="decode", clamp=False)
    assert relative_error(small(latents, method="decode", clamp=False, chunk=chunk), decoded) <= 1e-5


def test_a_latent_frame_does_not_depend_on_later_frames(small):
    video = clip(13)
    changed = video.copy()
    changed[:, 9:] = 0.0
    before, after = (np.asarray(small(v, method="encode")) for v in (video, changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert np.abs(before[:, 3] - after[:, 3]).max() > 1e-3


def test_intermediate_memory_does_not_grow_with_length(small):
    def temporary(frames):
        video = jax.ShapeDtypeStruct((1, frames, 32, 32, 3), jnp.float32)
        compiled = jax.jit(lambda n, v: n(v, method="encode")).lower(small, video).compile()
        whole = frames * 32 * 32 * 3 * 4
        return compiled.memory_analysis().temp_size_in_bytes - 2 * whole  # the input laid out in chunks

    assert temporary(65) < 1.5 * max(temporary(17), 200_000)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 8, 16, 16, 3), "8 frames do not fit 4k\\+1; the nearest lengths that do are 5 and 9"),
        ((1, 9, 18, 16, 3), "must be multiples of 4"),
        ((1, 9, 16, 16, 4), "video must be"),
    ],
)
def test_videos_that_do_not_fit_are_refused(small, shape, message):
    with pytest.raises(ConfigError, match=message):
        small(jnp.zeros(shape), method="encode")


def test_published_presets_have_the_published_size():
    params = Network.abstract(WanVAE, WanVAEConfig.wan2_1()).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 126_892_531


def test_other_architectures_are_refused_by_name():
    with pytest.raises(ConfigError, match="is_residual"):
        WanVAEConfig.from_dict({"is_residual": True})
    with pytest.raises(ConfigError, match="did you mean 'z_dim'"):
        WanVAEConfig.from_dict({"z_dims": 4})
