"""LoRA files merged into the tensors of a checkpoint while it is read: W + scale (alpha / r) B A.

Names that are understood, for a module `M` of the transformer in the diffusers layout or in the original one:
`transformer.M.lora_A.weight` (diffusers, finetrainers), `diffusion_model.M.lora_down.weight`,
`base_model.model.M.lora_A.weight` (peft), `lora_unet_M.lora_down.weight` with every dot an underscore, and beside them
`M.alpha`, `M.lora_B.bias`, and the whole differences `M.diff` and `M.diff_b`. alpha is, in this order, the tensor
`M.alpha`, what the file's metadata or an adapter_config.json says (`lora_alpha`, `alpha_pattern`), or the rank.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.errors import CheckpointError, ConfigError
from ports.original import ORIGINAL_TABLES
from ports.safetensors_reader import PICKLES, Checkpoint, read_metadata, refuse_pickles
from ports.stored import Stored
from ports.table import expected_names

if TYPE_CHECKING:
    from ports.folder import Component

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "lora_unet_", "lora_transformer_"
)  # fmt: skip
SECOND = "transformer_2."
ROLES = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_down.weight": "down",
    ".lora.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    ".lora_B.bias": "bias",
    ".diff_b": "diff_b",
    ".diff": "diff",
}


@dataclass
class Change:
    """What a LoRA holds for one module: role -> tensor name, and the scale of its product."""

    module: str
    names: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0


class Merged(Checkpoint):
    """A checkpoint whose tensors have a LoRA added, in float32, whenever they are read.

    A product is formed again for every read of its tensor: with a mesh that splits weights, once for each slice.
    """

    def __init__(
        self, base: Checkpoint, lora: Checkpoint, changes: Mapping[str, list[tuple[str, Change]]], scale: float
    ):
        self.path, self.files = base.path, base.files
        self._tensors, self._maps = base._tensors, {}
        self._lora, self._changes, self._scale = lora, changes, scale

    def view(self, name: str) -> np.ndarray:
        """The tensor with its changes, float32; tensors without any are read as they are stored."""
        value = super().view(name)
        for part, change in self._changes.get(name, ()):
            value = value.astype(np.float32) + np.float32(self._scale) * self._delta(part, change, value.shape)
        return value

    def close(self) -> None:
        super().close()
        self._lora.close()

    def _delta(self, part: str, change: Change, shape: tuple[int, ...]) -> np.ndarray:
        def read(role: str) -> np.ndarray:
            return self._lora.view(change.names[role]).astype(np.float32)

        if part == "product":
            up, down = read("up"), read("down")
            product = up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)
            return (np.float32(change.scale) * product).reshape(shape)
        return (np.float32(change.scale) if part == "bias" else np.float32(1)) * read(part).reshape(shape)


def open_lora(path: str | Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A LoRA's tensors, none read yet, and its peft configuration as far as it says one.

    Raises
    ------
    CheckpointError
        There is none, only a pickle, or it is broken.
    """
    source = Path(path)
    if not source.exists():
        raise CheckpointError(f"{source}: no such LoRA")
    file = source
    if source.is_dir():
        found = [source / name for name in FILES if (source / name).is_file()] or sorted(source.glob("*.safetensors"))
        if len(found) != 1:
            pickles = [item for item in source.iterdir() if item.suffix in PICKLES]
            why = f"only pickles here: {refuse_pickles(pickles[0])}" if pickles and not found else (
                f"{len(found)} safetensors files here; give the LoRA's file"
            )  # fmt: skip
            raise CheckpointError(f"{source}: {why}")
        file = found[0]
    lora = Checkpoint(file)
    return lora, _configuration(file)


def add(components: "Mapping[str, Component]", path: str | Path, scale: float) -> None:
    """Replace the transformers' weights by the same with a LoRA added.

    Raises
    ------
    CheckpointError
        It does not fit, see `merge`.
    ConfigError
        The weights were written by `ports.convert`, whose arrays have no names that a LoRA could use.
    """
    bases = {}
    for name, component in components.items():
        if not name.startswith("transformer"):
            continue
        if isinstance(component.weights, Stored):
            raise ConfigError(
                f"{component.weights.path}: a converted checkpoint takes no LoRA; give it when converting: "
                "python -m ports.convert --lora=PATH"
            )
        bases[name] = (component.weights, _tensor_names(component))
    for name, weights in merge(bases, path, scale).items():
        components[name].weights = weights


def _tensor_names(component: "Component") -> dict[str, str]:
    """Every name by which a LoRA may call a tensor of this component -> its name in the checkpoint."""
    params, published = component.abstract.params, component.port.table(component.config)
    tables = [component.table, published]
    if component.class_name in ORIGINAL_TABLES:
        tables.append(ORIGINAL_TABLES[component.class_name](published, component.config))
    held = expected_names(component.table, params)[0]
    names: dict[str, str] = {}
    for table in tables:
        for leaf, group in expected_names(table, params)[0].items():
            for name, tensor in zip(group.names, held[leaf].names, strict=True):
                module, _, kind = name.rpartition(".")
                names.setdefault(name, tensor)
                names.setdefault(f"{module.replace('.', '_')}.{kind}", tensor)
    return names


