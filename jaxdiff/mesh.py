"""Devices as a mesh, and clips as fixed, padded micro-batches on it.

Float32 results change in their last bits with the batch size, so the number of clips a device works on at
once is a constant of the run (`clips_per_device`) and short batches are padded: a clip's result then depends
neither on its neighbours nor on how many devices there are. A padded row repeats a real clip (its values are
finite and of the usual size) and carries the clip id `PADDING`, which every consumer drops.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdiff.errors import ConfigError

DATA = "data"
FSDP = "fsdp"  # weights and optimiser state are split over it, and so are the batches of training
AXES = (DATA, FSDP, "tensor")
PADDING = -1  # clip id of a padded row

T = TypeVar("T")


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the single axis ``data`` over `devices` (default: all of them).

    Raises
    ------
    ConfigError : `devices` is empty.
    """
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ConfigError("a mesh needs at least one device, and the list given is empty")
    # Auto is spelled out because the default axis type differs between the ways JAX builds a mesh.
    return Mesh(np.array(devices), (DATA,), axis_types=(AxisType.Auto,))


def data_size(mesh: Mesh) -> int:
    """Number of shards along ``data``: how many micro-batches run at once.

    Raises
    ------
    ConfigError : the mesh has no axis ``data``.
    """
    if DATA not in mesh.shape:
        raise ConfigError(
            f"the mesh has the axes {tuple(mesh.shape)}, but clips are spread over an axis named {DATA!r}"
        )
    return mesh.shape[DATA]


def parse_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """The mesh of a `--mesh` flag: "data=2,fsdp=4", or "auto" for all devices along ``data`` (None if there is but one).

    Raises
    ------
    ConfigError : it is not written so, an axis is unknown, or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if text == "auto":
        return data_mesh(devices) if len(devices) > 1 else None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not size.isdigit() or not int(size):
            raise ConfigError(
                f"--mesh={text}: {part!r} is no axis and size; write data=2,fsdp=4 (axes {', '.join(AXES)}) or auto"
            )
        sizes[name] = int(size)
    if math.prod(sizes.values()) != len(devices):
        raise ConfigError(f"--mesh={text} is for {math.prod(sizes.values())} devices, and there are {len(devices)}")
    sizes = {DATA: 1} | sizes
    return Mesh(np.array(devices).reshape(*sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def shard_batch(x: Any, mesh: Mesh, axes: tuple[str, ...] = (DATA,)) -> Any:
    """Put a pytree of arrays ``[B, ...]`` on the mesh, B split over ``data``, other mesh axes replicated.

    `axes` are those over which it is split, where the mesh has them.

    Raises
    ------
    ConfigError : a leaf has no batch axis, or its length does not divide by the ``data`` axis.
    """
    data_size(mesh)
    there = tuple(axis for axis in axes if axis in mesh.shape)
    shards = math.prod(mesh.shape[axis] for axis in there)
    sharding = NamedSharding(mesh, PartitionSpec(there if len(there) > 1 else DATA))

    def put(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        shape = np.shape(leaf)
        if not shape or shape[0] % shards:
            raise ConfigError(
                f"batch{jax.tree_util.keystr(path)} of shape {shape} does not split over {shards} devices on "
                f"axis {', '.join(there)!r}: pad it with jaxdiff.mesh.micro_batches or pad_batch"
            )
        return jax.device_put(leaf, sharding)

    return jax.tree_util.tree_map_with_path(put, x)


def split_activations(tree: Any) -> Any:
    """Arrays [B, ...] with B split over ``data`` and ``fsdp``, in what is traced under `jax.sharding.use_abstract_mesh`
    of a mesh that has ``fsdp``; in any other, `tree` itself.

    Where weights are split over the axis that batches are split over, one of the two has to be gathered. Without a word the
    compiler gathers the activations, which are the larger ones.
    """
    names = jax.sharding.get_abstract_mesh().axis_names
    if FSDP not in names:
        return tree
    spec = PartitionSpec(tuple(axis for axis in (DATA, FSDP) if axis in names))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a pytree of arrays on the mesh, a whole copy on each device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def pad_batch(x: Any, size: int) -> Any:
    """Lengthen a pytree of host arrays ``[n, ...]`` to ``[size, ...]`` by repeating the last row.

    Raises
    ------
    ConfigError : a leaf is empty or longer than `size`.
    """

    def pad(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if not leaf.ndim or not 0 < len(leaf) <= size:
            raise ConfigError(f"a batch of shape {leaf.shape} cannot be padded to {size} rows")
        return np.concatenate([leaf, np.repeat(leaf[-1:], size - len(leaf), axis=0)])

    return jax.tree.map(pad, x)


@dataclasses.dataclass(frozen=True)
class MicroBatch(Generic[T]):
    """One global batch of ``B = data_size(mesh) * clips_per_device`` rows.

    Attributes
    ----------
    clip_ids : ``[B]`` int32, `PADDING` in padded rows, which come last.
    items : B values, one a row; padded rows repeat the last real one.
    real : number of rows that are not padding.
    """

    clip_ids: np.ndarray
    items: tuple[T, ...]
    real: int


def micro_batches(items: Iterable[tuple[int, T]], clips_per_device: int, mesh: Mesh) -> Iterator[MicroBatch[T]]:
    """Group ``(clip id, value)`` pairs into batches of one fixed size, the last one padded.

    `items` is drawn lazily, one batch ahead of nothing: a loader that leaves out unreadable clips yields full
    batches of the readable ones.

    Raises
    ------
    ConfigError : `clips_per_device` is not positive, or a clip id is negative.
    """
    if clips_per_device < 1:
        raise ConfigError(f"clips_per_device is {clips_per_device}, but every device needs at least one clip")
    size = data_size(mesh) * clips_per_device
    ids: list[int] = []
    values: list[T] = []

    def batch() -> MicroBatch[T]:
        short = size - len(ids)
        padded_ids = np.array([*ids, *[PADDING] * short], np.int32)
        return MicroBatch(padded_ids, (*values, *values[-1:] * short), len(ids))

    for clip_id, value in items:
        if clip_id < 0:
            raise ConfigError(f"clip id {clip_id} is negative; negative ids mark padding")
        ids.append(clip_id)
        values.append(value)
        if len(ids) == size:
            yield batch()
            ids, values = [], []
    if ids:
        yield batch()
