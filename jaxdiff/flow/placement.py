"""Running the loop once per device on that device's own clips, and its part of their tokens.

Under automatic partitioning a program is traced with the batch of all devices, and whatever it derives from
that size (blocks of attention, fusions) changes with the number of devices, and float32 bits with it. Inside
a manual `jax.shard_map` each device traces and runs the program of its own clips: its results do not depend
on the others.

Two things may be split further. Weights that lie split over ``fsdp`` stay so, and each is gathered where its layer uses it
(`jaxdiff.mesh.Shard`). Devices along ``seq`` have the same clips and share the work on their tokens
(`jaxdiff.kernels.sequence`); the states, a hundredth of an activation, are whole on each of them.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.errors import ConfigError
from jaxdiff.mesh import FSDP, SEQ, Shard, clip_spec, data_size
from jaxdiff.taps import Full, Tap


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh, and what of a run is split over it. Hashable, static under jit.

    Parameters
    ----------
    mesh : the devices.
    axis : the axis (or axes) over which the clips are spread.
    splits : how each leaf of the pipeline is split; leaves behind these are whole.
    """

    mesh: Mesh
    axis: str | tuple[str, ...]
    splits: tuple[PartitionSpec, ...] = ()

    @property
    def shares_tokens(self) -> bool:
        """Whether a clip's tokens are on several devices."""
        return self.mesh.shape.get(SEQ, 1) > 1

    def specs(self, tree: Any, batch: int) -> Any:
        """Leaves whose first axis is the batch are spread with the clips, all others are whole on every
        device.
        """
        clips, whole = PartitionSpec(self.axis), PartitionSpec()
        return jax.tree.map(lambda leaf: clips if leaf.ndim and leaf.shape[0] == batch else whole, tree)


_PLACED: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placed", default=None)


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """What is traced inside is placed so, where a run under a caller's own `jit` could not know of its arguments' places.

    For programs that are compiled ahead of time, around the call of `invert` or `sample` in the function that is lowered.
    """
    token = _PLACED.set(placement)
    try:
        yield
    finally:
        _PLACED.reset(token)


def placement_of(tree: Any, latents: Any) -> Placement | None:
    """Where the clips lie, or None where jit's own partitioning is to decide.

    None for latents on one device or traced by the caller (`placed` tells then), for latents whose other axes are split, and
    for weights that are split over other axes than ``fsdp``: then no device can run alone.

    Parameters
    ----------
    tree : what is needed whole: a pipeline, or (pipeline, guide).
    latents : [B, ...]; as the leaves of `tree` an array, or a `jax.ShapeDtypeStruct` with a sharding.
    """
    if isinstance(latents, jax.core.Tracer):
        return _PLACED.get()
    sharding = getattr(latents, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    first, *others = (*sharding.spec, None)
    if first is None and sharding.mesh.shape.get(SEQ, 1) > 1 and data_size(sharding.mesh) == 1:
        first = clip_spec(sharding.mesh)[0]  # jit forgets an axis of one device in what it returns
    if first is None or any(axis is not None for axis in others):
        return None
    splits = [_split(leaf, sharding.mesh) for leaf in jax.tree.leaves(tree)]
    known = [split for split in splits if split is not None]
    if len(known) < len(splits):
        return None
    while known and known[-1] == PartitionSpec():
        known.pop()
    return Placement(sharding.mesh, first, tuple(known))


def _split(leaf: Any, mesh: Mesh) -> PartitionSpec | None:
    """How a leaf is split over ``fsdp``; None: otherwise, or its place is not known."""
    sharding = getattr(leaf, "sharding", None)
    if isinstance(leaf, jax.core.Tracer):
        return None
    if sharding is None or sharding.is_fully_replicated:
        return PartitionSpec()
    ours = isinstance(sharding, NamedSharding) and sharding.mesh == mesh
    return sharding.spec if ours and {*sharding.spec} <= {None, FSDP} else None


def check_tokens(latents: Any, sink: Any, taps: tuple[Tap, ...], placement: Placement | None) -> None:
    """Raise a `ConfigError` for what a run cannot do where a clip's tokens are on several devices."""
    mesh = getattr(getattr(latents, "sharding", None), "mesh", None) if placement is None else placement.mesh
    if mesh is None or mesh.shape.get(SEQ, 1) == 1:
        return
    if placement is None and not isinstance(latents, jax.core.Tracer):
        raise ConfigError(
            f"with {SEQ}, weights may be split over {FSDP} alone, and latents by clips: load(..., mesh=) and "
            f"jaxdiff.mesh.shard_batch with one mesh of data, {FSDP} and {SEQ}"
        )
    full = [tap.name for tap in taps if isinstance(tap.reducer, Full)]
    if sink is not None and full:
        raise ConfigError(
            f"tap {full[0]}: a sink takes whole clips from a device, and over {SEQ} each device has some of the tokens; return "
            "these captures instead, reduce them, or use data and fsdp"
        )


def per_device(run: Callable, placement: Placement | None, whole: Any, clips: Any, batch: int, out_specs: Any) -> Any:
    """``run(whole, clips)``, on every device with its own part of `clips`.

    Parameters
    ----------
    whole, clips : pytrees; every leaf of `whole` is needed entire, and those that the placement has split are a `Shard`;
        leaves of `clips` are split as `Placement.specs`.
    out_specs : function of the clips' axis, giving a pytree prefix of the result's `PartitionSpec`.
    """
    if placement is None:
        return run(whole, clips)
    leaves, structure = jax.tree.flatten(whole)
    splits = [*placement.splits, *[PartitionSpec()] * (len(leaves) - len(placement.splits))]

    def on_device(leaves, clips):
        return run(jax.tree.unflatten(structure, map(_sharded, leaves, splits)), clips)

    return jax.shard_map(
        on_device,
        mesh=placement.mesh,
        in_specs=(splits, placement.specs(clips, batch)),
        out_specs=out_specs(placement.axis),
        check_vma=False,  # a sink's host callbacks have no replication rule
    )(leaves, clips)


def captured_specs(taps: tuple[Tap, ...], axis: Any, placement: Placement | None) -> dict[str, PartitionSpec]:
    """Where returned captures [captured, rows, B, ...] lie: with their clips, and whole tokens on the devices that have them.
    What tokens were reduced to is the same on all devices that share them."""
    kept = SEQ if placement is not None and placement.shares_tokens else None
    clips = PartitionSpec(None, None, axis)
    return {str(tap.name): PartitionSpec(*clips, kept) if isinstance(tap.reducer, Full) else clips for tap in taps}


def _sharded(leaf: jax.Array, split: PartitionSpec) -> Any:
    axes = tuple((i - leaf.ndim, axis) for i, axis in enumerate(split) if axis is not None)
    return Shard(leaf, axes) if axes else leaf
