"""Loading a checkpoint folder in the diffusers layout.

::

    model_index.json                    the pipeline's class and its components' classes
    transformer/config.json             architecture, and *.safetensors (single or sharded) beside it
    vae/config.json                     the same
    scheduler/scheduler_config.json     the noise schedule
    text_encoder/, tokenizer/           opened by the first prompt, see `jaxdiff.models.text`

Everything that can be wrong is looked for before the first weight is read: the layout, unknown classes and
configuration keys, the header of every weight file, and every tensor's name and shape.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.flow.schedule import FlowMatchEuler, Schedule
from jaxdiff.models.network import Network
from jaxdiff.models.text.prompt import TextEncoder
from jaxdiff.pipeline import Pipeline
from ports.families import FAMILIES, PORTS, TEXT_ENCODERS, Family, Port
from ports.safetensors_reader import Checkpoint
from ports.table import Table, load_params, partition_specs, plan

INDEX = "model_index.json"
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


@dataclass
class Component:
    """One network of a folder, checked and not yet read."""

    port: Port
    config: Any
    abstract: Network
    weights: Checkpoint
    table: Table


@dataclass
class Folder:
    """A checkpoint folder, checked and not yet read."""

    path: Path
    family: Family
    schedule: Schedule
    components: dict[str, Component]
    has_text: bool


def load_pipeline(folder: str | Path, *, dtype: Any = None, mesh: jax.sharding.Mesh | None = None) -> Pipeline:
    """Load a folder as a `Pipeline`; see `jaxdiff.load`.

    Parameters
    ----------
    folder : path-like
        Holds model_index.json, transformer/, scheduler/, and usually vae/.
    dtype : dtype, optional
        float32, bfloat16 or float16 for the transformer; default bfloat16 on accelerators and float32 on a
        CPU. Tensors that their table keeps in float32 (norms, time embedding, modulation) stay so, and so
        does the VAE.
    mesh : jax.sharding.Mesh, optional
        Where the weights go: split over the axes that the tables name and the mesh has, replicated over all
        others.

    Raises
    ------
    CheckpointError
        The folder is no checkpoint, its classes are not supported, or its weights do not fit; all problems
        are listed at once.
    ConfigError
        A configuration key that is not known, or a dtype that is not offered.
    """
    target = _dtype(dtype, mesh)
    opened = open_folder(folder)
    networks = {name: _read(component, target, mesh) for name, component in opened.components.items()}
    # T5's activations overflow in float16; bfloat16 has float32's range.
    kept = jnp.bfloat16 if target == jnp.float16 else target
    text = TextEncoder(opened.path.absolute(), jnp.dtype(kept).name, mesh) if opened.has_text else None
    return Pipeline(family=opened.family.drive, schedule=opened.schedule, text_encoder=text, **networks)


def load_network(folder: str | Path, *, dtype: Any = None) -> Network:
    """Load one component's folder (config.json and safetensors), for example the vae/ of a checkpoint.

    Raises
    ------
    CheckpointError, ConfigError : as `load_pipeline`.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    return _read(_component(path, PORTS), _dtype(dtype, None), None)


def load_text_encoder(source: TextEncoder) -> Network:
    """The weights of a folder's text encoder.

    Raises
    ------
    CheckpointError, ConfigError : as `load_pipeline`.
    """
    component = _component(source.folder / "text_encoder", TEXT_ENCODERS)
    return _read(component, jnp.dtype(source.dtype), source.mesh)


def _read(component: Component, dtype: Any, mesh: jax.sharding.Mesh | None) -> Network:
    params = component.abstract.params
    network = component.abstract.replace(
        load_params(
            component.weights,
            component.table,
            params,
            dtype=jnp.float32 if component.port.keep_float32 else dtype,
            shardings=None if mesh is None else partition_specs(component.table, params, mesh),
        )
    )
    component.weights.close()
    return network


def open_folder(folder: str | Path) -> Folder:
    """Check a folder without reading a weight; raises as `load_pipeline` does."""
    path = Path(folder)
    index = _read_index(path)
    family = _family(path, index)
    _check_index(path, index, family)
    schedule = _schedule(path, family)
    components, problems = {}, []
    for name, ports in family.ports.items():
        if not (path / name).is_dir() or (name in index and _class_name(index[name]) is None):
            if name not in family.optional:
                problems.append(f"{path}: has no {name}/, or {INDEX} says that it is absent")
            continue
        try:
            components[name] = _component(path / name, ports)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    has_text = all(
        (path / name).is_dir() and _class_name(index.get(name, name)) is not None
        for name in ("text_encoder", "tokenizer")
    )
    return Folder(path, family, schedule, components, has_text)


