"""The table engine: a checkpoint format is a tuple of rules, and both directions follow from it.

A rule names one kind of tensor twice, by its name in the checkpoint and by its leaf in the parameter tree::

    table = (
        Rule("proj_out.weight", "out/kernel", linear, spec=("fsdp", "tensor")),
        Rule("blocks.{block}.attn1.to_q.weight", "blocks/self_attention/query/kernel", linear),
        Rule("blocks.{block}.norm2.weight", "blocks/cross_norm/scale", keep_float32=True),
        Rule("encoder.down_blocks.{i}.conv1.weight", "encoder/down_blocks/{i}/conv1/kernel", conv3d),
        Ignore("rope.freqs", "a constant that is computed here"),
    )

`{block}` is the row of a stacked leaf `[L, ...]` (the transform, the shapes and the partition spec are those
of one row). Any other placeholder stands for one dot-free part of the name and appears on both sides. Leaves
are named by their keys joined with "/".

Matching is strict both ways: every tensor of the checkpoint matches exactly one rule or is ignored for a
stated reason, every leaf is filled, and all shapes agree. All that does not is collected and raised as one
`CheckpointError`, before any weight is read.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxdiff.errors import CheckpointError
from ports.safetensors_reader import Checkpoint
from ports.transforms import Transform, as_is

BLOCK = "block"
FLOATS = {np.dtype(kind) for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)}
HINTS = 8  # close matches are searched for this many problems of a kind: the search is quadratic


@dataclass(frozen=True)
class Rule:
    """One kind of tensor.

    Parameters
    ----------
    source : str
        Its name in the checkpoint, with placeholders.
    leaf : str
        Its leaf in the parameter tree, with the same placeholders except `{block}`.
    transform : Transform
        Layout change from the checkpoint's tensor to the leaf (to one row of it if stacked).
    spec : tuple
        Mesh axis (or None) for each dimension of the leaf (of one row if stacked); the axes beyond its end
        are replicated.
    keep_float32 : bool
        Stays in float32 whatever dtype the model is loaded in.
    aliases : tuple of str
        Other names (no placeholders) under which files hold the same tensor, instead of `source` or beside it: the
        first name that is there is read.
    """

    source: str
    leaf: str
    transform: Transform = as_is
    spec: tuple[str | None, ...] = ()
    keep_float32: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether its tensors are rows of one leaf `[L, ...]`."""
        return f"{{{BLOCK}}}" in self.source

    def dtype(self, dtype) -> np.dtype:
        """The dtype of its leaf in a model of the given dtype."""
        return np.dtype(np.float32) if self.keep_float32 else np.dtype(dtype)


@dataclass(frozen=True)
class Ignore:
    """Tensors that a checkpoint may hold and that the model does not need, and why."""

    source: str
    reason: str


Table = tuple[Rule | Ignore, ...]


@dataclass
class Group:
    """All that fills one leaf: its rule and the checkpoint's names, one for each row if stacked."""

    rule: Rule
    names: list[str] = field(default_factory=list)


def pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template; `{block}` matches digits, other placeholders one part without
    dots or slashes."""
    parts = re.split(r"\{(\w+)\}", template)
    made = ""
    for i, part in enumerate(parts):
        made += re.escape(part) if i % 2 == 0 else f"(?P<{part}>{'[0-9]+' if part == BLOCK else '[^./]+'})"
    return re.compile(made)


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Leaves of a nested dict by their keys joined with "/"."""
    return dict(_walk(tree, ""))


