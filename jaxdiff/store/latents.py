"""Encoded clips on disk: latents, text embeddings and captions, the food of everything that is trained on latents.

A latent store is an `ActivationStore` of the arrays ``latents``, ``text`` and (where the family masks) ``text_mask``, one slot
a clip, and has its guarantees: a clip is committed once its arrays are durable, what a killed process left half-written is
written again, a damaged chunk is an error, and one process writes at a time. The header and the captions are attributes of
the root group, ``zarr.json``.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.store.header import HEADER
from jaxdiff.store.index import Shard
from jaxdiff.store.store import ActivationStore

DTYPES = ("float32", "bfloat16")
SKIPPED = "skipped"  # in the record of a clip that is left out: why


@dataclasses.dataclass(frozen=True)
class LatentHeader:
    """What was encoded, and with what.

    Parameters
    ----------
    family : of the model, `Pipeline.family.name`.
    vae_fingerprint : hash of the VAE's configuration and weights (`jaxdiff.models.network.fingerprint`); latents of two
        VAEs have nothing in common.
    latent_shape : (T', H', W', C) of a clip.
    text_shape : (N, D) of a caption's embedding.
    masked : whether a mask says which of the N tokens are real.
    frames, size : of the videos, their number and (height, width) in pixels.
    fps : at which the frames were taken; None: evenly over each clip, or the clips know no rate.
    dtype : on disk, "float32" or "bfloat16".
    count : number of clips.
    """

    family: str
    vae_fingerprint: str
    latent_shape: tuple[int, int, int, int]
    text_shape: tuple[int, int]
    masked: bool
    frames: int
    size: tuple[int, int]
    fps: float | None
    dtype: str
    count: int

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ConfigError(f"latents are stored as {' or '.join(DTYPES)}, not {self.dtype!r}")


class LatentBatch(NamedTuple):
    """Some clips of a store, on the host."""

    latents: np.ndarray  # float32 [B, T', H', W', C]
    text: np.ndarray  # float32 [B, N, D]
    text_mask: np.ndarray | None  # bool [B, N]


class LatentWriter:
    """A latent store that is being written: made, or reopened to go on. Use `create`, and as a context manager."""

    def __init__(self, store: ActivationStore, header: LatentHeader):
        self._store, self._header = store, header

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        header: LatentHeader,
        names: Sequence[str],
        captions: Sequence[str],
        source: Mapping[str, Any] | None = None,
        shard: Shard | None = None,
    ) -> "LatentWriter":
        """Create a store, or reopen one of the same header, names, captions and `source`.

        Parameters
        ----------
        names, captions : of every clip; clip ids are positions in them.
        source : what else determines the latents, as JSON.
        shard : as in `ActivationStore.create`.

        Raises
        ------
        ConfigError : the folder holds something else, or another process writes to it.
        StoreWriteError : the folder cannot be written, or the disk is too small.
        """
        if not header.count or not header.count == len(names) == len(captions):
            raise ConfigError(
                f"a latent store needs a name and a caption for every clip: {header.count} clips, {len(names)} names, "
                f"{len(captions)} captions"
            )
        stored = jnp.dtype(header.dtype)
        specs = {
            "latents": jax.ShapeDtypeStruct(header.latent_shape, stored),
            "text": jax.ShapeDtypeStruct(header.text_shape, stored),
        }
        if header.masked:
            specs["text_mask"] = jax.ShapeDtypeStruct(header.text_shape[:1], jnp.dtype(bool))
        metadata = {"latents": dataclasses.asdict(header), "captions": list(captions), "source": dict(source or {})}
        store = ActivationStore.create(
            path, clips=header.count, slots=1, specs=specs, names=list(names), metadata=metadata, shard=shard
        )
        return cls(store, header)

    def finished(self) -> set[int]:
        """Ids of the clips that are written, or left out for good."""
        return self._store.finished()

    def write(self, clip_ids: Any, latents: Any, text: Any, text_mask: Any = None) -> None:
        """Write clips and commit them: on return they are durable.

        Parameters
        ----------
        clip_ids : integers [B], -1 for padding.
        latents : [B, T', H', W', C].
        text : [B, N, D].
        text_mask : bool [B, N]; needed exactly where the header says `masked`.

        Raises
        ------
        ConfigError : a shape or an id does not fit.
        StoreWriteError : the disk is full, for example.
        """
        if (text_mask is not None) != self._header.masked:
            raise ConfigError(f"the store is made with masked={self._header.masked}, and text_mask says otherwise")
        arrays = {"latents": _as_rows(latents, self._header.dtype), "text": _as_rows(text, self._header.dtype)}
        if text_mask is not None:
            arrays["text_mask"] = _as_rows(text_mask, "bool")
        self._store.write(clip_ids, arrays)
        self._store.finish(clip_ids)

    def skip(self, clip: int, reason: str) -> None:
        """Leave out a clip that cannot be encoded; it is not tried again."""
        self._store.leave_out(clip, {SKIPPED: reason})

    def __enter__(self) -> "LatentWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._store.__exit__(*error)


class LatentStore:
    """A complete latent store, read-only. Use `open`."""

    def __init__(self, store: ActivationStore):
        path = store.path
        try:
            values = dict(store.metadata["latents"])
            captions = store.metadata["captions"]
            shapes = {name: tuple(values[name]) for name in ("latent_shape", "text_shape", "size")}
            header = LatentHeader(**(values | shapes))
        except (KeyError, TypeError) as error:
            raise MissingDataError(f"{path} is a store of activations, not of latents ({error!r})") from error
        records = store.records()
        if unfinished := store.clips - len(records):
            raise MissingDataError(
                f"{path} is not complete, {unfinished} of its {store.clips} clips are missing: run the command that wrote it "
                "again, it goes on where it stopped"
            )
        self._store = store
        self._ids = [clip for clip, record in records.items() if SKIPPED not in record]
        if not self._ids:
            raise MissingDataError(f"{path} holds no clip: all {store.clips} were left out")
        names = store.names
        self.path = path
        self.header = dataclasses.replace(header, count=len(self._ids))
        self.names = tuple(names[i] for i in self._ids)
        self.captions = tuple(captions[i] for i in self._ids)
        self.skipped = {names[i]: record[SKIPPED] for i, record in records.items() if SKIPPED in record}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "LatentStore":
        """Open a finished store, or the workdir of `experiments.encode_latents`.

        Raises
        ------
        MissingDataError : there is no such store, it is not complete, or it is damaged.
        """
        folder = Path(path)
        inside = folder / "store"
        return cls(ActivationStore.open(inside if not (folder / HEADER).exists() and inside.is_dir() else folder))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Bytes that all latents take in memory, in float32."""
        return 4 * len(self) * int(np.prod(self.header.latent_shape))

    def read(self, indices: Sequence[int] | np.ndarray) -> LatentBatch:
        """Clips by their place in `names`, in the order asked for.

        Raises
        ------
        ConfigError : an index is out of range.
        MissingDataError : a clip's data is damaged; the message names it.
        """
        places = [int(i) for i in indices]
        if wrong := [i for i in places if not 0 <= i < len(self)]:
            raise ConfigError(f"{self.path} holds {len(self)} clips; there is none at {wrong[:10]}")
        clips = [self._ids[i] for i in places]
        mask = self._store.read("text_mask", clips)[:, 0] if self.header.masked else None
        latents, text = (self._store.read(name, clips)[:, 0].astype(np.float32) for name in ("latents", "text"))
        return LatentBatch(latents, text, mask)


def _as_rows(values: Any, dtype: str) -> np.ndarray:
    """[B, rows, ...] as the one slot of an `ActivationStore`, [1, rows, B, ...]."""
    return np.asarray(values).astype(jnp.dtype(dtype)).swapaxes(0, 1)[None]
