"""Rewrite the tensors of a pickle as safetensors.

    python -m ports.unpickle --checkpoint=Wan2.1_VAE.pth --out=Wan2.1_VAE.safetensors
    python -m ports.unpickle --checkpoint=Wan2.1-T2V-1.3B --out=Wan2.1-T2V-1.3B

Of a folder every pickle is rewritten, to the same place in `--out`, which may be the folder itself: the tables then read
what lies there. `jaxdiff.load` never opens a pickle. This command does, with `torch.load(weights_only=True)`, which
admits tensors and plain containers and refuses everything else, and in a process of its own, which holds no more than
that file. Needs torch (`pip install 'jaxdiff[parity]'`).
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

from jaxdiff.errors import CheckpointError, ConfigError
from ports.safetensors_reader import PICKLES, Checkpoint

NO_TORCH = 7  # exit code of the process when there is no torch


@dataclasses.dataclass(frozen=True)
class Config:
    """What is rewritten, and where to."""

    checkpoint: Path = dataclasses.field(metadata={"help": "A pickle, or a folder that holds some."})
    out: Path = dataclasses.field(metadata={"help": "FILE.safetensors for a pickle; a folder for a folder."})
    key: str = dataclasses.field(
        default="", metadata={"help": "Which of the dicts in the pickle holds the tensors, where there are several."}
    )


def unpickle(file: Path, out: Path, key: str = "") -> Path:
    """Rewrite one pickle.

    Raises
    ------
    CheckpointError
        It cannot be opened as plain tensors, or holds none.
    ConfigError
        `out` is no `.safetensors` file or exists, or there is no torch.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out={out}: give a name that ends with .safetensors")
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or give another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ports.torch_process", str(file.absolute()), str(out.absolute()), key]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == NO_TORCH:
        raise ConfigError("rewriting pickles needs torch: pip install 'jaxdiff[parity]'")
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CheckpointError(f"{file}: {said[-1] if said else f'the process ended with {done.returncode}'}")
    print(done.stderr.strip(), file=sys.stderr)
    return out


def find_pickles(folder: Path) -> list[Path]:
    """Every pickle below a folder, sorted.

    Raises
    ------
    CheckpointError
        There is no folder or none in it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such file or folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix in PICKLES and path.is_file())
    if not found:
        raise CheckpointError(f"{folder}: no pickle here ({', '.join(PICKLES)})")
    return found


def rewrite_indices(folder: Path, out: Path) -> list[Path]:
    """Write the indices of sharded pickles (`*.bin.index.json`) as those of the safetensors beside them.

    Raises
    ------
    CheckpointError
        One of them is no index.
    """
    written = []
    for file in sorted(folder.rglob("*.index.json")):
        name = file.name.removesuffix(".index.json")
        if Path(name).suffix not in PICKLES:
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            shards = values["weight_map"].items()
            values["weight_map"] = {key: str(Path(shard).with_suffix(".safetensors")) for key, shard in shards}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: not a shard index: {error!r}") from error
        target = out / file.relative_to(folder).with_name(f"{Path(name).stem}.safetensors.index.json")
        target.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        written.append(target)
    return written


def run(config: Config) -> None:
    """Rewrite, and print what was written."""
    if config.checkpoint.is_dir() or not config.checkpoint.exists():
        files = find_pickles(config.checkpoint)
        outs = [(config.out / file.relative_to(config.checkpoint)).with_suffix(".safetensors") for file in files]
    else:
        files, outs = [config.checkpoint], [config.out]
    for file, out in zip(files, outs, strict=True):
        start = time.perf_counter()
        unpickle(file, out, config.key)
        with Checkpoint(out) as written:
            print(f"{out}: {len(written)} tensors, {written.nbytes():,} bytes, {time.perf_counter() - start:.1f} s")
    if config.checkpoint.is_dir():
        for index in rewrite_indices(config.checkpoint, config.out):
            print(f"{index}: the index of these shards")


def main() -> None:
    """The command line."""
    from experiments._main import run_binary  # a binary: nothing imports it

    run_binary(run, Config, workdir=False)


if __name__ == "__main__":
    main()
