"""What a case returns: rows with a number, what was asked of it, and everything behind it."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.timing import MIN_PAIRS, UNDECIDED, Bar, Interval, Paired, Verdict


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is done: `pairs` rounds of every comparison; `tiny` is a toy, to see that everything runs; the suite gpu starts
    nothing after `budget` seconds, and keeps what its parts measured in `folder`."""

    pairs: int = MIN_PAIRS
    tiny: bool = False
    budget: float = 540.0
    folder: str | None = None


class PeerMissing(Exception):
    """What ours is compared with cannot be had here; says why."""


def need(*modules: str) -> None:
    """Raise `PeerMissing` for the first module that cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise PeerMissing(f"{module} cannot be imported: {error}") from error


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    value, interval : the number and its 95 % interval, where it has one.
    bar, met : what was asked, and whether it is reached: True, False or "undecided"; None without a bar.
    control : the A/A control.
    shapes : of what is computed.
    errors : relative differences between outputs, looked at before anything was timed.
    witness : what noise cannot move.
    seconds : every repeat.
    missing : why there is no number.
    """

    name: str
    value: float | None = None
    unit: str = ""
    interval: tuple[float, float] | None = None
    bar: Bar | None = None
    met: Verdict | None = None
    control: Interval | None = None
    shapes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    witness: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    missing: str = ""

    def unjudged(self) -> "Row":
        """The same without a verdict."""
        return self if self.met is None else dataclasses.replace(self, met=UNDECIDED)

    def measured(self) -> str:
        """The number as the table shows it."""
        if self.missing or self.value is None:
            return "missing" if self.missing else ""
        text = f"{self.value:.0f}" if abs(self.value) >= 1000 else f"{self.value:.4g}"
        if self.interval is not None:
            text += " [{:.4g}, {:.4g}]".format(*self.interval)
        return f"{text} {self.unit}".strip()

    def verdict(self) -> str:
        """`met` as the table shows it."""
        return {True: "met", False: "missed", None: ""}.get(self.met, UNDECIDED)  # type: ignore[arg-type]

    def as_json(self) -> dict[str, Any]:
        """All of it, with the medians of the repeats."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        control = None if self.control is None else dataclasses.asdict(self.control)
        medians = {name: float(np.median(values)) for name, values in self.seconds.items() if len(values)}
        return found | {"bar": self.bar and str(self.bar), "control": control, "medians": medians}

    def as_bar(self) -> dict[str, Any]:
        """The verdict alone."""
        return {
            "name": self.name,
            "value": self.value,
            "interval": self.interval,
            "bar": self.bar and str(self.bar),
            "met": UNDECIDED if self.met is None else self.met,
        }


def ratio(name: str, times: Paired, bar: Bar | None = None, **details: Any) -> Row:
    """The row of B over A."""
    return measured(
        name, times.ratio(), len(times.a), bar, control=times.control_ratio(), seconds=times.as_json(), **details
    )


def measured(name: str, found: Interval, repeats: int, bar: Bar | None = None, **details: Any) -> Row:
    """The row of a number with an interval."""
    met = None if bar is None else bar.verdict(found, repeats)
    return Row(name, found.median, interval=(found.low, found.high), bar=bar, met=met, **details)


def number(name: str, value: float, bar: Bar | None = None, unit: str = "", **details: Any) -> Row:
    """The row of a number that has no interval: counted, or a limit on one run."""
    return Row(name, float(value), unit, bar=bar, met=None if bar is None else bar.holds(value), **details)


def missing(name: str, why: str, bar: Bar | None = None) -> Row:
    """The row of a comparison that cannot be made here."""
    return Row(name, bar=bar, met=None if bar is None else UNDECIDED, missing=why)


def compared(name: str, ours: Any, theirs: Any, tolerance: float) -> dict[str, float]:
    """{name: largest difference over the largest value}, for `Row.errors`.

    Raises
    ------
    AssertionError : it is above the tolerance, so that what would be timed is not the same thing.
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not error <= tolerance:
        raise AssertionError(f"{name}: the outputs differ by {error:.2e} of the largest value, more than {tolerance:g}")
    return {name: float(f"{error:.3g}")}
