"""What a checkpoint holds, and whether it will load; no weight is read.

    python -m ports.inspect --checkpoint=DIR --mesh=data=4,fsdp=2

prints the pipeline's class, for every component its class, parameters, stored dtypes and bytes, the memory that one
device of the mesh needs, what `jaxdiff.Tap` may read, and everything that is in the way of loading it. Exit code 5 if
it will not load.
"""

import dataclasses
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.mesh import abstract_mesh
from jaxdiff.models.text.prompt import TextEncoder
from jaxdiff.taps import REDUCERS
from ports.folder import Component, inspect_folder, target_dtype, text_component
from ports.stored import Stored
from ports.table import expected_names, flatten, partition_specs


@dataclasses.dataclass(frozen=True)
class Config:
    """What is looked at."""

    checkpoint: Path = dataclasses.field(metadata={"help": "Any checkpoint that jaxdiff.load opens."})
    mesh: str = dataclasses.field(
        default="", metadata={"help": "Axes and sizes, as data=4,fsdp=2; default: one device. No device is needed."}
    )
    dtype: str = dataclasses.field(default="bfloat16", metadata={"help": "dtype in which it would be loaded."})


def describe(component: Component, mesh: jax.sharding.AbstractMesh, dtype: Any) -> dict[str, Any]:
    """One component: "class", "parameters", "dtypes" (of tensors as stored, dtype -> parameters), "stored_bytes",
    "loaded_bytes" and "device_bytes" (on one device of the mesh)."""
    params = component.abstract.params
    leaves, shardings = flatten(params), flatten(partition_specs(component.table, params, mesh))
    groups = expected_names(component.table, params)[0]
    loaded = device = 0
    for path, leaf in leaves.items():
        kind = groups[path].rule.dtype(jnp.float32 if component.port.keep_float32 else dtype)
        loaded += leaf.size * kind.itemsize
        device += math.prod(shardings[path].shard_shape(leaf.shape)) * kind.itemsize
    weights, kinds = component.weights, Counter[str]()
    if isinstance(weights, Stored):
        for shape, kind in weights.leaves.values():
            kinds[kind.name] += math.prod(shape)
    else:
        for name in weights.names():
            kinds[weights.dtype(name).name] += math.prod(weights.shape(name))
    return {
        "class": component.class_name,
        "parameters": sum(leaf.size for leaf in leaves.values()),
        "dtypes": dict(kinds),
        "stored_bytes": weights.nbytes(),
        "loaded_bytes": loaded,
        "device_bytes": device,
    }


def run(config: Config) -> int:
    """Print the description; the exit code says whether it will load."""
    mesh, dtype = abstract_mesh(config.mesh), target_dtype(config.dtype, None)
    opened, problems = inspect_folder(config.checkpoint)
    components = dict(opened.components)
    if opened.text is not None:
        try:
            source = TextEncoder(opened.path, "float32", None, *opened.text)
            components["text_encoder"] = text_component(source)
        except (CheckpointError, ConfigError) as error:
            problems["text_encoder"] = str(error)
    print(f"{config.checkpoint}: {opened.index['_class_name']}")
    print(f"schedule: {opened.schedule}")
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    print(f"\n{'component':16}{'class':30}{'parameters':>16}{'stored':>12}{'per device':>12}  stored as")
    total = {"stored_bytes": 0, "device_bytes": 0, "parameters": 0}
    for name, component in components.items():
        found = describe(component, mesh, dtype)
        if name != "text_encoder":  # it is in memory only while a prompt is embedded
            total = {key: value + found[key] for key, value in total.items()}
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(found["dtypes"].items()))
        print(_row(name, found["class"], found, kinds))
    print(_row("together", "" if "text_encoder" not in components else "without text_encoder", total, ""))
    print(f"\nper device: loaded as {jnp.dtype(dtype).name}, mesh {axes}; weights only, no activations")
    print(f"text: {'prompts are embedded with the folder' if opened.text else 'no text encoder; give embeddings'}")
    for name, component in opened.components.items():
        if name == "transformer":
            print(f"blocks: {component.config.num_layers}")
            print(f"taps: {', '.join(component.port.module.sites)}; reduced by {', '.join(REDUCERS)}")
    for name, problem in problems.items():
        print(f"\n{name} will not load:\n{problem}")
    print("\nwill load" if not problems else "\nwill NOT load")
    sys.stdout.flush()
    return CheckpointError.exit_code if problems else 0


def _row(name: str, kind: str, found: dict[str, Any], note: str) -> str:
    sizes = "".join(f"{_size(found[key]):>12}" for key in ("stored_bytes", "device_bytes"))
    return f"{name:16}{kind:30}{found['parameters']:>16,}{sizes}  {note}".rstrip()


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.4g} GB"


def main() -> None:
    """The command line."""
    from experiments._main import run_binary  # a binary: nothing imports it

    run_binary(run, Config, workdir=False)


if __name__ == "__main__":
    main()
