"""One forward of the network, against torch's with the same weights and against its own matrix products."""

import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import families, program, rows
from benchmarks.rows import PeerMissing, Row, Settings, compared
from benchmarks.subject import diffusers_peer, forward, inputs, random_pipeline, size_of
from benchmarks.subject import products as only_products
from benchmarks.timing import Bar, paired
from jaxdiff.scaling import operations

TIMESTEP = 700.0
TOLERANCE = 1e-4  # both are fp32 with sums in another order
# MKL asks these whether the processor is Intel's, and takes its AVX-512 kernels on no other. torch holds MKL inside itself
# but calls them by name, so that a library that is loaded first answers. See docs/performance.md for what else was tried.
SHIM = "static int n; int mkl_serv_intel_cpu_true(void){n++;return 1;} int mkl_serv_intel_cpu(void){n++;return 1;} int jaxdiff_asked(void){return n;}"


def eager(settings: Settings) -> list[Row]:
    """diffusers, eager, over ours; same weights, outputs compared first."""
    size = size_of(settings)
    pipeline, _, peer, to_numpy = diffusers_peer(size, TIMESTEP)
    ours = forward(pipeline, size, TIMESTEP)
    errors = compared("output", ours(), to_numpy(peer()), TOLERANCE)
    latents, text = map(jnp.asarray, inputs(size))
    compiled = jax.jit(lambda p, x, c: p.denoise(x, TIMESTEP, c)).lower(pipeline, latents, text).compile()
    witness = {"flops_by_hand": size.flops(), **program.cost(compiled)}
    if (asked := shim_asked()) is not None:
        witness["times_mkl_asked_for_the_processor"] = asked
    times = paired(ours, peer, settings.pairs)
    name = "forward: diffusers eager / ours"
    return [rows.ratio(name, times, Bar(1.8, at_least=True), shapes=size.shapes(), errors=errors, witness=witness)]


def products(settings: Settings) -> list[Row]:
    """Our forward over the blocks' matrix products alone: what no other forward can beat by more."""
    size = size_of(settings)
    ours = forward(random_pipeline(size), size, TIMESTEP)
    times = paired(only_products(size), ours, settings.pairs)
    name = "forward / its matrix products alone"
    return [
        rows.ratio(name, times, Bar(1.5, at_least=False), shapes=size.shapes(), witness={"flops_by_hand": size.flops()})
    ]


def compiled(settings: Settings) -> list[Row]:
    """diffusers with torch.compile over ours."""
    size = size_of(settings)
    pipeline, model, peer, to_numpy = diffusers_peer(size, TIMESTEP)
    import torch

    ours = forward(pipeline, size, TIMESTEP)
    start, theirs = time.perf_counter(), functools.partial(peer, torch.compile(model))
    try:
        output = theirs()
    except Exception as error:  # no C++ compiler, for one
        raise PeerMissing(f"torch.compile: {str(error).strip()[:500]}") from error
    witness = {"flops_by_hand": size.flops(), "torch_compile_seconds": round(time.perf_counter() - start, 1)}
    errors = compared("output", ours(), to_numpy(output), TOLERANCE)
    times = paired(ours, theirs, settings.pairs)
    name = "forward: diffusers + torch.compile / ours"
    return [rows.ratio(name, times, Bar(1.6, at_least=True), shapes=size.shapes(), errors=errors, witness=witness)]


def cogvideox(settings: Settings) -> list[Row]:
    """diffusers' CogVideoX, eager, over ours."""
    return _family("CogVideoX", families.cogvideox(settings.tiny), settings)


def ltx(settings: Settings) -> list[Row]:
    """diffusers' LTX-Video, eager, over ours."""
    return _family("LTX", families.ltx(settings.tiny), settings)


def _family(name: str, twin: "families.Twin", settings: Settings) -> list[Row]:
    when = jnp.full(twin.latents.shape[0], TIMESTEP, jnp.float32)

    def ours():
        return jax.block_until_ready(twin.pipeline.denoise(twin.latents, when, twin.cond))

    errors = compared("output", ours(), twin.theirs(TIMESTEP), TOLERANCE)
    witness = {
        "flops": operations.products(lambda p, x, c: p.denoise(x, when, c), twin.pipeline, twin.latents, twin.cond)
    }
    times = paired(ours, functools.partial(twin.run, TIMESTEP), settings.pairs)
    return [
        rows.ratio(
            f"forward, {name}: diffusers eager / ours", times, Bar(1.6, at_least=True),
            shapes={"latents": twin.latents.shape, "text": twin.cond.text.shape}, errors=errors, witness=witness,
        )
    ]  # fmt: skip


def avx512(settings: Settings) -> list[Row]:
    """`eager` again in a process whose MKL takes its AVX-512 kernels on a processor that is not Intel's."""
    rows.need("torch", "diffusers")
    name, bar = "forward: diffusers eager, MKL's AVX-512 forced / ours", Bar(1.1, at_least=True)
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512f" not in flags:
        return [rows.missing(name, "this processor has no AVX-512", bar)]
    compiler = shutil.which("cc")
    if compiler is None:
        return [rows.missing(name, "there is no C compiler (cc) to make the library that MKL is to ask", bar)]
    with tempfile.TemporaryDirectory() as folder:
        source, library, out = (Path(folder) / n for n in ("shim.c", "shim.so", "rows.json"))
        source.write_text(SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        command = [
            sys.executable,
            "-m",
            "benchmarks.run",
            "--only=forward",
            f"--pairs={settings.pairs}",
            f"--out={out}",
        ]
        found = subprocess.run(
            command + ["--tiny"] * settings.tiny, env={**os.environ, "LD_PRELOAD": str(library)}, capture_output=True,
            text=True, check=False, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        if found.returncode not in (0, 3):
            raise RuntimeError(f"{' '.join(command)} ended with {found.returncode}: {found.stderr[-2000:]}")
        content = json.loads(out.read_text())
    (row,) = content["rows"]
    if not row["witness"].get("times_mkl_asked_for_the_processor"):
        return [rows.missing(name, "this build of torch never asked the library: its MKL cannot be told so", bar)]
    seconds = {key: np.array(values) for key, values in row["seconds"].items()}
    witness = row["witness"] | {"torch_linear_gflops": content["machine"]["torch_linear_gflops"]}
    return [rows.ratio(name, rows.Paired(**seconds), bar, shapes=row["shapes"], errors=row["errors"], witness=witness)]


def shim_asked() -> int | None:
    """How often MKL asked the library of `avx512` for the processor's maker; None where there is no such library."""
    try:
        asked: Callable[[], Any] = ctypes.CDLL(None).jaxdiff_asked
    except AttributeError:
        return None
    return int(asked())
