"""Several processes as one run: how they find each other, which of them writes what is everyone's, and where they wait.

The runtime is `jax.distributed`. A run that was not started so is its own first process, and waits for nobody.
"""

import re
import threading
from collections.abc import Callable

from jaxdiff.errors import ConfigError

_DAY = 24 * 60 * 60 * 1000  # milliseconds


def join(text: str) -> None:
    """Join the other processes of a run; before jax has looked for devices.

    Parameters
    ----------
    text : "" for a process alone; "auto" where jax can find out by itself (TPU pods and slices, Slurm, Open MPI, Kubernetes
        jobs); else "host:port,processes,index" with the address of process 0, how many there are, and which one this is.

    Raises
    ------
    ConfigError : it is not written so, jax finds nothing out, or the others do not come.
    """
    if not text:
        return
    import jax

    named = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", text)
    if text != "auto" and (named is None or int(named[3]) >= int(named[2])):
        raise ConfigError(
            f"--distributed={text}: write auto, or host:port,processes,index with index from 0, for example "
            "10.0.0.1:8476,2,0 and 10.0.0.1:8476,2,1"
        )
    try:
        if named is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(named[1], int(named[2]), int(named[3]))
    except (RuntimeError, ValueError) as error:
        hint = (
            "it asks a TPU's host, Slurm (srun) or Open MPI (mpirun) for the other processes; elsewhere write "
            "host:port,processes,index"
            if named is None
            else "is process 0 running, and can its port be reached from here?"
        )
        raise ConfigError(f"--distributed={text}: {error}; {hint}") from error


def count() -> int:
    """How many processes this run has."""
    import jax

    return jax.process_count()


def index() -> int:
    """Which of them this process is, from 0."""
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this process writes what all of them share."""
    return index() == 0


def meet(name: str) -> None:
    """Wait until every process of the run has come to this place, for as long as a day; `name` is used once a run.

    Nothing is sent between devices: those who wait keep no accelerator busy, and no collective runs into its time limit. A
    process that dies takes the others with it, so that none waits for it.
    """
    if count() == 1:
        return
    from orbax.checkpoint import multihost

    wait = multihost.get_barrier_sync_fn()
    failed: list[BaseException] = []

    def waiting() -> None:
        try:
            wait(key=name, timeout_ms=_DAY)
        except BaseException as error:
            failed.append(error)

    # In a thread, so that a signal still reaches this one.
    thread = threading.Thread(target=waiting, name=f"meet {name}", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if failed:
        raise failed[0]


def divide(part: Callable[[tuple[int, int]], None], whole: Callable[[], None]) -> None:
    """Do ``whole()``; of several processes, each first does its ``part((index, count))``, and the first then does the whole.

    For work whose parts are kept on disk where all processes see them: `whole` finds them done.
    """
    if count() > 1:
        part((index(), count()))
        meet("parts")
    if is_first():
        whole()
    meet("whole")
