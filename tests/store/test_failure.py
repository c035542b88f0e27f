"""A write that fails stops the run at once, with its own error, and costs no finished clip."""

import errno
import os
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError, StoreWriteError
from jaxdiff.store import ActivationStore, layout
from jaxdiff.store.index import INDEX
from jaxdiff.store.layout import Layout
from jaxdiff.store.writer import Job, Writer

SLOTS = 40


class Disk:
    """Stands between the writer threads and TensorStore; `fail` makes every write raise it."""

    def __init__(self, monkeypatch):
        self.fail = None
        self.gate = threading.Event()
        self.gate.set()
        original = Layout.open

        def opened(layout, folder, **options):
            return _Array(self, original(layout, folder, **options))

        monkeypatch.setattr(Layout, "open", opened)


class _Array:
    def __init__(self, disk, array):
        self.disk, self.array = disk, array
        self.shape, self.oindex = array.shape, array.oindex

    def __getitem__(self, key):
        return _Array(self.disk, self.array[key])

    def write(self, *args, **options):
        assert self.disk.gate.wait(60)
        if self.disk.fail is not None:
            raise self.disk.fail
        return self.array.write(*args, **options)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@jax.jit
def stream(sink, x):
    """Emits x + slot at every one of SLOTS slots."""

    def body(carry, slot):
        sink.emit({"x": x[None] + slot}, slot)
        return carry, None

    return jax.lax.scan(body, 0, jnp.arange(SLOTS))[0]


def create(path, clips=4, **options):
    spec = {"x": jax.ShapeDtypeStruct((1, 2), jnp.float32)}
    return ActivationStore.create(path, clips=clips, slots=SLOTS, specs=spec, **options)


def expected(clips):
    return np.broadcast_to(np.arange(SLOTS, dtype=np.float32)[:, None, None], (clips, SLOTS, 1, 2))


def one_clip(store, i):
    with store.guard():
        stream(store.sink([i]), jnp.zeros((1, 2))).block_until_ready()
        store.finish([i])


def wait_until_idle(store):
    while store._writer._jobs:
        time.sleep(0.001)


def failure(kind, match, run):
    """The error that leaves `run`, checked to be of `kind` and to say `match`."""
    with pytest.raises(kind, match=match) as error:
        run()
    return error.value


def test_a_full_disk_stops_the_run_within_one_step_with_its_own_error(tmp_path, monkeypatch, disk):
    monkeypatch.setattr(layout, "CHUNK_BYTES", 8)  # a chunk a slot: every step writes
    taken = []

    def run():
        with create(tmp_path / "s") as store:
            one_clip(store, 2)
            original = store._receiver._take

            def take(ids, slot, values):
                taken.append(slot)
                if slot == 5:
                    disk.fail = OSError(errno.ENOSPC, "No space left on device")
                original(ids, slot, values)
                wait_until_idle(store)  # so that a failure precedes the next step

            store._receiver._take = take
            one_clip(store, 0)

    error = failure(OSError, "No space left on device", run)
    assert taken == [0, 1, 2, 3, 4, 5, 6]  # slot 5 failed behind the run, slot 6 found out
    assert type(error) is StoreWriteError
    assert (error.errno, error.exit_code) == (errno.ENOSPC, 75)
    for part in ("'x' of clip 0 (0)", str(tmp_path), "the 1 finished clips are intact"):
        assert part in str(error)
    assert "Traceback" not in str(error)

    disk.fail = None
    assert ActivationStore.open(tmp_path / "s").read("x").tobytes() == expected(1).tobytes()
    with create(tmp_path / "s") as store:  # the same command continues
        for i in (0, 1, 3):
            one_clip(store, i)
    assert ActivationStore.open(tmp_path / "s").read("x").tobytes() == expected(4).tobytes()


def test_a_failure_stops_a_run_whose_own_chunks_are_not_full_yet(tmp_path):
    taken = []

    def run():
        with create(tmp_path / "s") as store:  # one chunk a clip: nothing is queued before the last slot
            original = store._receiver._take

            def take(ids, slot, values):
                taken.append(slot)
                original(ids, slot, values)
                if slot == 5:
                    store._writer.fail(StoreWriteError(errno.EIO, "of an earlier clip"))

            store._receiver._take = take
            one_clip(store, 0)

    failure(StoreWriteError, "of an earlier clip", run)
    assert taken == [0, 1, 2, 3, 4, 5, 6]


def test_without_a_guard_check_names_the_reason(tmp_path, disk):
    store = create(tmp_path / "s")
    disk.fail = OSError(errno.EDQUOT, "Disk quota exceeded")
    stream(store.sink([0]), jnp.zeros((1, 2))).block_until_ready()
    jax.effects_barrier()
    wait_until_idle(store)
    for call in (
        store.check,
        lambda: store.finish([0]),
        lambda: store.sink([2]),
        lambda: store.write([2], {"x": np.zeros((SLOTS, 1, 1, 2), np.float32)}),
    ):
        failure(StoreWriteError, r"Disk quota exceeded: writing 'x' of clip", call)
    store.close()
    assert not ActivationStore.open(tmp_path / "s").finished()


