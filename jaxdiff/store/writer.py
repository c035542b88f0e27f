"""Threads that write behind a running program: bounded in memory, and loud when they fail."""

import collections
import dataclasses
import errno
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxdiff.errors import StoreWriteError


def system_errno(error: BaseException) -> int:
    """The operating system's error number behind an exception; EIO if it names none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    # TensorStore raises ValueError and annotates the message with the number.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else errno.EIO


@dataclasses.dataclass(frozen=True)
class Job:
    """Slots ``start, start + 1, ...`` of one clip of one array; value ``[slots, rows, ...]``."""

    name: str
    clip: int
    start: int
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class QueueUse:
    """How far writing has lagged behind: seconds that `Writer.put` has waited for room, over all threads, and the most bytes
    that were in flight at once."""

    waited: float
    deepest: int


class Writer:
    """A bounded queue in front of writer threads.

    The first failure is kept in `failure`; from then on queued jobs are dropped and `put`, `drain` and
    `check` raise it. `put` waits while more than `queue_bytes` are in flight, and fails instead of waiting on
    if not one write has completed for `timeout` seconds: it is called by a compiled program, which must never
    hang.

    Parameters
    ----------
    write : stores one job durably; called in the threads.
    threads : number of writer threads. Durable writes wait for the disk, so more than one pays off on any
    machine. queue_bytes : bytes that may be waiting or being written, until `allow` says more; a single
    larger job is let through alone. timeout : seconds without progress after which the file system counts as stalled.
    """

    def __init__(
        self,
        write: Callable[[Job], None],
        *,
        threads: int = 4,
        queue_bytes: int = 256 << 20,
        timeout: float = 120.0,
    ) -> None:
        self.failure: Exception | None = None
        self._write = write
        self._threads = threads
        self._limit = queue_bytes
        self.timeout = timeout
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._state = threading.Condition()
        self._bytes = 0
        self._jobs = 0
        self._of_clip: collections.Counter[int] = collections.Counter()
        self._progress = 0.0  # when the last write ended
        self._waited, self._deepest = 0.0, 0
        self._running: list[threading.Thread] = []

    def put(self, job: Job) -> None:
        """Queue a job; the array must not change afterwards."""
        size = job.value.nbytes
        begin = time.monotonic()
        with self._state:
            if self._jobs and self._bytes + size > self._limit:
                self._wait(lambda: not self._jobs or self._bytes + size <= self._limit)
                self._waited += time.monotonic() - begin
            self.check()
            self._bytes += size
            self._deepest = max(self._deepest, self._bytes)
            self._jobs += 1
            self._of_clip[job.clip] += 1
            if len(self._running) < self._threads:
                # Daemons, so that a stalled file system cannot keep the process from ending.
                thread = threading.Thread(target=self._run, name="jaxdiff-store-writer", daemon=True)
                self._running.append(thread)
                thread.start()
        self._queue.put(job)

    def allow(self, queue_bytes: int) -> None:
        """Let at least so many bytes be in flight from now on."""
        with self._state:
            self._limit = max(self._limit, queue_bytes)
            self._state.notify_all()

    @property
    def use(self) -> QueueUse:
        """Of the queue so far."""
        with self._state:
            return QueueUse(self._waited, self._deepest)

    def drain(self, clips: Iterable[int] | None = None) -> None:
        """Wait until what is queued of these clips is durable; without any, everything."""
        with self._state:
            if clips is None:
                self._wait(lambda: not self._jobs)
            else:
                wanted = set(clips)
                self._wait(lambda: wanted.isdisjoint(self._of_clip))

    def check(self) -> None:
        """Raise the failure, if there is one."""
        if self.failure is not None:
            raise self.failure from self.failure.__cause__

    def fail(self, error: Exception) -> None:
        """Stop everything with `error`, unless something failed before."""
        with self._state:
            self.failure = self.failure or error
            self._state.notify_all()

    def close(self) -> None:
        """End the threads; jobs still queued are written first, unless something failed."""
        for _ in self._running:
            self._queue.put(None)
        for thread in self._running:
            thread.join(self.timeout)
        self._running = []

    def _wait(self, ready: Callable[[], bool]) -> None:
        begin = time.monotonic()
        while self.failure is None and not ready():
            left = max(begin, self._progress) + self.timeout - time.monotonic()
            if left <= 0:
                self.failure = StoreWriteError(
                    errno.ETIMEDOUT, f"no write to the activation store has completed for {self.timeout:g} s"
                )
                self._state.notify_all()
            else:
                self._state.wait(left)
        self.check()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                if self.failure is None:
                    self._write(job)
            except Exception as error:
                self.fail(error)
            with self._state:
                self._bytes -= job.value.nbytes
                self._jobs -= 1
                self._of_clip[job.clip] -= 1
                if not self._of_clip[job.clip]:
                    del self._of_clip[job.clip]
                self._progress = time.monotonic()
                self._state.notify_all()


class Commit(threading.Thread):
    """`work` in a thread of its own, from now on. A daemon, for the reason that writers are."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="jaxdiff-store-commit", daemon=True)
        self._work = work
        self._failed: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failed = error

    def check(self) -> None:
        """Raise what the work raised."""
        if self._failed is not None:
            raise self._failed


def describe(error: BaseException, what: str, where: Any, finished: int) -> StoreWriteError:
    """The error that reaches the user for a failed write of `what`."""
    number = system_errno(error)
    advice = "free some space, then run" if number in (errno.ENOSPC, errno.EDQUOT) else "repair that, then run"
    message = (
        f"{os.strerror(number)}: writing {what} in {where} failed; the {finished} finished clips are intact: "
        f"{advice} the same command again to continue"
    )
    if number == errno.EIO:
        message += f" ({error})"
    return StoreWriteError(number, message)
