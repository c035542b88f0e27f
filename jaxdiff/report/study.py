"""What a report is made of: plain numbers, arrays and words. Whoever runs an experiment fills a `Study`.

Every part is optional. A part that is absent is left out of the report, so an inversion without probes
(fidelity and clips) and a full study (grids, controls, protocols) go through the same writer. Accuracies are
fractions in [0, 1]; nan means "not measured" and is shown as a dash, never as a number.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError

KINDS = ("states", "null", "comparison", "baseline")


def _shape(name: str, array: np.ndarray, expected: tuple[int | None, ...]) -> None:
    good = array.ndim == len(expected) and all(e in (None, s) for e, s in zip(expected, array.shape, strict=True))
    if not good:
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ConfigError(f"{name} has shape {array.shape}; expected ({wanted})")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; `low` and `high` are nan where there is no interval."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclasses.dataclass(frozen=True)
class Points(Estimate):
    """The difference of two shares; shown in signed points."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the headline table.

    key : machine name, the entry of `headline` in result.json (states, latents, untrained, structureless,
    ...); with a dot ("untrained.mlp"), a control of another row than the first. name : what the reader sees. estimate : accuracy per clip on held-out scenes, in [0, 1]. kind :
    "states" (the claim), "null" (a control that must be at chance), "comparison" (may be as good), "baseline" (another
    way of seeing the clip altogether). pairwise :
    share of (possible, impossible) pairs of one scene ranked right, ties one half. gap : accuracy of the
    states minus this row's, paired over scenes, in [-1, 1]. note : how it was made, or what the inner folds
    chose ("block 4, sigma 0.8 in 4 of 5 folds").
    """

    key: str
    name: str
    estimate: Estimate
    kind: str
    pairwise: Estimate | None = None
    gap: Estimate | None = None
    note: str = ""

    @property
    def controls_claim(self) -> bool:
        """Whether it is a null control of the claim, and not of a further read."""
        return self.kind == "null" and "." not in self.key

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ConfigError(f"Row {self.key!r} has kind {self.kind!r}; expected one of {', '.join(KINDS)}")


@dataclasses.dataclass(frozen=True)
class Grid:
    """Accuracy of one fixed probe per (row, sigma): what the depth-by-noise heatmap shows.

    accuracy : [rows, sigmas], fractions, nan where not measured.
    sigmas : [sigmas], ascending, 0 clean and 1 noise.
    labels : [rows] names, input first, then blocks in order, e.g. ("latents", "x_sigma", "0", "1", ...).
    inputs : how many leading rows are inputs to the network rather than blocks of it.
    low, high : [rows, sigmas], 95 % intervals, or None.
    chosen : (row, column, folds) of cells that the inner folds of the corrected protocol chose, and in how
    many folds.
    """

    name: str
    accuracy: np.ndarray
    sigmas: np.ndarray
    labels: tuple[str, ...]
    kind: str = "states"
    inputs: int = 0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    chosen: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ConfigError(f"Grid {self.name!r} has kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        shape = (len(self.labels), len(self.sigmas))
        for field in ("accuracy", "low", "high"):
            if getattr(self, field) is not None:
                _shape(f"Grid {self.name!r}.{field}", np.asarray(getattr(self, field)), shape)


@dataclasses.dataclass(frozen=True)
class Group:
    """Several estimates under one name: a category, a protocol, or one replicate (a pair of seeds).

    values : series name -> Estimate, e.g. {"states": ..., "structureless": ...}; series are the keys of
    `Study.rows`
        where there is one.
    """

    name: str
    values: Mapping[str, Estimate]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """`y` over `x`, each [points], with an optional 95 % band; `kind` as in `Row`, for the colour."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    kind: str = "states"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ConfigError(f"Curve {self.name!r} has kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        for field in ("x", "y", "low", "high"):
            if getattr(self, field) is not None:
                _shape(f"Curve {self.name!r}.{field}", np.asarray(getattr(self, field)), (len(self.x),))


