"""Progress of long work, on stderr: a live bar on a terminal, sparse plain lines anywhere else.

Results belong on stdout; nothing here writes to it. Compile time is shown apart from run time and is left out
of the rate and of the time left, so that the first batch of a jitted program does not make an hour of work
look like ten.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 0.8 s, 42 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Task:
    """One piece of work with a known size. Made by `progress`; call `advance` as parts of it get done."""

    def __init__(self, name: str, total: int, unit: str, clock: Callable[[], float], done: int):
        self.name, self.total, self.unit, self._clock = name, total, unit, clock
        self.done = self.first = done
        self.compile_seconds = 0.0
        self.fields: dict[str, Any] = {}
        self._start = clock()
        self._compiling_since: float | None = None
        self._changed: Callable[[bool], None] = lambda urgent: None

    def advance(self, n: int = 1, **fields: Any) -> None:
        """`n` more units are done; `fields` (say `loss=0.31`) are shown behind the bar until they change."""
        self.done += n
        self.fields.update(fields)
        self._changed(False)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Wrap the call that traces and compiles: its time is counted as compile time, not as work."""
        self._compiling_since = self._clock()
        self._changed(True)
        try:
            yield
        finally:
            self.compile_seconds += self._clock() - self._compiling_since
            self._compiling_since = None
            self._changed(False)

    @property
    def run_seconds(self) -> float:
        """Seconds since the start, compile time left out."""
        return self._clock() - self._start - self._compile_so_far()

    def _compile_so_far(self) -> float:
        running = 0.0 if self._compiling_since is None else self._clock() - self._compiling_since
        return self.compile_seconds + running

    def status(self, final: bool = False) -> str:
        """The text behind the bar: rate and time left, compile time, and the caller's fields."""
        parts = []
        seconds, fresh = self.run_seconds, self.done - self.first
        if self._compiling_since is not None:
            waited = self._clock() - self._compiling_since
            parts.append(f"compiling {duration(waited)}" if waited >= 1 else "compiling")
        elif fresh and seconds > 0:
            rate = fresh / seconds
            if final:
                parts.append(f"in {duration(seconds)}")
            elif self.done < self.total:
                parts.append(f"{duration((self.total - self.done) / rate)} left")
            parts.append(f"{rate:.3g} {self.unit}/s" if rate >= 0.1 else f"{1 / rate:.3g} s each")
        elif final:
            parts.append(f"in {duration(seconds)}")
        if self.compile_seconds:
            parts.append(f"compile {duration(self.compile_seconds)}")
        parts += [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.fields.items()]
        return " · ".join(parts)

    def line(self, final: bool = False) -> str:
        """The task as one plain line."""
        head = f"{self.name}: {self.done}/{self.total} {self.unit}"
        status = self.status(final)
        return f"{head}, {status}" if status else head


@contextlib.contextmanager
def progress(
    name: str,
    total: int,
    *,
    unit: str = "clips",
    done: int = 0,
    stream: TextIO | None = None,
    interval: float = 10.0,
    delay: float = 2.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Task]:
    """Show the progress of `total` units of work while the block runs.

    Parameters
    ----------
    name, unit : what is done ("invert"), counted in what ("clips").
    done : units that an earlier, interrupted run finished already; they do not count towards the rate.
    stream : where to, default stderr. A terminal gets a live bar; a file or pipe gets plain lines.
    interval : seconds between two plain lines at least.
    delay : work shorter than this (seconds) shows nothing.
    clock : for tests.

    Examples
    --------
    >>> with progress("invert", 3) as task:
    ...     for batch in range(3):
    ...         task.advance()
    """
    stream = sys.stderr if stream is None else stream
    task = Task(name, total, unit, clock, done)
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    with _bar(task, stream, delay) if live else _lines(task, stream, interval, delay):
        yield task


@contextlib.contextmanager
def _lines(task: Task, stream: TextIO, interval: float, delay: float) -> Iterator[None]:
    last = start = task._clock()
    shown = False

    def changed(urgent: bool) -> None:
        nonlocal last, shown
        now = task._clock()
        first_due = not shown and now - start >= delay
        if urgent or first_due or now - last >= interval:
            last, shown = now, True
            print(task.line(), file=stream, flush=True)

    task._changed = changed
    try:
        yield
    except BaseException:
        if shown:
            print(f"{task.line()} · stopped", file=stream, flush=True)
        raise
    if shown or task._clock() - start >= delay:
        print(task.line(final=True), file=stream, flush=True)


@contextlib.contextmanager
def _bar(task: Task, stream: TextIO, delay: float) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
    )
    from rich.text import Text

    class Status(ProgressColumn):
        max_refresh = 0.25

        def render(self, _: Any) -> Text:
            return Text(task.status(final=task.done >= task.total), style="dim")

    console = Console(file=stream)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Results go to stdout while the bar lives on stderr, so stdout must not be redirected through its console.
    bar = Progress(*columns, TextColumn(task.unit), Status(), console=console, redirect_stdout=False, transient=True)
    with bar:
        row = bar.add_task(task.name, total=task.total, completed=task.done)
        task._changed = lambda urgent: bar.update(row, completed=task.done)
        yield
    if task._clock() - task._start >= delay:
        # The bar goes away; one line of it stays, so that a scrollback reads like a log.
        console.print(task.line(final=True), highlight=False)
