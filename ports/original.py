"""Checkpoints in the layouts of the repositories that first published them: which are known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ports import original_cogvideox, original_ltx, original_wan
from ports.renaming import Original
from ports.safetensors_reader import Checkpoint
from ports.table import Table

# Published class -> its table with original names, by which a LoRA may call modules too.
ORIGINAL_TABLES: dict[str, Callable[[Table, Any], Table]] = {
    "WanTransformer3DModel": original_wan.transformer_table,
    "LTXVideoTransformer3DModel": original_ltx.transformer_table,
}


def find_original(path: Path) -> Original | None:
    """The checkpoint at `path`, a folder or a file; None if it is not of a known original layout.

    Raises
    ------
    CheckpointError, ConfigError
        It is of a known layout, and something is wrong with it.
    """
    if path.is_file():
        if path.suffix != ".safetensors":
            return None
        weights = Checkpoint(path)
        return original_ltx.open_file(weights) or original_wan.open_file(weights)
    return original_wan.open_folder(path) or original_cogvideox.open_folder(path)
