"""Writing the activation store, beside a raw write of the same bytes; both until they are durable."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import rows
from benchmarks.rows import Row, Settings, compared
from benchmarks.timing import Bar, paired
from jaxdiff.store import ActivationStore

NAME = "block_out.frame_mean"
# Clips, captured steps, and one slot: the mean of every frame of every block of Wan 1.3B, 39 MB a clip.
SIZE, TOY = (8, 10, (30, 21, 1536)), (2, 2, (3, 2, 8))


def case(settings: Settings) -> list[Row]:
    """Create, write, finish and close a store, over files of the same arrays, a clip each; TMPDIR says where."""
    clips, slots, shape = TOY if settings.tiny else SIZE
    rng = np.random.default_rng(0)
    values = rng.standard_normal((clips, slots, shape[0], 1, *shape[1:])).astype(
        np.float32
    )  # [slots, rows, B, ...] a clip
    specs = {NAME: jax.ShapeDtypeStruct(shape, np.float32)}

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "clips"

        def store() -> float:
            shutil.rmtree(place, ignore_errors=True)
            start = time.perf_counter()
            with ActivationStore.create(place, clips=clips, slots=slots, specs=specs) as found:
                for clip in range(clips):
                    found.write(np.array([clip]), {NAME: values[clip]})
                    found.finish(np.array([clip]))
            return time.perf_counter() - start

        def raw() -> float:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            start = time.perf_counter()
            for clip in range(clips):
                with open(place / str(clip), "wb", buffering=0) as file:
                    view = memoryview(values[clip]).cast("B")
                    while view:
                        view = view[file.write(view) :]
                    os.fsync(file.fileno())
            return time.perf_counter() - start

        store()
        with ActivationStore.open(place) as written:
            errors = compared("read back", written.read(NAME), values[:, :, :, 0], 0.0)
        times = paired(store, raw, settings.pairs)
    name = "store: throughput / raw write"
    shapes = {"clips": clips, "slots": slots, "slot": shape, "bytes": values.nbytes}
    rates = {key: round(values.nbytes / float(np.median(getattr(times, key))) / 1e9, 3) for key in ("a", "b")}
    witness = {"store_gb_s": rates["a"], "raw_gb_s": rates["b"]}
    return [rows.ratio(name, times, Bar(0.8, at_least=True), shapes=shapes, errors=errors, witness=witness)]
