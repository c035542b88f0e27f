"""The Wan VAE against diffusers, live, through a saved folder and the real loader."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.streaming import Memory
from jaxdiff.models.wan.vae_layers import FrameAttention
from ports.folder import load_network
from tests.parity import wan_vae_reference as reference
from tests.reference import relative_error

LENGTHS = {f"published_{frames}": ({}, frames) for frames in (1, 5, 13)}
LENGTHS |= {f"residual_{frames}": (reference.RESIDUAL, frames) for frames in (1, 5, 13)}
CASES = {**reference.CASES, **LENGTHS}


def load(theirs, folder):
    theirs.save_pretrained(folder / "vae")
    return load_network(folder / "vae")


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(reference model, our network, clips, what the reference said)."""
    changes, frames = CASES[request.param]
    theirs = reference.model(changes, seed=frames)
    clip = reference.video(theirs, frames, batch=2)
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


LAYERS = {"plain": ({}, reference.PLAIN_LAYERS), "residual": (reference.RESIDUAL, reference.RESIDUAL_LAYERS)}


@pytest.fixture(scope="module", params=LAYERS)
def layers(request, tmp_path_factory):
    """(network, name there -> name here, name there -> its inputs and outputs)."""
    changes, names = LAYERS[request.param]
    theirs = reference.model(changes, seed=3)
    seen = reference.run_layers(theirs, names, reference.video(theirs, 9))
    return load(theirs, tmp_path_factory.mktemp("vae")), names, seen


def test_every_kind_of_layer_equals_diffusers_chunk_by_chunk(layers):
    network, names, seen = layers

    @jax.jit
    def run(network, inputs):
        outputs = {}
        for name, chunks in inputs.items():
            layer, state, outputs[name] = network.bind(), None, []
            for part in names[name].split("."):
                layer = operator.getitem(layer, int(part)) if part.isdigit() else getattr(layer, part)
            for x in chunks:
                memory = Memory(state)
                outputs[name].append(layer(x) if isinstance(layer, FrameAttention) else layer(x, memory))
                state = memory.state
        return outputs

    ours = run(network, {name: [jnp.asarray(x) for x, _ in pairs] for name, pairs in seen.items()})
    for name, pairs in seen.items():
        assert len(pairs) == 3, name  # one frame, then one latent frame a chunk
        for got, (_, expected) in zip(ours[name], pairs, strict=True):
            assert relative_error(got, expected) <= 1e-5, name
