"""The CogVideoX VAE against diffusers, live, through a saved folder and the real loader."""

import operator

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.models.cogvideox.vae_layers import ConditionedNorm, Downsample, Memory, Upsample
from ports.folder import load_network
from tests.parity import cogvideox_vae_reference as reference
from tests.reference import relative_error


def load(theirs, folder):
    theirs.save_pretrained(folder / "vae")
    return load_network(folder / "vae")


@pytest.fixture(scope="module", params=reference.CASES)
def case(request, tmp_path_factory):
    """(our network, clips, what the reference said)."""
    changes, frames = reference.CASES[request.param]
    theirs = reference.model(changes, seed=frames)
    clip = reference.video(frames, batch=2)
    return load(theirs, tmp_path_factory.mktemp("vae")), clip, reference.run(theirs, clip)


@jax.jit
def encode(network, video):
    return network(video, method="encode")


@jax.jit
def decode(network, latents):
    return network(latents, method="decode", clamp=False)


def test_moments_and_video_equal_those_of_diffusers(case):
    ours, clip, said = case
    # The bar for a port is 1e-4 end to end; two correct float32 runs differ by a few 1e-6.
    moments = encode(ours, clip)
    assert moments.shape == said.moments.shape
    assert relative_error(moments, said.moments) <= 2e-5
    decoded = decode(ours, said.latents)
    assert decoded.shape == said.decoded.shape
    assert relative_error(decoded, said.decoded) <= 2e-5


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    theirs = reference.model(reference.UNEVEN, seed=3)
    return load(theirs, tmp_path_factory.mktemp("vae")), reference.run_layers(theirs, reference.video(17))


@pytest.mark.parametrize("name", reference.LAYERS)
def test_every_kind_of_layer_equals_diffusers_chunk_by_chunk(layers, name):
    network, seen = layers
    pairs = seen[name]
    assert len(pairs) == 2  # 9 and 8 video frames; 3 and 2 latent frames

    @jax.jit
    def run(network, inputs):
        layer, state, outputs = network.bind(), None, []
        for part in reference.LAYERS[name].split("."):
            layer = operator.getitem(layer, int(part)) if part.isdigit() else getattr(layer, part)
        for x, *z in inputs:
            memory = Memory(state)
            remembers = not isinstance(layer, ConditionedNorm | Downsample | Upsample)
            outputs.append(layer(x, *([memory] if remembers else []), *z))
            state = memory.state
        return outputs

    ours = run(network, [[jnp.asarray(x) for x in inputs] for inputs, _ in pairs])
    for got, (_, expected) in zip(ours, pairs, strict=True):
        assert got.shape == expected.shape
        assert relative_error(got, expected) <= 1e-5
