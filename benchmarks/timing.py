"""Timing of functions against each other in one process, with an A/A control and a verdict against a bar."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

MIN_PAIRS = 20  # fewer give no verdict
RESAMPLES = 4000
SETTLE = 0.01  # seconds between calls, so that the other side's spinning threads are asleep again

UNDECIDED: Literal["undecided"] = "undecided"
Verdict = bool | Literal["undecided"]


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
    """What a number must reach: at least `value`, or at most `value`."""

    value: float
    at_least: bool

    def holds(self, number: float) -> bool:
        return number >= self.value if self.at_least else number <= self.value

    def verdict(self, found: Interval, pairs: int) -> Verdict:
        """True if the whole interval is on the right side, False if it is all on the wrong one."""
        if pairs < MIN_PAIRS:
            return UNDECIDED
        low, high = self.holds(found.low), self.holds(found.high)
        return low if low == high else UNDECIDED

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

    def as_json(self) -> dict[str, list[float]]:
        return {name: listed(getattr(self, name)) for name in ("a", "b", "control")}


def paired(a: Callable[[], Any], b: Callable[[], Any], pairs: int, *, warmup: int = 2) -> Paired:
    """Time `a`, `b` and `a` again, `pairs` times; see `interleaved`."""
    return Paired(**interleaved({"a": a, "b": b, "control": a}, pairs, warmup=warmup))


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, *, warmup: int = 2, limit: float = math.inf
) -> dict[str, np.ndarray]:
    """Seconds [rounds] of every call, all of them once a round.

    Parameters
    ----------
    calls : return when their work is done, device included. One that returns a float says itself how many seconds count.
    rounds : the order inside a round rotates and turns over, so that no one always follows the same other.
    warmup : untimed calls of each first, which take the compilations.
    limit : seconds after which no further round starts.

    Raises
    ------
    ValueError : `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"there must be at least 1 round, got {rounds}")
    for _ in range(warmup):
        for call in dict.fromkeys(calls.values()):  # a control is the same function again
            call()
    names = tuple(calls)
    seconds = {name: np.zeros(rounds) for name in names}
    started = time.perf_counter()
    for i in range(rounds):
        if i and time.perf_counter() - started > limit:
            return {name: values[:i] for name, values in seconds.items()}
        for name in map(str, np.roll(names if i // len(names) % 2 == 0 else names[::-1], i)):
            time.sleep(SETTLE)
            start = time.perf_counter()
            own = calls[name]()
            took = time.perf_counter() - start
            seconds[name][i] = own if isinstance(own, float) else took
    return seconds


def interval(ratios: np.ndarray, seed: int = 0) -> Interval:
    """Median of `ratios` [pairs] and its percentile-bootstrap 95 % interval."""
    low, high = np.quantile(np.median(_resampled(ratios, seed), axis=1), [0.025, 0.975])
    return Interval(float(np.median(ratios)), float(low), float(high))


def unpaired(numerator: np.ndarray, denominator: np.ndarray, seed: int = 0) -> Interval:
    """Ratio of two medians measured in different processes, and its percentile-bootstrap 95 % interval."""
    tops, bottoms = (np.median(_resampled(x, seed + i), axis=1) for i, x in enumerate((numerator, denominator)))
    low, high = np.quantile(tops / bottoms, [0.025, 0.975])
    return Interval(float(np.median(numerator) / np.median(denominator)), float(low), float(high))


def listed(seconds: Any) -> list[float]:
    """For json."""
    return [round(float(s), 6) for s in seconds]


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return values[rng.integers(len(values), size=(RESAMPLES, len(values)))]
