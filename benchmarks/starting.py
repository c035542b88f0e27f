"""What the persistent compilation cache saves a process that starts: its program, compiled anew or read.

python -m benchmarks.starting CACHE LAYERS       # what the case starts: builds the program, prints JSON
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row, Settings
from benchmarks.timing import Bar, paired

LAYERS = 40


def case(settings: Settings) -> list[Row]:
    """Trace, lower and read an inversion's program in a fresh process, over the same with an empty cache."""
    layers = 2 if settings.tiny else LAYERS
    with tempfile.TemporaryDirectory() as folder:
        warm, turn = Path(folder) / "warm", iter(range(10**6))

        def cold() -> float:
            return build(Path(folder) / str(next(turn)), layers)["seconds"]

        filled, found = (build(warm, layers) for _ in range(2))
        times = paired(cold, lambda: build(warm, layers)["seconds"], settings.pairs, warmup=0)
    witness = {"read_from_cache": {"cold": filled["hits"], "warm": found["hits"]}, "layers": layers}
    name = "process start, program cached / compiled"
    return [rows.ratio(name, times, Bar(0.25, at_least=False), shapes={"layers": layers}, witness=witness)]


def build(cache: Path, layers: int) -> dict[str, float]:
    """In a process of its own: seconds of tracing, lowering and compiling, imports not counted, and programs read."""
    command = [sys.executable, "-m", "benchmarks.starting", str(cache), str(layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _build(cache: str, layers: int) -> dict[str, float]:
    import jax

    from benchmarks.depth import abstract
    from benchmarks.inversion import MEANS, compile_inversion
    from experiments._main import use_cache

    use_cache(cache)  # as every binary does
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
    )
    subject = abstract("WanPipeline", layers)
    jax.jit(lambda x: x + 1)(1.0)  # the backend starts
    before, start = len(hits), time.perf_counter()
    compile_inversion(*subject, MEANS)
    return {"seconds": time.perf_counter() - start, "hits": len(hits) - before}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(json.dumps(_build(sys.argv[1], int(sys.argv[2]))))
