"""Stored activations as the probes want them: dict of pooling -> [candidates, n, D], with what each candidate is."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxdiff.store import ActivationStore
from jaxdiff.study.reading import INPUT


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One place a probe may read: `block` -1 is the network's input (what enters block 0)."""

    site: str
    pooling: str
    block: int
    slot: int
    sigma: float


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


def input_features(table: Mapping[str, np.ndarray], prefix: str) -> Features:
    """The pooled inputs whose name begins with `prefix`, one candidate each."""
    names = [name for name in table if name.startswith(prefix)]
    return Features(
        {name: table[name][None] for name in names},
        {name: (Candidate(name.partition(".")[0], name.partition(".")[2], -1, 0, 0.0),) for name in names},
    )
