"""The one list of what can be run: suite -> case -> the function that measures it, ``f(settings) -> rows``.

Functions are named and not imported, so that a suite brings in its own libraries alone.
"""

import importlib
from collections.abc import Callable, Sequence

from benchmarks.rows import Row, Settings

Case = Callable[[Settings], Sequence[Row]]

SUITES: dict[str, dict[str, str]] = {
    "cpu": {
        "forward": "forward:eager",
        "products": "forward:products",
        "compiled": "forward:compiled",
        "cogvideox": "forward:cogvideox",
        "ltx": "forward:ltx",
        "avx512": "forward:avx512",
        "captures": "inversion:captures",
        "streamed": "inversion:streamed",
        "frame_maps": "inversion:frame_maps",
        "inversion": "inversion:inversion",
        "published": "inversion:against_published",
        "program": "inversion:compiled_program",
        "solvers": "solvers:curve",
        "guidance": "guided:case",
        "drift": "drift:case",
        "demo": "demo:case",
    },
    "gpu": {
        "check": "gpu:check",
        "long": "gpu:long",
        "study": "gpu:study",
        "peers": "gpu:peers",
        "compiled": "gpu:compiled",
        "finetune": "gpu:finetune",
        "forward_14b": "gpu:forward_14b",
        "probes": "gpu:probes",
        "projection": "gpu:projection",
    },
    "tpu_aot": {"kernels": "tpu_aot:case"},
    "probes": {"probes": "probes:case"},
    "loading": {"loading": "loading:case"},
    "store": {"store": "storing:case", "devices": "feeding:case"},
    "compile": {"depth": "depth:case", "start": "starting:case"},
}


def case(suite: str, name: str) -> Case:
    """The function behind a case."""
    module, _, function = SUITES[suite][name].partition(":")
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)
