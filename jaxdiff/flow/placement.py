"""Running the loop once per device on that device's own clips.

Under automatic partitioning a program is traced with the batch of all devices, and whatever it derives from
that size (blocks of attention, fusions) changes with the number of devices, and float32 bits with it. Inside
a manual `jax.shard_map` each device traces and runs the program of its own clips: its results do not depend
on the others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh, and the axis (or axes) of it over which the clips are spread. Hashable, static under jit."""

    mesh: Mesh
    axis: str | tuple[str, ...]

    def specs(self, tree: Any, batch: int) -> Any:
        """Leaves whose first axis is the batch are spread with the clips, all others are whole on every
        device.
        """
        clips, whole = PartitionSpec(self.axis), PartitionSpec()
        return jax.tree.map(lambda leaf: clips if leaf.ndim and leaf.shape[0] == batch else whole, tree)


def placement_of(pipeline: Any, latents: jax.Array) -> Placement | None:
    """Where the clips lie, or None where jit's own partitioning is to decide.

    None for latents on one device or traced by the caller, and for weights or latents that are themselves
    split: then no device can run alone.
    """
    if isinstance(latents, jax.core.Tracer) or not isinstance(latents.sharding, NamedSharding):
        return None
    first, *others = (*latents.sharding.spec, None)
    split = any(axis is not None for axis in others) or any(
        isinstance(leaf, jax.core.Tracer) or (isinstance(leaf, jax.Array) and not leaf.sharding.is_fully_replicated)
        for leaf in jax.tree.leaves(pipeline)
    )
    mesh = latents.sharding.mesh
    return None if first is None or split or not isinstance(mesh, Mesh) else Placement(mesh, first)


def per_device(run: Callable, placement: Placement | None, whole: Any, clips: Any, batch: int, out_specs: Any) -> Any:
    """``run(whole, clips)``, on every device with its own part of `clips`.

    Parameters
    ----------
    whole, clips : pytrees; every leaf of `whole` is needed entire, leaves of `clips` are split as
        `Placement.specs`.
    out_specs : function of the clips' axis, giving a pytree prefix of the result's `PartitionSpec`.
    """
    if placement is None:
        return run(whole, clips)
    return jax.shard_map(
        run,
        mesh=placement.mesh,
        in_specs=(PartitionSpec(), placement.specs(clips, batch)),
        out_specs=out_specs(placement.axis),
        check_vma=False,  # a sink's host callbacks have no replication rule
    )(whole, clips)
