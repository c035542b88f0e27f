"""Features and labels in, answers out: every source probed under both protocols, against chance and controls."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxdiff.data.clip import Clip
from jaxdiff.probes.controls import shuffle_labels
from jaxdiff.probes.cross_validation import NestedResult, nested_cross_validate
from jaxdiff.probes.published import PublishedResult, published_protocol
from jaxdiff.progress import progress
from jaxdiff.study.features import Candidate, Features

# Sources that are also probed the way the paper does it. Shuffled labels are the witness: what the published protocol
# reports for them is what choosing on the reported fold is worth.
PUBLISHED = ("states", "shuffled", "structureless", "untrained", "latents")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The corrected protocol: everything is chosen in inner grouped folds, accuracy is measured on outer ones.

    Parameters
    ----------
    penalties : L2 strengths to choose from.
    outer, inner : numbers of folds; groups (scenes) never straddle them.
    repeats : how often the outer folds are redrawn.
    seed : of folds, permutations and bootstraps.
    published_seeds : splits of the published protocol, which runs beside this one on `PUBLISHED`; 0 leaves it out.
    """

    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    seed: int = 0
    published_seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Source:
    """Something to probe.

    key : entry of `headline` in result.json; `kind` as in `jaxdiff.report.study.Row`; `model` as in probe.csv.
    shuffled : probe labels that are permuted within every scene.
    listed : whether it has a line in the headline table; others only serve figures.
    """

    key: str
    name: str
    kind: str
    model: str
    features: Features
    note: str = ""
    shuffled: bool = False
    listed: bool = True

    @property
    def mean_pooled(self) -> str | None:
        """Name of the array that the paper would read: averages over all tokens."""
        return next((name for name in self.features.arrays if name.endswith(".mean")), None)


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
    """A source and its result under the corrected protocol, and under the published one where that was run."""

    source: Source
    result: NestedResult
    published: PublishedResult | None = None

    @property
    def chosen(self) -> tuple[tuple[str, Candidate, float], ...]:
        """Per repeat and outer fold: array, candidate and penalty that the inner folds chose."""
        candidates = self.source.features.candidates
        return tuple((c.name, candidates[c.name][c.candidate], c.penalty) for c in self.result.chosen)


def analyse(sources: Sequence[Source], labels: Labels, protocol: Protocol) -> dict[str, Answer]:
    """Nested cross-validation of every source, and the published protocol of some; key -> Answer."""
    answers = {}
    with progress("probe", len(sources), unit="sources") as task:
        for source in sources:
            y = labels.possible
            if source.shuffled:
                y = shuffle_labels(y, labels.groups, seed=protocol.seed)
            result = nested_cross_validate(
                source.features.arrays,
                y,
                labels.groups,
                penalties=protocol.penalties,
                outer=protocol.outer,
                inner=protocol.inner,
                repeats=protocol.repeats,
                seed=protocol.seed,
                strata=labels.categories,
            )
            answers[source.key] = Answer(source, result, _published(source, y, labels, protocol))
            task.advance()
    return answers


def _published(source: Source, y: np.ndarray, labels: Labels, protocol: Protocol) -> PublishedResult | None:
    """The paper's protocol on the source's token means, its splits kept to whole scenes as in the released code."""
    name = source.mean_pooled
    if source.key not in PUBLISHED or name is None or not protocol.published_seeds:
        return None
    seeds = range(protocol.seed, protocol.seed + protocol.published_seeds)
    features = {name: source.features.arrays[name]}
    return published_protocol(features, y, labels.groups, seeds=seeds, strata=labels.categories)
