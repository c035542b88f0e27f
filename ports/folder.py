"""Loading a checkpoint folder in the diffusers layout, as `ports.convert` writes it, or under its original names.

::

    model_index.json                    the pipeline's class and its components' classes
    transformer/config.json             architecture, and beside it *.safetensors (single or sharded) or, converted,
                                        weights.orbax/
    vae/config.json                     the same
    scheduler/scheduler_config.json     the noise schedule
    text_encoder/, tokenizer/           opened by the first prompt, see `jaxdiff.models.text`

Checkpoints in the layouts of the original repositories (`ports.original`) say the same in other places.

Everything that can be wrong is looked for before the first weight is read: the layout, unknown classes and
configuration keys, the header of every weight file, and every tensor's name and shape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.flow.schedule import FlowMatchEuler, Schedule
from jaxdiff.models.network import Network
from jaxdiff.models.text.prompt import TextEncoder
from jaxdiff.models.vision.pictures import PictureConfig
from jaxdiff.pipeline import Pipeline
from ports import lora as lora_files
from ports.families import PORTS, TEXT_ENCODERS, Family, Port
from ports.filling import load_params
from ports.index import INDEX, UNFINISHED, check_index, class_name, family_of, read_index, read_json, supported
from ports.original import find_original
from ports.original_wan import text_part
from ports.renaming import Part
from ports.rules import prefixed
from ports.safetensors_reader import Checkpoint
from ports.stored import ARRAYS, Stored
from ports.table import Table, partition_specs, plan

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


@dataclass
class Component:
    """One network of a folder, checked and not yet read."""

    port: Port
    config: Any
    abstract: Network
    weights: Checkpoint | Stored
    table: Table
    class_name: str


@dataclass
class Folder:
    """A checkpoint folder, checked and not yet read."""

    path: Path
    family: Family
    schedule: Schedule
    components: dict[str, Component]
    index: dict[str, Any]  # model_index.json, or what it would say
    scheduler: dict[str, Any]  # scheduler_config.json, likewise
    text: tuple[str, str] | None  # where in the folder the text encoder and the tokenizer are


def load_pipeline(
    folder: str | Path,
    *,
    dtype: Any = None,
    mesh: jax.sharding.Mesh | None = None,
    lora: str | Path | None = None,
    lora_scale: float = 1.0,
) -> Pipeline:
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
        Where the weights go: split over the axes that the tables name ("fsdp", "tensor") and the mesh has, replicated
        over all others. Only what the local devices hold is read.
    lora : path-like, optional
        A LoRA (safetensors file, or its folder) that is added to the transformer's weights, see `ports.lora`.
    lora_scale : float
        By what the LoRA is multiplied.

    Raises
    ------
    CheckpointError
        The folder is no checkpoint, its classes are not supported, or its weights do not fit; all problems
        are listed at once.
    ConfigError
        A configuration key that is not known, or a dtype that is not offered.
    """
    target = target_dtype(dtype, mesh)
    opened = open_folder(folder)
    if lora is not None:
        lora_files.add(opened.components, lora, lora_scale)
    # T5's activations overflow in float16; bfloat16 has float32's range.
    kept = jnp.bfloat16 if target == jnp.float16 else target
    return _pipeline(opened, lambda component: _read(component, target, mesh), jnp.dtype(kept).name, mesh)


def outline_pipeline(folder: str | Path, *, lora: str | Path | None = None) -> Pipeline:
    """See `jaxdiff.pipeline.outline`."""
    opened = open_folder(folder)
    if lora is not None:
        lora_files.add(opened.components, lora, 1.0)

    def abstract(component: Component) -> Network:
        component.weights.close()
        return component.abstract

    return _pipeline(opened, abstract, "float32", None)


