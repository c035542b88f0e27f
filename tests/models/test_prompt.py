"""A folder's text encoder: loaded when a prompt needs it, its embeddings kept, padded as the family wants it."""

import dataclasses
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from jaxdiff.errors import CheckpointError, ConfigError, MissingDataError
from jaxdiff.models.text import TextConvention, TextEncoder, Tokenizer, clean
from jaxdiff.models.text import prompt as prompt_lib
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from ports.folder import load_network, load_text_encoder
from ports.safetensors_reader import Checkpoint
from ports.wan import transformer_table
from ports.writer import save_pipeline
from tests.reference import relative_error, write_folder
from tests.text import WIDTH, write_network, write_text

CONFIG = WanTransformerConfig(
    num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=WIDTH, freq_dim=8, ffn_dim=16,
    num_layers=2, rope_max_seq_len=16,
)  # fmt: skip
WAN = TextConvention(24, clean, attend_padding=False, zero_padding=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "wan"
    write_folder(folder)
    extra = {"_class_name": "WanTransformer3DModel"}
    file = "diffusion_pytorch_model.safetensors"
    write_network(folder / "transformer", file, WanTransformer, CONFIG, transformer_table, **extra)
    write_text(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "WanTransformer3DModel"]
    index |= {"text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


@pytest.fixture
def loads(monkeypatch):
    """The folders whose text encoder was read, in order."""
    read = []

    def load(source):
        read.append(source.folder)
        return load_text_encoder(source)

    monkeypatch.setattr("ports.folder.load_text_encoder", load)
    return read


# ----------------------------------------------------------------------------------------------------- conditions


def test_a_prompt_becomes_the_encoder_s_output_with_zeros_for_padding(made):
    cond = jaxdiff.load(made).condition(" the red  ball &amp; a cube")
    ids, real = Tokenizer(made / "tokenizer")("the red ball & a cube", 512)
    expected = np.asarray(jax.jit(lambda n, i: n(i))(load_network(made / "text_encoder"), ids[None, :real]))
    assert cond.text.shape == (1, 512, WIDTH) and cond.text.dtype == jnp.float32 and cond.text_mask is None
    assert relative_error(cond.text[:, :real], expected) <= 1e-5
    assert 0 < real < 512 and not np.asarray(cond.text[:, real:]).any()


def test_the_embedding_conditions_the_network(made):
    pipeline = jaxdiff.load(made)
    latents = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 4, 4, 4)), jnp.float32)
    conds = [pipeline.condition(prompt, max_length=8) for prompt in ("", "a ball", ["a ball", ""])]
    empty, ball, both = (np.asarray(pipeline.velocity(latents, 0.5, cond)) for cond in conds)
    assert relative_error(ball, empty) > 1e-4
    assert relative_error(both, np.stack([ball[0], empty[1]])) <= 1e-5


