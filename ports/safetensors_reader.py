"""Memory-mapped reading of safetensors checkpoints: one file, or shards named by a
`*.safetensors.index.json`.

The format (github.com/huggingface/safetensors): eight bytes with the header's length (little-endian), the
header (JSON: tensor name -> dtype, shape, [begin, end) offsets into what follows), then the tensors' bytes
without holes. Everything that can be wrong with a file is checked when it is opened, from the header and the
file's size alone; tensor bytes are read when they are used.
"""

import copy
import json
import math
import mmap
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import ml_dtypes
import numpy as np

from jaxdiff.errors import CheckpointError

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
HEADER_LIMIT = 100_000_000  # the format's own limit; a longer header is a corrupt length, not a header
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.")
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: bytes `[begin, end)` of `file`, read as `dtype` and `shape`."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Checkpoint:
    """The tensors of one checkpoint (a file, a shard index, or a folder with either), none of them read yet.

    Parameters
    ----------
    path : path-like
        A `.safetensors` file, a `.safetensors.index.json` file, or a folder that holds one of them.

    Attributes
    ----------
    files : tuple of Path
        Where the tensors lie.

    Raises
    ------
    CheckpointError
        No weights there, only pickles, a truncated or corrupt file, or shards that disagree with their index.
        Every problem that was found is listed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._maps: dict[Path, mmap.mmap] = {}
        source = find_weights(self.path) if self.path.is_dir() else self.path
        if source.suffix in PICKLES:
            raise CheckpointError(f"{source}: {refuse_pickles(source)}")
        if source.name.endswith(".index.json"):
            self._tensors = _read_shards(source)
        else:
            self._tensors = _read_header(source)
        self.files = tuple(sorted({tensor.file for tensor in self._tensors.values()}))

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return tuple(sorted(self._tensors))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Dtype as stored; bfloat16 and float8 are those of `ml_dtypes`."""
        return self._tensors[name].dtype

    def subset(self, keep: Callable[[str], bool]) -> Self:
        """The same checkpoint with only those tensors whose names `keep` accepts."""
        part = copy.copy(self)
        part._maps = {}
        part._tensors = {name: tensor for name, tensor in self._tensors.items() if keep(name)}
        return part

    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.end - tensor.begin for tensor in self._tensors.values())

    def view(self, name: str) -> np.ndarray:
        """The tensor as a read-only array over the mapped file: slicing reads the pages of the slice and no
        others."""
        return self._view(self._tensors[name])

    def _view(self, tensor: Tensor) -> np.ndarray:
        if tensor.begin == tensor.end:
            return np.empty(tensor.shape, tensor.dtype)
        count = (tensor.end - tensor.begin) // tensor.dtype.itemsize
        mapped = self._map(tensor.file)
        return np.frombuffer(mapped, tensor.dtype, count, tensor.begin).reshape(tensor.shape)

    def release(self, name: str) -> None:
        """Give the tensor's pages back to the system. Later reads map them again."""
        self._release(self._tensors[name])

    def _release(self, tensor: Tensor) -> None:
        mapped = self._maps.get(tensor.file)
        if mapped is None or not hasattr(mapped, "madvise") or tensor.begin == tensor.end:
            return
        start = tensor.begin - tensor.begin % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start, tensor.end - start)

    def close(self) -> None:
        """Drop the maps. Views that are still alive keep theirs until they are collected."""
        self._maps.clear()

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with open(file, "rb") as handle:
                self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]


class Split(Checkpoint):
    """A checkpoint in which pieces of tensors are tensors of their own.

    Parameters
    ----------
    base : Checkpoint
    pieces : dict of str -> (str, list of slice)
        A new name -> the tensor it is cut from, and the rows that make it, one stretch after the other. Tensors that are
        cut are no longer there under their own name.
    """

    def __init__(self, base: Checkpoint, pieces: Mapping[str, tuple[str, list[slice]]]):
        self.path, self.files, self._maps = base.path, base.files, {}
        self._pieces = dict(pieces)
        cut = {name for name, _ in pieces.values()}
        self._whole = {name: base._tensors[name] for name in cut}
        self._tensors = {name: tensor for name, tensor in base._tensors.items() if name not in cut}
        for name, (source, rows) in pieces.items():
            tensor = base._tensors[source]
            length = sum(len(range(*part.indices(tensor.shape[0]))) for part in rows)
            bytes_ = (tensor.end - tensor.begin) // tensor.shape[0] * length
            shape = (length, *tensor.shape[1:])
            self._tensors[name] = replace(tensor, shape=shape, end=tensor.begin + bytes_)

    def view(self, name: str) -> np.ndarray:
        """As `Checkpoint.view`; a piece of several stretches is a copy."""
        if name not in self._pieces:
            return super().view(name)
        source, rows = self._pieces[name]
        whole = self._view(self._whole[source])
        return whole[rows[0]] if len(rows) == 1 else np.concatenate([whole[part] for part in rows])

    def release(self, name: str) -> None:
        """As `Checkpoint.release`; of a piece, the pages of the whole tensor."""
        self._release(self._whole[self._pieces[name][0]] if name in self._pieces else self._tensors[name])


