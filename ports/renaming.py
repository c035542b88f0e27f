"""Tables under other names, for checkpoints in the layouts of the repositories that first published them.

They have no model_index.json. What it would say, the schedule and every configuration follow from the original
config.json, or from the tensors' names and shapes; the tables are those of the diffusers layout with other names
(`renamed`), so that both layouts of one checkpoint load as equal pipelines.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdiff.errors import CheckpointError
from ports.safetensors_reader import Checkpoint
from ports.table import Rule, Table


@dataclass(frozen=True)
class Part:
    """One network of such a checkpoint.

    Parameters
    ----------
    class_name : str
        The published class that it is, an entry of `ports.families`.
    config : frozen dataclass
        Its configuration.
    weights : Checkpoint
        Its tensors, under their original names.
    table : function of (table, config)
        The same table with the original names.
    """

    class_name: str
    config: Any
    weights: Checkpoint
    table: Callable[[Table, Any], Table]


@dataclass(frozen=True)
class Original:
    """A whole checkpoint: what its model_index.json and scheduler_config.json would say, and its networks.

    `text` holds the paths of the text encoder's weights and of the tokenizer's folder, relative to `path`.
    """

    path: Path
    index: dict[str, Any]
    scheduler: dict[str, Any]
    parts: dict[str, Part]
    text: tuple[str, str] | None = field(default=None)


def renamed(table: Table, names: Mapping[str, str], inner: Mapping[str, str] | None = None, prefix: str = "") -> Table:
    """The same table for a checkpoint with other names.

    Parameters
    ----------
    table : tuple of Rule and Ignore
        In the diffusers layout.
    names : dict of str -> str
        Beginnings of names (whole dot-separated parts, placeholders included) -> what stands there originally. The
        longest that fits a name is taken. Rules that none fits are left out: the checkpoint has no such tensors, and
        if the model needs them the loader says so.
    inner : dict of str -> str
        What parts of the rest of a name are called originally.
    prefix : str
        Stands before every original name.
    """
    made = []
    for rule in table:
        head, tail = rule.source, ""
        while head and head not in names:
            head, _, part = head.rpartition(".")
            tail = f".{part}{tail}"
        if not head:
            continue
        for part, original in (inner or {}).items():
            tail = f"{tail}.".replace(f".{part}.", f".{original}.")[:-1]
        changes: dict[str, Any] = {"source": f"{prefix}{names[head]}{tail}"}
        if isinstance(rule, Rule):
            changes["aliases"] = ()
        made.append(dataclasses.replace(rule, **changes))
    return tuple(made)


def expanded(table: Table, placeholder: str, values: range, where: str) -> Table:
    """The table with `{placeholder}` written out in the rules that have it and whose source begins with `where`."""
    made: list = []
    for rule in table:
        if not (isinstance(rule, Rule) and rule.source.startswith(where) and f"{{{placeholder}}}" in rule.source):
            made.append(rule)
            continue
        for value in values:
            source, leaf = (text.replace(f"{{{placeholder}}}", str(value)) for text in (rule.source, rule.leaf))
            made.append(dataclasses.replace(rule, source=source, leaf=leaf))
    return tuple(made)


def size(weights: Checkpoint, name: str, axis: int = 0) -> int:
    """One axis of a tensor from which a configuration is derived.

    Raises
    ------
    CheckpointError
        It is not there, or has no such axis.
    """
    if name not in weights or len(weights.shape(name)) <= axis:
        raise CheckpointError(f"{weights.path}: has no {name} (of at least {axis + 1} axes), from which sizes follow")
    return weights.shape(name)[axis]


def count(weights: Checkpoint, template: str) -> int:
    """How many of `template.format(0)`, `template.format(1)`, ... there are, without a gap."""
    number = 0
    while template.format(number) in weights:
        number += 1
    return number
