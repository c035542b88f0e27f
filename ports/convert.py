"""Rewrite a checkpoint so that it opens faster, and in parts.

    python -m ports.convert --checkpoint=DIR --out=DIR

writes a folder that `jaxdiff.load` opens directly: the configurations and the tokenizer as they are in the diffusers
layout, and the weights as Orbax arrays, already in the layout of this project's leaves, stacked and transposed. The
source is any checkpoint that `jaxdiff.load` opens. Weights keep the dtype in which they are stored, so that what is
loaded from either folder is equal bit for bit.

The folder has its name only when it is whole; until then it is called `OUT.partial`.
"""

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.models.text.prompt import TextEncoder
from ports import lora as lora_files
from ports import stored
from ports.filling import read_stored
from ports.folder import INDEX, UNFINISHED, Component, Folder, open_folder, target_dtype, text_component
from ports.table import expected_names

COPIED = ("tokenizer", "image_processor", "feature_extractor")  # as they are, where the folder has them


@dataclasses.dataclass(frozen=True)
class Config:
    """What is converted, and where to."""

    checkpoint: Path = dataclasses.field(metadata={"help": "Any checkpoint that jaxdiff.load opens."})
    out: Path = dataclasses.field(metadata={"help": "Folder to write; it must not exist."})
    dtype: str | None = dataclasses.field(
        default=None,
        metadata={
            "help": "float32, bfloat16 or float16 for what the model does not keep in float32; default: as stored."
        },
    )
    lora: Path | None = dataclasses.field(default=None, metadata={"help": "A LoRA to merge into the weights."})
    lora_scale: float = dataclasses.field(default=1.0, metadata={"help": "What the LoRA is multiplied by."})


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    dtype: Any = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
    report=lambda line: None,
) -> dict[str, dict[str, float]]:
    """Write the folder.

    On the host lie the weights of one component at a time.

    Parameters
    ----------
    checkpoint, out, dtype, lora, lora_scale : as the flags of the same names.
    report : called with a line of text when a component is done.

    Returns
    -------
    dict of component -> {"bytes", "read_seconds", "write_seconds"}

    Raises
    ------
    CheckpointError
        The checkpoint does not load.
    ConfigError
        `out` exists, or the dtype is not offered.
    """
    target = Path(out)
    if target.exists():
        raise ConfigError(f"{target} exists; give a folder that does not, or remove it")
    kind = None if dtype is None else target_dtype(dtype, None)
    opened = open_folder(checkpoint)
    if lora is not None:
        lora_files.add(opened.components, lora, lora_scale)
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        if not (partial / UNFINISHED).exists():
            raise ConfigError(f"{partial} is in the way, and no conversion that was interrupted; remove it")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    (partial / UNFINISHED).write_text("ports.convert has not finished this folder\n")
    times: dict[str, dict[str, float]] = {}
    for name, component in _components(opened):
        times[name] = _write(component, partial / name, kind)
        report(f"{name}: {_line(times[name])}")
    _copy(opened, partial)
    (partial / UNFINISHED).unlink()
    _sync(partial)
    os.replace(partial, target)
    return times


def _components(opened: Folder) -> Iterator[tuple[str, Component]]:
    yield from opened.components.items()
    if opened.text is not None:
        yield "text_encoder", text_component(TextEncoder(opened.path, "float32", None, *opened.text))


def _write(component: Component, folder: Path, dtype: Any) -> dict[str, float]:
    if isinstance(component.weights, stored.Stored):
        raise ConfigError(f"{component.weights.path}: converted already; copy the folder")
    groups = expected_names(component.table, component.abstract.params)[0]
    start = time.perf_counter()
    leaves: dict[str, np.ndarray] = {}
    for path, value in read_stored(component.weights, component.table, component.abstract.params):
        kept = dtype is None or component.port.keep_float32 or groups[path].rule.keep_float32
        leaves[path] = value if kept else value.astype(dtype)
    component.weights.close()
    read = time.perf_counter()
    stored.write(folder, leaves)
    values = {"_class_name": component.class_name, **dataclasses.asdict(component.config)}
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    size = sum(value.nbytes for value in leaves.values())
    return {"bytes": size, "read_seconds": read - start, "write_seconds": time.perf_counter() - read}


def _copy(opened: Folder, partial: Path) -> None:
    """What is no weight: schedule, tokenizer, picture processor, and model_index.json."""
    source, scheduler = opened.path, partial / "scheduler"
    scheduler.mkdir()
    text = json.dumps(opened.scheduler, indent=2, sort_keys=True) + "\n"
    (scheduler / "scheduler_config.json").write_text(text, encoding="utf-8")
    for name in COPIED:
        folder = source / (opened.text[1] if name == "tokenizer" and opened.text is not None else name)
        if folder.is_dir():
            shutil.copytree(folder, partial / name)
    index = {"scheduler": ["diffusers", opened.scheduler["_class_name"]], **opened.index}
    (partial / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    """A name must not reach the disk before what it names."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())


def _line(times: dict[str, float]) -> str:
    size = times["bytes"] / 1e9
    rates = (f"{kind} {times[f'{kind}_seconds']:.1f} s" for kind in ("read", "write"))
    return f"{size:.3g} GB, {', '.join(rates)}"


def run(config: Config) -> None:
    """Convert, and print what it took."""
    start = time.perf_counter()
    times = convert(
        config.checkpoint,
        config.out,
        dtype=config.dtype,
        lora=config.lora,
        lora_scale=config.lora_scale,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    for name, values in times.items():
        print(f"{name:16} {_line(values)}")
    total = sum(values["bytes"] for values in times.values())
    print(f"{config.out}: {total / 1e9:.3g} GB in {time.perf_counter() - start:.1f} s; jaxdiff.load opens it")


def main() -> None:
    """The command line."""
    from experiments._main import run_binary  # a binary: nothing imports it

    run_binary(run, Config, workdir=False)


if __name__ == "__main__":
    main()
