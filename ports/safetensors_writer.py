"""Writing safetensors files tensor by tensor: equal tensors give equal bytes, and an unfinished file never
has its final name."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdiff.errors import CheckpointError
from ports.safetensors_reader import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsWriter:
    """Writes the tensors that were announced, in any order, and puts the file in place when all are there.

    Parameters
    ----------
    path : path-like
        The file to write.
    tensors : dict of name -> (dtype, shape)
        What will be written. The file's layout depends on nothing else: wide dtypes first (which keeps every
        tensor aligned), then by name.
    metadata : dict of str -> str
        Goes into the header; readers of torch files ask for `{"format": "pt"}`.
    """

    def __init__(self, path: str | Path, tensors: Mapping[str, tuple], metadata: Mapping[str, str] | None = None):
        self.path = Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        header: dict = {"__metadata__": dict(sorted((metadata or {"format": "pt"}).items()))}
        self._slots: dict[str, tuple[int, np.dtype, tuple[int, ...]]] = {}
        position = 0
        order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name][0]).itemsize, name))
        for name in order:
            dtype, shape = np.dtype(tensors[name][0]), tuple(int(size) for size in tensors[name][1])
            end = position + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
            self._slots[name] = (position, dtype, shape)
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._size = self._start + position
        self._left = set(self._slots)
        self._file = open(self._partial, "wb")  # noqa: SIM115 (closed in __exit__)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def write(self, name: str, value: np.ndarray) -> None:
        """Write one announced tensor; it is cast to the announced dtype."""
        position, dtype, shape = self._slots[name]
        if value.shape != shape:
            raise CheckpointError(f"{self.path}: {name} is {value.shape}, announced as {shape}")
        self._file.seek(self._start + position)
        self._file.write(np.ascontiguousarray(value, dtype).reshape(-1).view(np.uint8).data)
        self._left.discard(name)

    def __exit__(self, kind, error, trace) -> None:
        whole = kind is None and not self._left
        try:
            with self._file:
                if whole:
                    self._file.truncate(self._size)
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if whole:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)
        if kind is None and not whole:
            missing = ", ".join(sorted(self._left))
            raise CheckpointError(f"{self.path}: not written, tensors are missing: {missing}")
