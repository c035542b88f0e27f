"""jaxdiff: run pretrained video diffusion transformers backwards from real clips, and read what they know.

This file is the whole public surface. Names are resolved when they are first used (PEP 562), so that
``import jaxdiff`` costs nothing and ``import jaxdiff.kernels`` brings in jax and numpy only.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdiff.conditioning import Conditioning
    from jaxdiff.encoder import Encoder, load_encoder
    from jaxdiff.flow import Trajectory, invert, sample
    from jaxdiff.pipeline import Pipeline, edit_sites, load, tap_sites
    from jaxdiff.store import ActivationStore
    from jaxdiff.taps import Edit, Tap

__version__ = "0.1.0"

_NAMES = {
    "ActivationStore": "jaxdiff.store",
    "Conditioning": "jaxdiff.conditioning",
    "Edit": "jaxdiff.taps",
    "Encoder": "jaxdiff.encoder",
    "Pipeline": "jaxdiff.pipeline",
    "Tap": "jaxdiff.taps",
    "Trajectory": "jaxdiff.flow",
    "edit_sites": "jaxdiff.pipeline",
    "invert": "jaxdiff.flow",
    "load": "jaxdiff.pipeline",
    "load_encoder": "jaxdiff.encoder",
    "sample": "jaxdiff.flow",
    "tap_sites": "jaxdiff.pipeline",
}
_ROOMS = (
    "data", "errors", "flow", "generation", "kernels", "lamo", "mesh", "models", "physics", "probes", "report", "store",
    "study", "taps", "train",
)  # fmt: skip

__all__ = [
    "ActivationStore",
    "Conditioning",
    "Edit",
    "Encoder",
    "Pipeline",
    "Tap",
    "Trajectory",
    "edit_sites",
    "invert",
    "load",
    "load_encoder",
    "sample",
    "tap_sites",
]


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value  # the next access does not come here
        return value
    if name in _ROOMS:
        return importlib.import_module(f"jaxdiff.{name}")
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}; it offers {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS, "__version__"})
