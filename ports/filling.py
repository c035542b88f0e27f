"""Weights in and out by a table: leaves filled from a checkpoint's tensors, tensors written from leaves."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.errors import CheckpointError
from ports.safetensors_reader import Checkpoint
from ports.safetensors_writer import SafetensorsWriter
from ports.table import Group, Table, expected_names, flatten, plan, rebuild, torch_shape

STRIP = 32  # torch rows copied at a time
TILE_ROWS, TILE_BYTES, LINE = 256, 1024, 64  # of a matrix: rows at a time, bytes of each, a line of the cache
CHUNK = np.dtype("V16")
THREADS = min(8, os.cpu_count() or 1)  # rows of a stacked leaf that are copied at once


def load_params(
    reader: Checkpoint,
    table: Table,
    abstract_params: Mapping[Any, Any],
    dtype=None,
    shardings: Any = None,
) -> dict[Any, Any]:
    """Fill a parameter tree from a checkpoint, one leaf at a time.

    Beyond the result the host never holds more than one leaf: each one is read from the mapped files into a
    buffer in its final layout and dtype, rows of a stacked leaf by several threads, and put on its devices before the next
    begins. With a sharding, only
    the slices of local devices are read.

    Parameters
    ----------
    reader : Checkpoint
        The checkpoint's tensors.
    table : tuple of Rule and Ignore
        How they are named.
    abstract_params : nested dict
        The tree to fill: leaves with `shape` and `dtype` (`jax.ShapeDtypeStruct`).
    dtype : dtype, optional
        Floating-point dtype of the result, except for leaves whose rule says `keep_float32`; default: the
        leaves' own.
    shardings : jax.sharding.Sharding or nested dict of them, optional
        Where the leaves go: one sharding for all, or one for each. Default: the default device.

    Returns
    -------
    nested dict
        The same tree with `jax.Array` leaves.

    Raises
    ------
    CheckpointError
        Tensors are missing, extra, misshaped, or of a non-floating dtype; all are listed, and no weight was
        read.
    """
    groups = plan(reader, table, abstract_params)
    single = shardings is None or isinstance(shardings, jax.sharding.Sharding)
    placed = {} if single else flatten(shardings)
    loaded = {}
    for path, leaf in flatten(abstract_params).items():
        group = groups[path]
        kind = group.rule.dtype(leaf.dtype if dtype is None else dtype)
        read = functools.partial(_read, reader, group, kind)
        loaded[path] = _place(tuple(leaf.shape), shardings if single else placed[path], read)
    return rebuild(abstract_params, loaded)


def read_stored(
    reader: Checkpoint, table: Table, abstract_params: Mapping[Any, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Leaf by leaf, its path and its values on the host, in the widest dtype in which its tensors are stored (and
    never above float32).

    Raises
    ------
    CheckpointError
        As `load_params`.
    """
    groups = plan(reader, table, abstract_params)
    for path, leaf in flatten(abstract_params).items():
        stored = {reader.dtype(name) for name in groups[path].names}
        kind = stored.pop() if len(stored) == 1 else np.dtype(np.float32)
        kind = np.dtype(np.float32) if kind == np.float64 else kind
        yield path, _read(reader, groups[path], kind, tuple(slice(0, size) for size in leaf.shape))


def _place(shape: tuple[int, ...], sharding, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    everything = tuple(slice(0, size) for size in shape)
    if sharding is None:
        # Waiting keeps one buffer alive at a time: a transfer that is still in flight holds its own.
        return jax.device_put(read(everything)).block_until_ready()
    buffers: dict[tuple, np.ndarray] = {}  # replicas share one read

    def local(index):
        bounds = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))
        key = tuple((part.start, part.stop) for part in bounds)
        if key not in buffers:
            buffers[key] = read(bounds)
        return buffers[key]

    return jax.make_array_from_callback(shape, sharding, local).block_until_ready()


def _read(reader: Checkpoint, group: Group, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
    """One slice of a leaf from its tensors, in a fresh buffer."""
    buffer = aligned_empty(tuple(part.stop - part.start for part in index), dtype)
    forward = group.rule.transform.forward
    if not group.rule.stacked:
        _copy(buffer, forward(reader.view(group.names[0]))[index])
        reader.release(group.names[0])
        return buffer

    def fill(row, name):
        _copy(buffer[row], forward(reader.view(name))[index[1:]])
        reader.release(name)

    # What takes time is touching memory for the first time, there and here; the system does that for several threads at once.
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, range(len(buffer)), group.names[index[0]]))
    return buffer


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, cast included, several times as fast if `source` is a transposed view.

    NumPy walks a transposed source with one cache miss an element. Matrices go by tiles (`_transpose`). Of other arrays a strip of
    a few torch rows (the leaf's last axis is torch's first) is read in order, cast, and is small enough for the cache.
    """
    if source.ndim < 2 or source.strides[-1] == source.itemsize:
        target[...] = source
    elif source.ndim == 2 and source.shape[0] % (CHUNK.itemsize // target.itemsize) == 0:
        _transpose(target, source.T)
    else:
        for start in range(0, source.shape[-1], STRIP):
            strip = slice(start, start + STRIP)
            target[..., strip] = source[..., strip].astype(target.dtype, order="K")


def _transpose(target: np.ndarray, rows: np.ndarray) -> None:
    """`target[...] = rows.T` by tiles that fit into a core's cache: chunks of 16 bytes first, then the values in each, so that
    few steps go from row to row."""
    values, (height, width) = CHUNK.itemsize // target.itemsize, rows.shape
    high, wide = min(TILE_ROWS, height), min(TILE_BYTES // target.itemsize, width)
    # One line of the cache more, so that the chunks of a column do not all fall into the same few places of it.
    read = np.empty((high, wide + LINE // target.itemsize), target.dtype)
    across = np.empty((wide // values, high), CHUNK)
    for top in range(0, height, high):
        for left in range(0, width, wide):
            part = rows[top : top + high, left : left + wide]
            tile, chunks = read[: part.shape[0], : part.shape[1]], across[: part.shape[1] // values, : part.shape[0]]
            tile[...] = part
            chunks[...] = tile.view(CHUNK).T
            each = chunks.view(target.dtype).reshape(*chunks.shape, values)
            place = target[left : left + wide, top : top + high]
            place.reshape(len(chunks), values, -1)[...] = each.transpose(0, 2, 1)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array whose data starts at a multiple of 64 bytes, which JAX on a CPU takes over
    without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def save_params(params: Mapping[Any, Any], table: Table, path: str | Path, dtype=None) -> None:
    """Write a parameter tree as a safetensors file under the checkpoint's names: the inverse of
    `load_params`.

    The same parameters give the same bytes. Leaves are fetched from their devices one at a time.

    Raises
    ------
    CheckpointError
        The table cannot name every leaf; all that it cannot are listed.
    """
    groups, problems = expected_names(table, params)
    if problems:
        raise CheckpointError(
            f"{path}: cannot be written, {len(problems)} problem(s)\n  " + "\n  ".join(sorted(problems))
        )
    leaves = flatten(params)
    tensors = {}
    for leaf_path, group in groups.items():
        leaf = leaves[leaf_path]
        kind = group.rule.dtype(leaf.dtype if dtype is None else dtype)
        for name in group.names:
            tensors[name] = (kind, torch_shape(group.rule, leaf))
    with SafetensorsWriter(path, tensors) as writer:
        for leaf_path, group in groups.items():
            values = np.asarray(leaves[leaf_path])
            for row, name in enumerate(group.names):
                writer.write(name, group.rule.transform.inverse(values[row] if group.rule.stacked else values))
