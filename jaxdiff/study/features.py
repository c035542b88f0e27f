"""Stored activations as the probes want them: dict of pooling -> [candidates, n, D], with what each candidate is."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.store import ActivationStore
from jaxdiff.study.reading import INPUT
from jaxdiff.workdir import write_atomic


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One place a probe may read: `block` -1 is the network's input (what enters block 0)."""

    site: str
    pooling: str
    block: int
    slot: int
    sigma: float


def place_columns(candidate: Candidate) -> dict[str, Any]:
    """Where a candidate was read, as columns of probe.csv."""
    block = None if candidate.block < 0 else candidate.block
    return {
        "site": candidate.site,
        "pooling": candidate.pooling,
        "block": block,
        "step": candidate.slot,
        "sigma": candidate.sigma,
    }


@dataclasses.dataclass(frozen=True)
class Features:
    """Feature sets of one source.

    Attributes
    ----------
    arrays : name -> float32 [candidates, n, D]
    candidates : name -> one `Candidate` per row of the array
    """

    arrays: dict[str, np.ndarray]
    candidates: dict[str, tuple[Candidate, ...]]

    def only(self, names: Sequence[str]) -> "Features":
        return Features({name: self.arrays[name] for name in names}, {name: self.candidates[name] for name in names})


def stored_features(store: ActivationStore, clips: Sequence[int]) -> Features:
    """Every array of the store, in the clips' order: candidates run over blocks, and within a block over sigmas.

    Blocks and the input are separate arrays ("block_out.mean", "input.mean"), so that a choice among blocks can never
    fall on the input.
    """
    sigmas = store.metadata["sigmas"]
    arrays, candidates = {}, {}
    for name in sorted(store.specs):
        site, _, pooling = name.partition(".")
        values = store.read(name, clips=clips).astype(np.float32)  # [n, slots, rows, ...]
        values = values.reshape(*values.shape[:3], -1).transpose(2, 1, 0, 3)  # [rows, slots, n, D]
        rows = [-1] if site == INPUT else store.rows[name]
        arrays[name] = values.reshape(-1, *values.shape[2:])
        candidates[name] = tuple(
            Candidate(site, pooling, row, slot, sigma) for row in rows for slot, sigma in enumerate(sigmas)
        )
    return Features(arrays, candidates)


def read_features(path: Path) -> tuple[str, Features] | None:
    """What `kept_features` left in a file, and its key; None where there is none or it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            told = json.loads(str(file["told"]))
            places = {name: tuple(Candidate(**c) for c in rows) for name, rows in told["candidates"].items()}
            return told["key"], Features({name: file[f"array.{name}"] for name in places}, places)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def kept_features(path: Path, key: str, make: Callable[[], Features]) -> Features:
    """Features that were made before and lie in a file, or else made now and left there.

    Parameters
    ----------
    path : .npz file; a damaged one is made again.
    key : whatever decides the features, in words; a file under another key is made again.
    """
    found = read_features(path)
    if found is not None and found[0] == key:
        return found[1]
    features = make()
    rows = {name: [dataclasses.asdict(c) for c in places] for name, places in features.candidates.items()}
    arrays = {f"array.{name}": values for name, values in features.arrays.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, told=np.array(json.dumps({"key": key, "candidates": rows})), **arrays)
    write_atomic(path, file.getvalue())
    return features


def input_features(table: Mapping[str, np.ndarray], prefix: str) -> Features:
    """The pooled inputs whose name begins with `prefix`, one candidate each."""
    names = [name for name in table if name.startswith(prefix)]
    return Features(
        {name: table[name][None] for name in names},
        {name: (Candidate(name.partition(".")[0], name.partition(".")[2], -1, 0, 0.0),) for name in names},
    )
