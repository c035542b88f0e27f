"""Prompts of generated clips."""

import jax
import numpy as np
import pytest

from jaxdiff.data.worlds import WorldConfig, prompts, sample_batch
from jaxdiff.errors import ConfigError


def test_word_vectors_are_orthogonal_and_of_unit_mean_square():
    for dim in (len(prompts.WORDS) + 1, 64):
        vectors = prompts.table(dim).astype(np.float64)
        np.testing.assert_allclose(vectors @ vectors.T / dim, np.eye(len(prompts.WORDS)), atol=1e-6)  # float32 table


def test_prompts_say_what_the_clip_shows():
    draw = jax.jit(lambda key: sample_batch(key, WorldConfig(), 64))
    batch = jax.device_get(draw(jax.random.key(0)))
    for i in range(64):
        thing = jax.tree.map(lambda leaf, i=i: leaf[i], batch.before)
        spoken = [prompts.WORDS[w] for w in batch.words[i]]
        if not thing.present:
            assert spoken == ["nothing"] * 3
            continue
        motion = ("hops" if thing.hop > 0 else "slides") + ("-right" if thing.speed >= 0 else "-left")
        assert spoken == [prompts.COLOURS[thing.colour], prompts.SHAPES[thing.shape], motion]
    assert not bool(batch.before.present.all())


def test_a_written_prompt_and_its_indices_embed_alike():
    indices = [prompts.WORDS.index(w) for w in ("cyan", "triangle", "hops-left")]
    np.testing.assert_array_equal(prompts.encode("Cyan triangle hops-left", 32), prompts.embed(np.array(indices), 32))


def test_the_empty_prompt_is_one_zero_token():
    np.testing.assert_array_equal(prompts.encode("", 16), np.zeros((1, 16), np.float32))


def test_unknown_words_and_narrow_tables_are_refused():
    with pytest.raises(ConfigError, match=r"'dics' is unknown.*'disc'"):
        prompts.encode("red dics slides-left", 32)
    with pytest.raises(ConfigError, match="text_dim=8"):
        prompts.table(8)
