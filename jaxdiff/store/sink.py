"""Streaming: captured states leave a compiled program while it runs.

`jax.experimental.io_callback` under automatic sharding gathers its operands to one device and runs once;
inside a fully manual `jax.shard_map` it runs on every device with that device's shard. Seen to work with jax
0.10.2 inside `lax.cond` inside `lax.scan` under `jax.jit`, on 1 and 8 devices. Programs with host callbacks
are left out of JAX's persistent compilation cache, and on a GPU every callback drains the stream: scan
outputs stay the default, this is for runs whose captures do not fit in memory.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxdiff.errors import ConfigError
from jaxdiff.mesh import clip_axes, clip_spec
from jaxdiff.store.layout import Layout

# On a CPU io_callback copies its operands by jax.device_put (jax-ml/jax#24255). Copies of more than 100
# KiB wait for a thread of the pool whose threads the devices occupy while inside their callbacks: 2
# devices on 2 cores were seen to hang for ever, and so were 8. Smaller copies are made at once, so larger
# arrays go in pieces.
CPU_PIECE = 96 << 10


class Receiver:
    """The host end of a store's sinks.

    Static in a compiled program and hashed by identity, so that one program serves all batches of a store.
    """

    def __init__(self, layouts: Mapping[str, Layout], take: Callable[[np.ndarray, int, dict], None]) -> None:
        self.layouts = dict(layouts)
        self._take = take

    def __call__(self, clip_ids: jax.Array, slot: jax.Array, pieces: dict[str, list[jax.Array]]) -> None:
        """Take one slot of one device's clips, each array as the flat pieces of ``[rows, b, ...]``."""
        # NumPy only from here on: a JAX operation inside a callback can deadlock the runtime. The views are
        # valid during this call; the assembly copies out of them.
        ids = np.asarray(clip_ids)
        values = {}
        for name, parts in pieces.items():
            rows, *rest = self.layouts[name].slot_shape
            flat = [np.asarray(part) for part in parts]
            whole = flat[0] if len(flat) == 1 else np.concatenate(flat)
            values[name] = whole.reshape(rows, len(ids), *rest)
        self._take(ids, int(np.asarray(slot)), values)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoreSink:
    """Where a compiled program puts the states of one batch. Made by `ActivationStore.sink`.

    A pytree with one leaf, `clip_ids` ``[B]`` int32 spread as clips are; store and mesh are static, so the
    sink of the next batch reuses the compiled program. A sink serves one run.
    """

    clip_ids: jax.Array
    receiver: Receiver = dataclasses.field(metadata={"static": True})
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    def emit(self, captured: Mapping[str, jax.Array], slot: jax.Array | int) -> None:
        """Hand one slot to the store; call it while tracing, also inside `lax.scan` and `lax.cond`.

        One host callback a device, with that device's own clips. Over mesh axes that clips are not spread over the
        states are replicas, and only the replica with index 0 hands over. Inside a `jax.shard_map` that is
        manual over the whole mesh the arrays are taken as the device's own shards.

        Parameters
        ----------
        captured : array name -> ``[rows, B, ...]``, all the store's arrays, in their dtypes.
        slot : scalar int, index of the captured step in the store.

        Raises
        ------
        ConfigError : names, shapes or dtypes are not those of the store (while tracing).
        """
        captured = {name: jnp.asarray(value) for name, value in captured.items()}
        self._check(captured)
        slot = jnp.asarray(slot, jnp.int32)
        mine, spec = clip_axes(self.mesh), clip_spec(self.mesh)
        replicas = tuple(axis for axis in self.mesh.axis_names if axis not in mine and self.mesh.shape[axis] > 1)

        def per_device(clip_ids: jax.Array, slot: jax.Array, values: dict[str, jax.Array]) -> tuple[()]:
            def hand_over() -> None:
                pieces = {name: self._pieces(value) for name, value in values.items()}
                io_callback(self.receiver, None, clip_ids, slot, pieces, ordered=False)

            if replicas:
                replica = sum(jax.lax.axis_index(axis) for axis in replicas)
                jax.lax.cond(replica == 0, hand_over, lambda: None)
            else:
                hand_over()
            return ()

        if _manual(self.mesh):
            per_device(self.clip_ids, slot, captured)
            return
        jax.shard_map(
            per_device,
            mesh=self.mesh,
            in_specs=(spec, PartitionSpec(), PartitionSpec(None, *spec)),
            out_specs=(),
            check_vma=False,
        )(self.clip_ids, slot, captured)

    def _pieces(self, value: jax.Array) -> list[jax.Array]:
        flat = value.reshape(-1)
        if self.mesh.devices.flat[0].platform != "cpu":
            return [flat]
        size = CPU_PIECE // value.dtype.itemsize
        return [flat[i : i + size] for i in range(0, flat.size, size)]

    def _check(self, captured: dict[str, jax.Array]) -> None:
        layouts = self.receiver.layouts
        if captured.keys() != layouts.keys():
            raise ConfigError(f"the sink was given {sorted(captured)}, but its store holds {sorted(layouts)}")
        batch = self.clip_ids.shape[0]
        for name, layout in layouts.items():
            value = captured[name]
            expected = (layout.slot_shape[0], batch, *layout.slot_shape[1:])
            if value.shape != expected or value.dtype != layout.numpy_dtype:
                raise ConfigError(
                    f"captured {name!r} is {value.dtype}{list(value.shape)}, but the store expects "
                    f"{layout.dtype}{list(expected)} ([rows, B, ...])"
                )


def _manual(mesh: Mesh) -> bool:
    """Whether the code being traced already runs per device on every axis of the mesh."""
    context = jax.sharding.get_abstract_mesh()
    types = dict(zip(context.axis_names, context.axis_types, strict=True))
    return all(types.get(axis) == AxisType.Manual for axis in mesh.axis_names)