@dataclasses.dataclass(frozen=True)
class Measure:
    """A scalar with the value it would have if all were well: ("mean of the noise", 0.01, 0.0)."""

    name: str
    value: float
    ideal: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How well the inversion did.

    self_convergence : over sigma, relative RMS difference between the states at N and at 2N steps.
    round_trip : [clips] PSNR in dB, source against decode(sample(invert(encode(source)))).
    autoencoder : [clips] PSNR in dB, source against decode(encode(source)): the best the round trip can do.
    latent_error : [clips] relative RMS error of the latents after the round trip.
    known : over sigma, cosine of states and of attention maps with those of a trajectory that a clip was made on.
    noise : statistics of the recovered noise beside those of white noise.
    mistakes : [clips] bool, whether the probe got the clip wrong on its held-out fold.
    clip_error : [clips] the per-clip error that is correlated with the mistakes, named by `clip_error_name`.
    mistake_correlation : their correlation in [-1, 1].
    """

    self_convergence: tuple[Curve, ...] = ()
    round_trip: np.ndarray | None = None
    autoencoder: np.ndarray | None = None
    latent_error: np.ndarray | None = None
    known: tuple[Curve, ...] = ()
    noise: tuple[Measure, ...] = ()
    mistakes: np.ndarray | None = None
    clip_error: np.ndarray | None = None
    clip_error_name: str = "relative round-trip error of the latents"
    mistake_correlation: Estimate | None = None
    note: str = ""

    def __post_init__(self):
        for field in ("round_trip", "autoencoder", "latent_error", "mistakes", "clip_error"):
            if getattr(self, field) is not None:
                _shape(f"Fidelity.{field}", np.asarray(getattr(self, field)), (None,))
        if self.mistakes is not None:
            if self.clip_error is None:
                raise ConfigError("Fidelity.mistakes needs Fidelity.clip_error: one error per clip to set beside them")
            _shape("Fidelity.clip_error", np.asarray(self.clip_error), (len(self.mistakes),))


@dataclasses.dataclass(frozen=True)
class FrameAttention:
    """Frame-by-frame attention of one model, averaged over clips.

    maps : [rows, K, T', T'], attention mass from query frame (axis 2) to key frame (axis 3); rows sum to one.
    blocks : [rows] block numbers.
    sigma : the noise level at which it was read.
    """

    name: str
    maps: np.ndarray
    blocks: tuple[int, ...]
    sigma: float

    def __post_init__(self):
        frames = np.shape(self.maps)[-1]
        _shape(
            f"FrameAttention {self.name!r}.maps",
            np.asarray(self.maps),
            (len(self.blocks), None, frames, frames),
        )


@dataclasses.dataclass(frozen=True)
class ClipView:
    """A clip and what the round trip made of it: [T,H,W,3], uint8, or float in [-1, 1]."""

    name: str
    source: np.ndarray
    reconstruction: np.ndarray
    psnr: float | None = None
    fps: float = 8.0
    note: str = ""

    def __post_init__(self):
        _shape(f"ClipView {self.name!r}.source", np.asarray(self.source), (None, None, None, 3))
        _shape(f"ClipView {self.name!r}.reconstruction", np.asarray(self.reconstruction), np.shape(self.source))


@dataclasses.dataclass(frozen=True)
class Panel:
    """A figure of curves that no other part names: solver studies, interventions, ablations, losses."""

    title: str
    curves: tuple[Curve, ...]
    xlabel: str = ""
    ylabel: str = ""
    caption: str = ""
    percent: bool = False
    reference: float | None = None
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that no other part names: `columns` names, `rows` of cells (text, numbers or Estimates)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ConfigError(
                    f"Table {self.title!r} has a row of {len(row)} cells under {len(self.columns)} columns"
                )


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Clips side by side: uint8 [rows, columns, T, H, W, 3] under the names of `columns`, beside those of `rows`."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    clips: np.ndarray
    fps: float = 8.0

    def __post_init__(self):
        shape = (len(self.rows), len(self.columns), None, None, None, 3)
        _shape("Gallery.clips", np.asarray(self.clips), shape)


@dataclasses.dataclass(frozen=True)
class Check:
    """An aim set before the run, and whether it was met. A miss is a result, and is shown as one."""

    name: str
    value: str
    bar: str
    met: bool


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything a report shows. See the module's docstring; `title` alone is a valid, if short, study.

    Parameters
    ----------
    title : heading of the report.
    summary : the sentence under it; written from `rows`, or from `fidelity`, if empty.
    facts : small facts under the sentence, e.g. {"clips": "720", "scenes": "180", "solver": "euler, 100
    steps"}. rows : headline table: the states, the null controls and the comparisons. chance : accuracy of
    guessing; the centre of every accuracy scale. grids : one per model; drawn side by side on one colour
    scale. categories, protocols, replicates : estimates grouped by category of the data set, by protocol
    ("published",
        "corrected"; the order is kept), and by pair of seeds.
    surprise : pairwise accuracy of the denoising loss over sigma, one curve a model.
    scores, differences : numbers of several methods, one group a number, names as in the first; see `report.scores`.
    skipped : (clip, reason).
    conditional_on : what the intervals are conditional on, one statement each.
    notes : anything a reader must know before believing a number: the data set's rules, a substituted prompt.
    config, seeds, command, environment : how to run it again, and where it ran.
    """

    title: str
    summary: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    chance: float = 0.5
    checks: tuple[Check, ...] = ()
    grids: tuple[Grid, ...] = ()
    categories: tuple[Group, ...] = ()
    protocols: tuple[Group, ...] = ()
    replicates: tuple[Group, ...] = ()
    surprise: tuple[Curve, ...] = ()
    fidelity: Fidelity | None = None
    attention: tuple[FrameAttention, ...] = ()
    clips: tuple[ClipView, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    panels: tuple[Panel, ...] = ()
    scores: tuple[Group, ...] = ()
    differences: tuple[Group, ...] = ()
    gallery: Gallery | None = None
    tables: tuple[Table, ...] = ()
    conditional_on: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        keys = [row.key for row in self.rows]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"Study.rows holds the key {key!r} more than once")

    def row(self, key: str) -> Row | None:
        """The headline row with this key, if there is one."""
        return next((row for row in self.rows if row.key == key), None)

    def headline(self) -> dict[str, dict[str, float | None]]:
        """`rows` and chance for result.json: key -> {"value", "low", "high"}, None where not measured."""

        def number(x: float) -> float | None:
            return float(x) if math.isfinite(x) else None

        entries = {row.key: row.estimate for row in self.rows} | {"chance": Estimate(*[self.chance] * 3)}
        return {k: {"value": number(e.value), "low": number(e.low), "high": number(e.high)} for k, e in entries.items()}


