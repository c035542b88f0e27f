"""Loading a large sharded checkpoint: peak memory beyond the result, and throughput beside a raw read of the files.

    python -m benchmarks.loading FOLDER BYTES        # what the case `loading` starts: writes, loads, prints JSON

Every measurement is made in a process of its own, whose peak memory is then its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIGABYTES = 2.0
SHARD = 400_000_000  # bytes
BLOCK = 1 << 24  # bytes that the raw read asks for at a time


def measure(folder: Path, size: int) -> dict[str, Any]:
    """Write a checkpoint of about `size` bytes in bfloat16, then load it and read it raw, each in a fresh process.

    Returns
    -------
    dict with "checkpoint_bytes", "result_bytes", "largest_bytes" (of one leaf), "beyond_bytes" (peak memory of the load
    above the memory before it and the result), and seconds of "load" and "raw", both with the files in the page cache.
    """
    written = _child("write", folder, size)
    _child("raw", folder)  # into the page cache, for both
    loaded, raw = _child("load", folder), _child("raw", folder)
    return written | loaded | raw


def _child(*arguments: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.loading", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def write(folder: Path, size: int) -> dict[str, Any]:
    """A Wan transformer of about `size` bytes in shards, with an index, as published."""
    import dataclasses

    import ml_dtypes
    import numpy as np

    from benchmarks.subject import SCHEDULER
    from jaxdiff.models.network import Network
    from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
    from ports.safetensors_writer import SafetensorsWriter
    from ports.table import expected_names, flatten
    from ports.wan import transformer_table

    width = 128 * max(1, round((size / 2 / 24 / 20) ** 0.5 / 128))  # a block has about 20 width^2 parameters
    config = WanTransformerConfig(num_attention_heads=width // 128, ffn_dim=6 * width, text_dim=width, num_layers=24)
    params = Network.abstract(WanTransformer, config).params
    leaves = flatten(params)
    tensors: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    for path, group in expected_names(transformer_table(config), params)[0].items():
        row = leaves[path].shape[1:] if group.rule.stacked else leaves[path].shape
        kind = np.dtype(np.float32 if group.rule.keep_float32 else ml_dtypes.bfloat16)
        tensors |= dict.fromkeys(group.names, (kind, group.rule.transform.torch_shape(row)))
    shards: list[dict] = [{}]
    for name, (kind, shape) in tensors.items():
        held = sum(k.itemsize * int(np.prod(s)) for k, s in shards[-1].values())
        if held > SHARD:
            shards.append({})
        shards[-1][name] = (kind, shape)
    where = folder / "transformer"
    where.mkdir(parents=True)
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"diffusion_pytorch_model-{number:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsWriter(where / file, shard) as writer:
            for name, (kind, shape) in shard.items():
                writer.write(name, rng.random(shape, np.float32).astype(kind))
        weight_map |= dict.fromkeys(shard, file)
    index = where / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config_values = {"_class_name": "WanTransformer3DModel", **dataclasses.asdict(config)}
    (where / "config.json").write_text(json.dumps(config_values))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    index_values = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        "transformer": ["diffusers", "WanTransformer3DModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index_values))
    return {"checkpoint_bytes": sum(file.stat().st_size for file in where.glob("*.safetensors")), "shards": len(shards)}


def load(folder: Path) -> dict[str, Any]:
    """`jaxdiff.load` in bfloat16: seconds, and peak memory above what was there before."""
    import jax
    import jax.numpy as jnp

    import jaxdiff
    from ports.folder import open_folder

    open_folder(folder)  # imports, and everything that is not reading weights
    jax.device_put(jnp.zeros(8)).block_until_ready()
    before, start = peak(), time.perf_counter()
    pipeline = jaxdiff.load(folder, dtype=jnp.bfloat16)
    jax.block_until_ready(pipeline.transformer.params)
    seconds, after = time.perf_counter() - start, peak()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(pipeline.transformer.params)]
    return {
        "result_bytes": sum(sizes),
        "largest_bytes": max(sizes),
        "beyond_bytes": after - before - sum(sizes),
        "load_seconds": seconds,
    }


def raw(folder: Path) -> dict[str, Any]:
    """Every byte of the weights read into one buffer and dropped."""
    buffer, start = bytearray(BLOCK), time.perf_counter()
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        with open(file, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    return {"raw_seconds": time.perf_counter() - start}


def peak() -> int:
    """Most memory that this process has held, in bytes; mapped pages of files included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent in: its peak survives exec on Linux
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def in_a_folder(size: int) -> dict[str, Any]:
    """`measure` in a folder that is then gone; TMPDIR says where."""
    with tempfile.TemporaryDirectory() as name:
        return measure(Path(name) / "model", size)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    verb, place, *rest = sys.argv[1:]
    verbs: dict[str, Callable[..., Any]] = {"write": write, "load": load, "raw": raw}
    print(json.dumps(verbs[verb](Path(place), *map(int, rest))))
