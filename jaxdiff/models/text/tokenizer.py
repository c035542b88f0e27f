"""Prompts to token ids, from the tokenizer/ folder of a checkpoint."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import CheckpointError, ConfigError

JSON, SPIECE, SETTINGS = "tokenizer.json", "spiece.model", "tokenizer_config.json"
PAD, END = "<pad>", "</s>"
EXTRA_IDS = 100  # sentinel tokens after the vocabulary of a spiece.model, unless the settings say otherwise


class Tokenizer:
    """A T5 or UMT5 tokenizer: tokenizer.json if the folder has one, else spiece.model.

    A spiece.model is run by sentencepiece itself, the library that the encoders were trained with. Ids are those of
    transformers' `T5Tokenizer`, except where its conversion departs from sentencepiece: for U+0085 and for chains of
    combining marks.

    Parameters
    ----------
    folder : holds tokenizer.json, or spiece.model and possibly tokenizer_config.json.

    Raises
    ------
    CheckpointError : there is neither, or a file cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if (self.folder / JSON).is_file():
            self._encode, special = _from_json(self.folder / JSON)
        elif (self.folder / SPIECE).is_file():
            self._encode, special = _from_spiece(self.folder / SPIECE, read_settings(self.folder))
        else:
            raise CheckpointError(f"{self.folder}: has neither {JSON} nor {SPIECE}; copy the checkpoint's tokenizer/")
        missing = [token for token in (PAD, END) if token not in special]
        if missing:
            raise CheckpointError(
                f"{self.folder}: has no token {' and no '.join(missing)}; the tokenizers of T5 and UMT5 are supported"
            )
        self.pad_id, self.end_id = special[PAD], special[END]

    def __call__(self, text: str, max_length: int) -> tuple[np.ndarray, int]:
        """Tokens of a text, the end token, and padding.

        Parameters
        ----------
        text : of any length; what does not fit in front of the end token is cut off.
        max_length : N, at least 1

        Returns
        -------
        ids : int32 [N]
        length : number of ids before the padding

        Raises
        ------
        ConfigError : `max_length` is not positive.
        """
        if max_length < 1:
            raise ConfigError(f"max_length={max_length}: one token at least is needed, for the end of the text")
        tokens = [*self._encode(text)[: max_length - 1], self.end_id]
        ids = np.full(max_length, self.pad_id, np.int32)
        ids[: len(tokens)] = tokens
        return ids, len(tokens)


Encode = Callable[[str], list[int]]  # without the end token


def _from_json(file: Path) -> tuple[Encode, dict[str, int]]:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{file}: not readable as a tokenizer: {error}") from error
    backend.no_truncation()  # files carry the settings of whoever saved them
    backend.no_padding()
    special = {token: number for token in (PAD, END) if (number := backend.token_to_id(token)) is not None}
    return lambda text: backend.encode(text, add_special_tokens=False).ids, special


def _from_spiece(file: Path, settings: dict[str, Any]) -> tuple[Encode, dict[str, int]]:
    from sentencepiece import SentencePieceProcessor

    backend = SentencePieceProcessor()
    try:
        backend.LoadFromSerializedProto(file.read_bytes())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file}: not readable as a sentencepiece model: {error}") from error
    size = backend.GetPieceSize()
    special = {backend.IdToPiece(i): i for i in range(size) if backend.IsControl(i) or backend.IsUnknown(i)}
    count = int(settings.get("extra_ids", EXTRA_IDS))
    special |= {f"<extra_id_{i}>": size + count - 1 - i for i in range(count)}  # the last one comes first
    special |= {entry["content"]: int(i) for i, entry in settings.get("added_tokens_decoder", {}).items()}
    # Special tokens in a text are themselves; sentencepiece would spell them out, and sees the stretches between.
    split = re.compile("(" + "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) + ")")

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(split.split(text)):
            ids.extend([special[part]] if i % 2 else backend.EncodeAsIds(part))
        return ids

    return encode, special


def read_settings(folder: Path) -> dict[str, Any]:
    """The folder's tokenizer_config.json; empty if there is none."""
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from error


def as_is(prompt: str) -> str:
    """The prompt itself: CogVideoX, LTX-Video and Cosmos do not clean it."""
    return prompt


def clean(prompt: str) -> str:
    """Wan's cleaning: broken Unicode mended (ftfy), HTML entities resolved twice, runs of white space made one space."""
    import ftfy

    prompt = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", prompt).strip()
