"""The Wan VAE against diffusers, live, through a saved folder and the real loader."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.wan.vae_layers import FrameAttention, Memory
from ports.folder import load_network
from tests.parity import wan_vae_reference as reference
from tests.reference import relative_error

LENGTHS = {f"published_{frames}": ({}, frames) for frames in (1, 5, 13)}
CASES = {**reference.CASES, **LENGTHS}


def load(theirs, folder):
    theirs.save_pretrained(folder / "vae")
    return load_network(folder / "vae")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(reference model, our network, clips, what the reference said)."""
    changes, frames = CASES[request.param]
    theirs = reference.model(changes, seed=frames)
    clip = reference.video(frames, batch=2)
    return theirs, load(theirs, tmp_path_factory.mktemp("vae")), clip, reference.run(theirs, clip)


@jax.jit
def encode(network, video):
    return network(video, method="encode")


@jax.jit
def decode(network, latents):
    return network(latents, method="decode"), network(latents, method="decode", clamp=False)


def test_moments_and_video_equal_those_of_diffusers(case):
    _, ours, clip, said = case
    # The bar for a port is 1e-4 end to end; two correct float32 runs differ by a few 1e-6.
    assert relative_error(encode(ours, clip), said.moments) <= 2e-5
    clamped, decoded = decode(ours, said.latents)
    assert decoded.shape == clip.shape
    assert relative_error(decoded, said.decoded) <= 2e-5
    assert relative_error(clamped, said.clamped) <= 2e-5


def test_normalised_latents_are_those_of_the_pipeline(case):
    theirs, ours, _, said = case
    mean, std = np.array(theirs.config.latents_mean), np.array(theirs.config.latents_std)
    # As in WanImageToVideoPipeline.prepare_latents: (mu - mean) * (1 / std).
    assert relative_error(ours(said.latents, method="normalise"), (said.latents - mean) / std) <= 1e-6
    again = ours(ours(said.latents, method="normalise"), method="denormalise")
    assert relative_error(again, said.latents) <= 1e-6


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    theirs = reference.model({}, seed=3)
    return load(theirs, tmp_path_factory.mktemp("vae")), reference.run_layers(theirs, reference.video(9))


@pytest.mark.parametrize("name", reference.LAYERS)
def test_every_kind_of_layer_equals_diffusers_chunk_by_chunk(layers, name):
    network, seen = layers
    pairs = seen[name]
    assert len(pairs) == 3  # one frame, then one latent frame a chunk

    @jax.jit
    def run(network, inputs):
        layer, state, outputs = network.bind(), None, []
        for part in reference.LAYERS[name].split("."):
            layer = operator.getitem(layer, int(part)) if part.isdigit() else getattr(layer, part)
        for x in inputs:
            memory = Memory(state)
            outputs.append(layer(x) if isinstance(layer, FrameAttention) else layer(x, memory))
            state = memory.state
        return outputs

    ours = run(network, [jnp.asarray(x) for x, _ in pairs])
    for got, (_, expected) in zip(ours, pairs, strict=True):
        assert relative_error(got, expected) <= 1e-5
