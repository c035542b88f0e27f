"""The commit record: one line of JSON per finished clip, appended only after its arrays are durable.

A line counts when it is whole and ends in a newline. A process killed in the middle of an append leaves a
torn last line; it is ignored when reading and cut off when the store is next opened for writing, and its clip
is recomputed.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.errors import ConfigError, MissingDataError

INDEX = "index.jsonl"
Shard = tuple[int, int]  # (k, n): the k-th of n processes that write one store at the same time


def index_name(shard: Shard | None) -> str:
    """The file of one writer: each of several processes has its own, and readers take them all together."""
    return INDEX if shard is None else f"index.{shard[0]}-of-{shard[1]}.jsonl"


def sync_directory(path: Path) -> None:
    """Make the names in a folder durable (a file's own sync does not cover its directory entry)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Index:
    """The finished clips of a store.

    Raises
    ------
    MissingDataError : a line other than the last is damaged; the message names it.
    ConfigError : another process has the store open for writing.
    """

    def __init__(self, folder: Path, *, write: bool, name: str = INDEX) -> None:
        self.path = folder / name
        self._entries: dict[int, dict[str, Any]] = {}
        self._length = 0  # bytes of whole lines read so far
        self._descriptor: int | None = None
        if write:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._lock()
                self.refresh()
                os.ftruncate(self._descriptor, self._length)
                os.fsync(self._descriptor)
                sync_directory(folder)
            except BaseException:
                self.close()
                raise
        else:
            self.refresh()

    @property
    def entries(self) -> Mapping[int, dict[str, Any]]:
        """Clip id -> its line, in the order of commitment."""
        return self._entries

    def refresh(self) -> None:
        """Read the lines that were appended since the last look."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._length)
                data = file.read()
        except FileNotFoundError:  # created, but never written to
            return
        lines = data.split(b"\n")
        whole = lines[:-1]  # what follows the last newline is a torn line, or nothing
        for number, line in enumerate(whole):
            try:
                entry = json.loads(line)
                clip = entry["clip"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(whole) - 1 and not lines[-1]:
                    return  # a power cut can persist the end of a line before its middle: torn as well
                raise MissingDataError(
                    f"{self.path}, line {len(self._entries) + 1}, is damaged ({error}): remove it, and "
                    "its clip will be computed again"
                ) from error
            self._entries[clip] = entry
            self._length += len(line) + 1

    def append(self, entries: list[dict[str, Any]]) -> None:
        """Append and sync one line an entry; after any failure the file is as it was before."""
        assert self._descriptor is not None, "the index was opened for reading"
        data = memoryview("".join(json.dumps(e, sort_keys=True, allow_nan=False) + "\n" for e in entries).encode())
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._length + written)
            os.fsync(self._descriptor)
        except BaseException:
            os.ftruncate(self._descriptor, self._length)
            raise
        self._length += len(data)
        self._entries.update((entry["clip"], entry) for entry in entries)

    def close(self) -> None:
        """Release the file and its lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self) -> None:
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{self.path.parent} is being written by another process: wait for it, or choose another folder"
            ) from error
        except OSError:
            pass  # some network file systems have no locks; the lock only guards against a user's slip
