"""Writing a `Pipeline` as a folder in the diffusers layout, which `jaxdiff.load` and diffusers itself
open."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.errors import CheckpointError
from jaxdiff.flow.schedule import KARRAS, SCHEDULERS, Schedule
from jaxdiff.models.network import Network
from jaxdiff.models.text.prompt import TextEncoder
from jaxdiff.pipeline import Pipeline
from ports.families import FAMILIES, PORTS, Family, Port
from ports.filling import save_params
from ports.folder import INDEX, load_text_encoder
from ports.stored import ARRAYS

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSION = "0.42.1"  # of the diffusers release whose configuration keys these are


def save_pipeline(pipeline: Pipeline, folder: str | Path, *, dtype: Any = None) -> Path:
    """Write the networks, the schedule, and the text encoder and tokenizer that the pipeline was loaded with.

    The text encoder is not in the pipeline but in the folder that it came from: it is copied from there, in its own dtype.
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
        The pipeline belongs to no family that can be written, or its text encoder is no longer where it was.
    """
    path = Path(folder)
    pipeline_class, family = _family(pipeline)
    index: dict[str, Any] = {"_class_name": pipeline_class, "_diffusers_version": VERSION, **family.options}
    index.update({name: [None, None] for name in family.unported})
    index |= {key: getattr(pipeline.family, key) for key in family.settings}
    for name in family.ports:
        if name == "image_encoder":
            index |= _save_image_encoder(pipeline, path)
            continue
        network = getattr(pipeline, name)
        if network is None:
            index[name] = [None, None]
            continue
        kind = save_network(network, path / name, dtype=dtype)
        index[name] = [PORTS[kind].library, kind]
    if pipeline.text_encoder is not None:
        index |= _copy_text(pipeline.text_encoder, path)
    scheduler = _scheduler_config(pipeline.schedule)
    _write_json(path / "scheduler" / "scheduler_config.json", scheduler)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    _write_json(path / INDEX, index)
    return path


def _save_image_encoder(pipeline: Pipeline, path: Path) -> dict[str, list[str | None]]:
    """Put image_encoder/ and image_processor/ where they belong; returns their entries of model_index.json."""
    network, pictures = pipeline.image_encoder, pipeline.image_processor
    if network is None or pictures is None:
        return {"image_encoder": [None, None], "image_processor": [None, None]}
    folder = path / "image_encoder"
    name = save_network(network, folder)
    (folder / WEIGHTS).replace(folder / "model.safetensors")  # transformers' own name for it
    _write_json(
        folder / "config.json",
        {"architectures": [name], "model_type": "clip_vision_model", **dataclasses.asdict(network.config)},
    )
    _write_json(path / "image_processor" / "preprocessor_config.json", pictures.to_dict())
    return {"image_encoder": ["transformers", name], "image_processor": ["transformers", "CLIPImageProcessor"]}


def _copy_text(source: TextEncoder, path: Path) -> dict[str, list[str]]:
    """Put text_encoder/ and tokenizer/ where they belong; returns their entries of model_index.json."""
    encoder, tokenizer = source.folder / source.encoder, source.folder / source.tokenizer
    if encoder.is_dir() and not (encoder / ARRAYS).is_dir():
        _copy(encoder, path / "text_encoder")
    else:  # converted, or under its original names
        save_network(load_text_encoder(source), path / "text_encoder")
    _copy(tokenizer, path / "tokenizer")
    config, settings = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for file in (path / "text_encoder" / "config.json", tokenizer / "tokenizer_config.json")
    )
    names = [*config.get("architectures", ()), config.get("_class_name")]
    return {
        "text_encoder": ["transformers", names[0]],
        "tokenizer": ["transformers", settings.get("tokenizer_class", "T5TokenizerFast")],
    }


def _copy(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


def _family(pipeline: Pipeline) -> tuple[str, Family]:
    for name, family in FAMILIES.items():
        if type(family.drive) is type(pipeline.family):
            settings = {key: getattr(pipeline.family, key) for key in family.settings}
            if dataclasses.replace(family.drive, **settings) == pipeline.family:
                return name, family
    raise CheckpointError(f"a pipeline of family {pipeline.family!r} cannot be written (known: {', '.join(FAMILIES)})")


def save_network(network: Network, folder: str | Path, *, dtype: Any = None, ports: Mapping[str, Port] = PORTS) -> str:
    """Write one network as a component's folder (config.json and safetensors); returns its published class, one of `ports`.

    Raises
    ------
    CheckpointError
        The network's class is published under no name that is known here.
    """
    path = Path(folder)
    for name, port in ports.items():
        if port.module is network.module:
            config = {
                "_class_name": name,
                "_diffusers_version": VERSION,
                **dataclasses.asdict(network.config),
            }
            _write_json(path / "config.json", config)
            save_params(network.params, port.table(network.config), path / WEIGHTS, dtype)
            return name
    raise CheckpointError(f"{path}: {network.module.__name__} has no published class (known: {', '.join(ports)})")


def _scheduler_config(schedule: Schedule) -> dict[str, Any]:
    """The scheduler_config.json from which the reference, and `Schedule.from_config`, make this schedule."""
    for name, kind in (*SCHEDULERS.items(), *KARRAS.items()):
        if type(schedule) is kind:
            fields = {kind.KEY_OF.get(key, key): value for key, value in dataclasses.asdict(schedule).items()}
            return {
                "_class_name": name,
                "_diffusers_version": VERSION,
                **{key: allowed[0] for key, allowed in kind.REQUIRED.items()},
                **{key: value for key, value in fields.items() if key in kind.KEYS},
                kind.SHIFT_KEY: schedule.shift,
                "num_train_timesteps": schedule.num_train_timesteps,
            }
    raise CheckpointError(f"schedule {schedule!r} has no published class (known: {', '.join(SCHEDULERS)})")


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(file)
