"""Shared by every test: a deterministic CPU, a compilation cache, and subprocesses with fake devices.

Fixtures
--------
run_with_devices(n, code, *args) -> str
    Runs Python `code` in a fresh process that sees `n` fake CPU devices, and returns what it printed. Tests
    of meshes, sharding and device counts use this one (jax fixes its device count when it starts, so the
    test's own process always has one device).
run_python(code, *args, env=None) -> str
    The same with the process's own devices.
"""

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before jax starts. Goldens and tolerances are a CPU's; set JAX_PLATFORMS to run elsewhere on purpose.
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _machine() -> str:
    """A name for this processor: compiled programs hold its instructions and must not reach another one."""
    cpuinfo = Path("/proc/cpuinfo")
    text = platform.platform() + platform.processor()
    if cpuinfo.exists():
        text += "".join(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# jax keys its cache by program, compiler version and flags, so a stale entry cannot be hit; deleting the
# folder costs time only. Environment variables reach the subprocesses too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax" / _machine()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Most of a test's time is LLVM's, spent on code that then runs for milliseconds. HLO passes, fusion and the libraries
# behind products and convolutions stay as users have them; `make parity` compiles with everything.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if metadata.version("jaxlib").startswith("0.10."):  # an unknown flag ends the process; this one takes a third off
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")


def _run(code: str, *args: str, env: dict[str, str] | None = None, timeout: float = 300.0) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"subprocess exited with {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
    return done.stdout


@pytest.fixture(scope="session")
def run_python():
    """See the module's docstring."""
    return _run


@pytest.fixture(scope="session")
def run_with_devices():
    """See the module's docstring."""

    def run(n: int, code: str, *args: str, timeout: float = 300.0) -> str:
        kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
        flags = " ".join([*kept, f"--xla_force_host_platform_device_count={n}"])
        return _run(code, *args, env={"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, timeout=timeout)

    return run


# Files go to the processes whole and in this order: what takes a minute or more starts first, so that no core waits for
# another at the end.
LONGEST = (
    "long/test_killed_study.py",
    "long/test_noise.py",
    "long/test_nano_training.py",
    "models/test_wan_vae.py",
    "experiments/test_inversion.py",
    "models/test_cogvideox_vae.py",
    "probes/test_solver.py",
    "models/test_ltx2.py",
    "test_readme.py",
)


def pytest_collection_modifyitems(items):
    """Longest files first."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Two thousand tests' compiled programs take gigabytes: they are let go when they do, between two files."""
    yield
    held = Path("/proc/self/statm")
    if "jax" in sys.modules and held.exists() and int(held.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 3e9:
        sys.modules["jax"].clear_caches()
