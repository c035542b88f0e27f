"""What the training binaries share."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from experiments._flags import unknown
from jaxdiff.progress import Task
from jaxdiff.workdir import Workdir

if TYPE_CHECKING:
    from jaxdiff.pipeline import Pipeline

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


def opened_model(model: str) -> "Pipeline":
    """The checkpoint that --model names: a folder, or a configuration that ships with the package."""
    from jaxdiff.pipeline import load
    from jaxdiff.study.models import ASSETS

    return load(ASSETS / model if model in CONFIGS else model)


def opened_encoder(model: str, shape: tuple[int, ...]) -> "Pipeline":
    """The same with the weights of the VAE alone, once it is known that it can encode videos of a shape (T, H, W, 3)."""
    from jaxdiff.pipeline import load, outline
    from jaxdiff.study.models import ASSETS
    from jaxdiff.train.latents import latent_shape
    from ports.folder import load_network

    folder = ASSETS / model if model in CONFIGS else pathlib.Path(model)
    found = outline(folder)
    latent_shape(found, shape)
    if found.connectors is not None or not (folder / "vae" / "config.json").is_file():  # LTX-2, and original layouts
        return load(folder)
    return dataclasses.replace(found, vae=load_network(folder / "vae"))
