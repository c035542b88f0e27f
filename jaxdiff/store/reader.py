"""The reading half of the activation store."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.store.header import layouts_of
from jaxdiff.store.index import Index, Shard, index_name


class StoreReader:
    """What is in a store: its description, the committed clips, their arrays.

    Opened for reading, it sees clips that another process commits in the meantime.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, write: bool = False, shard: Shard | None = None) -> None:
        self._path = path
        self._header = header
        self._layouts = layouts_of(header)
        self._handles: dict[str, Any] = {}
        self._writable = write
        self._index = Index(path, write=write, name=index_name(shard))
        self._others: dict[str, Index] = {}  # what other writers of the same store have committed

    # ------------------------------------------------------------------------------ description

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self._path

    @property
    def clips(self) -> int:
        """Number of clips, finished or not."""
        return self._header["clips"]

    @property
    def slots(self) -> int:
        """Number of captured steps."""
        return self._header["slots"]

    @property
    def names(self) -> list[str]:
        """Name of each clip."""
        return list(self._header["names"])

    @property
    def metadata(self) -> dict[str, Any]:
        """The `metadata` given to `create`, as JSON gives it back."""
        return self._header["metadata"]

    @property
    def rows(self) -> dict[str, list[int]]:
        """Array name -> block index of each row."""
        return {name: list(layout.rows) for name, layout in self._layouts.items()}

    @property
    def specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Array name -> ``[rows, ...]`` and dtype of one slot of one clip."""
        return {n: jax.ShapeDtypeStruct(x.slot_shape, x.numpy_dtype) for n, x in self._layouts.items()}

    @property
    def config_hash(self) -> str:
        """SHA-256 of everything that `create` compares, in hexadecimal."""
        return hashlib.sha256(json.dumps(self._header, sort_keys=True).encode()).hexdigest()

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip over all arrays."""
        return sum(layout.clip_bytes for layout in self._layouts.values())

    # ------------------------------------------------------------------------------ committed clips

    def finished(self) -> set[int]:
        """Ids of the committed clips."""
        return set(self._entries())

    def records(self) -> dict[int, dict[str, Any]]:
        """Clip id -> the record given to `finish`, ids ascending."""
        entries = self._entries()
        return {clip: entries[clip]["record"] for clip in sorted(entries)}

    def read(self, name: str, clips: Sequence[int] | None = None, slots: Sequence[int] | None = None) -> np.ndarray:
        """Read ``[n, slots, rows, ...]`` of committed clips, in the order asked for.

        Parameters
        ----------
        name : an array of the store.
        clips : clip ids; None is every committed clip, ids ascending.
        slots : captured steps; None is all.

        Raises
        ------
        ConfigError : no such array or slot.
        MissingDataError : a clip is not committed, or its data is damaged; the message names the clips.
        """
        array = self.array(name)
        finished = self.finished()
        clips = sorted(finished) if clips is None else [int(clip) for clip in clips]
        if absent := [clip for clip in clips if clip not in finished]:
            raise MissingDataError(
                f"{self._path} has no finished clip {', '.join(map(str, absent[:10]))}: {len(finished)} of "
                f"{self.clips} clips are finished; run the command that wrote it again"
            )
        slots = list(range(self.slots)) if slots is None else [int(slot) for slot in slots]
        if any(not 0 <= slot < self.slots for slot in slots):
            raise ConfigError(f"slots {slots} were asked for, but {self._path} has 0 to {self.slots - 1}")
        if not clips or not slots:
            return np.empty((len(clips), len(slots), *array.shape[2:]), self._layouts[name].numpy_dtype)
        try:
            return array.oindex[clips, slots].read().result()
        except ValueError as error:
            raise self._damaged(name, clips, error) from error

    def array(self, name: str) -> Any:
        """The TensorStore ``[clips, slots, rows, ...]`` of an array, for lazy reading.

        Clips that are not finished are absent (an error to read) or junk.

        Raises
        ------
        ConfigError : no such array.
        MissingDataError : its folder is damaged.
        """
        if name not in self._layouts:
            close = difflib.get_close_matches(name, self._layouts, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{self._path} holds no array {name!r} but {', '.join(self._layouts)}{hint}")
        if name not in self._handles:
            try:
                self._handles[name] = self._layouts[name].open(self._path, write=self._writable)
            except ValueError as error:
                raise MissingDataError(f"array {name!r} of {self._path} cannot be opened: {error}") from error
        return self._handles[name]

    def _entries(self) -> Mapping[int, dict[str, Any]]:
        if not self._writable:
            self._index.refresh()
        found = dict(self._index.entries)
        for file in self._path.glob("index*.jsonl"):
            if file.name != self._index.path.name:
                other = self._others.setdefault(file.name, Index(self._path, write=False, name=file.name))
                other.refresh()
                found |= other.entries
        return found

    def _damaged(self, name: str, clips: Sequence[int], error: Exception) -> MissingDataError:
        bad = []
        for clip in dict.fromkeys(clips):
            try:
                self.array(name)[clip].read().result()
            except ValueError:
                bad.append(clip)
        return MissingDataError(
            f"array {name!r} of {self._path} is damaged for clips {', '.join(map(str, bad))}: remove their "
            f"lines from {self._index.path.name} and run the command that wrote it again ({error})"
        )
