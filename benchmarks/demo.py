"""The demo's command in a fresh process with nothing compiled: its time and its memory."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import rows
from benchmarks.rows import Row, Settings
from benchmarks.timing import Bar

# as `make demo` has it
COMMAND = (
    *("--model=nano", "--steps=12", "--published_seeds=2", "--nocapacity", "--fidelity_clips=1"),
    "--time_budget=170",
)
TOY = ("--model=nano", "--scenes=2", "--outer=2", "--inner=2", "--published_seeds=1")


def measure(toy: bool = False) -> dict[str, float]:
    """Wall seconds, interpreter start included, and the peak resident bytes of the study's process.

    Raises
    ------
    RuntimeError : the study failed; says what it printed.
    """
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as name, open(Path(name) / "log", "w+") as log:
        folders = [f"--workdir={name}/demo", f"--compilation_cache={name}/cache"]
        line = [sys.executable, "-m", "experiments.study", *(TOY if toy else COMMAND), *folders]
        start = time.monotonic()
        process = subprocess.Popen(line, cwd=root, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"the demo ended with exit code {process.returncode}:\n{log.read()}")
    return {"seconds": seconds, "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)}


def case(settings: Settings) -> list[Row]:
    """The demo, once: a limit on time and memory, not a ratio."""
    found = measure(toy=settings.tiny)
    seconds, memory = found["seconds"], found["peak_bytes"] / 1e9
    return [
        rows.number(
            "demo, nothing compiled before", seconds, Bar(180, at_least=False), "s", seconds={"wall": [seconds]}
        ),
        rows.number("demo, peak memory", memory, Bar(4, at_least=False), "GB"),
    ]
