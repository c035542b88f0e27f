"""Paired timing of two functions in one process, with an A/A control and a verdict against a bar."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MIN_PAIRS = 20  # fewer give no verdict
RESAMPLES = 4000
SETTLE = 0.01  # seconds between calls, so that the other side's spinning threads are asleep again

MET, UNDECIDED, MISSED = "met", "undecided", "missed"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A median and its bootstrap 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a ratio must reach: at least `value`, or at most `value`."""

    value: float
    at_least: bool

    def verdict(self, ratio: Interval, pairs: int) -> str:
        """Met if the whole interval is on the right side, missed if it is all on the wrong one."""
        if pairs < MIN_PAIRS:
            return UNDECIDED
        right = (ratio.low >= self.value, ratio.high >= self.value)
        if not self.at_least:
            right = (ratio.high <= self.value, ratio.low <= self.value)
        surely, perhaps = right
        return MET if surely else UNDECIDED if perhaps else MISSED

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Paired:
    """Seconds of every call: `a`, `b` and `control` (A again), [pairs] each, entry i measured in round i."""

    a: np.ndarray
    b: np.ndarray
    control: np.ndarray

    def ratio(self) -> Interval:
        """B over A."""
        return interval(self.b / self.a)

    def control_ratio(self) -> Interval:
        """A over A: what the machine does to two equal things."""
        return interval(self.control / self.a)

    def as_json(self) -> dict[str, Any]:
        return {name: [round(float(s), 6) for s in getattr(self, name)] for name in ("a", "b", "control")}


def paired(a: Callable[[], Any], b: Callable[[], Any], pairs: int, *, warmup: int = 2) -> Paired:
    """Time `a`, `b` and `a` again, `pairs` times.

    Parameters
    ----------
    a, b : return when their work is done, device included.
    pairs : rounds. The order inside a round rotates, so that no one always follows the same other.
    warmup : untimed calls of each first, which take the compilations.

    Raises
    ------
    ValueError : `pairs` is below 1.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    for _ in range(warmup):
        a()
        b()
    names = ("a", "b", "control")
    calls = {"a": a, "b": b, "control": a}
    seconds = {name: np.zeros(pairs) for name in names}
    for i in range(pairs):
        # All six orders in turn: a rotation alone would let B always follow the same neighbour.
        order = np.roll(names if i // 3 % 2 == 0 else names[::-1], i)
        for name in map(str, order):
            time.sleep(SETTLE)
            start = time.perf_counter()
            calls[name]()
            seconds[name][i] = time.perf_counter() - start
    return Paired(**seconds)


def interval(ratios: np.ndarray, seed: int = 0) -> Interval:
    """Median of `ratios` [pairs] and its percentile-bootstrap 95 % interval."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return Interval(float(np.median(ratios)), float(low), float(high))
