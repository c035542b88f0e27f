"""Prompts to the text embeddings that a family's transformer was trained on, computed once and kept on disk."""

import contextlib
import dataclasses
import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.errors import CheckpointError, ConfigError, MissingDataError
from jaxdiff.models.network import Network
from jaxdiff.models.text import tokenizer as tokenizers

CACHE = "JAXDIFF_CACHE"
VERSION = 1  # of what is in a file of the cache, and of everything here that decides it
# Files above WHOLE bytes are weights, too long to read in full: so many stretches of so many bytes are hashed.
WHOLE, SAMPLES, SAMPLE = 1 << 25, 64, 4096


@dataclasses.dataclass(frozen=True)
class TextConvention:
    """How a family turns a prompt into embeddings. Families differ in nothing else here.

    Parameters
    ----------
    max_length : tokens that prompts are padded or cut to, as the published pipeline has it.
    clean : what is done to a prompt before it is tokenised.
    attend_padding : padding is attended to in the encoder, like any token.
    zero_padding : embeddings of padding are replaced by zeros.
    pass_mask : the transformer is told which tokens are real, by `Conditioning.text_mask`.
    """

    max_length: int
    clean: Callable[[str], str] = tokenizers.as_is
    attend_padding: bool = True
    zero_padding: bool = False
    pass_mask: bool = False


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """The text encoder of a checkpoint folder, not in memory: its weights are read when a prompt needs them.

    Static and hashable, so that a pipeline can carry it through transformations.

    Parameters
    ----------
    folder : the checkpoint's folder.
    dtype : name of the dtype that the weights are read in.
    mesh : where they are placed; None: the default device.
    encoder : where in the folder the encoder is: a folder with config.json and weights, or a file of weights.
    tokenizer : where in it the tokenizer's folder is.
    """

    folder: Path
    dtype: str
    mesh: jax.sharding.Mesh | None = None
    encoder: str = "text_encoder"
    tokenizer: str = "tokenizer"

    def embed(
        self,
        prompts: Sequence[str],
        convention: TextConvention,
        load: Callable[["TextEncoder"], Network],
        max_length: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of prompts, from the cache where it has them.

        The encoder is loaded at most once, and only if a prompt is not in the cache; it is dropped on return. Prompts
        go through it one at a time: what one of them becomes does not depend on the others.

        Parameters
        ----------
        prompts : B texts; the empty one is a prompt like any other.
        convention : the family's.
        load : reads the encoder's weights.
        max_length : tokens, instead of the convention's.

        Returns
        -------
        embeddings : float32 [B, N, D]
        mask : bool [B, N], True at real tokens

        Raises
        ------
        CheckpointError : the encoder or the tokenizer cannot be read.
        ConfigError : no prompt, `max_length` is not positive, or the tokenizer has ids that the encoder does not know.
        """
        if not prompts:
            raise ConfigError("there is no prompt to embed; the empty text is the prompt ''")
        length = convention.max_length if max_length is None else max_length
        cache = cache_folder()
        key = "" if cache is None else self.fingerprint()
        tokenizer, network, rows = None, None, []
        for prompt in prompts:
            file = None if cache is None else cache / _name(key, convention, length, prompt)
            row = None if file is None else _read(file, length)
            if row is None:
                tokenizer = tokenizer or tokenizers.Tokenizer(self.folder / self.tokenizer)
                ids, real = tokenizer(convention.clean(prompt), length)
                network = network or load(self)
                if ids.max() >= network.config.vocab_size:
                    raise ConfigError(
                        f"{self.folder}: {self.tokenizer} gives the id {ids.max()}, but {self.encoder} has embeddings for "
                        f"{network.config.vocab_size} tokens; they belong to different checkpoints"
                    )
                mask = np.arange(length) < real
                embedding = _embed(network, ids[None], None if convention.attend_padding else mask[None])
                row = np.array(embedding[0], np.float32), mask
                if convention.zero_padding:
                    row[0][~mask] = 0.0
                if file is not None:
                    _write(file, *row)
            rows.append(row)
        embeddings, masks = zip(*rows, strict=True)
        return np.stack(embeddings), np.stack(masks)

    def fingerprint(self) -> str:
        """A hash of everything that decides an embedding: dtype, configuration, tokenizer and weights.

        Of a large file it covers the size, the modification time and stretches of it that are spread evenly: gigabytes
        are not read for it.

        Raises
        ------
        CheckpointError : the encoder or the tokenizer is missing or cannot be read.
        """
        digest = hashlib.sha256(f"{VERSION} {self.dtype}".encode())
        for part in (self.tokenizer, self.encoder):
            folder = self.folder / part
            try:
                for file in (
                    [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
                ):
                    digest.update(f"\0{part}/{file.name}\0".encode())
                    _hash(file, digest)
            except OSError as error:
                raise CheckpointError(f"{folder}: cannot be read: {error}") from error
        return digest.hexdigest()


def cache_folder() -> Path | None:
    """Where embeddings are kept: $JAXDIFF_CACHE/text, by default ~/.cache/jaxdiff/text; None if it is set to nothing."""
    root = os.environ.get(CACHE)
    if root == "":
        return None
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdiff"
    return base.expanduser() / "text"


@jax.jit
def _embed(network: Network, ids: jax.Array, mask: jax.Array | None) -> jax.Array:
    return network(ids, mask)


def _name(key: str, convention: TextConvention, length: int, prompt: str) -> str:
    rules = (convention.clean.__name__, convention.attend_padding, convention.zero_padding, length)
    return hashlib.sha256(f"{key}\0{rules}\0{prompt}".encode("utf-8", "surrogatepass")).hexdigest() + ".npz"


def _hash(file: Path, digest: Any) -> None:
    status = file.stat()
    with open(file, "rb") as handle:
        if status.st_size <= WHOLE:
            digest.update(handle.read())
            return
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        for i in range(SAMPLES):
            handle.seek((status.st_size - SAMPLE) * i // (SAMPLES - 1))
            digest.update(handle.read(SAMPLE))


def _read(file: Path, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What `_write` wrote; None if it is not there or damaged."""
    try:
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
            embedding, mask = stored["embedding"], stored["mask"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (embedding, mask) if embedding.shape[:1] == mask.shape == (length,) else None


def _write(file: Path, embedding: np.ndarray, mask: np.ndarray) -> None:
    """Write atomically: readers and other writers see all of a file or none of it."""
    partial = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".partial", delete=False) as handle:
            partial = Path(handle.name)
            # Zeros of the padding, and of what bfloat16 does not fill of a float32, vanish.
            np.savez_compressed(handle, embedding=embedding, mask=mask)
        partial.replace(file)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()
        warnings.warn(
            f"text embeddings could not be kept in {file.parent} ({error}); set {CACHE} to a folder that can be "
            "written, or to nothing to keep none",
            stacklevel=2,
        )


def encoder_of(prompt: Any, family: Any, encoder: TextEncoder | None, text_dim: int) -> TextEncoder:
    """The text encoder of a checkpoint of this `family`, to embed `prompt` with.

    Raises
    ------
    MissingDataError : it has none, or none that is ported; says how to do without.
    """
    if family.text is None:
        raise MissingDataError(
            f"cannot embed the prompt {prompt!r}: the text encoder of {family.name} is not ported. Pass text embeddings "
            f"computed elsewhere, as its published pipeline makes them: condition(text=array [B, N, {text_dim}]), or "
            "--text_embeddings=FILE.npy on the command line"
        )
    if encoder is None:
        raise MissingDataError(
            f"cannot embed the prompt {prompt!r}: the checkpoint folder has no text encoder (text_encoder/ and "
            f"tokenizer/). Pass text embeddings computed elsewhere: condition(text=array [B, N, {text_dim}]), or "
            "--text_embeddings=FILE.npy|zeros on the command line; zeros is not the same as the empty prompt"
        )
    return encoder
