"""Statistics of several runs together: tests on all of their scenes at once, and what every run measured by itself."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.probes.cross_validation import NESTED
from jaxdiff.probes.permutation import CROSSED
from jaxdiff.report.study import Estimate, Group, Row, Table, percent
from jaxdiff.study.measures import METRICS, p_text

if TYPE_CHECKING:
    from jaxdiff.study.aggregate import Run

DRAWS = 2000
CAPACITY = {
    "training_accuracy": "training clips told right, true labels",
    "memorised_accuracy": "training clips told right, labels exchanged inside scenes",
    "code_bits_per_clip": "prequential code, bits a clip",
    "control_task": "control task: random labels of a recurring attribute",
    "selectivity": "selectivity: task minus control task, points",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """What one run said: `signs` [cells, n] in [-1, 1] of clips with `labels` [n] bool in the scenes `groups` [n].

    Runs on one `world` are about the same clips, in the same order.
    """

    world: str
    signs: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def exchanged(groups: np.ndarray, draws: int, seed: tuple[int, int]) -> np.ndarray:
    """Positions [draws, n] of clips dealt anew inside their groups."""
    rng, codes = np.random.default_rng(seed), np.unique(groups, return_inverse=True)[1]
    base, places = np.argsort(codes, kind="stable"), np.empty((draws, len(codes)), np.int64)
    for start in range(0, draws, 200):
        part = places[start : start + 200]
        part[:, base] = np.argsort(codes + rng.random((len(part), len(codes))), axis=1)
    return places


def null_together(parts: Sequence[Part], *, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of every cell over all runs [cells], and with labels exchanged inside scenes [draws, cells].

    Labels are exchanged alike in all runs on a world: what two networks say of the same clips is not independent.
    """
    total = sum(len(part.labels) for part in parts)
    observed, null = np.zeros(len(parts[0].signs)), np.zeros((draws, len(parts[0].signs)))
    for number, world in enumerate(dict.fromkeys(part.world for part in parts)):
        mine = [part for part in parts if part.world == world]
        places = exchanged(mine[0].groups, draws, (seed, number))
        for part in mine:
            y = np.where(part.labels, 1, -1).astype(np.float32)
            observed += part.signs @ y
            null += y[places] @ part.signs.T.astype(np.float32)
    return 0.5 + observed / (2 * total), 0.5 + null / (2 * total)


@dataclasses.dataclass(frozen=True)
class Tested:
    """Tests of one source over all runs.

    permutation : p of its accuracy. cells, above, threshold : how many cells its heatmap has, how many of them pass the
    family-wise test, and the accuracy that this takes; None where it has no heatmap.
    """

    permutation: float
    cells: int | None = None
    above: int | None = None
    threshold: float | None = None


