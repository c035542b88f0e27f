"""Latents that are kept, and the error per clip."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.errors import ConfigError
from jaxdiff.flow import invert
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.mesh import data_mesh
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig
from jaxdiff.pipeline import Pipeline
from jaxdiff.study.batches import Batches, Encoded
from jaxdiff.study.reading import Reading, coarse_error, open_store

CLIPS = [Clip(f"clip{i}", Path(f"/nowhere/{i}"), f"g{i // 4}", "O1", i % 2 == 0) for i in range(7)]


@pytest.fixture(scope="module")
def pipeline():
    small = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 16}
    config = dataclasses.replace(WanTransformerConfig.nano(), **small)
    return Pipeline(Network.init(WanTransformer, config, 0), Wan(), UniPCFlow(shift=1.0))


class Counted:
    """Stands in for a pipeline; encodes clip i to latents full of i, and counts how often."""

    def __init__(self):
        self.calls = 0

    def encode(self, video):
        self.calls += 1
        return jnp.asarray(video, jnp.float32)[:, :1]


class Reader(list):
    """Clips as a `ClipReader` gives them, none of them bad."""

    @property
    def skipped(self):
        return {}


class Recipe:
    clips_per_device = 3

    def ordered(self, clip, video):
        return video

    def reader(self, clips, skip):
        return Reader((k, np.full((5, 2, 2, 3), int(clip.path.name), np.uint8)) for k, clip in enumerate(clips))


def latents_of(pipeline, encoded, clips, todo):
    batches = Batches(pipeline, clips, Recipe(), data_mesh(), todo, encoded=encoded)
    return {int(i): np.asarray(x)[k] for batch, x in batches for k, i in enumerate(batch.clip_ids[: batch.real])}


def test_kept_latents_are_those_that_encoding_gives_and_nothing_is_encoded_again():
    pipeline, encoded = Counted(), Encoded()
    first = latents_of(pipeline, encoded, CLIPS, range(7))
    calls = pipeline.calls
    subset = [CLIPS[5], CLIPS[2]]  # other numbers, other neighbours
    again = latents_of(pipeline, encoded, subset, range(2))
    assert pipeline.calls == calls
    np.testing.assert_array_equal(again[0], first[5])
    np.testing.assert_array_equal(again[1], first[2])
    assert first[5].max() == 5


def test_beyond_the_limit_clips_are_encoded_again():
    pipeline = Counted()
    encoded = Encoded(limit=3 * 12 * 4)  # three clips of 12 floats
    first = latents_of(pipeline, encoded, CLIPS, range(7))
    calls = pipeline.calls
    assert encoded.rows(CLIPS[:3]) is not None and encoded.rows(CLIPS) is None
    np.testing.assert_equal(latents_of(pipeline, encoded, CLIPS, range(7)), first)
    assert pipeline.calls == 2 * calls


def test_error_of_a_clip_is_the_distance_from_a_run_on_every_fourth_point(pipeline):
    latents = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 16))
    cond = Conditioning(text=jnp.zeros((1, 1, 16)))
    reading = Reading(frames=5, steps=8, error_steps=2)
    fine = invert(pipeline, latents, cond, steps=8)
    coarse = invert(pipeline, latents, cond, sigmas=np.asarray(fine.sigmas)[[0, 4, 8]])
    found = [row["coarse_error"] for row in coarse_error(pipeline, latents, fine.latents, cond, reading)]
    a, b = np.asarray(coarse.latents), np.asarray(fine.latents)
    expected = [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # six digits are stored
    assert min(found) > 1e-4


def test_error_shrinks_in_step_with_the_number_of_steps(pipeline):
    latents = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 16))
    cond = Conditioning(text=jnp.zeros((1, 1, 16)))

    def error(steps):
        end = invert(pipeline, latents, cond, steps=steps).latents
        reading = Reading(frames=5, steps=steps, error_steps=steps // 4)
        return np.array([row["coarse_error"] for row in coarse_error(pipeline, latents, end, cond, reading)])

    # Euler is of first order: half the step, half the distance between N/4 and N steps.
    np.testing.assert_allclose(error(64) / error(128), 2.0, rtol=0.15)


def test_a_clip_whose_coarse_run_is_not_finite_has_no_error(pipeline):
    latents = jnp.ones((2, 2, 4, 4, 16)).at[1].set(jnp.nan)
    reading = Reading(frames=5, steps=4, error_steps=2)
    found = coarse_error(pipeline, latents, latents, Conditioning(text=jnp.zeros((1, 1, 16))), reading)
    assert found[1] == {}


@pytest.mark.parametrize("error_steps", [-1, 8])
def test_the_coarse_run_must_be_coarser(error_steps):
    with pytest.raises(ConfigError, match="error_steps"):
        Reading(frames=5, steps=8, error_steps=error_steps)


def test_metadata_cannot_hide_what_a_store_says_of_its_slots(pipeline, tmp_path):
    with pytest.raises(ConfigError, match="labels"):
        open_store(pipeline, CLIPS, Reading(frames=5), tmp_path, {"sigmas": [0.0], "labels": [0.0]}, {"labels": []})
