"""The LTX-Video VAE of every version against diffusers, live, through a saved folder and the real loader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import LTXPipeline

from ports.folder import load_network
from tests.parity import ltx_vae_reference as reference
from tests.reference import relative_error

TIMESTEPS = np.array(reference.TIMESTEPS, np.float32)


@pytest.fixture(scope="module", params=reference.CASES)
def case(request, tmp_path_factory):
    """(reference model, our network, clips, what the reference said)."""
    theirs, clip = reference.model(request.param), reference.video()
    folder = tmp_path_factory.mktemp("vae") / "vae"
    theirs.save_pretrained(folder)
    return theirs, load_network(folder), clip, reference.run(theirs, clip)


@jax.jit
def encode(network, video):
    return network(video, method="encode")


@jax.jit
def decode(network, latents, timestep, key=None, noise_scale=0.0):
    return network(latents, method="decode", timestep=timestep, key=key, noise_scale=noise_scale)


def test_moments_and_video_equal_those_of_diffusers(case):
    theirs, ours, clip, said = case
    # The bar for a port is 1e-4 end to end; two correct float32 runs differ by a few 1e-6.
    assert relative_error(encode(ours, clip), said.moments) <= 2e-5
    decoded = decode(ours, said.latents, TIMESTEPS)
    assert decoded.shape == clip.shape
    assert relative_error(decoded, said.decoded) <= 5e-5
    if theirs.config.timestep_conditioning:
        assert relative_error(decode(ours, said.latents, TIMESTEPS[::-1]), said.decoded) > 1e-2


def test_normalised_latents_are_those_of_the_pipeline(case):
    theirs, ours, _, said = case
    statistics = (theirs.latents_mean, theirs.latents_std, theirs.config.scaling_factor)
    latents = torch.from_numpy(said.latents).permute(0, 4, 1, 2, 3)
    for method, function in (
        ("normalise", LTXPipeline._normalize_latents),
        ("denormalise", LTXPipeline._denormalize_latents),
    ):
        expected = reference.channels_last(function(latents, *statistics))
        assert relative_error(ours(said.latents, method=method), expected) <= 1e-6


def test_injected_noise_and_noised_latents_are_those_of_the_reference(case):
    """Our noise, handed to the reference where it would draw its own: in the same places, in the same order."""
    theirs, ours, _, said = case
    key, scale = jax.random.key(3), jnp.array([0.2, 0.7])
    ours_now = decode(ours, said.latents, TIMESTEPS, key, scale)
    if not theirs.config.timestep_conditioning:
        np.testing.assert_array_equal(ours_now, decode(ours, said.latents, TIMESTEPS))
        return
    first, second = jax.random.split(key)
    noise = np.asarray(jax.random.normal(first, said.latents.shape))
    mixed = np.asarray(scale)[:, None, None, None, None]
    draws = iter(range(100))

    def draw(height, width):
        return np.asarray(jax.random.normal(jax.random.fold_in(second, next(draws)), (height, width)))

    expected = reference.decode(theirs, (1 - mixed) * said.latents + mixed * noise, noise=draw)
    assert relative_error(ours_now, expected) <= 5e-5
    counted = sum(name.endswith(("per_channel_scale1", "per_channel_scale2")) for name, _ in theirs.named_parameters())
    assert next(draws) == counted
    if counted:
        assert relative_error(ours_now, decode(ours, (1 - mixed) * said.latents + mixed * noise, TIMESTEPS)) > 1e-3