def merge(
    bases: Mapping[str, tuple[Checkpoint, Mapping[str, str]]], path: str | Path, scale: float
) -> dict[str, Checkpoint]:
    """The checkpoints of a model's networks with a LoRA added.

    Parameters
    ----------
    bases : dict of component -> (Checkpoint, names)
        `names` maps every name by which a LoRA may call a tensor to the one in the checkpoint. "transformer" is the
        one that is meant where the LoRA does not say.
    path : path-like
        The LoRA, a safetensors file or its folder.
    scale : float
        By what everything in it is multiplied.

    Raises
    ------
    CheckpointError
        A tensor belongs to no module of the model, has another shape, or lacks its other half; all are listed.
    """
    lora, configuration = open_lora(path)
    merged: dict[str, Checkpoint] = {}
    problems: list[str] = []
    changes = _collect(lora, problems)
    used = 0
    for component, (base, names) in bases.items():
        placed: dict[str, list[tuple[str, Change]]] = {}
        for (where, module), change in changes.items():
            if where != component:
                continue
            used += 1
            _scale(lora, change, configuration.get(component, configuration.get("", {})), problems)
            _place(lora, base, names, module, change, placed, problems)
        merged[component] = Merged(base, lora, placed, scale) if placed else base
    for where, module in sorted(key for key in changes if key[0] not in bases):
        problems.append(f"extra    {module}: the model has no {where}")
    if not problems and not used:
        problems.append("it holds no tensor")
    if problems:
        listed = "\n  ".join(sorted(problems))
        raise CheckpointError(f"{lora.path}: the LoRA does not fit the model, {len(problems)} problem(s)\n  {listed}")
    return merged


def is_lora(names: tuple[str, ...]) -> bool:
    """Whether a file with these tensors is a LoRA."""
    return any(".lora_" in name or ".lora." in name for name in names)


def _collect(lora: Checkpoint, problems: list[str]) -> dict[tuple[str, str], Change]:
    """(component, module as the LoRA calls it) -> what it holds for it."""
    changes: dict[tuple[str, str], Change] = {}
    for name in lora.names():
        suffix = next((suffix for suffix in ROLES if name.endswith(suffix)), None)
        if suffix is None:
            problems.append(f"name     {name} {lora.shape(name)} is no LoRA tensor that is understood")
            continue
        module, where = name.removesuffix(suffix), "transformer"
        if module.startswith(SECOND):
            module, where = module.removeprefix(SECOND), SECOND[:-1]
        for prefix in PREFIXES:
            module = module.removeprefix(prefix)
        change = changes.setdefault((where, module), Change(module))
        if ROLES[suffix] in change.names:
            problems.append(f"name     {name} and {change.names[ROLES[suffix]]} are the same tensor of {module}")
        change.names[ROLES[suffix]] = name
    return changes


def _scale(lora: Checkpoint, change: Change, said: Mapping[str, Any], problems: list[str]) -> None:
    if "down" not in change.names:
        return
    rank = lora.shape(change.names["down"])[0]
    alpha: float = rank
    if "alpha" in change.names:
        alpha = float(lora.view(change.names["alpha"]).astype(np.float32).reshape(-1)[0])
    elif said.get("lora_alpha") is not None:
        alpha = said["lora_alpha"]
        for pattern, value in (said.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", change.module):
                alpha = value
                break
    if said.get("use_dora"):
        problems.append(f"kind     {change.module}: a DoRA (use_dora), which also rescales weights; not supported")
    change.scale = float(alpha) / (math.sqrt(rank) if said.get("use_rslora") else rank)


def _place(
    lora: Checkpoint,
    base: Checkpoint,
    names: Mapping[str, str],
    module: str,
    change: Change,
    placed: dict[str, list[tuple[str, Change]]],
    problems: list[str],
) -> None:
    """Enter a change beside the tensors that it changes, or say what is wrong with it."""
    held = ", ".join(sorted(change.names.values()))
    if ("down" in change.names) != ("up" in change.names):
        problems.append(f"half     {held}: one of the two factors is missing")
        return
    parts = {"product": "weight", "diff": "weight", "bias": "bias", "diff_b": "bias"}
    roles = {role for role in change.names if role in parts} | ({"product"} if "down" in change.names else set())
    if not roles:
        problems.append(f"half     {held}: an alpha without its factors")
    for part in sorted(roles):
        tensor = names.get(f"{module}.{parts[part]}")
        if tensor is None:
            problems.append(f"extra    {held}: the model has no {module}.{parts[part]}")
            continue
        shape = base.shape(tensor)
        if part == "product":
            down, up = lora.shape(change.names["down"]), lora.shape(change.names["up"])
            made = (up[0], *down[1:]) if len(up) > 1 and math.prod(up) == up[0] * down[0] else None
            given = f"{change.names['up']} {up} times {change.names['down']} {down}"
        else:
            made = lora.shape(change.names[part])
            given = f"{change.names[part]} {made}"
        if made is None or _squeezed(made) != _squeezed(shape):
            problems.append(f"shape    {given} does not make {tensor} {shape}")
            continue
        placed.setdefault(tensor, []).append((part, change))


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the axes of length one that a convolution's kernel has beyond its channels."""
    return (*shape[:2], *(length for length in shape[2:] if length != 1))


def _configuration(file: Path) -> dict[str, dict[str, Any]]:
    """Component ("" for any) -> peft's configuration of its LoRA, from wherever the file's writer put it."""
    beside, metadata = file.parent / "adapter_config.json", read_metadata(file)
    try:
        if "lora_adapter_metadata" in metadata:  # diffusers: keys are "component.key"
            made: dict[str, dict[str, Any]] = {}
            for key, value in json.loads(metadata["lora_adapter_metadata"]).items():
                component, _, name = key.partition(".")
                made.setdefault(component, {})[name] = value
            return made
        if "lora_config" in metadata:  # finetrainers
            return {"": json.loads(metadata["lora_config"])}
        if beside.is_file():
            return {"": json.loads(beside.read_text(encoding="utf-8"))}
    except (AttributeError, ValueError) as error:
        raise CheckpointError(f"{file}: its LoRA configuration is not readable as JSON: {error}") from error
    return {}
