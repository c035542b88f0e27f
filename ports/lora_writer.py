"""LoRAs as diffusers writes them: which leaves its names mean, and the file that `load_lora_weights` reads."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.models.lora import LoRA, adapters_of
from jaxdiff.models.network import Network
from ports.families import PORTS
from ports.lora import FILES
from ports.safetensors_writer import SafetensorsWriter
from ports.table import expected_names
from ports.transforms import linear

KERNEL, WEIGHT = "/kernel", ".weight"


def find_targets(network: Network, targets: Iterable[str]) -> tuple[str, ...]:
    """Paths of the kernels that are meant by ends of module names in the diffusers layout ("to_q", "attn1.to_q").

    Parameters
    ----------
    network : a published one; its weights may be shapes.

    Raises
    ------
    ConfigError
        A target is no linear layer of the network, or one of some blocks only.
    """
    modules = _modules(network)
    found: dict[str, None] = {}
    for target in targets:
        meant = {path: [_is(name, target) for name in names] for path, names in modules.items()}
        chosen = [path for path, rows in meant.items() if all(rows)]
        partly = [path for path, rows in meant.items() if any(rows) and not all(rows)]
        if partly:
            raise ConfigError(
                f"target {target!r} is a layer of one block; adapters go to all blocks: give the end of the name without "
                "the block's number"
            )
        if not chosen:
            kinds = sorted({_end(name) for names in modules.values() for name in names})
            raise ConfigError(f"target {target!r} is no linear layer of this transformer; there are {', '.join(kinds)}")
        found |= dict.fromkeys(chosen)
    return tuple(found)


def save_lora(network: Network, folder: str | Path, lora: LoRA) -> Path:
    """Write a network's adapters as pytorch_lora_weights.safetensors; returns its path.

    Names are those of diffusers, ``transformer.MODULE.lora_A.weight``; rank, alpha and targets are in the metadata that its
    `load_lora_weights` and `jaxdiff.load` read. Equal adapters give equal bytes.

    Raises
    ------
    ConfigError
        The network has no adapters.
    """
    path, adapters = Path(folder) / FILES[0], adapters_of(network)
    if not adapters:
        raise ConfigError(f"{path}: the network has no adapters to write")
    modules, tensors = _modules(network), {}
    for leaf, factors in adapters.items():
        for row, module in enumerate(modules[leaf]):
            for letter, name in (("A", "down"), ("B", "up")):
                value = factors[name] if factors[name].ndim == 2 else factors[name][row]
                tensors[f"transformer.{module}.lora_{letter}.weight"] = value.T
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    said: dict[str, Any] = {"r": lora.rank, "lora_alpha": alpha, "target_modules": sorted(lora.targets)}
    text = json.dumps({f"transformer.{key}": value for key, value in said.items()}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = {name: (np.float32, value.shape) for name, value in tensors.items()}
    with SafetensorsWriter(path, shapes, {"format": "pt", "lora_adapter_metadata": text}) as writer:
        for name, value in tensors.items():
            writer.write(name, np.asarray(value, np.float32))
    return path


def _modules(network: Network) -> dict[str, list[str]]:
    """Path of a linear layer's kernel -> its module's name in the diffusers layout, one for each block if stacked."""
    port = next((port for port in PORTS.values() if port.module is network.module), None)
    if port is None:
        raise ConfigError(f"{network.module.__name__} has no published names (known: {', '.join(PORTS)})")
    groups, _ = expected_names(port.table(network.config), network.params)
    return {
        path: [name.removesuffix(WEIGHT) for name in group.names]
        for path, group in groups.items()
        if group.rule.transform is linear and path.endswith(KERNEL)
    }


def _is(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _end(module: str) -> str:
    """The last part of a name, and the one before it where the last is a number."""
    parts = module.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
