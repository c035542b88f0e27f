"""A small program that captures states, shaped like an inversion: one jitted scan, captures at some steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.mesh import data_mesh, micro_batches, pad_batch, shard_batch
from jaxdiff.store import ActivationStore

STEPS = 7
CAPTURED = (0, 2, 3, 6)
ROWS, TOKENS, WIDTH = 3, 5, 8
SPECS = {
    "block_out.mean": jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
    "mlp_out.full": jax.ShapeDtypeStruct((ROWS, TOKENS, WIDTH), jnp.bfloat16),
}
SLOT = np.full(STEPS, len(CAPTURED), np.int32)  # of each step; out of range where nothing is captured
SLOT[list(CAPTURED)] = np.arange(len(CAPTURED))
WEIGHT = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)


def clip(i):
    """States [TOKENS, WIDTH] of clip `i`."""
    return np.random.default_rng(i).standard_normal((TOKENS, WIDTH)).astype(np.float32)


def step(x):
    """One step: x [B, TOKENS, WIDTH] -> (x, captured [ROWS, B, ...])."""
    rows = []
    for _ in range(ROWS):
        x = x + 0.1 * jnp.tanh(x @ WEIGHT)
        rows.append(x)
    full = jnp.stack(rows)
    return x, {"block_out.mean": full.mean(2), "mlp_out.full": full.astype(jnp.bfloat16)}


traces = [0]


def scan(x, slots, sink=None):
    """The last state, and {name: [slots, ROWS, B, ...]} when there is no sink."""
    traces[0] += 1
    buffers = {}
    if sink is None:
        shape = {n: (len(CAPTURED), s.shape[0], len(x), *s.shape[1:]) for n, s in SPECS.items()}
        buffers = {n: jnp.zeros(shape[n], s.dtype) for n, s in SPECS.items()}

    def body(carry, slot):
        x, buffers = carry
        x, captured = step(x)

        def capture(buffers):
            if sink is not None:
                sink.emit(captured, slot)
                return buffers
            return {n: b.at[slot].set(captured[n]) for n, b in buffers.items()}

        return (x, jax.lax.cond(slot < len(CAPTURED), capture, lambda b: b, buffers)), None

    return jax.lax.scan(body, (x, buffers), slots)[0]


program = jax.jit(scan)


def create(path, clips, **options):
    return ActivationStore.create(path, **{"clips": clips, "slots": len(CAPTURED), "specs": SPECS, **options})


def run(store, mesh=None, stream=True, clips_per_device=2, before_finish=lambda ids: None):
    """Compute what the store lacks."""
    mesh = data_mesh() if mesh is None else mesh
    todo = ((i, clip(i)) for i in range(store.clips) if i not in store.finished())
    for batch in micro_batches(todo, clips_per_device, mesh):
        x = shard_batch(np.stack(batch.items), mesh)
        if stream:
            with store.guard():
                program(x, SLOT, store.sink(batch.clip_ids, mesh))[0].block_until_ready()
        else:
            store.write(batch.clip_ids, program(x, SLOT)[1])
        before_finish(batch.clip_ids)
        store.finish(batch.clip_ids, [{"norm": float(np.abs(v).sum())} for v in batch.items])


def arrays(path):
    """All committed arrays of a store, decoded."""
    store = ActivationStore.open(path)
    return {name: store.read(name) for name in store.specs}


def assert_same(a, b):
    """Bit for bit, NaN included."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name


@functools.cache
def reference(clips, clips_per_device=2):
    """What a store of `clips` clips must hold: {name: [clips, slots, rows, ...]}, without a store."""
    mesh = data_mesh(jax.devices()[:1])
    parts = []
    for batch in micro_batches(((i, clip(i)) for i in range(clips)), clips_per_device, mesh):
        captured = program(shard_batch(pad_batch(np.stack(batch.items), len(batch.clip_ids)), mesh), SLOT)[1]
        parts.append({n: np.moveaxis(np.asarray(v), 2, 0)[: batch.real] for n, v in captured.items()})
    return {n: np.concatenate([part[n] for part in parts]) for n in SPECS}
