"""Edits during a run, and the keys they are handed."""

import functools
import itertools

import jax
import numpy as np
import pytest

from jaxdiff import Edit, Tap
from jaxdiff.errors import ConfigError
from jaxdiff.flow import invert, sample
from tests.flow.pipelines import ROUNDING, TAPS, close, inputs, toy


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


def add_own(h, key, sigma, own):
    return h + own["size"] * jax.random.normal(key, h.shape)


def test_what_a_block_is_handed_is_data_and_all_values_run_one_program(log):
    pipeline, (x, text) = toy(), inputs()

    def run(sizes):
        edits = (Edit("block_out", None, add_own, {"size": np.asarray(sizes, np.float32)}),)
        return invert(pipeline, x, text, steps=3, edits=edits).latents

    ends = [run(sizes) for sizes in ((0, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0, 0, 1.0))]
    traces = log.traces
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(ends, 2))
    np.testing.assert_allclose(ends[0], invert(pipeline, x, text, steps=3).latents, **ROUNDING)
    log.traces = 0
    run((0.25, 0, 0))
    assert traces > 0 and log.traces == 0


def add_each(h, keys, sigma):
    return h + jax.vmap(lambda key: jax.random.normal(key, h.shape[1:]))(keys)


def test_with_a_key_a_clip_an_edit_of_a_clip_does_not_depend_on_its_neighbours():
    pipeline, (x, text) = toy(), inputs(3)
    keys, edits = jax.random.split(jax.random.key(3), 3), (Edit("block_out", (1,), add_each),)

    def run(at, **others):
        return invert(pipeline, x[at], text[at], steps=3, edits=edits, key=keys[at], **others).latents

    whole = run(slice(None))
    np.testing.assert_allclose(run(slice(1, 3)), whole[1:], **ROUNDING)
    same = invert(pipeline, x[:1].repeat(2, 0), text[:1].repeat(2, 0), steps=3, edits=edits, key=keys[:2]).latents
    assert np.abs(same[0] - same[1]).max() > 1e-2
    with pytest.raises(ConfigError, match=r"one key or one a clip, \[3\], got \(2,\)"):
        invert(pipeline, x, text, steps=3, edits=edits, key=keys[:2])


def test_with_guidance_both_rows_of_a_clip_have_its_key():
    pipeline, (x, text) = toy(), inputs()
    edits, keys = (Edit("block_out", (1,), add_each),), jax.random.split(jax.random.key(3), 2)
    run = functools.partial(sample, pipeline, x, text, steps=3, edits=edits, key=keys)
    # Away from the same text, guidance adds nothing: unless the two rows were disturbed differently.
    np.testing.assert_allclose(run(guidance_scale=3.0, negative=text).latents, run().latents, **ROUNDING)
