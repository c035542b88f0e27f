"""The configuration of a store: attributes of the root zarr group, compared before anything is added."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.store.index import Shard, sync_directory
from jaxdiff.store.layout import Layout
from jaxdiff.store.writer import describe

FORMAT = 1
HEADER = "zarr.json"  # written last when a store is made, so it also says that the store is complete


def make_header(
    clips: int,
    slots: int,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    names: Sequence[str] | None,
    rows: Mapping[str, Sequence[int]] | None,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The configuration that `ActivationStore.create` was asked for, checked, as JSON gives it back."""
    names = [str(i) for i in range(clips)] if names is None else list(names)
    if len(names) != clips:
        raise ConfigError(f"{len(names)} names were given for {clips} clips")
    if not specs:
        raise ConfigError("a store needs at least one array: give the run a tap")
    rows = {} if rows is None else rows
    if unknown := rows.keys() - specs.keys():
        raise ConfigError(f"row labels were given for {sorted(unknown)}, but the arrays are {sorted(specs)}")
    layouts = [Layout.from_spec(name, clips, slots, spec, rows.get(name)) for name, spec in specs.items()]
    header = {
        "jaxdiff_store": FORMAT,
        "clips": clips,
        "slots": slots,
        "names": names,
        "arrays": {layout.name: layout.to_json() for layout in layouts},
        "metadata": {} if metadata is None else metadata,
    }
    return as_json(header, "the configuration")


def layouts_of(header: Mapping[str, Any]) -> dict[str, Layout]:
    """Array name -> layout."""
    clips, slots = header["clips"], header["slots"]
    return {name: Layout.from_json(name, clips, slots, entry) for name, entry in header["arrays"].items()}


def as_json(value: Any, what: str) -> Any:
    """`value` as it will be after it was written and read back; arrays become lists.

    Raises
    ------
    ConfigError : JSON cannot hold it, or a number is not finite.
    """

    def convert(x: Any) -> Any:
        if isinstance(x, (np.ndarray, np.generic, jax.Array)):
            return np.asarray(x).tolist()
        raise ConfigError(f"{what} of an activation store holds {x!r}, which JSON cannot")

    try:
        return json.loads(json.dumps(value, default=convert, allow_nan=False))
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{what} of an activation store must be JSON with finite numbers: {error}") from error


def create_folder(path: Path, header: dict[str, Any], shard: Shard | None = None) -> None:
    """Make the whole empty store beside its place and move it there: it exists completely or not at all.

    Raises
    ------
    ConfigError : the place is taken.
    StoreWriteError : the folder cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path} exists and is not an activation store: choose another folder")
    draft = path.with_name(f".{path.name}.creating" + ("" if shard is None else f".{shard[0]}"))
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed here
    try:
        draft.mkdir(parents=True)
        for layout in layouts_of(header).values():
            layout.open(draft, create=True)
        with open(draft / HEADER, "w") as file:
            json.dump({"zarr_format": 3, "node_type": "group", "attributes": header}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(draft)
        os.replace(draft, path)
        sync_directory(path.parent)
    except (OSError, ValueError) as error:  # TensorStore raises ValueError for what the system refuses
        shutil.rmtree(draft, ignore_errors=True)
        if shard is not None and (path / HEADER).exists():  # another of the processes was quicker
            return
        raise describe(error, "a new activation store", path, 0) from error


def read_header(path: Path) -> dict[str, Any]:
    """The configuration of the store at `path`.

    Raises
    ------
    MissingDataError : there is no store, or its header is damaged.
    ConfigError : the store has another format.
    """
    if not (path / HEADER).is_file():
        raise MissingDataError(f"{path} holds no activation store: it has no {HEADER}")
    try:
        header = json.loads((path / HEADER).read_text())["attributes"]
        version = header["jaxdiff_store"]
    except (ValueError, KeyError, TypeError) as error:
        raise MissingDataError(f"{path / HEADER} does not describe an activation store ({error!r})") from error
    if version != FORMAT:
        raise ConfigError(f"{path} is an activation store of format {version}; this version reads {FORMAT}")
    return header


def differences(stored: Any, asked: Any, key: str = "") -> Iterator[str]:
    """One line for every key in which two configurations differ."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        for name in sorted(stored.keys() | asked.keys()):
            inner = f"{key}.{name}" if key else name
            if name not in asked:
                yield f"{inner}: {_short(stored[name])} in the store, absent now"
            elif name not in stored:
                yield f"{inner}: absent in the store, {_short(asked[name])} now"
            else:
                yield from differences(stored[name], asked[name], inner)
    elif stored != asked:
        yield f"{key}: {_short(stored)} in the store, {_short(asked)} now"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
