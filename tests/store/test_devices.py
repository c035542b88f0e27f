"""The store on a mesh of eight fake devices."""

from jaxdiff.store import ActivationStore
from tests.store import program as p

STREAM = """
import sys, jax, numpy as np
from jax.sharding import Mesh
from jaxdiff.mesh import data_mesh
from tests.store import program as p

path, stream, axes = sys.argv[1], sys.argv[2] == "stream", sys.argv[3]
devices = np.array(jax.devices())
mesh = data_mesh() if axes == "data" else Mesh(devices.reshape(4, 2), tuple(axes.split(",")))
with p.create(path, 21) as store:
    taken, original = [], store._receiver._take
    def take(ids, slot, values):
        taken.extend((clip, slot) for clip in ids.tolist() if clip >= 0)
        assert all(v.shape[1] == len(ids) == 2 for v in values.values())  # its own shard, nothing gathered
        original(ids, slot, values)
    store._receiver._take = take
    p.run(store, mesh, stream)
print(len(taken), len(set(taken)), p.traces[0])
"""


def test_streamed_on_eight_devices_equals_one_device_bit_for_bit(tmp_path, run_with_devices):
    printed = run_with_devices(8, STREAM, tmp_path / "s", "stream", "data")
    assert printed.split() == [str(21 * len(p.CAPTURED))] * 2 + ["1"]
    p.assert_same(p.arrays(tmp_path / "s"), p.reference(21))
    assert ActivationStore.open(tmp_path / "s").finished() == set(range(21))


def test_returned_on_eight_devices_equals_one_device_bit_for_bit(tmp_path, run_with_devices):
    run_with_devices(8, STREAM, tmp_path / "s", "return", "data")
    p.assert_same(p.arrays(tmp_path / "s"), p.reference(21))


def test_replicas_hand_over_each_clip_and_slot_exactly_once(tmp_path, run_with_devices):
    printed = run_with_devices(8, STREAM, tmp_path / "s", "stream", "data,fsdp")
    assert printed.split() == [str(21 * len(p.CAPTURED))] * 2 + ["1"]
    p.assert_same(p.arrays(tmp_path / "s"), p.reference(21))


MANUAL = """
import sys, jax, numpy as np
from jax.sharding import PartitionSpec as P
from jaxdiff.mesh import data_mesh, micro_batches, shard_batch
from tests.store import program as p

mesh = data_mesh()
run = jax.jit(jax.shard_map(lambda x, sink: p.scan(x, p.SLOT, sink)[0], mesh=mesh, in_specs=P("data"),
                            out_specs=P("data"), check_vma=False))
with p.create(sys.argv[1], 9) as store:
    for batch in micro_batches([(i, p.clip(i)) for i in range(9)], 2, mesh):
        run(shard_batch(np.stack(batch.items), mesh), store.sink(batch.clip_ids, mesh))
        store.finish(batch.clip_ids)
"""


def test_a_program_that_is_manual_already_streams_the_same(tmp_path, run_with_devices):
    run_with_devices(8, MANUAL, tmp_path / "s")
    p.assert_same(p.arrays(tmp_path / "s"), p.reference(9))


FULL = """
import errno, sys, time, jax, numpy as np
from jaxdiff.errors import StoreWriteError
from jaxdiff.mesh import data_mesh
from jaxdiff.store import layout
from tests.store import program as p

layout.CHUNK_BYTES = 8
mesh = data_mesh()
try:
    with p.create(sys.argv[1], 24) as store:
        original = store._write_job
        def write(job):
            if job.clip == 13 and job.start == 2:
                raise store._failure(OSError(errno.ENOSPC, ""), f"{job.name!r} of clip {job.clip}")
            original(job)
        store._writer._write = write
        take = store._receiver._take
        def slow_take(ids, slot, values):
            take(ids, slot, values)
            while store._writer._jobs:  # the failure comes before the next slot
                time.sleep(0.001)
        store._receiver._take = slow_take
        p.run(store, mesh, clips_per_device=1)
except StoreWriteError as error:
    print(error.errno, "of clip 13" in str(error), "the 8 finished clips are intact" in str(error))

# The runtime keeps the error of the program that was stopped for every device that runs nothing after it, and
# raises it at each barrier; a store of the same process must not suffer.
try:
    jax.effects_barrier()
except jax.errors.JaxRuntimeError:
    print("stale")
with p.create(sys.argv[1], 24) as store:
    print(sorted(store.finished()) == list(range(8)))
    p.run(store, data_mesh(jax.devices()[:4]), clips_per_device=1)
    print(len(store.finished()))
"""


def test_a_failed_write_stops_all_devices_and_the_run_can_go_on(tmp_path, run_with_devices):
    printed = run_with_devices(8, FULL, tmp_path / "s", timeout=120)
    assert printed.splitlines() == ["28 True True", "stale", "True", "24"]
    p.assert_same(p.arrays(tmp_path / "s"), p.reference(24, 1))


LARGE = """
import sys, jax, jax.numpy as jnp, numpy as np
from jaxdiff.mesh import data_mesh, shard_batch
from jaxdiff.store import ActivationStore

mesh, slots, width = data_mesh(), 30, 40_000
spec = {"x": jax.ShapeDtypeStruct((4, width), jnp.float32)}

@jax.jit
def run(x, sink):
    def body(x, slot):
        x = jnp.sin(x) + 1  # element-wise, so that all devices and the callbacks compete for the same threads
        sink.emit({"x": jnp.stack([x, x + 1, x + 2, x + 3])}, slot)
        return x, None
    return jax.lax.scan(body, x, jnp.arange(slots))[0]

with ActivationStore.create(sys.argv[1], clips=16, slots=slots, specs=spec, queue_bytes=4 << 20) as store:
    for first in (0, 8):
        x = np.full((8, width), float(first), np.float32)
        run(shard_batch(x + 7, mesh), store.sink(np.arange(first, first + 8), mesh))  # given up while it runs
        run(shard_batch(x, mesh), store.sink(np.arange(first, first + 8), mesh))
        store.finish(np.arange(first, first + 8))
    a = store.read("x")
    y = np.asarray(jax.jit(lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x) + 1,) * 2, x, None, slots)[1])(
        jnp.array([0.0, 8.0])))  # [slots, 2]
    np.testing.assert_allclose(a[::8, :, 0, 0], y.T, rtol=1e-6)  # a scalar sine and a vector one may differ
    assert all((a[i] == a[i // 8 * 8]).all() for i in range(16))
    assert (a[:, :, 1] == a[:, :, 0] + 1).all() and (a[:, 1:, 0] != a[:, :-1, 0]).any()
    print("done")
"""


def test_large_captures_from_all_devices_at_once_neither_deadlock_nor_mix_with_a_run_given_up(
    tmp_path, run_with_devices
):
    # 0.6 MB a callback and device, 300 MB in all through a queue of 4 MB.
    assert run_with_devices(8, LARGE, tmp_path / "s", timeout=120).split() == ["done"]