def test_prompts_do_not_depend_on_their_neighbours_and_max_length_may_be_given(made, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", "")
    pipeline = jaxdiff.load(made)
    both = pipeline.condition(["a red ball", "rain " * 200], max_length=20).text
    assert both.shape == (2, 20, WIDTH) and np.asarray(both[1]).all()
    np.testing.assert_array_equal(both[:1], pipeline.condition("a red ball", max_length=20).text)


def test_conventions_decide_what_padding_becomes(made):
    source = TextEncoder(made, "float32")

    def embed(**changes):
        return source.embed(["a ball"], TextConvention(24, **changes), load_text_encoder)

    plain, mask = embed()
    zeroed, _ = embed(zero_padding=True)
    masked, _ = embed(attend_padding=False)
    real = mask[0]
    assert 0 < real.sum() < 24 and real[: real.sum()].all()
    np.testing.assert_array_equal(zeroed[0, real], plain[0, real])
    assert not zeroed[0, ~real].any() and plain[0, ~real].all()
    assert relative_error(masked[0, real], plain[0, real]) > 1e-3
    # Cleaning is part of it, too.
    dirty = source.embed(["a  &lt; ball"], TextConvention(24), load_text_encoder)[0]
    cleaned = source.embed(["a  &lt; ball"], TextConvention(24, clean), load_text_encoder)[0]
    assert relative_error(cleaned, dirty) > 1e-3


def test_families_that_mask_are_told_which_tokens_are_real(made):
    pipeline = jaxdiff.load(made)
    telling = dataclasses.replace(pipeline.family, text=TextConvention(16, pass_mask=True))
    cond = dataclasses.replace(pipeline, family=telling).condition(["a ball", ""])
    assert cond.text_mask.shape == (2, 16) and cond.text_mask.dtype == bool
    assert cond.text_mask.sum(1).tolist() == [Tokenizer(made / "tokenizer")("a ball", 16)[1], 1]


def test_either_a_prompt_or_embeddings(made):
    pipeline = jaxdiff.load(made)
    text = np.ones((1, 3, WIDTH), np.float32)
    np.testing.assert_array_equal(pipeline.condition(text=text).text, text)
    for wrong in ({}, {"prompt": "", "text": text}):
        with pytest.raises(ConfigError, match="one of the two"):
            pipeline.condition(**wrong)
    with pytest.raises(ConfigError, match="no prompt"):
        pipeline.condition([])


# ------------------------------------------------------------------------------------------------ weights and cache


def test_load_reads_no_weight_of_the_text_encoder(made, monkeypatch):
    seen = []
    view = Checkpoint.view
    monkeypatch.setattr(Checkpoint, "view", lambda self, name: seen.append(self.path.name) or view(self, name))
    pipeline = jaxdiff.load(made)
    assert set(seen) == {"transformer"}
    pipeline.condition("a ball", max_length=8)
    assert set(seen) == {"transformer", "text_encoder"}
    assert len(jax.tree.leaves(pipeline)) == len(jax.tree.leaves(pipeline.transformer))
    hash(pipeline.text_encoder)


def test_the_encoder_is_loaded_once_for_all_new_prompts_and_not_for_known_ones(made, loads, cache):
    first = jaxdiff.load(made).condition(["a ball", "", "rain"])
    assert len(loads) == 1 and len(list(cache.iterdir())) == 3
    again = jaxdiff.load(made).condition(["rain", "a ball"])
    assert len(loads) == 1
    np.testing.assert_array_equal(again.text, first.text[np.array([2, 0])])
    jaxdiff.load(made).condition(["rain", "a cube"])
    assert len(loads) == 2


@pytest.mark.parametrize("what", ["length", "dtype", "weights", "large weights", "tokenizer", "convention", "prompt"])
def test_whatever_changes_an_embedding_misses_the_cache(what, made, loads, cache, tmp_path, monkeypatch):
    folder = write_text(tmp_path / "other")
    weights = folder / "text_encoder" / "model.safetensors"
    if what == "large weights":
        monkeypatch.setattr(prompt_lib, "WHOLE", 2 * prompt_lib.SAMPLE)
    source, convention, prompt, length = TextEncoder(folder, "float32"), WAN, "a ball", 12

    def embed():
        return source.embed([prompt], convention, load, length)[0]

    def load(source):
        loads.append(source)
        return load_text_encoder(source)

    before = embed()
    np.testing.assert_array_equal(embed(), before)
    assert len(loads) == 1
    if what == "length":
        length = 13
    elif what == "dtype":
        source = TextEncoder(folder, "bfloat16")
    elif what.endswith("weights"):
        content = bytearray(weights.read_bytes())
        content[-1000] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(1, 1))
    elif what == "tokenizer":
        (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    elif what == "convention":
        convention = TextConvention(24, clean, attend_padding=False)
    else:
        prompt = "a  ball"
    embed()
    assert len(loads) == 2 and len(list(cache.iterdir())) == 2


def test_a_damaged_file_of_the_cache_is_made_anew(made, loads, cache):
    pipeline = jaxdiff.load(made)
    text = pipeline.condition("a ball").text
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04"):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(pipeline.condition("a ball").text, text)
        assert file.read_bytes() == whole
    assert len(loads) == 4


def test_nothing_is_kept_if_the_variable_is_empty_and_a_folder_that_cannot_be_written_is_said(
    made, loads, monkeypatch, tmp_path
):
    pipeline = jaxdiff.load(made)
    monkeypatch.setenv("JAXDIFF_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = pipeline.condition("a ball").text
    assert not (tmp_path / "home").exists()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("JAXDIFF_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept.*JAXDIFF_CACHE"):
        np.testing.assert_array_equal(pipeline.condition("a ball").text, text)
    assert len(loads) == 2


def test_the_cache_is_where_users_expect_it(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXDIFF_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prompt_lib.cache_folder() == tmp_path / ".cache" / "jaxdiff" / "text"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert prompt_lib.cache_folder() == tmp_path / "x" / "jaxdiff" / "text"


# --------------------------------------------------------------------------------------------------------- folders


def test_float16_pipelines_embed_in_bfloat16(made):
    assert jaxdiff.load(made, dtype=jnp.float16).text_encoder.dtype == "bfloat16"
    assert jaxdiff.load(made, dtype=jnp.bfloat16).condition("a", max_length=4).text.dtype == jnp.float32


def test_a_folder_without_one_of_the_two_has_no_text_encoder(made, tmp_path):
    for name in ("text_encoder", "tokenizer"):
        copy = tmp_path / name
        copy.mkdir()
        for entry in made.iterdir():
            if entry.name != name:
                (copy / entry.name).symlink_to(entry)
        pipeline = jaxdiff.load(copy)
        assert pipeline.text_encoder is None
        with pytest.raises(MissingDataError, match=r"'a ball'.*text_encoder/ and tokenizer/.*--text_embeddings"):
            pipeline.condition("a ball")


def test_what_is_wrong_with_the_encoder_is_said_when_it_is_needed(tmp_path):
    folder = write_text(tmp_path)
    source = TextEncoder(folder, "float32")
    config = folder / "text_encoder" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"architectures": ["Gemma3Model"]}))
    with pytest.raises(CheckpointError, match="class 'Gemma3Model' is not supported"):
        source.embed(["a"], WAN, load_text_encoder)
    config.write_text(json.dumps(values | {"rotary": 1}))
    with pytest.raises(ConfigError, match=re.escape(str(config)) + r".*unknown configuration key 'rotary'"):
        source.embed(["a"], WAN, load_text_encoder)
    config.write_text(json.dumps(values))
    settings = {"added_tokens_decoder": {"99999": {"content": "<new>"}}}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="gives the id 99999"):
        source.embed(["<new>"], WAN, load_text_encoder)


def test_a_pipeline_is_written_with_its_text_encoder_and_tokenizer(made, tmp_path, cache):
    pipeline = jaxdiff.load(made)
    written = jaxdiff.load(save_pipeline(pipeline, tmp_path / "written"))
    text = [np.asarray(p.condition("a red ball", max_length=16).text) for p in (pipeline, written)]
    np.testing.assert_array_equal(*text)


def test_the_weights_may_be_split_over_a_mesh(made, run_with_devices, cache):
    code = """
import os, sys, jax, jaxdiff, numpy as np
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("fsdp", "tensor"))
kept = jaxdiff.load(sys.argv[1]).condition("a red ball", max_length=16).text
os.environ["JAXDIFF_CACHE"] = ""
text = jaxdiff.load(sys.argv[1], mesh=mesh).condition("a red ball", max_length=16).text
print(float(abs(np.asarray(text) - np.asarray(kept)).max() / abs(np.asarray(kept)).max()))
"""
    assert float(run_with_devices(4, code, str(made)).splitlines()[-1]) <= 1e-5
