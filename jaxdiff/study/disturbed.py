"""What videos made with a disturbed block look like to a study's probes: changes of the logit, and their report."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.probes import statistics
from jaxdiff.probes.cross_validation import NestedResult, nested_cross_validate
from jaxdiff.probes.linear import LinearProbe
from jaxdiff.report.study import Curve, Estimate, Panel, Study, Table, interval
from jaxdiff.store import ActivationStore
from jaxdiff.study.finished import READ, Finished
from jaxdiff.study.results import estimate_json

if TYPE_CHECKING:
    from jaxdiff.study.intervention import InterventionConfig

ROUND_TRIP, NO_OP = "round_trip", "no_op"
COLUMNS = ("row", "block", "sigma", "probe_block", "metric", "value", "low", "high", "clips", "scenes")


@dataclasses.dataclass(frozen=True)
class Row:
    """One way of making the clips again: `block` is disturbed by `alpha`; with block None, without any edit."""

    name: str
    block: int | None
    alpha: float

    def strengths(self, layers: int) -> np.ndarray:
        """Of every block, float32 [L]."""
        return np.where(np.arange(layers) == self.block, self.alpha, 0.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Probes:
    """The study's probes of single cells, each fitted without the scenes of one outer fold.

    Attributes
    ----------
    fold : [n] the outer fold that held each clip of the study out.
    fitted : [folds][cells]
    cells : (block, slot, sigma) of each cell.
    result : their cross-validation, with the accuracy of every cell.
    """

    fold: np.ndarray
    fitted: tuple[tuple[LinearProbe, ...], ...]
    cells: tuple[tuple[int, int, float], ...]
    result: NestedResult

    def logits(self, features: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """Logit of impossible less that of possible: features [cells, n, D] of clips that `fold` [n] held out -> [cells, n]."""
        out = np.empty(features.shape[:2])
        for number, probes in enumerate(self.fitted):
            here = fold == number
            for cell, probe in enumerate(probes):
                if here.any():
                    out[cell, here] = -probe.decision_function(features[cell, here])
        return out


def fit_probes(study: Finished, slots: Sequence[int]) -> Probes:
    """One probe for every block, noise level and outer fold of the study, its penalty chosen in the inner folds."""
    features, candidates = study.token_means(slots)
    labels, protocol = study.labels, study.config.protocol()
    result = nested_cross_validate(
        {READ: features}, labels.possible, labels.groups, penalties=protocol.penalties, outer=protocol.outer,
        inner=protocol.inner, seed=protocol.seed, strata=labels.categories,
    )  # fmt: skip
    fold = result.folds[0]
    fitted = []
    for number in range(protocol.outer):
        train = fold != number
        # The strongest of equal penalties: they are sorted that way.
        best = result.inner_accuracy[READ][0, number].argmax(-1)
        fitted.append(
            tuple(
                LinearProbe(result.penalties[p]).fit(cell[train], labels.possible[train])
                for cell, p in zip(features, best, strict=True)
            )
        )
    return Probes(fold, tuple(fitted), tuple((c.block, c.slot, c.sigma) for c in candidates), result)


def made_features(store: ActivationStore, rows: int, probes: Probes) -> np.ndarray:
    """[rows, cells, clips, D] float32 of the made clips."""
    values = store.read(READ).astype(np.float32)  # [rows * clips, slots, blocks, D]
    blocks = store.rows[READ]
    cells = [values[:, slot, blocks.index(block)] for block, slot, _ in probes.cells]
    stacked = np.stack(cells).reshape(len(cells), rows, -1, values.shape[-1])
    return np.moveaxis(stacked, 1, 0)


def scene_interval(values: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """Mean over clips, and its 95 % bootstrap interval over scenes; no interval where all values are equal."""
    mean = float(np.mean(values))
    if np.ptp(values) == 0 or len(set(groups.tolist())) < 2:
        return Estimate(mean, mean, mean) if np.ptp(values) == 0 else Estimate(mean)
    return Estimate(mean, *statistics.cluster_bootstrap(values, groups, seed=seed))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out, block by block.

    Attributes
    ----------
    rows : the ways of making the clips.
    delta : change of the logit for each way: against the video made without a disturbance, and for the round trip
        against the study's own reading of the clip.
    by_probe : the same for every cell of the probes, [rows][cells].
    change : distance of the made latents from the clip's own, [rows].
    accuracy : of the probe of every block on held-out scenes, [blocks], mean over the noise levels probed.
    spread : standard deviation of the logit over the study's clips.
    """

    rows: tuple[Row, ...]
    delta: tuple[Estimate, ...]
    by_probe: tuple[tuple[Estimate, ...], ...]
    change: np.ndarray
    accuracy: tuple[Estimate, ...]
    spread: float

    @property
    def blocks(self) -> np.ndarray:
        """Numbers of the disturbed blocks."""
        return np.array([row.block for row in self.rows[2:]], int)

    def correlation(self) -> float:
        """Of the blocks' ranks by change and by accuracy; nan for fewer than three blocks or without any difference."""
        delta = np.array([e.value for e in self.delta[2:]])
        accuracy = np.array([self.accuracy[block].value for block in self.blocks])
        if len(delta) < 3 or np.ptp(delta) == 0 or np.ptp(accuracy) == 0:
            return float("nan")
        return float(np.corrcoef(_ranks(delta), _ranks(accuracy))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def compare(
    study: Finished, chosen: Sequence[int], rows: Sequence[Row], store: ActivationStore, probes: Probes, seed: int
) -> Outcome:
    """The made clips through the probes that were fitted without their scenes."""
    labels, slots = study.labels, sorted({slot for _, slot, _ in probes.cells})
    chosen = list(chosen)
    groups, fold = labels.groups[chosen], probes.fold[chosen]
    original, _ = study.token_means(slots)
    before = probes.logits(original, probes.fold)
    made = np.stack([probes.logits(part, fold) for part in made_features(store, len(rows), probes)])
    against = np.stack([before[:, chosen], *[made[0]] * (len(rows) - 1)])
    moved = made - against  # [rows, cells, clips]
    accuracies, bounds = probes.result.grid[READ], probes.result.grid_interval[READ]
    blocks = np.array([block for block, _, _ in probes.cells])
    accuracy = []
    for block in range(blocks.max() + 1):
        here = blocks == block
        # Of several noise levels the mean; the mean of their intervals is the interval of no number, but a wide one.
        accuracy.append(Estimate(float(accuracies[here].mean()), *map(float, bounds[here].mean(0))))
    records = store.records()
    change = np.array([records[i]["change"] for i in range(len(records))]).reshape(len(rows), -1).mean(1)
    return Outcome(
        tuple(rows),
        tuple(scene_interval(row.mean(0), groups, seed) for row in moved),
        tuple(tuple(scene_interval(cell, groups, seed) for cell in row) for row in moved),
        change,
        tuple(accuracy),
        float(before.mean(0).std()),
    )


def result_json(outcome: Outcome, probes: Probes, clips: int, scenes: int) -> dict[str, Any]:
    """result.json: nothing in it depends on when or where it was made."""
    correlation = outcome.correlation()
    blocks = [
        {
            "block": int(block),
            "delta": estimate_json(delta),
            "probe_accuracy": estimate_json(outcome.accuracy[block]),
            "latent_change": round(float(change), 6),
        }
        for block, delta, change in zip(outcome.blocks, outcome.delta[2:], outcome.change[2:], strict=True)
    ]
    return {
        "blocks": blocks,
        NO_OP: {"delta": estimate_json(outcome.delta[1]), "latent_change": round(float(outcome.change[1]), 6)},
        ROUND_TRIP: {"delta": estimate_json(outcome.delta[0]), "latent_change": round(float(outcome.change[0]), 6)},
        "rank_correlation_with_accuracy": correlation if np.isfinite(correlation) else None,
        "probe_sigmas": sorted({sigma for _, _, sigma in probes.cells}),
        "logit_spread": outcome.spread,
        "clips": clips,
        "scenes": scenes,
    }


def csv_rows(outcome: Outcome, probes: Probes, clips: int, scenes: int) -> list[dict[str, Any]]:
    """intervention.csv: the change of the logit of every way of making, of all probes together and of each."""
    lines = []
    for row, delta, cells, change in zip(outcome.rows, outcome.delta, outcome.by_probe, outcome.change, strict=True):
        base = {"row": row.name, "block": None if row.name in (ROUND_TRIP, NO_OP) else row.block,
                "clips": clips, "scenes": scenes}  # fmt: skip
        lines.append({**base, "probe_block": "all", "metric": "delta", **dataclasses.asdict(delta)})
        for (block, _, sigma), cell in zip(probes.cells, cells, strict=True):
            lines.append({**base, "sigma": sigma, "probe_block": block, "metric": "delta", **dataclasses.asdict(cell)})
        lines.append({**base, "probe_block": "", "metric": "latent_change", "value": change})
    for block, accuracy in enumerate(outcome.accuracy):
        lines.append(
            {"row": "probe", "probe_block": block, "metric": "accuracy", **dataclasses.asdict(accuracy),
             "clips": len(probes.fold)}
        )  # fmt: skip
    return lines


def report_study(
    outcome: Outcome, study: Finished, config: "InterventionConfig", probes: Probes, clips: int, scenes: int
) -> Study:
    """The report: the change of the logit over blocks beside the accuracy of each block's own probe."""
    sigmas = ", ".join(f"{s:.3g}" for s in sorted({sigma for _, _, sigma in probes.cells}))

    def curve(name: str, estimates: Sequence[Estimate], x: Any, kind: str) -> Curve:
        low, high = (np.array([getattr(e, part) for e in estimates]) for part in ("low", "high"))
        return Curve(name, np.asarray(x, float), np.array([e.value for e in estimates]), low, high, kind)

    moved = curve("disturbed block", outcome.delta[2:], outcome.blocks, "states")
    flat = curve("alpha 0", [outcome.delta[1]] * len(outcome.blocks), outcome.blocks, "null")
    told = curve("probe of the block", outcome.accuracy, range(len(outcome.accuracy)), "comparison")
    names = {ROUND_TRIP: "round trip, against the study's own reading", NO_OP: "no disturbance (alpha 0)"}
    table = tuple(
        (
            names.get(row.name, f"block {row.block}"),
            f"{delta.value:+.3g}",
            f"{delta.low:+.3g} to {delta.high:+.3g}" if np.isfinite(delta.low) else "",
            f"{change:.3g}",
            interval(outcome.accuracy[row.block]) if row.name not in names and row.block is not None else "",
        )
        for row, delta, change in zip(outcome.rows, outcome.delta, outcome.change, strict=True)
    )
    notes = (
        *study.data.notes,
        "One clip's logit is that of its own fold's probes, which saw no clip of its scene; it is averaged over the probes "
        f"of all blocks at noise level {sigmas}. Its standard deviation over the study's clips is {outcome.spread:.3g}.",
        "A probe near chance has a logit that means little: read the two figures together. And a disturbed video is off the "
        "data that the probes were fitted on, so that a change may be damage as well as lost plausibility.",
        "A disturbance is drawn for every clip and step from one seed; intervals are over scenes, given the probes and "
        "these draws.",
        "Clips are decoded, cut to 8 bits and encoded again in between."
        if config.reencode
        else "The made latents are inverted as they are, without a video in between.",
    )
    return Study(
        title=f"Disturbing one block of {study.config.model} at a time",
        summary=_summary(outcome),
        facts={"clips": f"{clips} possible, of {scenes} scenes", "alpha": f"{config.alpha:g}", "probed at": f"σ {sigmas}"},
        panels=(
            Panel(
                "How much less possible the video looks", (moved, flat), "disturbed block", "change of the logit",
                "The probes' logit of impossible less that of possible, minus the same of the video made without a "
                "disturbance. Above zero: it looks less possible. Bands: 95 % over scenes.",
                reference=0.0,
            ),
            Panel(
                "How well each block tells", (told,), "block", "accuracy on held-out scenes, %",
                "Accuracy of the study's probe of each block at the same noise level. Where plausibility is most decodable "
                "need not be where disturbing it matters most.",
                percent=True,
            ),
        ),
        tables=(
            Table(
                "Every way of making the clips again",
                ("made with", "change of the logit", "95 %", "change of the latents", "accuracy of the block's probe"),
                table,
                "The change of the latents, as they are inverted again, is relative to the clip's own; the autoencoder has its "
                "part in it where clips are encoded again.",
            ),
        ),
        conditional_on=("the study's probes and folds", "one draw of the disturbances", "scenes, which are resampled"),
        notes=notes,
        seeds={"intervention": config.seed},
    )  # fmt: skip


def _summary(outcome: Outcome) -> str:
    """The finding in words that follow from the numbers."""
    if not len(outcome.blocks):
        return ""
    deltas = outcome.delta[2:]
    most = int(np.argmax([e.value for e in deltas]))
    above = [int(b) for b, e in zip(outcome.blocks, deltas, strict=True) if e.low > 0]
    told = int(np.argmax([e.value for e in outcome.accuracy]))
    first = (
        f"Disturbing block {outcome.blocks[most]} moves the probe most ({deltas[most].value:+.3g}, 95 % "
        f"{deltas[most].low:+.3g} to {deltas[most].high:+.3g}); the interval lies above zero for {len(above)} of "
        f"{len(deltas)} blocks. The most decodable block is {told}."
    )
    correlation = outcome.correlation()
    if np.isfinite(correlation):
        first += f" Rank correlation of the two over blocks: {correlation:+.2f}."
    return first.replace("-", "−")
