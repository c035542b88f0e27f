"""Gradients of the VAEs, which train: through their loops over chunks of frames, to every weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models.cogvideox import CogVideoXVAE
from jaxdiff.models.wan import WanVAE
from tests.models.vaes import COGVIDEOX, WAN, noise, random_vae
from tests.reference import relative_error


@pytest.fixture(scope="module")
def wan():
    return random_vae(WanVAE, WAN)


@functools.partial(jax.jit, static_argnums=4)
@functools.partial(jax.grad, argnums=(1, 2))
def gradients(network, params, video, target, chunk):
    vae = network.replace(params).bind()
    mean = jnp.split(vae.encode(video, chunk=chunk), 2, axis=-1)[0]
    return jnp.mean(jnp.square(vae.decode(mean, clamp=False, chunk=chunk) - target))


def test_gradients_through_the_scan_are_those_of_the_whole_clip(wan):
    video = noise(1, 9, 8, 8, 3)
    by_chunk, whole = (gradients(wan, wan.params, video, video, n) for n in (1, 2))
    for path, got in jax.tree.leaves_with_path(by_chunk):
        expected = _at(whole, path)
        assert np.abs(expected).max() > 0, path
        # Sums over all pixels in another order, through 40 layers of float32.
        assert relative_error(got, expected) <= 1e-3, path


def _at(tree, path):
    for key in path:
        tree = tree[getattr(key, "key", getattr(key, "idx", None))]
    return np.asarray(tree)


def test_gradients_of_a_black_clip_are_finite(wan):
    """Where all channels are zero the norm divides by nothing."""
    silent, black = jax.tree.map(jnp.zeros_like, wan.params), jnp.zeros((1, 9, 8, 8, 3))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients(wan, silent, black, black + 1, 1)))


def test_gradients_reach_every_weight_of_cogvideox():
    network, video = random_vae(CogVideoXVAE, COGVIDEOX), noise(1, 9, 8, 12, 3)

    @jax.jit
    @jax.grad
    def gradient(params):
        vae = network.replace(params).bind()
        mean = jnp.split(vae.encode(video), 2, axis=-1)[0]
        return jnp.mean(jnp.square(vae.decode(mean, clamp=False) - video))

    for path, leaf in jax.tree.leaves_with_path(gradient(network.params)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
