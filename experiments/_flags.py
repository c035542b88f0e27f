"""Frozen dataclasses as command lines: one absl flag a field, typed, with no room for typos."""

import dataclasses
import difflib
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from absl import flags

from jaxdiff.errors import ConfigError

flags.disclaim_key_flags()  # flags belong to the binary that asks for them, so that its --help lists them

T = TypeVar("T")
_DEFINE: dict[type, Any] = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    pathlib.Path: flags.DEFINE_string,
}


def setting(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """A dataclass field with its line of `--help`; without a default, the flag is required."""
    return dataclasses.field(default=default, metadata={"help": help})


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that nobody declared, with the closest one that somebody did."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, 0.6)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return ConfigError(f"unknown {kind} {name}; {hint}")


def _parts(hint: Any) -> tuple[Any, bool]:
    """The type of a field without "| None", and whether it had that."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not types.NoneType]
        if len(inner) == 1:
            return inner[0], True
    return hint, False


def _convert(name: str, hint: Any, value: Any) -> Any:
    """`value`, from a flag or from json, as the field's type."""
    hint, optional = _parts(hint)
    if value is None and optional:
        return None
    origin = typing.get_origin(hint)
    if origin is tuple:
        (item, *_) = typing.get_args(hint)
        return tuple(_convert(f"{name}[{i}]", item, v) for i, v in enumerate(value))
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, name + ".")
    try:
        if hint is bool and not isinstance(value, bool):
            raise ValueError("not a boolean")
        if hint is int and not isinstance(value, str) and value != int(value):
            raise ValueError("not a whole number")
        return hint(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}, which is no {hint.__name__} ({error})") from None


def from_mapping(config_class: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a config from a mapping, such as a config.json that was read back.

    Raises
    ------
    ConfigError
        A key that the config does not have (with the closest that it has), a missing one, or a value of the
        wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the configuration'} is {values!r}; expected a mapping")
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, config_class)) if f.init}
    for key in values:
        if key not in fields:
            raise unknown("key", prefix + key, [prefix + name for name in fields])
    missing = [prefix + name for name, f in fields.items() if name not in values and _required(f)]
    if missing:
        raise ConfigError(f"missing {', '.join(missing)}")
    hints = typing.get_type_hints(config_class)
    return config_class(**{k: _convert(prefix + k, hints[k], v) for k, v in values.items()})


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def define(config_class: type, prefix: str = "") -> list[str]:
    """Declare one flag for each field of a frozen dataclass, nested ones as `--outer.inner`; returns their
    names.

    Types: bool, int, float, str, Path, Literal of strings, tuples of these (comma-separated), each also "|
    None". The help text is the field's `metadata["help"]` (see `setting`).
    """
    hints = typing.get_type_hints(config_class)
    names = []
    for field in dataclasses.fields(config_class):
        if not field.init:
            continue
        name = prefix + field.name
        hint, _ = _parts(hints[field.name])
        if dataclasses.is_dataclass(hint):
            names += define(typing.cast(type, hint), name + ".")
            continue
        default = None if _required(field) else field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        text = field.metadata.get("help", "")
        required = _required(field)
        if typing.get_origin(hint) is tuple:
            items = None if default is None else [str(v) for v in typing.cast(tuple, default)]
            flags.DEFINE_list(name, items, text, required=required)
        elif typing.get_origin(hint) is typing.Literal:
            flags.DEFINE_enum(name, default, list(typing.get_args(hint)), text, required=required)
        elif hint in _DEFINE:
            default = str(default) if hint is pathlib.Path and default is not None else default
            _DEFINE[hint](name, default, text, required=required)
        else:
            raise TypeError(f"{config_class.__name__}.{field.name}: a flag cannot hold {hint}")
        names.append(name)
    return names


def parse(config_class: type[T], prefix: str = "") -> T:
    """The config that the parsed flags describe; the config's own checks (`__post_init__`) run here."""
    hints = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, config_class)):
        if not field.init:
            continue
        name, (hint, _) = prefix + field.name, _parts(hints[field.name])
        if dataclasses.is_dataclass(hint):
            values[field.name] = parse(typing.cast(type, hint), name + ".")
            continue
        value = flags.FLAGS[name].value
        values[field.name] = None if value is None else _convert(f"--{name}", hint, _numbers(hint, value))
    return config_class(**values)


def _numbers(hint: Any, value: Any) -> Any:
    """Items of a list flag are text; give each the type that its tuple asks for."""
    if typing.get_origin(hint) is not tuple:
        return value
    (item, *_) = typing.get_args(hint)
    if item is bool:
        return [{"true": True, "false": False}.get(str(v).lower(), v) for v in value]
    return value
