"""Features and labels in, answers out: every source probed under both protocols, against chance and controls."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff import probes
from jaxdiff.data.clip import Clip
from jaxdiff.progress import progress
from jaxdiff.study.features import Candidate, Features


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The corrected protocol: everything is chosen in inner grouped folds, accuracy is measured on outer ones.

    Parameters
    ----------
    penalties : L2 strengths to choose from.
    outer, inner : numbers of folds; groups (scenes) never straddle them.
    repeats : how often the outer folds are redrawn.
    seed : of folds, permutations and bootstraps.
    """

    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """Something to probe.

    key : entry of `headline` in result.json; `kind` as in `jaxdiff.report.study.Row`; `model` as in probe.csv.
    shuffled : probe labels that are permuted within every scene.
    """

    key: str
    name: str
    kind: str
    model: str
    features: Features
    note: str = ""
    shuffled: bool = False


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the probe must tell, as arrays over clips."""

    possible: np.ndarray  # bool [n]
    groups: np.ndarray  # [n] of str
    categories: np.ndarray  # [n] of str

    @classmethod
    def of(cls, clips: Sequence[Clip]) -> "Labels":
        return cls(
            np.array([clip.possible for clip in clips], bool),
            np.array([clip.group for clip in clips]),
            np.array([clip.category for clip in clips]),
        )


@dataclasses.dataclass(frozen=True)
class Answer:
    """A source's result under the corrected protocol.

    predictions : float64 [repeats, n], out-of-fold margins; positive means possible.
    chosen : per outer fold, (array name, candidate, penalty).
    cells : array name -> accuracy, low, high of every candidate, each [candidates], penalty chosen inside.
    """

    source: Source
    accuracy: float
    interval: tuple[float, float]
    predictions: np.ndarray
    chosen: tuple[tuple[str, Candidate, float], ...]
    cells: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

    def correct(self, labels: Labels) -> np.ndarray:
        """Share of repeats in which each clip was told right, [n]."""
        return ((self.predictions > 0) == labels.possible).mean(0)


def analyse(sources: Sequence[Source], labels: Labels, protocol: Protocol) -> dict[str, Answer]:
    """Nested cross-validation of every source; key -> Answer."""
    answers = {}
    with progress("probe", len(sources), unit="sources") as task:
        for source in sources:
            answers[source.key] = _answer(source, labels, protocol)
            task.advance()
    return answers


def _answer(source: Source, labels: Labels, protocol: Protocol) -> Answer:
    y: Any = labels.possible
    if source.shuffled:
        y = probes.shuffle_within_groups(y, labels.groups, seed=protocol.seed)
    result = probes.nested_cross_validate(
        source.features.arrays,
        y,
        labels.groups,
        penalties=protocol.penalties,
        outer=protocol.outer,
        inner=protocol.inner,
        repeats=protocol.repeats,
        seed=protocol.seed,
    )
    return result