def _read_index(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder")
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: a file, not a folder; give the folder in the diffusers layout that holds {INDEX}, "
            "transformer/ and scheduler/"
        )
    if (path / INDEX).is_file():
        return _read_json(path / INDEX)
    names = sorted(entry.name for entry in path.iterdir())
    if (path.parent / INDEX).is_file() and (path / "config.json").is_file():
        why = f"this is one component of a checkpoint; give the folder above it, {path.parent}"
    elif "adapter_config.json" in names or any("lora" in name.lower() for name in names):
        why = "this is a LoRA, which changes a model and is none; merge it into its base model and save that"
    else:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
        why = f"the diffusers layout has one beside transformer/ and scheduler/ (found here: {listed})"
    raise CheckpointError(f"{path}: no {INDEX}: {why}")


def _family(path: Path, index: Mapping[str, Any]) -> Family:
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise CheckpointError(f"{path / INDEX}: pipeline class {name!r} is not supported{_supported(name, FAMILIES)}")
    return FAMILIES[name]


def _check_index(path: Path, index: Mapping[str, Any], family: Family) -> None:
    """Every entry of model_index.json is understood, or the folder is refused: an unknown one may change the
    model."""
    for key, value in index.items():
        if key in family.options:
            if value != family.options[key]:
                raise CheckpointError(
                    f"{path / INDEX}: {key}={value!r} is not supported for this pipeline class, "
                    f"only {family.options[key]!r}"
                )
        elif key in family.ports:
            name = _class_name(value)
            if name is not None and name not in family.ports[key]:
                raise CheckpointError(
                    f"{path / INDEX}: {key} of class {name!r} is not supported{_supported(name, family.ports[key])}"
                )
        elif not (key.startswith("_") or key == "scheduler" or key in family.unported):
            known = (*family.ports, "scheduler", *family.unported, *family.options)
            raise ConfigError(f"{path / INDEX}: unknown key {key!r}={value!r}{_supported(key, known, 'known')}")


def _class_name(entry: Any) -> str | None:
    """The class of an entry `[library, class]` of model_index.json; both are null for an absent component."""
    name = entry[-1] if isinstance(entry, list) and entry else entry
    return None if name is None else str(name)


def _schedule(path: Path, family: Family) -> Schedule:
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: has no scheduler/scheduler_config.json")
    try:
        schedule = Schedule.from_config(_read_json(file))
        if isinstance(schedule, FlowMatchEuler):
            schedule = replace(schedule, spacing=family.spacing)
        return schedule
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _component(path: Path, ports: Mapping[str, Port]) -> Component:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: has no config.json")
    values = _read_json(file)
    # transformers writes a list where diffusers writes a name
    name = str(values.get("_class_name") or (values.get("architectures") or [None])[0])
    if name not in ports:
        raise CheckpointError(f"{file}: class {name!r} is not supported{_supported(name, ports)}")
    port = ports[name]
    if "quantization_config" in values:
        raise CheckpointError(
            f"{file}: the weights are quantised (quantization_config); give the unquantised checkpoint"
        )
    try:
        config = port.config.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    weights = Checkpoint(path)
    try:
        abstract = Network.abstract(port.module, config)
        table = port.table(config)
    except Exception as error:  # constructors trip over wrong values in many ways; the file is the cause
        raise ConfigError(f"{file}: no {name} can be built from these values: {error}") from error
    plan(weights, table, abstract.params)
    return Component(port, config, abstract, weights, table)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not a JSON object")
    return values


def _supported(name: Any, known: Any, word: str = "supported") -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} ({word}: {', '.join(known)})"


def _dtype(dtype: Any, mesh: jax.sharding.Mesh | None) -> Any:
    if dtype is None:
        device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
        return jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    try:
        target = jnp.dtype(dtype)
    except TypeError as error:
        raise ConfigError(f"dtype {dtype!r} is no dtype; choose float32, bfloat16 or float16") from error
    if target not in DTYPES:
        raise ConfigError(f"dtype {target.name} is not offered; choose float32, bfloat16 or float16")
    return target
