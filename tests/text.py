"""Tokenizers and prompts for the tests: published tokenizer files cannot be had offline, so small ones are trained."""

import dataclasses
import functools
import io
import json
import random
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from jaxdiff.models.network import Network
from jaxdiff.models.text import UMT5Config, UMT5Encoder
from ports.filling import save_params
from ports.t5 import encoder_table
from tests.reference import random_state

WIDTH = 16  # of the tiny encoder's embeddings
WORDS = re.findall(
    r"\S+",
    "a the ball rolls red blue cube falls behind wall and stops on table camera slowly moves through forest rain "
    "street café naïve über 猫 が 跳ぶ 東京 собака бежит дом мяч مرحبا कुत्ता 한국어 ไทย",
)
SYLLABLES = [consonant + vowel for consonant in "bcdfglmnprstvw" for vowel in "aeiou"]
ODD = (
    "&amp;", "&lt;b&gt;", "&amp;amp;", "&quot;", "&#39;", "&nbsp;", "\t", "\n", "\r\n", "  ", "\u00a0", "\u3000", "\u200b",
    "\ufeff", "\u00ad", "🙂", "👨‍👩‍👧", "①", "ﬁ", "½", "Ａ", "…", "“so”", "e\u0301", "ГРАД", "ß", "İ", "№", "▁",
    "</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_99>", "<extra_id_3> ", "</s", "3.14", "1,000", "!!!", "--", "\\n",
    "cafÃ©", "â€œquotedâ€\x9d", "ðŸ™‚", "http://a.b/c?d=e&f=g", "@#$%", "x²", "日本語テキスト", "שלום", "ελληνικά",
)  # fmt: skip
# Normalised otherwise by the library tokenizers, and so by transformers, than by sentencepiece: chains of combining
# marks of more than five bytes, and the control character "next line".
DISPUTED = ("か\u3099", "e\u0301\u0301", "a\x85b")


def prompts(count: int = 1000, seed: int = 0) -> list[str]:
    """Varied prompts: empty, blank, plain, over-long, in many scripts, with entities, emoji and special tokens."""
    rng = random.Random(seed)
    made = ["", " ", "\n\t ", "a", "</s>", *ODD]
    made += ["the ball " * n for n in range(120, 320, 20)] + ["東京 猫" * 250, "x y " * 300]
    while len(made) < count:
        parts = rng.choices([*WORDS, *SYLLABLES], k=rng.choice([1, 3, 8, 20, 60])) + rng.choices(
            ODD, k=rng.randint(0, 4)
        )
        rng.shuffle(parts)
        made.append(rng.choice(["", " ", " ", " ", ", "]).join(parts))
    return made[:count]


@functools.cache
def spiece(vocabulary: int = 400, normalization: str = "nmt_nfkc", seed: int = 0) -> bytes:
    """A unigram spiece.model with T5's special tokens, trained on invented sentences."""
    rng = random.Random(seed)
    invented = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(400)]
    lines = (
        " ".join(rng.choices(WORDS, k=5) + rng.choices(invented, k=6) + [str(rng.randint(0, 999))]) for _ in range(1000)
    )
    model = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=lines, model_writer=model, vocab_size=vocabulary, hard_vocab_limit=False, num_threads=1,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", normalization_rule_name=normalization, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def write_spiece(folder: Path, **trained) -> Path:
    """A tokenizer/ folder with a spiece.model, as CogVideoX and LTX-Video publish it."""
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(spiece(**trained))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    return folder


def vocabulary(folder: Path) -> int:
    """Pieces of the folder's spiece.model and the hundred sentinels after them."""
    return SentencePieceProcessor(model_file=str(folder / "spiece.model")).GetPieceSize() + 100


def encoder_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of a T5 encoder. Its scores are unscaled, so that full-size draws would saturate the softmax:
    queries and keys are drawn smaller, embeddings larger (of a norm's input only the direction matters)."""
    state = random_state(shapes, seed)
    for name, value in state.items():
        if name == "shared.weight":
            state[name] = value * np.sqrt(value.shape[1])
        elif name.endswith(("SelfAttention.q.weight", "SelfAttention.k.weight")):
            state[name] = value / 2
    return state


def write_encoder(folder: Path, config: Mapping, state: Mapping[str, np.ndarray]) -> Path:
    """A text_encoder/ folder in transformers' layout."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_network(folder: Path, name: str, module, config, table, **extra) -> None:
    """A component's folder with random weights in the file `name`."""
    rng = np.random.default_rng(0)
    shapes = Network.abstract(module, config).params
    params = jax.tree.map(lambda leaf: np.float32(rng.standard_normal(leaf.shape) / leaf.shape[-1] ** 0.5), shapes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config) | extra))
    save_params(params, table(config), folder / name)


def write_text(folder: Path) -> Path:
    """text_encoder/ (a tiny UMT5) and tokenizer/ of a checkpoint folder, as Wan has them."""
    size = vocabulary(write_spiece(folder / "tokenizer"))
    config = UMT5Config(vocab_size=size, d_model=WIDTH, d_kv=4, d_ff=24, num_layers=2, num_heads=2)
    extra = {"architectures": ["UMT5EncoderModel"]}
    write_network(folder / "text_encoder", "model.safetensors", UMT5Encoder, config, encoder_table, **extra)
    return folder
