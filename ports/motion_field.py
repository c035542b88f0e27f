"""Folders of LaMo's motion field, in this project's own layout: config.json beside model.safetensors.

The tensors have torch's names and shapes (``blocks.0.conv_in.weight`` is (out, in, 3, 3)), so that they can be read elsewhere.
"""

import dataclasses
import json
from pathlib import Path

from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.lamo.motion_field import MotionField, MotionFieldConfig
from jaxdiff.models.network import Network
from ports.filling import load_params, save_params
from ports.folder import read_json
from ports.rules import layer, norm
from ports.safetensors_reader import Checkpoint
from ports.table import Rule, Table
from ports.transforms import as_is, conv2d, linear

CLASS, WEIGHTS = "MotionField", "model.safetensors"
SOURCE, LEAF = "blocks.{i}", "blocks/{i}"


def table() -> Table:
    """The rules of `MotionField`, whatever its sizes."""
    return (
        Rule("null", "null", as_is),
        *layer("embed", "embed", linear),
        *(rule for name in ("conv_in", "conv_out") for rule in layer(name, name, conv2d)),
        *norm("norm_out", "norm_out"),
        *(rule for name in ("norm_in", "norm_mid") for rule in norm(f"{SOURCE}.{name}", f"{LEAF}/{name}")),
        *(rule for name in ("conv_in", "conv_out") for rule in layer(f"{SOURCE}.{name}", f"{LEAF}/{name}", conv2d)),
        *(
            rule
            for name in ("film", "squeeze", "excite")
            for rule in layer(f"{SOURCE}.{name}", f"{LEAF}/{name}", linear)
        ),
    )


def save(network: Network, folder: str | Path) -> Path:
    """See `jaxdiff.lamo.save_motion_field`."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_params(network.params, table(), path / WEIGHTS)
    config = {"_class_name": CLASS, **dataclasses.asdict(network.config)}
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def load(folder: str | Path) -> Network:
    """See `jaxdiff.lamo.load_motion_field`."""
    path = Path(folder)
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: no folder of a motion field; it would hold a config.json and {WEIGHTS}")
    values = read_json(file)
    if values.get("_class_name") != CLASS:
        raise CheckpointError(f"{file}: class {values.get('_class_name')!r} is no {CLASS}")
    try:
        abstract = Network.abstract(MotionField, MotionFieldConfig.from_dict(values))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{file}: {error}") from error
    with Checkpoint(path) as weights:
        return abstract.replace(load_params(weights, table(), abstract.params))