def _walk(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _walk(value, f"{path}/{key}" if path else str(key))


def rebuild(tree: Any, leaves: Mapping[str, Any], path: str = "") -> Any:
    """A nested dict like `tree` from its leaves by path, as `flatten` names them."""
    if not isinstance(tree, Mapping):
        return leaves[path]
    return {key: rebuild(value, leaves, f"{path}/{key}" if path else str(key)) for key, value in tree.items()}


def expected_names(table: Table, params: Mapping[Any, Any]) -> tuple[dict[str, Group], list[str]]:
    """Which checkpoint tensors fill which leaf of a parameter tree, and the leaves that the table cannot
    fill.

    Returns
    -------
    (dict of leaf path -> Group, list of problems)
    """
    rules = [(pattern(rule.leaf), rule) for rule in table if isinstance(rule, Rule)]
    groups, problems = {}, []
    for path, leaf in flatten(params).items():
        found = [(match, rule) for regex, rule in rules if (match := regex.fullmatch(path))]
        if len(found) != 1:
            named = " and ".join(rule.source for _, rule in found) or "no rule"
            problems.append(f"table    leaf {path} {tuple(leaf.shape)} is filled by {named}; it takes exactly one rule")
            continue
        match, rule = found[0]
        rows = range(leaf.shape[0]) if rule.stacked else [0]
        values = match.groupdict()
        groups[path] = Group(rule, [rule.source.format(**values, **{BLOCK: row}) for row in rows])
    filled: dict[str, str] = {}
    for path, group in groups.items():
        for name in group.names:
            if filled.setdefault(name, path) != path:
                problems.append(f"table    {name} fills both {filled[name]} and {path}; it may fill one leaf")
    return groups, problems


def check(
    names: Mapping[str, tuple[tuple[int, ...], np.dtype]], table: Table, params: Mapping[Any, Any]
) -> tuple[dict, list]:
    """Compare a checkpoint's tensors (name -> shape, dtype) with a parameter tree; nothing is read.

    Returns
    -------
    (dict of leaf path -> Group, list of every problem found)
    """
    groups, problems = expected_names(table, params)
    leaves = flatten(params)
    copies = set()  # names of one tensor beside the one that is read
    for group in groups.values():
        if group.rule.aliases:
            present = [name for name in (group.rule.source, *group.rule.aliases) if name in names]
            group.names = present[:1] or group.names
            copies.update(present[1:])
    expected = {name: path for path, group in groups.items() for name in group.names}
    missing = [name for name in expected if name not in names]
    patterns = [(pattern(rule.source), rule) for rule in table]
    extra = []
    for name in (name for name in names if name not in copies):
        found = [rule for regex, rule in patterns if regex.fullmatch(name)]
        if len(found) > 1:
            listed = " and ".join(rule.source for rule in found)
            problems.append(f"table    {name} is matched by {listed}; exactly one rule may match it")
        elif name in expected:
            problems += _compare(name, *names[name], expected[name], groups, leaves)
        elif not (found and isinstance(found[0], Ignore)):
            extra.append(name)
    for i, name in enumerate(missing):
        rule = groups[expected[name]].rule
        shape = torch_shape(rule, leaves[expected[name]])
        hint = _closest(name, extra, "the checkpoint has") if i < HINTS else ""
        problems.append(f"missing  {name} {shape}, for leaf {expected[name]}{hint}")
    for i, name in enumerate(extra):
        hint = _closest(name, missing or list(expected), "the model has") if i < HINTS else ""
        problems.append(f"extra    {name} {names[name][0]}: this model has no place for it{hint}")
    return groups, problems


def plan(reader: Checkpoint, table: Table, params: Mapping[Any, Any]) -> dict[str, Group]:
    """Which tensors of a checkpoint fill which leaf; nothing but the header has been read.

    Raises
    ------
    CheckpointError
        Tensors are missing, extra, misshaped, or not of a floating-point dtype; all are listed.
    """
    names = {name: (reader.shape(name), reader.dtype(name)) for name in reader.names()}
    groups, problems = check(names, table, params)
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise CheckpointError(
            f"{reader.path}: the weights do not fit the model, {len(problems)} problem(s)\n  {listed}"
        )
    return groups


def torch_shape(rule: Rule, leaf: Any) -> tuple[int, ...] | str:
    """The shape of the tensor that becomes a leaf (one row of it if stacked), or why there is none."""
    row = tuple(leaf.shape[1:] if rule.stacked else leaf.shape)
    try:
        return rule.transform.torch_shape(row)
    except (ValueError, IndexError):
        return f"(no tensor becomes {row} by {rule.transform.name})"


def _compare(name, shape, dtype, path, groups, leaves) -> list[str]:
    rule, leaf = groups[path].rule, leaves[path]
    needed = torch_shape(rule, leaf)
    if shape != needed:
        row = " row" if rule.stacked else ""
        return [
            f"shape    {name} is {shape} in the checkpoint, {needed} in the model ({path}{row}, {rule.transform.name})"
        ]
    if jnp.issubdtype(leaf.dtype, jnp.floating) and dtype not in FLOATS:
        return [f"dtype    {name} is {dtype.name}: quantised or integer, where the model has floating point"]
    return []


def _closest(name: str, among: Sequence[str], who: str) -> str:
    close = difflib.get_close_matches(name, among, n=1)
    return f"; {who} {close[0]}" if close else ""


def partition_specs(table: Table, params: Mapping[Any, Any], mesh: Any) -> dict[Any, Any]:
    """`jax.sharding.NamedSharding` for every leaf: the rules' specs on this mesh (or `jax.sharding.AbstractMesh`),
    less the axes that the mesh lacks or that do not divide the leaf's."""
    groups, problems = expected_names(table, params)
    if problems:
        raise CheckpointError("the table does not fit the model\n  " + "\n  ".join(sorted(problems)))
    leaves, placed = flatten(params), {}
    for path, group in groups.items():
        spec = (*([None] if group.rule.stacked else []), *group.rule.spec)
        split = [
            axis if axis in mesh.axis_names and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, leaves[path].shape, strict=False)
        ]
        placed[path] = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*split))
    return rebuild(params, placed)
