"""Devices as a mesh, and clips as fixed, padded micro-batches on it.

Float32 results change in their last bits with the batch size, so the number of clips a device works on at
once is a constant of the run (`clips_per_device`) and short batches are padded: a clip's result then depends
neither on its neighbours nor on how many devices there are. A padded row repeats a real clip (its values are
finite and of the usual size) and carries the clip id `PADDING`, which every consumer drops.

| axis     | what is split over it                                                                            |
|----------|--------------------------------------------------------------------------------------------------|
| `data`   | clips                                                                                            |
| `fsdp`   | clips, and the large weights (with their optimiser state): a layer is gathered when it is used    |
| `seq`    | the tokens of every clip (`jaxdiff.kernels.sequence`); weights and states are the same on it      |
| `tensor` | the other side of the large weights, by the compiler's partitioner: training and text encoders    |
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdiff.errors import ConfigError

DATA = "data"
FSDP = "fsdp"  # weights and optimiser state are split over it, and so are the clips
SEQ = "seq"
AXES = (DATA, FSDP, SEQ, "tensor")
PADDING = -1  # clip id of a padded row

T = TypeVar("T")
_OWN: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("own", default=None)


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


def clip_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes over which clips are spread: ``data``, and ``fsdp`` where the mesh has it.

    Raises
    ------
    ConfigError : the mesh has no axis ``data``.
    """
    if DATA not in mesh.shape:
        raise ConfigError(
            f"the mesh has the axes {tuple(mesh.shape)}, but clips are spread over an axis named {DATA!r}"
        )
    return (DATA, FSDP) if FSDP in mesh.shape else (DATA,)


def clip_spec(mesh: Mesh) -> PartitionSpec:
    """How arrays [B, ...] lie on the mesh, a row a clip."""
    axes = clip_axes(mesh)
    return PartitionSpec(axes if len(axes) > 1 else DATA)


def data_size(mesh: Mesh) -> int:
    """Over how many parts clips are spread: how many micro-batches run at once.

    Raises
    ------
    ConfigError : the mesh has no axis ``data``.
    """
    return math.prod(mesh.shape[axis] for axis in clip_axes(mesh))


def parse_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """The mesh of a `--mesh` flag: "data=4,fsdp=8,seq=2", or "auto" for all devices along ``data`` (None if there is but
    one).

    Raises
    ------
    ConfigError : it is not written so, an axis is unknown, or the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if text == "auto":
        return data_mesh(devices) if len(devices) > 1 else None
    sizes, count = _sizes(text), len(devices)
    needed = math.prod(sizes.values())
    if needed != count:
        others = needed // sizes[DATA]
        hint = (
            f"data={count // others} would use all of them"
            if count % others == 0
            else f"{others} does not divide {count}"
        )
        raise ConfigError(f"--mesh={text} is for {needed} devices, and there are {count}; {hint}")
    return Mesh(np.array(devices).reshape(*sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def abstract_mesh(text: str) -> AbstractMesh:
    """The mesh that "data=4,fsdp=2" describes, without devices; "" is one device.

    Raises
    ------
    ConfigError : as `parse_mesh`.
    """
    sizes = _sizes(text) if text else {DATA: 1}
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _sizes(text: str) -> dict[str, int]:
    """Axis -> size, in the order of `AXES`: what talks most lies closest."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not size.isdigit() or not int(size):
            raise ConfigError(
                f"--mesh={text}: {part!r} is no axis and size; write data=4,fsdp=8,seq=2 (axes {', '.join(AXES)}, each "
                "once) or auto"
            )
        sizes[name] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES if axis in sizes or axis == DATA}


@contextlib.contextmanager
def working_on(text: str) -> Iterator[Mesh]:
    """`own_mesh` is, inside, the mesh of this `--mesh` flag over the devices of this process.

    Raises
    ------
    ConfigError : as `parse_mesh`.
    """
    devices = jax.local_devices()
    mesh = parse_mesh(text, devices) or data_mesh(devices)
    token = _OWN.set(mesh)
    try:
        yield mesh
    finally:
        _OWN.reset(token)


def own_mesh() -> Mesh:
    """The devices that this process works on: all of its own along ``data``, or as `working_on` says."""
    return _OWN.get() or data_mesh(jax.local_devices())


