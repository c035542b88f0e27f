"""Attention kernels compiled for TPUs that are not there.

Needs no TPU, but libtpu (``pip install "jax[tpu]"``), of which one process at a time may make use. Every kernel is compiled for
one chip of each topology, bfloat16, batch 1, at the lengths of the study (21 frames of 256 tokens), of CogVideoX at 480p (13 of
1350 behind 226 tokens of text) and of Wan at 480p (21 of 1560). Nothing is run: this shows that the compiler takes the program,
and what memory it plans for, and says nothing about speed.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks import rows
from benchmarks.rows import Row, Settings
from benchmarks.timing import Bar

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
LENGTHS = ((21, 256, 0), (13, 1350, 226), (21, 1560, 0))  # frames, tokens of a frame, text before them
HEADS, DEPTHS = 12, (64, 128)


def case(settings: Settings) -> list[Row]:
    """Compile everything, one after the other."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    rows.need("libtpu")
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies as known

    found = []
    for topology in TOPOLOGIES[: 1 if settings.tiny else None]:
        device = known.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
        sharding = jax.sharding.SingleDeviceSharding(device)
        for frames, tokens, prefix in LENGTHS[: 1 if settings.tiny else None]:
            length = prefix + frames * tokens
            for depth in DEPTHS:
                array = jax.ShapeDtypeStruct((1, length, HEADS, depth), jnp.bfloat16, sharding=sharding)
                for name, f in _kernels(frames, prefix).items():
                    title = f"{topology} {name}, {length} tokens, heads of {depth}: temporary memory"
                    witness = _compiled(f, array)
                    value = witness.get("temporary_mb")
                    found.append(Row(title, value, "MB", shapes={"qkv": array.shape}, witness=witness))
                    print(f"{title} {witness}", flush=True)
    took = sum("error" not in row.witness for row in found)
    return [rows.number("share of the kernels that compile for TPUs", took / len(found), Bar(1, at_least=True)), *found]


def _kernels(frames: int, prefix: int) -> dict[str, Callable]:
    import jax

    from jaxdiff import kernels

    def gradient(q, k, v):
        return jax.vjp(kernels.attention, q, k, v)[1](q)

    mapped = functools.partial(kernels.attention_with_frame_map, frames=frames, prefix=prefix)
    return {"attention": kernels.attention, "attention, gradients": gradient, "attention_with_frame_map": mapped}


def _compiled(f: Callable, array: Any) -> dict[str, Any]:
    import jax

    from jaxdiff import kernels

    start = time.perf_counter()
    try:
        with kernels.compiling_for("tpu"):
            program = jax.jit(lambda q, k, v: f(q, k, v)).lower(array, array, array).compile()
    except Exception as error:  # whatever the compiler says is the result
        return {"seconds": round(time.perf_counter() - start, 2), "error": str(error)[:1000]}
    memory: Any = program.memory_analysis()
    temporary = memory.temp_size_in_bytes
    total = temporary + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "hbm_mb": round(total / 2**20, 1),
        "temporary_mb": round(temporary / 2**20, 1),
        "kernels": (program.as_text() or "").count('custom_call_target="tpu_custom_call"'),
    }
