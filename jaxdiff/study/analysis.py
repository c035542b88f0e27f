"""Features and labels in, answers out: every source probed under both protocols, against chance and controls."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxdiff.data.clip import Clip
from jaxdiff.errors import ConfigError
from jaxdiff.probes import statistics
from jaxdiff.probes.controls import shuffle_labels
from jaxdiff.probes.cross_validation import NestedResult, nested_cross_validate
from jaxdiff.probes.published import PublishedResult, published_protocol
from jaxdiff.progress import progress
from jaxdiff.study.attributes import recurring_attribute
from jaxdiff.study.features import Candidate, Features
from jaxdiff.study.measures import Capacity, Measures, measure_capacity, measure_result

# Sources that are also probed the way the paper does it, beside the baselines. Shuffled labels are the witness: what the published protocol
# reports for them is what choosing on the reported fold is worth.
PUBLISHED = ("states", "attention_maps", "shuffled", "structureless", "untrained", "latents")
PUBLISHED_KINDS = ("baseline",)

BOTH = "both"
PROTOCOLS = (BOTH, "published", "corrected")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How sources are probed: the corrected protocol, the published one, or both.

    Corrected: everything is chosen in inner grouped folds, accuracy is measured on outer ones. Published: as in
    `jaxdiff.probes.published`, on the token means of `PUBLISHED` sources.

    Parameters
    ----------
    which : one of `PROTOCOLS`.
    penalties : L2 strengths to choose from.
    outer, inner : numbers of folds; groups (scenes) never straddle them.
    repeats : how often the outer folds are redrawn.
    seed : of folds, permutations and bootstraps.
    capacity : also measure what the states' probes could do with any labels.
    published_seeds : splits of the published protocol; 0 leaves it out.
    published_batch, published_test : its batches, and the share of scenes that it reports.
    published_by_category : also fit its probes to each category by itself, as the paper does on IntPhys.
    middle : noise level of its t = 0.5, the state half of the steps lead to.
    """

    which: str = BOTH
    penalties: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    seed: int = 0
    capacity: bool = True
    published_seeds: int = 5
    published_batch: int = 32
    published_test: float = 0.4
    published_by_category: bool = False
    middle: float = 0.5

    def __post_init__(self):
        if self.which not in PROTOCOLS:
            raise ConfigError(f"--protocol={self.which} is unknown; choose one of {', '.join(PROTOCOLS)}")
        if self.which == "published" and not self.published_seeds:
            raise ConfigError("--protocol=published with --published_seeds=0 leaves nothing to do; give seeds")


@dataclasses.dataclass(frozen=True)
class Source:
    """Something to probe.

    key : entry of `headline` in result.json; `kind` as in `jaxdiff.report.study.Row`; `model` as in probe.csv.
    shuffled : probe labels that are permuted within every scene.
    listed : whether it has a line in the headline table; others only serve figures.
    title : name of its heatmap of blocks and noise levels; none if empty.
    """

    key: str
    name: str
    kind: str
    model: str
    features: Features
    note: str = ""
    shuffled: bool = False
    listed: bool = True
    title: str = ""

    @property
    def mean_pooled(self) -> str | None:
        """Name of the array that the paper would read: averages over all tokens, or attention maps as they are."""
        return next((name for name in self.features.arrays if name.endswith((".mean", ".frame_map"))), None)


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the probe must tell, as arrays over clips."""

    possible: np.ndarray  # bool [n]
    groups: np.ndarray  # [n] of str
    categories: np.ndarray  # [n] of str
    matched: np.ndarray | None = None  # [n] of str, sets inside which clips are compared; None: the groups
    attribute: np.ndarray | None = None  # [n] of str, recurs in several scenes: what a control task is made of

    @property
    def sets(self) -> np.ndarray:
        """The matched sets of the clips, [n]."""
        return self.groups if self.matched is None else self.matched

    @classmethod
    def of(cls, clips: Sequence[Clip], matched: Sequence[str] | None = None) -> "Labels":
        return cls(
            np.array([clip.possible for clip in clips], bool),
            np.array([clip.group for clip in clips]),
            np.array([clip.category for clip in clips]),
            None if matched is None or list(matched) == [clip.group for clip in clips] else np.array(matched),
            recurring_attribute(clips),
        )


def matched_pairs(margins: np.ndarray, labels: Labels, *, seed: int = 0) -> tuple[float, statistics.Interval]:
    """Share of (possible, impossible) pairs of a matched set whose possible clip has the larger margin, ties one half.

    With its 95 % interval over groups, which may hold several sets each.
    """
    y, groups = labels.possible, labels.groups
    right, pairs = statistics.pairs_by_group(margins, y, groups, labels.matched)
    interval = statistics.pairwise_interval(margins, y, groups, matched=labels.matched, seed=seed)
    return float(right.sum() / pairs.sum()), interval


@dataclasses.dataclass(frozen=True)
class Answer:
    """A source and what its probes said, under the protocols that were run.

    nested : under the corrected protocol.
    published, at_middle : under the published one, of all cells, and of the blocks at its t = 0.5, noise level `middle`.
    by_category : `at_middle` of probes that were fitted to one category each.
    measures : statistics of `nested`; `capacity` only of the states.
    """

    source: Source
    nested: NestedResult | None = None
    published: PublishedResult | None = None
    at_middle: PublishedResult | None = None
    middle: float | None = None
    by_category: dict[str, PublishedResult] = dataclasses.field(default_factory=dict)
    measures: Measures | None = None
    capacity: Capacity | None = None

    @property
    def result(self) -> NestedResult:
        """The corrected protocol's; raises ConfigError where it was not run."""
        if self.nested is None:
            raise ConfigError(f"{self.source.name} was not probed under the corrected protocol; use --protocol=both")
        return self.nested

    @property
    def chosen(self) -> tuple[tuple[str, Candidate, float], ...]:
        """Per repeat and outer fold: array, candidate and penalty that the inner folds chose."""
        candidates = self.source.features.candidates
        choices = () if self.nested is None else self.nested.chosen
        return tuple((c.name, candidates[c.name][c.candidate], c.penalty) for c in choices)