def sentence(study: Study) -> str:
    """The finding in words. What it claims follows from the numbers and their intervals, not from hopes.

    "Linearly decodable" needs the states' interval to lie above chance *and* the states to be clear of every
    null control: a paired gap whose interval lies above zero where there is one, else intervals that do not
    overlap. Anything less is said as what it is. Not decodable by a linear probe is not the same as absent.
    """
    if study.summary:
        return study.summary
    states = next((row for row in study.rows if row.kind == "states"), None)
    if states is None:
        return _inversion_sentence(study)
    nulls = [row for row in study.rows if row.controls_claim and math.isfinite(row.estimate.value)]
    accuracy, chance = states.estimate, percent(study.chance, 0)
    numbers = f"{interval(accuracy)} of held-out clips told right, where chance is {chance}"
    claim = "Whether a clip is physically plausible is linearly decodable from the states"
    if not accuracy.low > study.chance:
        return (
            f"No linearly decodable sign of plausibility was found in the states ({numbers}). "
            "That is not evidence of absence."
        )
    if not nulls:
        return f"{claim}: {numbers}. No null control was run."
    strongest = max(nulls, key=lambda row: row.estimate.value)
    gap = f"{100 * (accuracy.value - strongest.estimate.value):.1f} points"
    control = f"the strongest null control ({strongest.name}, {percent(strongest.estimate.value)})"
    if all(row.gap.low > 0 if row.gap else accuracy.low > row.estimate.high for row in nulls):
        return f"{claim}: {numbers}; {gap} above {control}."
    return f"The states are above chance ({numbers}), but not clearly above every null control: {gap} from {control}."


def _inversion_sentence(study: Study) -> str:
    fidelity = study.fidelity
    if fidelity is None or fidelity.round_trip is None or not len(fidelity.round_trip):
        return ""
    psnr = np.asarray(fidelity.round_trip)
    clips = f"{len(psnr)} clip{'s' * (len(psnr) != 1)}"
    text = f"{clips} inverted to noise and sampled back; median round-trip PSNR {np.median(psnr):.1f} dB"
    if fidelity.autoencoder is not None:
        text += f", where the autoencoder alone gives {np.median(fidelity.autoencoder):.1f} dB"
    return text + (f"; {len(study.skipped)} skipped." if study.skipped else ".")


def percent(value: float, digits: int = 1) -> str:
    """0.682 -> "68.2 %"; nan -> a dash."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "–"


def interval(estimate: Estimate) -> str:
    """Estimate(.682, .654, .71) -> "68.2 % (65.4–71.0)"."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return percent(estimate.value)
    return f"{percent(estimate.value)} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"
