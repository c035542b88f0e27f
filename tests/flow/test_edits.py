"""Edits during a run, and the keys they are handed."""

import functools
import itertools

import jax
import numpy as np

from jaxdiff import Edit, Tap
from jaxdiff.flow import invert
from tests.flow.pipelines import TAPS, close, inputs, toy


def add_noise(h, key, sigma):
    return h + sigma * jax.random.normal(key, h.shape)


def test_edits_write_into_the_network_and_depend_on_the_key():
    pipeline, (x, text) = toy(), inputs()
    edits = (Edit("block_out", (1,), add_noise),)
    run = functools.partial(invert, pipeline, x, text, steps=3, taps=TAPS)
    plain, edited = run(), run(edits=edits)
    assert np.abs(edited.latents - plain.latents).max() > 1e-2
    # At sigma 0 this edit does nothing; afterwards block 0 still sees only what came through the state.
    close(
        {key: value[0] for key, value in edited.captured.items()},
        {key: value[0] for key, value in plain.captured.items()},
    )
    np.testing.assert_array_equal(run(edits=edits).latents, edited.latents)
    np.testing.assert_array_equal(run(edits=edits, key=jax.random.key(0)).latents, edited.latents)
    assert not np.array_equal(run(edits=edits, key=jax.random.key(1)).latents, edited.latents)


def keep_noise(h, key, sigma):
    return jax.random.normal(key, h.shape)


def test_every_step_draws_its_own_key():
    pipeline, (x, text) = toy(), inputs()
    run = invert(pipeline, x, text, steps=4, taps=(Tap("block_in"),), edits=(Edit("block_in", (1,), keep_noise),))
    seen = np.asarray(run.captured["block_in.mean"])[:, 1]
    assert all(np.abs(a - b).min() > 1e-6 for a, b in itertools.combinations(seen, 2))