def test_the_store_as_a_context_raises_the_writers_error_instead_of_the_runtimes(tmp_path, disk):
    disk.fail = OSError(errno.ENOSPC, "")

    def run():
        with create(tmp_path / "s") as store:
            sinks = [store.sink([i]) for i in (0, 1)]
            stream(sinks[0], jnp.zeros((1, 2))).block_until_ready()
            jax.effects_barrier()
            wait_until_idle(store)
            with pytest.raises(jax.errors.JaxRuntimeError) as runtime:
                stream(sinks[1], jnp.zeros((1, 2))).block_until_ready()
            raise runtime.value

    failure(StoreWriteError, "No space left", run)


def test_an_error_of_the_caller_passes_unchanged(tmp_path):
    def run():
        with create(tmp_path / "s") as store, store.guard():
            _ = 1 / 0

    failure(ZeroDivisionError, "division by zero", run)


def test_a_full_disk_stops_returned_captures_too(tmp_path, disk):
    def run():
        with create(tmp_path / "s") as store:
            disk.fail = OSError(errno.ENOSPC, "")
            store.write([0], {"x": np.zeros((SLOTS, 1, 1, 2), np.float32)})
            store.finish([0])

    failure(StoreWriteError, "No space left on device", run)
    assert not ActivationStore.open(tmp_path / "s").finished()


def test_devices_go_on_while_what_is_finished_becomes_durable(tmp_path, disk):
    disk.gate.clear()
    with create(tmp_path / "s", queue_bytes=1) as store:
        for ids in ([0, 1], [2, 3]):
            # A chunk of each clip is let in, though one alone is more than the queue's bound.
            stream(store.sink(ids), jnp.zeros((2, 2))).block_until_ready()
            jax.effects_barrier()
            if ids == [2, 3]:
                disk.gate.set()  # the second commit waits for the first
            store.finish(ids, [{"of": i} for i in ids], wait=False)
            assert store.queue.waited == 0.0 and (ids == [2, 3]) <= (store.finished() >= {0, 1})
        assert store.queue.deepest == 4 * SLOTS * 2 * 4
    read = ActivationStore.open(tmp_path / "s")  # closing waits for the second
    assert read.records() == {i: {"of": i} for i in range(4)}
    assert read.read("x").tobytes() == expected(4).tobytes()


def test_what_fails_behind_a_finish_is_raised_by_the_next_call_and_by_the_end(tmp_path, disk):
    def run(then):
        with create(tmp_path / "s") as store:
            disk.gate.clear()
            one = np.zeros((SLOTS, 1, 1, 2), np.float32)
            store.write([0], {"x": one})
            store.finish([0], wait=False)
            disk.fail = OSError(errno.ENOSPC, "")
            disk.gate.set()
            then(store, one)

    def finish_another(store, one):
        wait_until_idle(store)
        store.write([1], {"x": one})

    for then in (lambda store, one: None, finish_another):
        failure(StoreWriteError, "No space left on device", lambda then=then: run(then))
        disk.fail = None
    assert not ActivationStore.open(tmp_path / "s").finished()


def test_an_unexpected_failure_is_not_swallowed(tmp_path, disk):
    def run():
        with create(tmp_path / "s") as store:
            disk.fail = RuntimeError("something odd")
            one_clip(store, 0)

    failure(StoreWriteError, r"Input/output error.*\(something odd\)", run)


def test_a_stalled_disk_is_an_error_and_not_a_hang(tmp_path, monkeypatch, disk):
    monkeypatch.setattr(layout, "CHUNK_BYTES", 8)
    disk.gate.clear()
    store = create(tmp_path / "s", queue_bytes=24, timeout=0.3)
    begin = time.monotonic()
    error = failure(StoreWriteError, r"no write .* has completed for 0\.3 s", lambda: one_clip(store, 0))
    assert time.monotonic() - begin < 30
    assert error.errno == errno.ETIMEDOUT
    disk.gate.set()
    store.close()


def test_a_slow_disk_throttles_the_run_and_bounds_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BYTES", 8)
    most = [0]
    original = Layout.open

    class Slow(_Array):
        def __getitem__(self, key):
            return Slow(None, self.array[key])

        def write(self, *args, **options):
            most[0] = max(most[0], store._writer._bytes)
            time.sleep(0.12)  # two at a time: longer than the stall limit in all, never without progress
            return self.array.write(*args, **options)

    monkeypatch.setattr(Layout, "open", lambda *a, **k: Slow(None, original(*a, **k)))
    with create(tmp_path / "s", queue_bytes=16, timeout=2.0) as store:
        begin = time.monotonic()
        one_clip(store, 0)
        assert time.monotonic() - begin > 2.0
        assert store.read("x").tobytes() == expected(1).tobytes()
    assert 0 < most[0] <= 16


