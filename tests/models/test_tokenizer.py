"""Prompts to ids: cleaning, special tokens, cutting and padding, from both kinds of tokenizer files."""

import json

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.models.text import Tokenizer, clean
from tests.text import ODD, prompts, spiece, vocabulary, write_spiece


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_spiece(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def convert(source, target):
    """A tokenizer.json of the same vocabulary, for a model whose normalisation is plain NFKC."""
    pieces = SentencePieceProcessor(model_file=str(source / "spiece.model"))
    scored = [(pieces.IdToPiece(i), pieces.GetScore(i)) for i in range(pieces.GetPieceSize())]
    scored += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    backend = Backend(models.Unigram(scored, unk_id=2, byte_fallback=False))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    backend.add_special_tokens(["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in range(100))])
    backend.enable_truncation(5)  # what a file carries of its last use must not matter
    backend.enable_padding(length=9)
    target.mkdir()
    backend.save(str(target / "tokenizer.json"))
    return target


def test_both_kinds_of_files_give_the_same_ids(tmp_path):
    one = write_spiece(tmp_path / "spiece", normalization="nfkc")
    other = convert(one, tmp_path / "json")
    ours, theirs = Tokenizer(one), Tokenizer(other)
    # T5's own normalisation makes spaces of them; with plain NFKC the two libraries see different characters.
    spaces = {ord(c): " " for c in "\t\n\r\u200b\ufeff\u00ad▁"}
    for text in prompts(300):
        text = text.translate(spaces)
        (ids, real), (expected, length) = ours(text, 100), theirs(text, 100)
        assert (ids.tolist(), real) == (expected.tolist(), length), text


def test_tokenizer_json_is_read_where_both_are_there(folder, tmp_path):
    both = convert(write_spiece(tmp_path / "spiece", normalization="nfkc"), tmp_path / "both")
    (both / "spiece.model").write_bytes(b"never read")
    assert Tokenizer(both)("the ball", 8)[1] > 1


def test_ids_are_the_text_the_end_and_padding(folder):
    tokenizer = Tokenizer(folder)
    pieces = SentencePieceProcessor(model_file=str(folder / "spiece.model")).EncodeAsIds("the red ball falls")
    ids, real = tokenizer("the red ball falls", 16)
    assert ids.dtype == np.int32
    assert ids.tolist() == [*pieces, 1] + [0] * (15 - len(pieces)) and real == len(pieces) + 1
    assert tokenizer("", 3)[0].tolist() == [1, 0, 0] and tokenizer(" \n", 3)[1] == 1


def test_over_long_text_keeps_its_beginning_and_an_end(folder):
    tokenizer = Tokenizer(folder)
    whole, real = tokenizer("the red ball falls " * 50, 1000)
    ids, length = tokenizer("the red ball falls " * 50, 12)
    assert length == 12 and ids.tolist() == [*whole[:11].tolist(), 1] and real > 12
    assert tokenizer("the red ball", 1)[0].tolist() == [1]
    with pytest.raises(ConfigError, match="max_length=0"):
        tokenizer("the red ball", 0)


def test_special_tokens_in_a_text_are_themselves(folder):
    tokenizer = Tokenizer(folder)
    size = vocabulary(folder)

    def ids(text):
        found, real = tokenizer(text, 32)
        return found[: real - 1].tolist()

    assert ids("<pad>") == [0] and ids("</s>") == [1] and ids("<unk>") == [2]
    assert ids("<extra_id_0>") == [size - 1] and ids("<extra_id_99>") == [size - 100]
    assert ids("red<extra_id_1>ball") == [*ids("red"), size - 2, *ids("ball")]
    assert len(ids("<extra_id_100>")) > 1  # no special token


def test_settings_say_which_tokens_were_added(tmp_path):
    folder = write_spiece(tmp_path / "tokenizer")
    plain = Tokenizer(folder)("<extra_id_0> <new>", 32)[0]
    added = {"999": {"content": "<new>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0, "added_tokens_decoder": added}))
    ids = Tokenizer(folder)("<extra_id_0> <new>", 32)[0]
    assert 999 in ids and 999 not in plain
    assert ids[0] != plain[0] == vocabulary(folder) - 1


def test_cleaning_mends_unicode_resolves_entities_twice_and_joins_white_space():
    assert clean("  a &amp;amp; b\n\tc ") == "a & b c"
    assert clean("cafÃ© â€” &lt;3") == "café — <3"
    assert clean("&nbsp;") == "" == clean("")
    for text in ODD:
        assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.json nor spiece.model"),
        ({"tokenizer.json": b"{"}, "tokenizer.json: not readable as a tokenizer"),
        ({"spiece.model": b"not a model"}, "spiece.model: not readable as a sentencepiece model"),
        ({"spiece.model": None, "tokenizer_config.json": b"["}, "tokenizer_config.json: not readable as JSON"),
    ],
)
def test_what_is_no_tokenizer_is_an_error_that_names_the_file(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(spiece() if content is None else content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    backend = Backend(models.WordLevel({"[CLS]": 0, "a": 1}, unk_token="[CLS]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="no token <pad> and no </s>; the tokenizers of T5 and UMT5"):
        Tokenizer(tmp_path)
