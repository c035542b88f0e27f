"""The process that opens a pickle: `python -m ports.torch_process FILE OUT KEY`, started by `ports.unpickle`.

The only place outside of the comparisons that imports torch. It says on stderr what it did or what is wrong, in its last
line.
"""

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdiff.errors import CheckpointError

WRAPPERS = ("module", "state_dict", "model", "ema")  # what checkpoints of training programs call the weights


def tensors_of(value: Any, key: str, kind: type) -> dict[str, Any]:
    """The named tensors of an unpickled object: itself, or the one dict in it that holds tensors.

    Raises
    ------
    CheckpointError
        There is none, or several and `key` names none of them.
    """
    if not isinstance(value, Mapping):
        raise CheckpointError(f"holds {type(value).__name__}, not a dict of tensors")
    if key:
        if key not in value:
            raise CheckpointError(f"has no {key!r}; it has {', '.join(map(str, value))}")
        return tensors_of(value[key], "", kind)
    here = {str(name): item for name, item in value.items() if isinstance(item, kind)}
    inside = {str(name): item for name, item in value.items() if isinstance(item, Mapping) and _holds(item, kind)}
    if here and inside:
        raise CheckpointError(f"holds tensors, and more of them in {', '.join(inside)}; choose one with --key")
    if here:
        return here
    if len(inside) == 1:
        return tensors_of(next(iter(inside.values())), "", kind)
    if inside:
        raise CheckpointError(f"holds tensors in {', '.join(inside)}; choose one with --key")
    raise CheckpointError("holds no tensors")


def _holds(value: Any, kind: type) -> bool:
    return isinstance(value, kind) or (isinstance(value, Mapping) and any(_holds(v, kind) for v in value.values()))


def main(arguments: list[str]) -> int:
    """Rewrite one file; the exit code is 0, 5 (it cannot be read) or that of `NO_TORCH`."""
    from ports.unpickle import NO_TORCH

    try:
        import torch
    except ImportError:
        return NO_TORCH
    from ports.safetensors_writer import SafetensorsWriter

    file, out, key = Path(arguments[0]), Path(arguments[1]), arguments[2]
    try:
        # Files of torch 1.6 and later are zip archives and can stay on the disk until a tensor is used.
        value = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # whatever bytes it holds, it is the file that is wrong
        first = (str(error).strip() or repr(error)).splitlines()[0]
        print(f"torch.load(weights_only=True) refuses it: {first}", file=sys.stderr)
        return CheckpointError.exit_code
    try:
        tensors = tensors_of(value, key, torch.Tensor)
        announced = {name: (_dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
        with SafetensorsWriter(out, announced) as writer:
            for name, tensor in tensors.items():
                writer.write(name, _array(tensor))
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return CheckpointError.exit_code
    print(f"{file.name}: {len(tensors)} tensors", file=sys.stderr)
    return 0


def _array(tensor: Any) -> Any:
    """The tensor as a NumPy array, bit for bit; NumPy's own dtypes do not cover bfloat16 and float8."""
    import torch

    dtype, tensor = _dtype(tensor), tensor.detach().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().view(dtype).reshape(tuple(tensor.shape))


def _dtype(tensor: Any) -> Any:
    import ml_dtypes
    import numpy as np

    name = str(tensor.dtype).removeprefix("torch.")
    return np.dtype(getattr(ml_dtypes, name, None) or name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
