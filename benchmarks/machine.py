"""The machine that numbers come from: ratios against MKL differ with the CPU's vendor."""

import importlib.metadata
import os
import platform
import subprocess
import time
from typing import Any

from jaxdiff.workdir import processor

VERSIONS = ("jax", "jaxlib", "flax", "torch", "diffusers", "transformers", "scikit-learn", "numpy", "libtpu")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(size: int = 2048, accelerator: bool = False) -> dict[str, Any]:
    """CPU, cores, load, versions, how fast torch's fp32 linear layer is here, and the device.

    Of an `accelerator` this process asks its driver, and takes none of its memory.
    """
    return {
        "cpu": processor(),
        "cores": cores(),
        "load_average": list(os.getloadavg()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": _graphics_card() if accelerator else _device(),
        **{name: _version(name) for name in VERSIONS},
        "torch_linear_gflops": torch_linear_gflops(size),
    }


def torch_linear_gflops(size: int, repeats: int = 7) -> float | None:
    """GFLOP/s of the best of `repeats` fp32 linear layers of width `size`; None without torch."""
    if _version("torch") is None:
        return None
    import torch

    torch.set_num_threads(cores())
    x, layer = torch.ones(size, size), torch.nn.Linear(size, size)
    best = float("inf")
    with torch.inference_mode():
        layer(x)
        for _ in range(repeats):
            start = time.perf_counter()
            layer(x)
            best = min(best, time.perf_counter() - start)
    return round(2 * size**3 / best / 1e9, 1)


def _device() -> str:
    import jax

    return jax.devices()[0].device_kind


def _graphics_card() -> str:
    """Name and driver of the first NVIDIA card."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "no NVIDIA card that nvidia-smi knows"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