def _pipeline(
    opened: Folder, network: Callable[[Component], Network], dtype: str, mesh: jax.sharding.Mesh | None
) -> Pipeline:
    base = opened.path.absolute()
    text = None if opened.text is None else TextEncoder(base, dtype, mesh, *opened.text)
    drive, pictures = _drive(opened.path, opened.index, opened.family), image_processor(opened)
    networks = {name: network(component) for name, component in opened.components.items()}
    return Pipeline(family=drive, schedule=opened.schedule, text_encoder=text, image_processor=pictures, **networks)


def load_network(
    folder: str | Path, *, dtype: Any = None, class_name: str | None = None, ports: Mapping[str, Port] = PORTS
) -> Network:
    """Load one component's folder (config.json and safetensors), for example the vae/ of a checkpoint.

    `class_name` is its published class, where its config.json does not say so; `ports` are the classes that it may be of.

    Raises
    ------
    CheckpointError, ConfigError : as `load_pipeline`.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder")
    return _read(_component(path, ports, class_name), target_dtype(dtype, None), None)


def load_text_encoder(source: TextEncoder) -> Network:
    """The weights of a folder's text encoder.

    Raises
    ------
    CheckpointError, ConfigError : as `load_pipeline`.
    """
    return _read(text_component(source), jnp.dtype(source.dtype), source.mesh)


def text_component(source: TextEncoder) -> Component:
    """A folder's text encoder, checked and not yet read."""
    path = source.folder / source.encoder
    return _part(text_part(path), TEXT_ENCODERS) if path.is_file() else _component(path, TEXT_ENCODERS)


def _read(component: Component, dtype: Any, mesh: jax.sharding.Mesh | None) -> Network:
    params, table, weights = component.abstract.params, component.table, component.weights
    kept = jnp.float32 if component.port.keep_float32 else dtype
    shardings = None if mesh is None else partition_specs(table, params, mesh)
    if isinstance(weights, Stored):
        filled = weights.read(params, table, kept, shardings)
    else:
        filled = load_params(weights, table, params, dtype=kept, shardings=shardings)
    weights.close()
    return component.abstract.replace(filled)


def open_folder(folder: str | Path) -> Folder:
    """Check a folder without reading a weight; raises as `load_pipeline` does."""
    opened, problems = inspect_folder(folder)
    if problems:
        raise CheckpointError("\n".join(problems.values()))
    return opened


def inspect_folder(folder: str | Path) -> tuple[Folder, dict[str, str]]:
    """`open_folder` that goes on where a component does not load: what does, and component -> what is wrong."""
    path = Path(folder)
    original = find_original(path) if _is_original(path) else None
    index = read_index(path) if original is None else original.index
    family = family_of(path, index)
    check_index(path, index, family)
    ratio = getattr(_drive(path, index, family), "boundary_ratio", None)
    scheduler = _scheduler(path) if original is None else original.scheduler
    schedule = _schedule(path, scheduler, family)
    components: dict[str, Component] = {}
    problems: dict[str, str] = {}
    for name, ports in family.ports.items():
        if original is not None:
            present = name in original.parts
        else:
            present = (path / name).is_dir() and not (name in index and class_name(index[name]) is None)
        if not present:
            declared = name in index and class_name(index[name]) is not None
            if name not in family.optional:
                problems[name] = f"{path}: has no {name}/, or {INDEX} says that it is absent"
            elif declared and name == "transformer_2":  # the other would answer for it
                problems[name] = f"{path}: {INDEX} names a {name}, and there is no folder of it"
            continue
        try:
            components[name] = (
                _component(path / name, ports) if original is None else _part(original.parts[name], ports)
            )
        except CheckpointError as error:
            problems[name] = str(error)
    if (ratio is None) == ("transformer_2" in components) and "transformer_2" not in problems:
        problems["transformer_2"] = (
            f"{path}: {INDEX} has boundary_ratio={ratio!r}, and there is {'a' if ratio is None else 'no'} transformer_2/: "
            "the ratio says when that network is used, and neither is of use without the other"
        )
    if original is not None:
        return Folder(path, family, schedule, components, index, scheduler, original.text), problems
    text = ("text_encoder", "tokenizer")
    has_text = family.drive.text is not None and all(
        (path / name).is_dir() and class_name(index.get(name, name)) is not None for name in text
    )
    return Folder(path, family, schedule, components, index, scheduler, text if has_text else None), problems


