"""Training of the nano model: its VAE keeps latent frames apart, and runs end to end at a tiny size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.models.network import Network
from jaxdiff.models.wan import WanTransformerConfig, WanVAE, WanVAEConfig
from jaxdiff.train import nano
from jaxdiff.train.loop import Recipe

WORLD = WorldConfig(frames=9)
SMALL = dataclasses.replace(WanVAEConfig.nano(), base_dim=4, z_dim=4, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
STAGES = (nano.Stage(Recipe(steps=2), batch=2, crop=8, frames=5),)


@pytest.fixture(scope="module")
def trained():
    return nano.train_vae(nano.VAETraining(model=SMALL, world=WORLD, stages=STAGES, held_out=8))


@pytest.fixture(scope="module")
def network():
    """Every weight drawn at random, then without past taps."""
    start = Network.init(WanVAE, SMALL, 0)
    leaves, tree = jax.tree.flatten(start.params)
    rng = np.random.default_rng(0)
    drawn = [jnp.asarray(leaf + 0.2 * rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves]
    return start.replace(nano.with_past(nano.present_only(jax.tree.unflatten(tree, drawn))))


def video(seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (1, 9, 8, 8, 3)), jnp.float32)


def encode(network, clip):
    return np.asarray(network.bind().encode(clip))[0]


def decode(network, latents):
    return np.asarray(network.bind().decode(latents, clamp=False))[0]


@pytest.mark.parametrize("frame, group", [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_frame_changes_only_its_own_latent_frame(network, frame, group):
    clip = video()
    changed = np.abs(encode(network, clip.at[:, frame].multiply(-1.0)) - encode(network, clip)).max(axis=(1, 2, 3))
    assert changed[group] > 1e-3
    assert not np.delete(changed, group).any()


@pytest.mark.parametrize("group, frames", [(0, [0]), (1, [1, 2, 3, 4]), (2, [5, 6, 7, 8])])
def test_a_latent_frame_changes_only_its_own_frames(network, group, frames):
    latents = jnp.asarray(np.random.default_rng(1).standard_normal((1, 3, 2, 2, 4)), jnp.float32)
    difference = decode(network, latents.at[:, group].multiply(-1.0)) - decode(network, latents)
    changed = np.abs(difference).max(axis=(1, 2, 3))
    assert (changed[frames] > 1e-3).all()
    assert not np.delete(changed, frames).any()


def test_with_zero_taps_the_network_is_the_one_without_past(network):
    one_tap = network.replace(nano.present_only(network.params))
    assert jax.tree.map(jnp.shape, one_tap.params) != jax.tree.map(jnp.shape, network.params)
    np.testing.assert_allclose(
        np.asarray(one_tap.bind().encode(video(), chunk=9)), np.asarray(network.bind().encode(video())), atol=2e-6
    )


def test_training_keeps_latent_frames_apart_and_measures_the_latents(trained):
    network, measured = trained
    clip = video()
    changed = np.abs(encode(network, clip.at[:, 1:5].multiply(-1.0)) - encode(network, clip)).max(axis=(1, 2, 3))
    assert changed[1] > 1e-3
    assert not changed[0] and not changed[2]
    assert measured["clips"] == 8
    assert np.isfinite(measured["psnr"])
    assert all(s > 0 and s != 1.0 for s in network.config.latents_std)


def test_a_piece_is_consecutive_frames_of_one_square():
    clip = jnp.arange(9.0)[:, None, None, None] * 1e4 + jnp.arange(32)[:, None, None] * 100 + jnp.arange(32)[:, None]
    clips = jnp.broadcast_to(clip[None], (6, 9, 32, 32, 3))
    pieces = np.asarray(nano._pieces(jax.random.key(0), clips, 5, 8))
    assert pieces.shape == (6, 5, 8, 8, 3)
    np.testing.assert_array_equal(np.diff(pieces, axis=1), 1e4)
    np.testing.assert_array_equal(np.diff(pieces, axis=2), 100)
    np.testing.assert_array_equal(np.diff(pieces, axis=3), 1)
    assert len({float(piece[0, 0, 0, 0]) for piece in pieces}) > 1


def test_a_transformer_trains_on_encoded_clips(trained):
    vae, _ = trained
    config = nano.BackboneTraining(
        model=WanTransformerConfig(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, text_dim=16, freq_dim=8,
            ffn_dim=16, num_layers=2, rope_max_seq_len=16,
        ),
        world=WORLD, recipe=Recipe(steps=3), batch=2, clips=6,
    )  # fmt: skip
    latents, words = nano.encode_world(vae, config, batch=4)
    assert latents.shape == (6, 3, 8, 8, 4)
    assert words.shape == (6, 3)
    seen = []
    network, state = nano.train_backbone(config, latents, words, report=lambda step, metrics: seen.append(metrics))
    assert int(state.step) == 3
    assert np.isfinite(seen[-1]["loss"])
    start = Network.init(network.module, network.config, config.recipe.seed)
    moved = [
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(network.params), jax.tree.leaves(start.params), strict=True)
    ]
    assert sum(m > 0 for m in moved) > len(moved) / 2
