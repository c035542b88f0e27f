"""How much memory a study's features will take: known before its model is loaded, and refused where there is not as much."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError
from jaxdiff.pipeline import Pipeline
from jaxdiff.store import ActivationStore
from jaxdiff.study.reading import Reading

# Of the machine's memory; the rest is for one more copy of the largest array, which reading makes, and for the network.
SHARE = 0.5
FLOAT32 = 4
CGROUP = Path("/sys/fs/cgroup/memory.max")
READ_LESS = (
    "Read less: a coarser pooling in --taps (mean or frame_mean instead of grid), fewer places in --capture_sigmas, "
    "--capture_log_snr or --capture_at, fewer --controls, each of which may be one more reading"
)
ONE_STORE = "Probe one store at a time: --store=WORKDIR/store/trained"


def memory() -> int:
    """Bytes of memory that this process can have: the machine's, or those of its control group."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(CGROUP.read_text()))
    except (OSError, ValueError):  # no such group, or "max"
        return machine


def store_bytes(store: ActivationStore, clips: int) -> dict[str, int]:
    """Bytes of so many of a store's clips as features, by array."""
    return {name: clips * store.slots * math.prod(spec.shape) * FLOAT32 for name, spec in store.specs.items()}


def reading_bytes(
    pipeline: Pipeline, reading: Reading, video: tuple[int, ...], clips: int, slots: int
) -> dict[str, int]:
    """Bytes of what the taps of `reading` give, by array.

    Parameters
    ----------
    pipeline : loaded, or an `outline`.
    video : shape (T, H, W, 3) of a clip.
    slots : noise levels that are read.
    """
    pixels = jax.ShapeDtypeStruct((1, *video), jnp.uint8)
    latents = jax.eval_shape(lambda model, x: model.encode(x), pipeline, pixels).shape
    shapes = pipeline.tap_shapes(reading.tap_objects(), latents)
    return {name: clips * slots * math.prod(shape.shape) * FLOAT32 for name, shape in shapes.items()}


def refuse_too_large(readings: Mapping[str, Mapping[str, int]], clips: int, advice: str) -> None:
    """Raise a ConfigError where the bytes of all arrays of all readings are more than may be used."""
    total, limit = sum(sum(arrays.values()) for arrays in readings.values()), SHARE * memory()
    if total <= limit:
        return
    name, arrays = max(readings.items(), key=lambda item: sum(item[1].values()))
    told = ", ".join(
        f"{array} {size / 1e9:.1f} GB" for array, size in sorted(arrays.items(), key=lambda item: -item[1])
    )
    raise ConfigError(
        f"the features of {clips} clips would take {total / 1e9:.1f} GB of memory, and {limit / 1e9:.1f} GB are there for "
        f"them: {len(readings)} readings ({', '.join(readings)}), of which {name} has {told}. {advice}"
    )
