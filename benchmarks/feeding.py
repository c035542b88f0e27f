"""How many devices one process stores the captures of: a store fed as a compiled program feeds it, by threads, without devices.

A device makes one evaluation after the other and hands over what was read in it, all devices at about the same time. The rate
of one is stated (`EVALUATION`); how long hand-overs and commits keep devices from their next evaluation is measured.
"""

import dataclasses
import functools
import math
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import rows
from benchmarks.rows import Row, Settings
from benchmarks.timing import Bar
from jaxdiff.store import ActivationStore

# Seconds of an evaluation of Wan 1.3B at 480 x 832 x 81, 32,760 tokens, that an H200 can reach: matrix products at its measured
# ceiling and attention at the fastest published rate. Larger networks take longer and read little more.
EVALUATION = 0.416
DEVICES = 64
THREADS = 8  # that hand over: callbacks come from a thread a device, most of which wait for their device
LAYERS, WIDTH, HEADS, FRAMES = 30, 1536, 12, 21  # of Wan 1.3B


@dataclasses.dataclass(frozen=True)
class Load:
    """What every device hands over after each evaluation: arrays of one slot, float32; and how many slots a clip has."""

    what: str
    arrays: Mapping[str, tuple[int, ...]]
    slots: int
    evaluation: float = EVALUATION

    @property
    def slot_bytes(self) -> int:
        return sum(4 * math.prod(shape) for shape in self.arrays.values())

    @property
    def rate(self) -> float:
        """Bytes a second of one device."""
        return self.slot_bytes / self.evaluation


# A study reads at 11 of 100 evaluations and has a ninth of these rates. Clips are as long as it takes to fill every chunk.
LOADS = (
    Load("block means and frame maps", {"block_out.mean": (LAYERS, WIDTH), "map": (LAYERS, HEADS, FRAMES, FRAMES)}, 25),
    Load("frame means", {"block_out.frame_mean": (LAYERS, FRAMES, WIDTH)}, 8),
)
TOY = (Load("a toy", {"a": (2, 8), "b": (3, 2, 2)}, 4, 0.05),)


@dataclasses.dataclass(frozen=True)
class Fed:
    """One run.

    Attributes
    ----------
    bytes, seconds, processor : stored, from the first hand-over until all is durable and committed, by the clock and of all
        threads of this process.
    blocked : seconds that hand-overs waited for room in the queue, over all devices.
    longest : seconds of the longest hand-over.
    finishing : seconds that the loop over batches spent in `ActivationStore.finish`.
    behind : seconds by which the last hand-overs began late, of what the devices' own rate asks for.
    deepest : most bytes in flight.
    """

    bytes: int
    seconds: float
    processor: float
    blocked: float
    longest: float
    finishing: float
    behind: float
    deepest: int


def case(settings: Settings) -> list[Row]:
    """Each load as fast as the store takes it, and at the rate of 64 devices; TMPDIR says where it is written."""
    found = []
    for load in TOY if settings.tiny else LOADS:
        devices = 4 if settings.tiny else DEVICES
        with tempfile.TemporaryDirectory() as folder:
            most = feed(load, Path(folder) / "most", devices, paced=False)
        with tempfile.TemporaryDirectory() as folder:
            paced = feed(load, Path(folder) / "paced", devices, paced=True)
            raw = write_files(Path(folder), devices, load.slot_bytes * load.slots)
        shapes = {"arrays": dict(load.arrays), "slots": load.slots, "devices": devices, "bytes": most.bytes}
        witness = {
            "mb_s_of_a_device": round(load.rate / 1e6, 3),
            "mb_s": round(most.bytes / most.seconds / 1e6, 1),
            "raw_write_mb_s": round(raw / 1e6, 1),
            "processor_seconds_a_gb": round(most.processor / most.bytes * 1e9, 2),
            "devices_of_one_core": round(most.bytes / most.processor / load.rate, 1),
        }
        at_rate = {key: round(value, 4) for key, value in dataclasses.asdict(paced).items()}
        name = f"store, {load.what}"
        found += [
            rows.number(f"{name}: devices that one process keeps up with", most.bytes / most.seconds / load.rate,
                        Bar(DEVICES, at_least=True), shapes=shapes, witness=witness, seconds={"most": [most.seconds]}),
            rows.number(f"{name}: share of their time that {devices} devices wait for the queue",
                        paced.blocked / (devices * paced.seconds), Bar(0, at_least=False), shapes=shapes, witness=at_rate,
                        seconds={"paced": [paced.seconds]}),
        ]  # fmt: skip
    return found


def feed(load: Load, folder: Path, devices: int, *, paced: bool, batches: int = 2, **options: Any) -> Fed:
    """Store a clip of every device, `batches` times, and read all of it back.

    Parameters
    ----------
    paced : hand over at the devices' rate; else as fast as it goes.
    options : of `ActivationStore.create`.

    Raises
    ------
    AssertionError : a clip is missing, or differs from what was handed over.
    """
    rng = np.random.default_rng(0)
    # Seven different values in turn: what is stored in another place is another value.
    pool = {
        name: [rng.standard_normal(shape).astype(np.float32) for _ in range(7)] for name, shape in load.arrays.items()
    }
    specs = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in load.arrays.items()}
    clips, step = batches * devices, load.evaluation if paced else 0.0
    finishing, longest = 0.0, 0.0

    def value(name: str, clip: int, slot: int) -> np.ndarray:
        return pool[name][(5 * clip + 3 * slot) % 7]

    def hand_over(receiver: Any, clip: int, slot: int, due: float) -> float:
        time.sleep(max(0.0, due - time.perf_counter()))
        begin = time.perf_counter()
        receiver(np.array([clip]), np.array(slot), {name: [value(name, clip, slot).reshape(-1)] for name in specs})
        return time.perf_counter() - begin

    store = ActivationStore.create(folder, clips=clips, slots=load.slots, specs=specs, **options)
    with ThreadPoolExecutor(min(THREADS, devices)) as threads, store:
        start, processor = time.perf_counter(), time.process_time()
        due = start
        for first in range(0, clips, devices):
            ids = np.arange(first, first + devices)
            one = functools.partial(hand_over, store.sink(ids).receiver)
            for slot in range(load.slots):
                due += step
                longest = max(longest, *threads.map(one, ids.tolist(), [slot] * devices, [due] * devices))
            begin = time.perf_counter()
            store.finish(ids, wait=False)
            finishing += time.perf_counter() - begin
        behind = time.perf_counter() - due
        store.close()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    with ActivationStore.open(folder) as written:
        assert written.finished() == set(range(clips))
        for name in specs:
            for clip in range(clips):
                wanted = np.stack([value(name, clip, slot) for slot in range(load.slots)])
                np.testing.assert_array_equal(written.read(name, [clip])[0], wanted, err_msg=f"{name} of clip {clip}")
    use, stored = store.queue, clips * load.slots * load.slot_bytes
    return Fed(stored, seconds, processor, use.waited, longest, finishing, behind, use.deepest)


def write_files(folder: Path, count: int, each: int) -> float:
    """Bytes a second of a raw write of so many files of `each` bytes, synced."""
    data = memoryview(np.random.default_rng(0).bytes(each))
    start = time.perf_counter()
    for number in range(count):
        with open(folder / f"raw{number}", "wb", buffering=0) as file:
            left = data
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
    return count * each / (time.perf_counter() - start)