def test_a_job_larger_than_the_queue_goes_through_alone():
    written = []
    writer = Writer(lambda job: written.append(job.clip), queue_bytes=8)
    for i in range(5):
        writer.put(Job("x", i, 0, np.zeros(100)))
    writer.drain()
    writer.close()
    assert sorted(written) == list(range(5))


def test_a_slot_that_arrives_twice_is_an_error(tmp_path):
    def run():
        with create(tmp_path / "s") as store:
            sink = store.sink([0])
            for _ in "ab":
                stream(sink, jnp.zeros((1, 2))).block_until_ready()
                jax.effects_barrier()

    failure(ConfigError, r"slot 0 of 'x' arrived twice for clip 0: make a new sink", run)


def test_a_state_of_a_finished_clip_is_an_error(tmp_path):
    def run():
        with create(tmp_path / "s") as store:
            sink = store.sink([0])
            stream(sink, jnp.zeros((1, 2)))
            store.finish([0])
            stream(sink, jnp.ones((1, 2))).block_until_ready()
            jax.effects_barrier()

    failure(ConfigError, "a state of clip 0 arrived, but no sink", run)


def test_a_slot_out_of_range_is_an_error(tmp_path):
    def run():
        with create(tmp_path / "s") as store:
            jax.jit(lambda s: s.emit({"x": jnp.zeros((1, 1, 2))}, SLOTS))(store.sink([0]))
            jax.effects_barrier()

    failure(ConfigError, "slot 40 of 'x' arrived, but the store has 40 slots", run)


def test_a_disk_that_fills_during_the_commit_leaves_the_index_whole(tmp_path, monkeypatch):
    original, before = os.pwrite, []

    def pwrite(descriptor, data, offset):
        if offset > len(before[0]):  # the second call: part of the line is on disk by now
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(descriptor, data[:10], offset)

    def run():
        with create(tmp_path / "s") as store:
            one_clip(store, 0)
            before.append((tmp_path / "s" / INDEX).read_bytes())
            monkeypatch.setattr(os, "pwrite", pwrite)
            one_clip(store, 1)

    failure(StoreWriteError, r"No space left.* index entries of clips \[1\].* 1 finished", run)
    monkeypatch.undo()
    assert (tmp_path / "s" / INDEX).read_bytes() == before[0]
    with create(tmp_path / "s") as store:
        assert store.finished() == {0}
        one_clip(store, 1)
    assert ActivationStore.open(tmp_path / "s").read("x").tobytes() == expected(2).tobytes()


def test_a_disk_that_cannot_hold_the_run_is_refused_before_it_starts(tmp_path, monkeypatch):
    with create(tmp_path / "s") as store:
        one_clip(store, 0)
        size = store.clip_bytes
    usage = type("usage", (), {"free": 3 * size})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    create(tmp_path / "s").close()  # three clips are left, and there is room for three
    usage.free -= 1
    message = r"needs 9\.6e-07 GB for the 3 clips.* 9\.59e-07 GB are free"
    error = failure(StoreWriteError, message, lambda: create(tmp_path / "s"))
    assert error.errno == errno.ENOSPC
    usage.free += 1
    create(tmp_path / "s").close()  # the refusal released the folder


REAL = """
import resource, sys
import numpy as np
from jaxdiff.errors import StoreWriteError
from jaxdiff.store import ActivationStore
import jax, jax.numpy as jnp

def create():
    spec = {"x": jax.ShapeDtypeStruct((1, 40_000), jnp.float32)}
    return ActivationStore.create(sys.argv[1], clips=3, slots=1, specs=spec)

def one(store, i):
    with store.guard():
        jax.jit(lambda s, x: s.emit({"x": x}, 0))(store.sink([i]), jnp.full((1, 1, 40_000), float(i)))
        store.finish([i])

unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
try:
    with create() as store:
        one(store, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
        one(store, 1)
except StoreWriteError as error:
    print(error.errno, str(error).startswith("[Errno 27] File too large: writing 'x' of clip 1 (1) in "))
assert (ActivationStore.open(sys.argv[1]).read("x") == 0).all()
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
with create() as store:
    one(store, 1)
    one(store, 2)
    print(store.read("x").mean((1, 2, 3)).tolist())
"""


def test_the_operating_systems_own_refusal_is_understood(tmp_path, run_python):
    # A file size limit is the one full disk that a test may make without privileges.
    assert run_python(REAL, tmp_path / "s").splitlines() == ["27 True", "[0.0, 1.0, 2.0]"]
