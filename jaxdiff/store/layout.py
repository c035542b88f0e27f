"""What one captured array looks like on disk."""

import dataclasses
import functools
import math
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.errors import ConfigError

# Chunks much larger than this gain no throughput and only cost host memory while they fill.
CHUNK_BYTES = 16 << 20

# float16 is left out on purpose: activations of large transformers overflow it.
DTYPES = ("float32", "bfloat16", "float64", "int8", "int16", "int32", "uint8", "uint16", "uint32", "bool")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A zarr array ``[clips, slots, rows, ...]`` and how it is cut into chunks.

    A chunk never spans two clips, so that a clip is committed alone. Within a clip a chunk holds as many
    slots as fit `CHUNK_BYTES`, and part of the rows where one slot alone is larger.

    Parameters
    ----------
    name : key of the captured array, e.g. ``"block_out.mean"``.
    shape : ``(clips, slots, rows, ...)``.
    dtype : name of the data type, one of `DTYPES`.
    rows : block index of each row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name.strip("."):
            raise ConfigError(f"{self.name!r} cannot name a captured array: it is no folder name")
        if self.dtype not in DTYPES:
            raise ConfigError(f"array {self.name!r} is {self.dtype}; a store holds {', '.join(DTYPES)}")
        if len(self.shape) < 3 or min(self.shape) < 1:
            raise ConfigError(f"array {self.name!r} needs the shape [clips, slots, rows, ...], got {self.shape}")
        if len(self.rows) != self.shape[2]:
            raise ConfigError(f"array {self.name!r} has {self.shape[2]} rows, but {len(self.rows)} row labels")

    @functools.cached_property
    def numpy_dtype(self) -> np.dtype:
        """The data type; bfloat16 is the one of ml_dtypes, as in JAX."""
        return np.dtype(jax.numpy.dtype(self.dtype))

    @property
    def slot_shape(self) -> tuple[int, ...]:
        """Shape of one slot of one clip: ``(rows, ...)``."""
        return self.shape[2:]

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip."""
        return math.prod(self.shape[1:]) * self.numpy_dtype.itemsize

    @functools.cached_property
    def slots_per_chunk(self) -> int:
        """Slots that are written together."""
        slots = self.shape[1]
        fit = max(1, CHUNK_BYTES * slots // self.clip_bytes)
        return -(-slots // -(-slots // fit))  # as many chunks as needed, and those of equal size

    @property
    def chunk(self) -> tuple[int, ...]:
        """Shape of a chunk, ``(1, slots, rows, ...)``."""
        row_bytes = math.prod(self.shape[3:]) * self.numpy_dtype.itemsize
        rows = min(self.shape[2], max(1, CHUNK_BYTES // (self.slots_per_chunk * row_bytes)))
        return (1, self.slots_per_chunk, rows, *self.shape[3:])

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk."""
        return math.prod(self.chunk) * self.numpy_dtype.itemsize

    @property
    def directory(self) -> str:
        """Folder of the array in the store: the name, with what file systems dislike percent-encoded."""
        return urllib.parse.quote(self.name, safe="()+=, ")

    def to_json(self) -> dict[str, Any]:
        """The entry in the store's configuration."""
        return {"shape": list(self.slot_shape), "dtype": self.dtype, "rows": list(self.rows)}

    @classmethod
    def from_json(cls, name: str, clips: int, slots: int, entry: dict[str, Any]) -> "Layout":
        """The reverse of `to_json`."""
        return cls(name, (clips, slots, *entry["shape"]), entry["dtype"], tuple(entry["rows"]))

    @classmethod
    def from_spec(
        cls, name: str, clips: int, slots: int, spec: jax.ShapeDtypeStruct, rows: Sequence[int] | None
    ) -> "Layout":
        """`spec` describes one slot of one clip: ``[rows, ...]``."""
        if rows is None:
            rows = range(spec.shape[0] if spec.shape else 0)
        return cls(name, (clips, slots, *spec.shape), np.dtype(spec.dtype).name, tuple(int(r) for r in rows))

    def open(self, folder: Path, *, create: bool = False, write: bool = False) -> Any:
        """Open the TensorStore of this array inside the store folder."""
        import tensorstore as ts

        spec: dict[str, Any] = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{folder / self.directory}/"},
            # A write that was acknowledged must survive a power cut, because the index then vouches for it.
            "context": {"file_io_sync": True},
            # A finished clip has every chunk, so an absent one is damage and must not read as the fill value.
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }
        if create:
            spec["metadata"] = self._zarr_metadata()
        return ts.open(spec, create=create, open=not create, read=True, write=create or write).result()

    def _zarr_metadata(self) -> dict[str, Any]:
        floating = "float" in self.dtype
        return {
            "shape": list(self.shape),
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.chunk)}},
            # One flat folder an array: making a chunk durable then takes one directory sync.
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            # Activations do not compress; a checksum turns silent damage into an error.
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "fill_value": "NaN" if floating else (False if self.dtype == "bool" else 0),
            "dimension_names": ["clip", "slot", "block", *[None] * (len(self.shape) - 3)],
            "attributes": {"name": self.name, "blocks": list(self.rows)},
        }
