"""Writing a `Pipeline` as a folder in the diffusers layout, which `jaxdiff.load` and diffusers itself
open."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxdiff.errors import CheckpointError
from jaxdiff.flow.schedule import SCHEDULERS, Schedule
from jaxdiff.models.network import Network
from jaxdiff.pipeline import Pipeline
from ports.families import FAMILIES, PORTS, Family
from ports.folder import INDEX
from ports.table import save_params

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSION = "0.42.1"  # of the diffusers release whose configuration keys these are


def save_pipeline(pipeline: Pipeline, folder: str | Path, *, dtype: Any = None) -> Path:
    """Write the transformer, the VAE if there is one, and the schedule.

    Equal pipelines give equal bytes. model_index.json comes last, so that a folder that has one is complete.

    Parameters
    ----------
    pipeline : Pipeline
    folder : path-like
        Created if needed; files of the same name are replaced.
    dtype : dtype, optional
        Cast the weights to it, except those that their table keeps in float32; default: as they are.

    Returns
    -------
    Path of the folder.

    Raises
    ------
    CheckpointError
        The pipeline belongs to no family that can be written.
    """
    path = Path(folder)
    pipeline_class, family = _family(pipeline)
    index: dict[str, Any] = {"_class_name": pipeline_class, "_diffusers_version": VERSION, **family.options}
    index.update({name: [None, None] for name in family.unported})
    for name in family.ports:
        network = getattr(pipeline, name)
        index[name] = (
            [None, None] if network is None else ["diffusers", save_network(network, path / name, dtype=dtype)]
        )
    scheduler = _scheduler_config(pipeline.schedule)
    _write_json(path / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    _write_json(path / INDEX, index)
    return path


def _family(pipeline: Pipeline) -> tuple[str, Family]:
    for name, family in FAMILIES.items():
        if family.drive == pipeline.family:
            return name, family
    raise CheckpointError(f"a pipeline of family {pipeline.family!r} cannot be written (known: {', '.join(FAMILIES)})")


def save_network(network: Network, folder: str | Path, *, dtype: Any = None) -> str:
    """Write one network as a component's folder (config.json and safetensors); returns its published class.

    Raises
    ------
    CheckpointError
        The network's class is published under no name that is known here.
    """
    path = Path(folder)
    for name, port in PORTS.items():
        if port.module is network.module:
            config = {
                "_class_name": name,
                "_diffusers_version": VERSION,
                **dataclasses.asdict(network.config),
            }
            _write_json(path / "config.json", config)
            save_params(network.params, port.table(network.config), path / WEIGHTS, dtype)
            return name
    raise CheckpointError(f"{path}: {network.module.__name__} has no published class (known: {', '.join(PORTS)})")


def _scheduler_config(schedule: Schedule) -> dict[str, Any]:
    """The scheduler_config.json from which the reference, and `Schedule.from_config`, make this schedule."""
    for name, kind in SCHEDULERS.items():
        if type(schedule) is kind:
            return {
                "_class_name": name,
                "_diffusers_version": VERSION,
                **{key: allowed[0] for key, allowed in kind.REQUIRED.items()},
                **{key: value for key, value in dataclasses.asdict(schedule).items() if key in kind.KEYS},
                kind.SHIFT_KEY: schedule.shift,
                "num_train_timesteps": schedule.num_train_timesteps,
            }
    raise CheckpointError(f"schedule {schedule!r} has no published class (known: {', '.join(SCHEDULERS)})")


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(file)