def tested(runs: Sequence["Run"], key: str, seed: int) -> Tested | None:
    """The tests of a source; None where no scene holds both labels, so that nothing can be exchanged."""
    if any(f"{key}.permutation_p" not in run.result.get("statistics", {}) for run in runs):
        return None

    def part(run: "Run", signs: np.ndarray) -> Part:
        return Part(run.world, signs, run.data[f"label.{key}"], run.data.get("matched", run.data["groups"]))

    chosen = [part(run, np.sign(run.data[f"margin.{key}"].astype(np.float32)).mean(0)[None]) for run in runs]
    observed, null = null_together(chosen, seed=seed)
    p = float((1 + np.sum(null >= observed - 1e-6)) / (1 + DRAWS))
    if any(f"grid.{key}" not in run.data for run in runs):
        return Tested(p)
    cells = []
    for run in runs:
        hits = run.data[f"grid.{key}"][int(run.data[f"inputs.{key}"]) :].astype(np.float32)
        hits = hits.reshape(-1, hits.shape[-1])
        cells.append(part(run, (2 * hits - 1) * np.where(run.data[f"label.{key}"], 1, -1)))
    observed, null = null_together(cells, seed=seed)
    best = np.sort(0.5 + CROSSED * (null.max(1) - 0.5))[::-1]  # see `max_statistic`
    adjusted = (1 + (best[None] >= observed[:, None] - 1e-6).sum(1)) / (1 + DRAWS)
    threshold = float(best[int(0.05 * (1 + DRAWS)) - 1])
    return Tested(p, len(observed), int(np.sum(adjusted <= 0.05)), threshold)


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number of every run: mean, lowest and highest."""

    mean: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, entries: Sequence[Any]) -> "Spread | None":
        """Of entries of result.json, numbers or estimates; None where a run has none."""
        values = [entry["value"] if isinstance(entry, Mapping) else entry for entry in entries]
        if any(value is None for value in values):
            return None
        return cls(float(np.mean(values)), min(values), max(values))

    def text(self, form: str = "percent") -> str:
        """Mean (lowest to highest), in percent, signed points, or as they are."""
        if form == "percent":
            return f"{percent(self.mean)} ({100 * self.lowest:.1f} to {100 * self.highest:.1f})"
        if form == "points":
            ends = f"{100 * self.mean:+.1f} ({100 * self.lowest:+.1f} to {100 * self.highest:+.1f})"
            return ends.replace("-", "−")
        return f"{self.mean:.3f} ({self.lowest:.3f} to {self.highest:.3f})"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of every source: `tests` (`tested`) and `spreads` over runs of each metric of `METRICS`; and of the states
    `capacity`, spreads of the entries of `CAPACITY`."""

    tests: Mapping[str, Tested | None]
    spreads: Mapping[str, Mapping[str, Spread | None]]
    capacity: Mapping[str, Spread | None]

    @classmethod
    def of(cls, runs: Sequence["Run"], keys: Sequence[str], seed: int) -> "Statistics":
        """Of the sources `keys`, which every run has."""
        measured, able = ([run.result.get(name, {}) for run in runs] for name in ("statistics", "capacity"))
        return cls(
            {key: tested(runs, key, seed) for key in keys},
            {key: {m: Spread.of([found.get(f"{key}.{m}") for found in measured]) for m in METRICS} for key in keys},
            {name: Spread.of([found.get(name) for found in able]) for name in CAPACITY},
        )

    def json(self) -> dict[str, Any]:
        """For result.json: statistics by "source.metric", and the capacity."""
        flat: dict[str, Any] = {}
        for key, spreads in self.spreads.items():
            flat |= {f"{key}.{m}": dataclasses.asdict(s) for m, s in spreads.items() if s is not None}
            found = self.tests[key]
            if found is not None:
                flat[f"{key}.permutation_p"] = found.permutation
                if found.cells is not None:
                    flat[f"{key}.cells"], flat[f"{key}.cells_above_threshold"] = found.cells, found.above
                    flat[f"{key}.max_statistic_threshold"] = found.threshold
        able = {name: dataclasses.asdict(s) for name, s in self.capacity.items() if s is not None}
        return {"statistics": flat} | ({"capacity": able} if able else {})

    def tables(self, names: Mapping[str, str]) -> tuple[Table, ...]:
        """As tables; `names` of the sources."""
        rows = []
        for key, name in names.items():
            found = self.tests[key]
            cells: tuple[Any, ...] = ("–", "–", "–")
            if found is not None:
                cells = (p_text(found.permutation), "–", "–")
                if found.cells is not None and found.threshold is not None:
                    cells = (cells[0], f"{found.above} of {found.cells}", Estimate(found.threshold))
            spreads = (self.spreads[key][m] for m in METRICS)
            shown = ("–" if s is None else Estimate(s.mean, s.lowest, s.highest) for s in spreads)
            rows.append((name, *shown, *cells))
        made = [
            Table(
                "Statistics of every source",
                (
                    "source", *METRICS.values(), "p, permutation", "cells above chance, all tested at once",
                    "accuracy that this takes",
                ),
                tuple(rows),
                "AUC and errors: mean over runs, and beside it the lowest and the highest run, which are no interval. Tests are of all runs together: "
                "labels are exchanged inside scenes, alike in all runs on a world. p: share of labelings that are told at "
                "least as well. Cells above chance: those of the heatmap that beat the best cell of nineteen in twenty such "
                f"labelings. Tests are conditional on {NESTED}.",
            )
        ]  # fmt: skip
        forms = {"code_bits_per_clip": "number", "selectivity": "points"}
        able = tuple((CAPACITY[n], s.text(forms.get(n, "percent"))) for n, s in self.capacity.items() if s is not None)
        if able:
            made.append(
                Table(
                    "How much the probes can do with any labels", ("", "states"), able,
                    "Mean over runs, and the lowest and the highest of them. A code of 1 bit a clip knows nothing.",
                )
            )  # fmt: skip
        return tuple(made)


def protocols_together(runs: Sequence["Run"], table: Sequence[Row]) -> tuple[Group, ...]:
    """Means over runs of the published protocol's numbers, beside the corrected ones."""
    published = [run.result["protocols"].get("published") for run in runs]
    if not all(published):
        return ()
    rows = {row.key: row.estimate for row in table}
    keys = [key for key in rows if key in published[0]]

    def group(name: str, entry: str, note: str) -> Group:
        return Group(name, {k: Estimate(float(np.mean([p[k][entry] for p in published]))) for k in keys}, note)

    told: tuple[Group, ...] = ()
    if all("best_block" in p[k] for p in published for k in keys):
        told = (
            group(
                "published, best block of each split", "best_block",
                "Among the blocks after half of the steps, chosen on the fold that is reported: optimistic. Mean over runs.",
            ),
            group("published, mean of blocks", "mean_of_blocks", "Nothing is chosen. Mean over runs."),
        )  # fmt: skip
    return (
        *told,
        group(
            "published, best cell", "best",
            "The cell is chosen on the fold that is reported, which is optimistic; shuffled labels show by how much. "
            "Mean over runs.",
        ),
        group("published, mean of cells", "mean", "The same probes averaged over all cells. Mean over runs."),
        Group("corrected", {key: rows[key] for key in keys}, "Everything is chosen in inner folds."),
    )  # fmt: skip
