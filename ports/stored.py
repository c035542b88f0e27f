"""Weights in this project's own layout, as arrays that Orbax writes and reads: what `ports.convert` makes.

Beside the arrays lies a manifest, written last: the leaves with shapes and dtypes, and every file with its size. A
folder without it, or whose files are not of these sizes, is not whole.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdiff.errors import CheckpointError
from ports.table import Table, expected_names, flatten, rebuild

ARRAYS, MANIFEST = "weights.orbax", "weights.orbax.json"
CHUNK = 1 << 26  # bytes of the pieces that a leaf is cut into, so that a device's part can be read alone


class Stored:
    """The leaves of one network, none of them read yet.

    Raises
    ------
    CheckpointError
        The folder is not whole: every file that is missing or cut is listed.
    """

    def __init__(self, folder: Path):
        self.path = folder
        file = folder / MANIFEST
        if not file.is_file():
            raise CheckpointError(
                f"{folder}: {ARRAYS} without {MANIFEST}, which is written last: the conversion did not finish. Run "
                "ports.convert again"
            )
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            self.leaves = {name: (tuple(shape), np.dtype(kind)) for name, (shape, kind) in manifest["leaves"].items()}
            files = dict(manifest["files"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: not a manifest of weights: {error!r}") from error
        problems = []
        for name, size in files.items():
            path = folder / ARRAYS / name
            held = path.stat().st_size if path.is_file() else None
            if held != size:
                state = "is missing" if held is None else f"has {held} bytes"
                problems.append(f"{ARRAYS}/{name} {state}, it should have {size}")
        if problems:
            listed = "\n  ".join(problems)
            raise CheckpointError(f"{folder}: not whole, copy or convert it again: {len(problems)} file(s)\n  {listed}")

    def nbytes(self) -> int:
        """Bytes of all leaves as stored."""
        return sum(int(np.prod(shape, dtype=np.int64)) * kind.itemsize for shape, kind in self.leaves.values())

    def check(self, params: Mapping[Any, Any]) -> None:
        """Compare with a parameter tree.

        Raises
        ------
        CheckpointError
            Leaves are missing, extra or misshaped; all are listed.
        """
        needed = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
        problems = [f"missing  {path} {shape}" for path, shape in needed.items() if path not in self.leaves]
        for path, (shape, _) in self.leaves.items():
            if path not in needed:
                problems.append(f"extra    {path} {shape}")
            elif shape != needed[path]:
                problems.append(f"shape    {path} is {shape} in the checkpoint, {needed[path]} in the model")
        if problems:
            listed = "\n  ".join(sorted(problems))
            raise CheckpointError(
                f"{self.path}: the weights do not fit the model, {len(problems)} problem(s)\n  {listed}"
            )

    def read(self, params: Mapping[Any, Any], table: Table, dtype: Any, shardings: Any = None) -> dict[Any, Any]:
        """The tree with its arrays, placed and cast as `ports.filling.load_params` does it."""
        import orbax.checkpoint as ocp

        groups, problems = expected_names(table, params)
        if problems:
            raise CheckpointError("the table does not fit the model\n  " + "\n  ".join(sorted(problems)))
        placed = None if shardings is None else flatten(shardings)
        here = jax.device_put(np.zeros(())).sharding  # the default device, also inside `jax.default_device`
        wanted = {
            path: jax.ShapeDtypeStruct(
                leaf.shape, groups[path].rule.dtype(dtype), sharding=here if placed is None else placed[path]
            )
            for path, leaf in flatten(params).items()
        }
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            leaves = checkpointer.restore(
                (self.path / ARRAYS).absolute(), args=ocp.args.PyTreeRestore(wanted, restore_args=arguments)
            )
        return rebuild(params, leaves)

    def close(self) -> None:
        """Nothing is held open."""


def write(folder: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Write leaves (path -> array) and, last, their manifest."""
    import orbax.checkpoint as ocp

    arrays = (folder / ARRAYS).absolute()
    arrays.parent.mkdir(parents=True, exist_ok=True)
    # Weights hardly shrink, and unpacking them takes longer than reading the published files.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
        how = {path: ocp.SaveArgs(chunk_byte_size=CHUNK) for path in leaves}
        checkpointer.save(arrays, args=ocp.args.PyTreeSave(dict(leaves), save_args=how))
    files = {path.relative_to(arrays).as_posix(): path.stat().st_size for path in arrays.rglob("*") if path.is_file()}
    manifest = {
        "leaves": {path: [list(value.shape), value.dtype.name] for path, value in leaves.items()},
        "files": dict(sorted(files.items())),
    }
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)
