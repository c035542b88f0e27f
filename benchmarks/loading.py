"""Loading a large sharded checkpoint: peak memory beyond the result, and throughput beside a raw read of the files.

    python -m benchmarks.loading FOLDER         # what the case starts: loads, prints JSON on memory

Memory is measured in a process of its own, whose peak is then its own. Times are interleaved in one process, with the files in
the page cache: what is compared is what is done with the bytes, and not the disk.
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

import numpy as np

from benchmarks import rows
from benchmarks.rows import PeerMissing, Row, Settings
from benchmarks.timing import Bar, Paired, interleaved, interval, listed

GIGABYTES = 2.0
SHARD = 400_000_000  # bytes


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

    from benchmarks.subject import SCHEDULER, write_index
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
    write_index(folder, "WanPipeline", "WanTransformer3DModel", SCHEDULER)
    return {"checkpoint_bytes": sum(file.stat().st_size for file in where.glob("*.safetensors")), "shards": len(shards)}


def load(folder: Path) -> Any:
    """`jaxdiff.load` in bfloat16, until the weights are there."""
    import jax
    import jax.numpy as jnp

    import jaxdiff

    return jax.block_until_ready(jaxdiff.load(folder, dtype=jnp.bfloat16).transformer.params)


def memory(folder: Path) -> dict[str, int]:
    """Peak memory of a load above what was there before and the result."""
    import jax
    import jax.numpy as jnp

    from ports.folder import open_folder

    open_folder(folder)  # imports, and everything that is not reading weights
    jax.device_put(jnp.zeros(8)).block_until_ready()
    before = peak()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(load(folder))]
    return {
        "result_bytes": sum(sizes),
        "largest_bytes": max(sizes),
        "beyond_bytes": peak() - before - sum(sizes),
    }


def raw(folder: Path) -> list[Any]:
    """Every byte of the files in memory of its own, as they lie there."""
    kept = []
    for file in _files(folder):
        kept.append(np.empty(file.stat().st_size, np.uint8))
        with open(file, "rb", buffering=0) as handle:
            view, at = kept[-1].data, 0
            while count := handle.readinto(view[at:]):
                at += count
    return kept


def arrays(folder: Path) -> list[Any]:
    """Every tensor as a NumPy array of its own, by our reader."""
    from ports.safetensors_reader import Checkpoint

    with Checkpoint(folder / "transformer") as reader:
        return [np.array(reader.view(name)) for name in reader.names()]


def from_pretrained(folder: Path) -> Any:
    """diffusers' transformer in bfloat16, one byte of every page read: its weights may lie in the mapped files still."""
    import torch
    from diffusers import WanTransformer3DModel

    model = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    for value in model.parameters():
        value.detach().flatten().view(torch.uint8)[::4096].sum()
    return model


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "transformer").glob("*.safetensors"))


def peak() -> int:
    """Most memory that this process has held, in bytes; mapped pages of files included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent in: its peak survives exec on Linux
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def case(settings: Settings) -> list[Row]:
    """Memory and throughput; TMPDIR says where the checkpoint is written."""
    size = int((0.02 if settings.tiny else GIGABYTES) * 1e9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        written, used = write(folder, size), _child(folder)
        try:
            rows.need("torch", "diffusers")
            peer = {"from_pretrained": lambda: _dropped(from_pretrained, folder)}
            why = ""
        except PeerMissing as error:
            peer, why = {}, str(error)

        def read():
            return _dropped(raw, folder)

        calls = {
            "raw": read, "arrays": lambda: _dropped(arrays, folder), "load": lambda: _dropped(load, folder), **peer,
            "control": read,
        }  # fmt: skip
        seconds = interleaved(calls, settings.pairs, warmup=1)
    gigabytes, bar = written["checkpoint_bytes"] / 1e9, Bar(0.8, at_least=True)
    title, shapes = f"loading {gigabytes:.2g} GB", {**written, "tensors_dtype": "bfloat16"}
    rates = {f"{kind}_gb_s": round(gigabytes / float(np.median(took)), 3) for kind, took in seconds.items()}

    def against(name, over, under, bar=None):
        times = Paired(seconds[over], seconds[under], seconds["control"])
        control = interval(seconds["control"] / seconds["raw"])
        every = {key: listed(seconds[key]) for key in (under, over, "control")}
        return rows.measured(
            f"{title}: {name}",
            times.ratio(),
            settings.pairs,
            bar,
            control=control,
            shapes=shapes,
            witness=rates,
            seconds=every,
        )

    return [
        rows.number(
            f"{title}: peak memory beyond the result / largest leaf", used["beyond_bytes"] / used["largest_bytes"],
            Bar(1.2, at_least=False), shapes=shapes, witness=used,
        ),
        against("throughput of safetensors -> NumPy arrays / raw read", "arrays", "raw", bar),
        against("throughput of safetensors -> jaxdiff.load's arrays / raw read", "load", "raw", bar),
        rows.missing(f"{title}: from_pretrained / jaxdiff.load", why) if why
        else against("from_pretrained / jaxdiff.load", "load", "from_pretrained"),
    ]  # fmt: skip


def _dropped(get: Callable[[Path], Any], folder: Path) -> float:
    """Seconds until everything is there; what it takes to let go of it does not count."""
    start = time.perf_counter()
    found = get(folder)
    took = time.perf_counter() - start
    del found
    return took


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    (place,) = sys.argv[1:]
    print(json.dumps(memory(Path(place))))
