"""model_index.json of a checkpoint folder: which pipeline it is of, and that every entry of it is understood."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.errors import CheckpointError, ConfigError
from ports import lora as lora_files
from ports.families import FAMILIES, Family
from ports.safetensors_reader import Checkpoint

INDEX = "model_index.json"
UNFINISHED = "UNFINISHED"  # a file that marks a folder which `ports.convert` has begun
LORA = (
    "this is a LoRA, which changes a model and is none; give it with the model that it changes: "
    "jaxdiff.load(folder, lora=path)"
)


def read_index(path: Path) -> dict[str, Any]:
    """model_index.json of a folder.

    Raises
    ------
    CheckpointError
        There is none; says what the folder, or the file, is instead.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder")
    if (path / UNFINISHED).exists():
        raise CheckpointError(f"{path}: a conversion that did not finish; run ports.convert again")
    if not path.is_dir():
        if path.suffix == ".safetensors" and lora_files.is_lora(Checkpoint(path).names()):
            raise CheckpointError(f"{path}: {LORA}")
        raise CheckpointError(
            f"{path}: a file, and no whole checkpoint in one file that is known; give the folder in the diffusers "
            f"layout that holds {INDEX}, transformer/ and scheduler/"
        )
    if (path / INDEX).is_file():
        return read_json(path / INDEX)
    names = sorted(entry.name for entry in path.iterdir())
    if (path.parent / INDEX).is_file() and (path / "config.json").is_file():
        why = f"this is one component of a checkpoint; give the folder above it, {path.parent}"
    elif "adapter_config.json" in names or any("lora" in name.lower() for name in names):
        why = LORA
    else:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
        why = f"the diffusers layout has one beside transformer/ and scheduler/ (found here: {listed})"
    raise CheckpointError(f"{path}: no {INDEX}: {why}")


def family_of(path: Path, index: Mapping[str, Any]) -> Family:
    """The family of the pipeline class that an index names; raises a CheckpointError where it is not known."""
    name = str(index.get("_class_name"))
    if name not in FAMILIES:
        raise CheckpointError(f"{path / INDEX}: pipeline class {name!r} is not supported{supported(name, FAMILIES)}")
    return FAMILIES[name]


def check_index(path: Path, index: Mapping[str, Any], family: Family) -> None:
    """Every entry of model_index.json is understood, or the folder is refused: an unknown one may change the
    model."""
    for key, value in index.items():
        if key in family.options:
            if value != family.options[key]:
                raise CheckpointError(
                    f"{path / INDEX}: {key}={value!r} is not supported for this pipeline class, "
                    f"only {family.options[key]!r}"
                )
        elif key in family.settings:
            continue  # `_drive` reads them
        elif key in family.ports:
            name = class_name(value)
            if name is not None and name not in family.ports[key]:
                raise CheckpointError(
                    f"{path / INDEX}: {key} of class {name!r} is not supported{supported(name, family.ports[key])}"
                )
        elif not (key.startswith("_") or key == "scheduler" or key in family.unported):
            known = (*family.ports, "scheduler", *family.unported, *family.options, *family.settings)
            raise ConfigError(f"{path / INDEX}: unknown key {key!r}={value!r}{supported(key, known, 'known')}")


def class_name(entry: Any) -> str | None:
    """The class of an entry `[library, class]` of model_index.json; both are null for an absent component."""
    name = entry[-1] if isinstance(entry, list) and entry else entry
    return None if name is None else str(name)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    CheckpointError
        There is none.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not a JSON object")
    return values


def supported(name: Any, known: Any, word: str = "supported") -> str:
    """The end of an error: the closest of the names that are known, and all of them."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} ({word}: {', '.join(known)})"