def analyse(sources: Sequence[Source], labels: Labels, protocol: Protocol) -> dict[str, Answer]:
    """Every source probed under the protocols that are asked for; key -> Answer."""
    answers = {}
    null = shuffle_labels(labels.possible, labels.sets, seed=protocol.seed)
    with progress("probe", len(sources), unit="sources") as task:
        for source in sources:
            y = null if source.shuffled else labels.possible
            answer = Answer(source)
            if protocol.which != "published":
                answer = _corrected(source, y, labels, protocol)
                if source.key == "states" and protocol.capacity:
                    found = measure_capacity(
                        source.features.arrays, answer.result, labels.attribute, strata=labels.categories,
                        outer=protocol.outer, inner=protocol.inner, repeats=protocol.repeats, seed=protocol.seed,
                    )  # fmt: skip
                    answer = dataclasses.replace(answer, capacity=found)
            if protocol.which != "corrected":
                answer = _published(answer, y, labels, protocol)
            answers[source.key] = answer
            task.advance()
    return answers


def _corrected(source: Source, y: np.ndarray, labels: Labels, protocol: Protocol) -> Answer:
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
        matched=labels.matched,
    )
    return Answer(source, result, measures=measure_result(result, labels.sets, seed=protocol.seed))


def _published(answer: Answer, y: np.ndarray, labels: Labels, protocol: Protocol) -> Answer:
    """With the paper's protocol on the source's token means, its splits kept to whole scenes as in the released code."""
    source = answer.source
    name = source.mean_pooled
    told = source.key in PUBLISHED or source.kind in PUBLISHED_KINDS
    if not told or name is None or not protocol.published_seeds:
        return answer
    candidates = source.features.candidates[name]
    middle = min((c.sigma for c in candidates), key=lambda sigma: abs(sigma - protocol.middle))
    blocks = {name: [k for k, c in enumerate(candidates) if c.sigma == middle]}
    array = source.features.arrays[name]

    def published(features: np.ndarray, clips: np.ndarray | slice) -> PublishedResult:
        return published_protocol(
            {name: features}, y[clips], labels.groups[clips], strata=labels.categories[clips],
            seeds=range(protocol.seed, protocol.seed + protocol.published_seeds), batch=protocol.published_batch,
            test_fraction=protocol.published_test,
        )  # fmt: skip

    found = published(array, slice(None))
    by_category = {}
    if protocol.published_by_category:
        of = {str(c): np.flatnonzero(labels.categories == c) for c in np.unique(labels.categories)}
        by_category = {category: published(array[blocks[name]][:, clips], clips) for category, clips in of.items()}
    return dataclasses.replace(
        answer, published=found, at_middle=found.only(blocks), middle=middle, by_category=by_category
    )