def _is_original(path: Path) -> bool:
    return path.exists() and not (path / INDEX).is_file() and not (path / UNFINISHED).exists()


def _drive(path: Path, index: Mapping[str, Any], family: Family) -> Any:
    """How the pipeline of this folder is driven: its family's way, with the settings of its index."""
    try:
        return replace(family.drive, **{key: index[key] for key in family.settings if key in index})
    except ConfigError as error:
        raise ConfigError(f"{path / INDEX}: {error}") from error


def image_processor(opened: Folder) -> PictureConfig | None:
    """How pictures are made ready for the folder's image encoder; None if it has none.

    Raises
    ------
    ConfigError
        A processor, key or value that is not known.
    """
    file = opened.path / "image_processor" / "preprocessor_config.json"
    if not file.is_file():
        file = file.with_name("processor_config.json")  # of a processor that has a tokenizer too
    if "image_encoder" not in opened.components or not file.is_file():
        return None
    values = read_json(file)
    try:
        return PictureConfig.from_dict(values.get("image_processor", values))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{file}: {error}") from error


def _scheduler(path: Path) -> dict[str, Any]:
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: has no scheduler/scheduler_config.json")
    return read_json(file)


def _schedule(path: Path, values: dict[str, Any], family: Family) -> Schedule:
    try:
        schedule = Schedule.from_config(values | family.scheduler)
        if isinstance(schedule, FlowMatchEuler):
            schedule = replace(schedule, spacing=family.spacing)
        return schedule
    except ConfigError as error:
        raise ConfigError(f"{path / 'scheduler' / 'scheduler_config.json'}: {error}") from error


def _component(path: Path, ports: Mapping[str, Port], name: str | None = None) -> Component:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: has no config.json")
    values = read_json(file)
    # transformers writes a list where diffusers writes a name
    name = name or str(values.get("_class_name") or (values.get("architectures") or [None])[0])
    if name not in ports:
        raise CheckpointError(f"{file}: class {name!r} is not supported{supported(name, ports)}")
    port = ports[name]
    if "quantization_config" in values:
        raise CheckpointError(
            f"{file}: the weights are quantised (quantization_config); give the unquantised checkpoint"
        )
    try:
        config = port.config.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    weights = Stored(path) if (path / ARRAYS).is_dir() else port.named(Checkpoint(path))
    return _build(str(file), name, port, config, weights, None)


def _part(part: Part, ports: Mapping[str, Port]) -> Component:
    """A network under its original names."""
    if part.class_name not in ports:
        raise CheckpointError(f"{part.weights.path}: class {part.class_name!r}{supported(part.class_name, ports)}")
    return _build(str(part.weights.path), part.class_name, ports[part.class_name], part.config, part.weights, part)


def _build(
    where: str, name: str, port: Port, config: Any, weights: Checkpoint | Stored, part: Part | None
) -> Component:
    try:
        abstract = Network.abstract(port.module, config)
        table = port.table(config)
        if port.prefix and isinstance(weights, Checkpoint) and any(n.startswith(port.prefix) for n in weights.names()):
            table = prefixed(table, port.prefix)
    except Exception as error:  # constructors trip over wrong values in many ways; the file is the cause
        raise ConfigError(f"{where}: no {name} can be built from these values: {error}") from error
    if isinstance(weights, Stored):
        weights.check(abstract.params)
    else:
        table = table if part is None else part.table(table, config)
        plan(weights, table, abstract.params)
    return Component(port, config, abstract, weights, table, name)


def target_dtype(dtype: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """The dtype that is asked for, or that the device is given without asking.

    Raises
    ------
    ConfigError
        It is none of those that are offered.
    """
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