def find_weights(folder: Path) -> Path:
    """The weight file (or shard index) of one component's folder; variants such as `*.fp16.safetensors` stand
    back.

    Raises
    ------
    CheckpointError
        There is none (saying what is there instead: a pickle, a LoRA), or more than one and no rule to
        choose.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() or path.is_symlink())
    indices = [path for path in files if path.name.endswith(".safetensors.index.json")]
    sharded = {shard for index in indices for shard in _weight_map(index).values()}
    singles = [path for path in files if path.suffix == ".safetensors" and path.name not in sharded]
    found = indices + singles
    if len(found) > 1:
        plain = [path for path in found if path.name.split(".safetensors")[0].count(".") == 0]
        found = plain or found
    if len(found) > 1 and all(SHARD.search(path.name) for path in found):
        raise CheckpointError(f"{folder}: shards without their index, a file *.safetensors.index.json; copy it too")
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise CheckpointError(
            f"{folder}: several sets of weights ({listed}); keep the one to load here and move the others out"
        )
    if not found:
        raise CheckpointError(f"{folder}: {_why_no_weights(files)}")
    if "lora" in found[0].name.lower():
        raise CheckpointError(
            f"{found[0]}: a LoRA changes a model and is none; give it with the model that it changes: "
            "jaxdiff.load(folder, lora=path)"
        )
    return found[0]


def _why_no_weights(files: list[Path]) -> str:
    pickles = [path.name for path in files if path.suffix in PICKLES]
    if pickles:
        return f"only pickles here ({', '.join(pickles)}): {refuse_pickles(files[0].parent)}"
    names = ", ".join(path.name for path in files[:8]) or "nothing"
    return f"no *.safetensors and no *.safetensors.index.json here (found: {names})"


def refuse_pickles(path: Path) -> str:
    """Why a pickle is not read, and what to do instead."""
    out = path if path.is_dir() else path.with_suffix(".safetensors")
    return (
        "opening a pickle can run any code, so that loading never does. "
        f"`python -m ports.unpickle --checkpoint={path} --out={out}` rewrites it as safetensors, in a process of its "
        "own that admits tensors only (needs torch: the extra `parity`)"
    )


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says about itself, beside its tensors.

    Raises
    ------
    CheckpointError
        As for `Checkpoint`.
    """
    return _read_file(file)[0]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise TypeError("weight_map must map tensor names to file names")
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a shard index: {error!r}") from error
    return weight_map


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    problems = []
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            problems.append(f"{shard!r} is no plain file name; shards must lie beside their index")
            continue
        file = index.parent / shard
        if not file.is_file():
            count = sum(1 for name in weight_map.values() if name == shard)
            problems.append(f"shard {shard} is missing ({count} tensors lie in it)")
            continue
        try:
            held = _read_header(file)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for name in sorted(held.keys() - weight_map.keys()):
            problems.append(f"{shard} holds {name!r}, which the index does not list")
        for name in sorted(name for name in weight_map if weight_map[name] == shard and name not in held):
            problems.append(f"the index places {name!r} in {shard}, which does not hold it")
        for name in sorted(held.keys() & weight_map.keys()):
            if weight_map[name] == shard:
                tensors[name] = held[name]
            else:
                problems.append(f"{name!r} lies in {shard}, but the index places it in {weight_map[name]}")
    if problems:
        raise CheckpointError(f"{index}: {len(problems)} problem(s)\n  " + "\n  ".join(problems))
    return tensors


def _read_header(file: Path) -> dict[str, Tensor]:
    return _read_file(file)[1]


def _read_file(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors: one file's header, parsed and checked against the file's size."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            prefix = handle.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix + handle.read(len(LFS_POINTER) - 8) == LFS_POINTER:
                raise CheckpointError(
                    f"{file}: a git-lfs pointer and not the weights; run `git lfs pull` in its repository"
                )
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise CheckpointError(
                    f"{file}: truncated or not a safetensors file: its header should take {length} bytes, "
                    f"the file has {size} in all"
                )
            handle.seek(8)
            text = handle.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    try:
        header = json.loads(text)
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
        tensors = {name: _parse(file, name, entry, 8 + length) for name, entry in header.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: its safetensors header is corrupt: {error!r}") from error
    _check_layout(file, tensors, 8 + length, size)
    return metadata, tensors


def _parse(file: Path, name: str, entry: dict, start: int) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{file}: {name!r} has dtype {entry['dtype']!r}; readable dtypes are {', '.join(DTYPES)}")
    dtype = DTYPES[entry["dtype"]]
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name!r} has shape {entry['shape']} and offsets {entry['data_offsets']}")
    expected = math.prod(shape) * dtype.itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{file}: {name!r} is {entry['dtype']} {shape} and needs {expected} bytes, its offsets span {end - begin}"
        )
    return Tensor(file, dtype, shape, start + begin, start + end)


def _check_layout(file: Path, tensors: dict[str, Tensor], start: int, size: int) -> None:
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            kind = "overlaps the tensor before it" if tensor.begin < position else "leaves a hole before it"
            raise CheckpointError(f"{file}: {name!r} begins at byte {tensor.begin} instead of {position}: it {kind}")
        position = tensor.end
    if size != position:
        state = "truncated" if size < position else "followed by unknown bytes"
        raise CheckpointError(
            f"{file}: {state}: its header describes {position} bytes, the file has {size}; copy or download it again"
        )
