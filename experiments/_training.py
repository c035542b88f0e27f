"""What the training binaries share."""

from collections.abc import Callable

from experiments._flags import unknown
from jaxdiff.progress import Task
from jaxdiff.workdir import Workdir

CONFIGS = ("nano",)


def named(flag: str, value: str) -> None:
    """Raise a `ConfigError` unless `value` is a configuration that exists."""
    if value not in CONFIGS:
        raise unknown(f"--{flag}", value, CONFIGS)


def reporter(work: Workdir, task: Task) -> Callable[[int, dict[str, float]], None]:
    """Training metrics to metrics.jsonl and to the progress bar."""

    def report(step: int, metrics: dict[str, float]) -> None:
        work.log("train", step=step, **{name: float(f"{value:.6g}") for name, value in metrics.items()})
        task.advance(step - task.done, loss=metrics["loss"])

    return report
