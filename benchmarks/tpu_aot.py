"""Compile the attention kernels for TPUs that are not there, and print what came of it.

    pip install "jax[tpu]" absl-py
    python -m benchmarks.tpu_aot --out=tpu_aot.json

Needs no TPU, but libtpu, of which one process at a time may make use. Every kernel is compiled for one chip of each topology,
bfloat16, batch 1, at the lengths of the study (21 frames of 256 tokens), of CogVideoX at 480p (13 of 1350 behind 226 tokens
of text) and of Wan at 480p (21 of 1560). Nothing is run: this shows that the compiler takes the program, and what memory it
plans for, and says nothing about speed. The exit code is 3 when something did not compile.
"""

import dataclasses
import datetime
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
LENGTHS = ((21, 256, 0), (13, 1350, 226), (21, 1560, 0))  # frames, tokens of a frame, text before them
HEADS, DEPTHS = 12, (64, 128)

_OUT = flags.DEFINE_string("out", None, "File for the rows as json.")
_TOPOLOGIES = flags.DEFINE_list("topologies", list(TOPOLOGIES), "What to compile for.")


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel at one size on one topology."""

    kernel: str
    topology: str
    length: int
    head_dim: int
    compiled: bool
    seconds: float  # of tracing, lowering and compiling
    hbm_mb: float = 0.0  # arguments, results and temporaries
    temporary_mb: float = 0.0
    kernels: int = 0  # custom calls of Pallas in the program
    error: str = ""


def rows(topologies: tuple[str, ...] = TOPOLOGIES) -> Iterator[Row]:
    """Compile everything, one after the other."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies as known

    for topology in topologies:
        device = known.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
        sharding = jax.sharding.SingleDeviceSharding(device)
        for frames, tokens, prefix in LENGTHS:
            length = prefix + frames * tokens
            for depth in DEPTHS:
                array = jax.ShapeDtypeStruct((1, length, HEADS, depth), jnp.bfloat16, sharding=sharding)
                for name, f in _kernels(frames, prefix).items():
                    yield Row(name, topology, length, depth, **_compiled(f, array))


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
        return {"compiled": False, "seconds": round(time.perf_counter() - start, 2), "error": str(error)}
    memory: Any = program.memory_analysis()
    temporary = memory.temp_size_in_bytes
    total = temporary + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "compiled": True,
        "seconds": round(time.perf_counter() - start, 2),
        "hbm_mb": round(total / 2**20, 1),
        "temporary_mb": round(temporary / 2**20, 1),
        "kernels": (program.as_text() or "").count('custom_call_target="tpu_custom_call"'),
    }


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    print("kernel                    topology        S    d compiled      s   HBM MB of it temp Pallas")
    found = []
    for row in rows(tuple(_TOPOLOGIES.value)):
        found.append(row)
        yes = "yes" if row.compiled else "no"
        print(
            f"{row.kernel:25} {row.topology:10} {row.length:6} {row.head_dim:4} {yes:>8} {row.seconds:6.1f} "
            f"{row.hbm_mb:8.1f} {row.temporary_mb:10.1f} {row.kernels:6} {row.error.strip()[:300]}",
            flush=True,
        )
    if _OUT.value:
        from importlib import metadata

        versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "libtpu")}
        content = {
            "date": datetime.date.today().isoformat(),
            "case": "tpu_aot",
            "versions": {"python": platform.python_version(), **versions},
            "heads": HEADS,
            "rows": [dataclasses.asdict(row) for row in found],
        }
        with open(_OUT.value, "w") as file:
            file.write(json.dumps(content, indent=1) + "\n")
    return 0 if all(row.compiled for row in found) else 3


if __name__ == "__main__":
    app.run(main)