def weights_mesh() -> Mesh | None:
    """What `jaxdiff.load` is told as `mesh`: `own_mesh` where that splits weights, else None."""
    mesh = own_mesh()
    return mesh if mesh.shape.get(FSDP, 1) > 1 else None


def clip_mesh(mesh: Mesh | None = None) -> Mesh:
    """All devices of a mesh that are this process's, or all that this process works on, along ``data``: for networks that need
    clips and nothing else, such as VAEs."""
    if mesh is None:
        return data_mesh(list(own_mesh().devices.flat))
    return data_mesh([device for device in mesh.devices.flat if device.process_index == jax.process_index()])


def shard_batch(x: Any, mesh: Mesh) -> Any:
    """Put a pytree of arrays ``[B, ...]`` on the mesh, B split over ``data`` and ``fsdp``, the same on all other axes.

    Of a mesh of several processes, each has all of `x` and puts its own part there; nothing is sent.

    Raises
    ------
    ConfigError : a leaf has no batch axis, or its length does not divide.
    """
    shards, sharding = data_size(mesh), NamedSharding(mesh, clip_spec(mesh))

    def put(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        shape = np.shape(leaf)
        if not shape or shape[0] % shards:
            raise ConfigError(
                f"batch{jax.tree_util.keystr(path)} of shape {shape} does not split over {shards} devices on "
                f"axis {', '.join(clip_axes(mesh))!r}: pad it with jaxdiff.mesh.micro_batches or pad_batch"
            )
        return _put(leaf, sharding)

    return jax.tree_util.tree_map_with_path(put, x)


def spread_rows(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Videos or latents [B, T, H, W, C] that `shard_batch` has put on the mesh, with the rows of their frames over ``seq``, or
    the columns where it divides only these: for a VAE, whose program the compiler then splits, and exchanges borders."""
    n = mesh.shape.get(SEQ, 1)
    axis = next((axis for axis in (2, 3) if n > 1 and x.shape[axis] % n == 0), None)
    if axis is None:
        return x
    spec = PartitionSpec(*clip_spec(mesh), *[None] * (axis - 1), SEQ)
    return jax.device_put(x, NamedSharding(mesh, spec))


def split_activations(tree: Any) -> Any:
    """Arrays [B, ...] with B split over ``data`` and ``fsdp``, in what is traced under `jax.sharding.use_abstract_mesh`
    of a mesh that has ``fsdp``; in any other, `tree` itself.

    Where weights are split over the axis that batches are split over, one of the two has to be gathered. Without a word the
    compiler gathers the activations, which are the larger ones.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = {*mesh.axis_names} - {*mesh.manual_axes}
    if FSDP not in names:
        return tree
    spec = PartitionSpec(tuple(axis for axis in (DATA, FSDP) if axis in names))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a pytree of arrays on the mesh, a whole copy on each device; what is split over this mesh already stays so."""
    whole = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        there = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
        return leaf if there else _put(leaf, whole)

    return jax.tree.map(put, tree)


def on_host(tree: Any) -> Any:
    """Arrays that lie on several processes, whole and in the memory of each, which all call this; others as they are."""
    from jax.experimental import multihost_utils

    def get(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        return np.asarray(leaf if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(get, tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """A leaf that this process has whole, where it belongs."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)  # of the same value on all processes
    if sharding.is_fully_addressable or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return jax.device_put(leaf, sharding)
    # `jax.device_put` would have all processes compare what they have, in whatever order their threads come to it.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["part"], meta_fields=["axes"])
@dataclasses.dataclass(frozen=True)
class Shard:
    """A device's part of a weight, in the weight's place inside a `jax.shard_map`; ``shard[...]`` gathers it.

    Modules read their weights as ``param[...]`` where they use them, and so a layer is gathered inside the scan over layers
    when its turn comes, and let go after it.

    Parameters
    ----------
    part : [...], or [L, ...] for stacked blocks.
    axes : (axis of the weight, counted from the end; axis of the mesh) where it is split.
    """

    part: jax.Array
    axes: tuple[tuple[int, str], ...]

    def __getitem__(self, index) -> jax.Array:
        """The whole; as `nnx.Param` reads a whole array."""
        if index is not ...:
            raise TypeError(f"a Shard is read whole, shard[...], not shard[{index!r}]")
        x = self.part
        for axis, name in self.axes:
            x = jax.lax.all_gather(x, name, axis=x.ndim + axis, tiled=True)
        return x

    @property
    def dtype(self):
        return self.part.dtype


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
