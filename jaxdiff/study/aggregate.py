"""Several finished studies as one answer: every pair of training seed and world a line, intervals over scenes and seeds."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.probes import statistics
from jaxdiff.report import probe_csv, report_run
from jaxdiff.report.study import Curve, Estimate, Grid, Group, Row, Study
from jaxdiff.study.predictions import FILE, unpack
from jaxdiff.study.results import (
    CATEGORY_NAMES,
    CHANCE,
    KINDS,
    MODEL_NAMES,
    SURPRISE_LEVEL,
    checks,
    compared,
    estimate_json,
    heatmap_order,
)
from jaxdiff.study.summary import write_summary
from jaxdiff.study.together import Statistics, protocols_together
from jaxdiff.study.two_level import Crossing, two_level
from jaxdiff.workdir import Workdir

# What may differ between the studies; all else decides what a number means and must be equal.
FREE = {"model", "structureless", "encoders", "seed", "world_seed", "data_dir"}
COLUMNS = (
    "run",
    "model",
    "world",
    "protocol",
    "source",
    "metric",
    "category",
    "sigma",
    "value",
    "low",
    "high",
    "scenes",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished study: its configuration, result.json, and predictions.npz."""

    name: str
    config: dict[str, Any]
    result: dict[str, Any]
    data: dict[str, np.ndarray]

    @property
    def world(self) -> str:
        """What names its scenes."""
        place = self.config["data_dir"]
        if self.config["dataset"] != "world":
            return f"{self.config['dataset']} {place}"
        return f"world {self.config['world_seed']}" + (f" in {place}" if place else "")

    def per_scene(self, values: np.ndarray) -> np.ndarray:
        """Values [..., n] of clips, summed over each scene: [..., G] in the order of the scenes' names."""
        _, codes = np.unique(self.data["groups"], return_inverse=True)
        flat = np.asarray(values, float).reshape(-1, len(codes))
        return np.stack([np.bincount(codes, row) for row in flat]).reshape(*np.shape(values)[:-1], -1)

    def hits(self, key: str) -> np.ndarray:
        """Share of repeats in which a source told each clip right, [n]."""
        return statistics.hits(self.data[f"margin.{key}"], self.data[f"label.{key}"]).mean(0)

    def clips(self) -> np.ndarray:
        """Clips of each scene, [G]."""
        return self.per_scene(np.ones(len(self.data["groups"])))

    def estimate(self, key: str) -> Estimate:
        """The run's own accuracy of a source, with its interval over scenes."""
        return _estimate(self.result["headline"][key])


def _estimate(entry: dict[str, float | None]) -> Estimate:
    return Estimate(*(math.nan if entry[k] is None else float(entry[k]) for k in ("value", "low", "high")))  # type: ignore[arg-type]


def read_run(folder: Path, name: str) -> Run:
    """The finished study in `folder`; raises MissingDataError where it is none, ConfigError where it is one of numbers."""
    absent = [file for file in ("DONE", "config.json", "result.json", FILE) if not (folder / file).exists()]
    if absent:
        raise MissingDataError(f"{folder} is no finished study: {', '.join(absent)} missing; run experiments.study")
    config, result = (json.loads((folder / file).read_bytes()) for file in ("config.json", "result.json"))
    if result.get("task") == "regression":
        raise ConfigError(
            f"{folder} is a study of measured numbers; this compares studies of possible and impossible clips"
        )
    return Run(name, config, result, unpack(folder / FILE))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The studies in their workdirs.

    Raises
    ------
    MissingDataError : a folder is no finished study.
    ConfigError : none or the same one twice, settings or sources differ, or a world's scenes do.
    """
    if not folders or len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"--studies names {len(folders)} workdirs; give at least one, and each once")
    short = len({folder.name for folder in folders}) == len(folders)
    runs = [read_run(folder, folder.name if short else str(folder)) for folder in folders]
    first = runs[0]
    scenes: dict[str, Run] = {}
    for run in runs:
        keys = run.config.keys() | first.config.keys()
        differing = sorted(k for k in keys - FREE if run.config.get(k) != first.config.get(k))
        if differing:
            told = "; ".join(f"{k}: {first.config.get(k)} and {run.config.get(k)}" for k in differing)
            raise ConfigError(f"{first.name} and {run.name} are not the same study: {told}")
        if run.data["sources"].tolist() != first.data["sources"].tolist():
            raise ConfigError(f"{first.name} and {run.name} probed different sources, so they cannot be pooled")
        other = scenes.setdefault(run.world, run)
        if not np.array_equal(run.data["names"], other.data["names"]):
            raise ConfigError(
                f"{other.name} and {run.name} used different clips of {run.world}; skip none, or the same"
            )
    return runs


@dataclasses.dataclass(frozen=True)
class Pool:
    """Runs and how they are drawn."""

    runs: Sequence[Run]
    seed: int

    @property
    def crossing(self) -> Crossing:
        return Crossing(tuple(str(r.config["model"]) for r in self.runs), tuple(r.world for r in self.runs))

    def ratio(
        self, sums: Callable[[Run], np.ndarray], sizes: Callable[[Run], np.ndarray], least: float = 0.0
    ) -> list[Estimate]:
        """`two_level` of per-scene sums [K, G] over sizes [G]; an entry that is nan in any run is nan.

        Widened intervals are cut off where no value can be: below `least` and above 1. Where all scenes of all runs say the same,
        a bootstrap says nothing: the interval is as wide as Wilson's with scenes for trials, as in a single study.
        """
        parts, counts = [np.atleast_2d(sums(run)) for run in self.runs], [sizes(run) for run in self.runs]
        known = np.all([np.isfinite(part).all(1) for part in parts], axis=0)
        filled = [np.nan_to_num(part) for part in parts]
        shares = [part[:, size > 0] / size[size > 0] for part, size in zip(filled, counts, strict=True)]
        agreed = np.ptp(np.concatenate(shares, axis=1), axis=1) < 1e-9
        scenes = sum({run.world: int((size > 0).sum()) for run, size in zip(self.runs, counts, strict=True)}.values())

        def told(found: Estimate, known: bool, agreed: bool) -> Estimate:
            value = found.value
            if not known:
                return Estimate(math.nan)
            if not agreed:
                return Estimate(value, max(found.low, least), min(found.high, 1.0))
            if least < 0:  # a difference
                most = statistics.wilson_interval(0, scenes)[1]
                return Estimate(value, value - most, value + most)
            return Estimate(value, *statistics.wilson_interval(value * scenes, scenes))

        found = two_level(self.crossing, filled, counts, seed=self.seed)
        return [told(*each) for each in zip(found, known, agreed, strict=True)]

    def accuracy(self, key: str, category: str | None = None) -> Estimate:
        """Accuracy of a source, of one category's clips where one is named."""

        def keep(run: Run) -> np.ndarray:
            everywhere = np.ones(len(run.data["groups"]))
            return everywhere if category is None else (run.data["categories"] == category).astype(float)

        return self.ratio(lambda r: r.per_scene(r.hits(key) * keep(r)), lambda r: r.per_scene(keep(r)))[0]

    def gap(self, key: str) -> Estimate:
        """Accuracy of the states (or of the read that it is a control of) minus that of a source, on the same draws."""
        read = key.partition(".")[2]
        of = read if read in self.runs[0].data["sources"] else "states"
        return self.ratio(lambda r: r.per_scene(r.hits(of) - r.hits(key)), Run.clips, least=-1.0)[0]

    def pairwise(self, key: str) -> Estimate:
        """Pairs of a scene ranked right by a source's margins."""

        def pairs(run: Run) -> tuple[np.ndarray, np.ndarray]:
            return statistics.pairs_by_group(run.data[f"margin.{key}"], run.data[f"label.{key}"], run.data["groups"])

        return self.ratio(lambda r: pairs(r)[0], lambda r: pairs(r)[1])[0]

    def grid(self, key: str) -> Grid:
        """Heatmap of a model's cells over all runs."""
        data = self.runs[0].data
        hits = data[f"grid.{key}"]
        found = self.ratio(lambda r: r.per_scene(r.data[f"grid.{key}"].reshape(-1, hits.shape[-1])), Run.clips)
        value, low, high = (
            np.array([getattr(e, name) for e in found]).reshape(hits.shape[:2]) for name in ("value", "low", "high")
        )
        title, kind = data[f"title.{key}"].tolist()
        return Grid(
            title, value, data["sigmas"], tuple(data[f"rows.{key}"].tolist()), kind=kind,
            inputs=int(data[f"inputs.{key}"]), low=low, high=high,
        )  # fmt: skip

    def surprise(self, model: str) -> Curve:
        """Pairs whose impossible clip has the higher denoising loss, over noise levels."""

        def pairs(run: Run) -> tuple[np.ndarray, np.ndarray]:
            y, groups = run.data["possible"], run.data["groups"]
            both = [statistics.pairs_by_group(-column, y, groups) for column in run.data[f"surprise.{model}"].T]
            return np.stack([right for right, _ in both]), both[0][1]

        found = self.ratio(lambda r: pairs(r)[0], lambda r: pairs(r)[1])
        value, low, high = (np.array([getattr(e, name) for e in found]) for name in ("value", "low", "high"))
        levels = self.runs[0].data[f"levels.{model}"]
        return Curve(MODEL_NAMES.get(model, model), levels, value, low, high, kind=KINDS.get(model, "states"))


def spread(runs: Sequence[Run], key: str) -> tuple[float, float]:
    """Lowest and highest accuracy of a source over the runs."""
    values = [run.estimate(key).value for run in runs]
    return min(values), max(values)


def aggregate(runs: Sequence[Run], seed: int = 0, found: Statistics | None = None) -> Study:
    """The report of all runs together; `found` are their statistics, where they are known already."""
    pool = Pool(runs, seed)
    first = runs[0]
    keys = first.data["sources"].tolist()
    found = Statistics.of(runs, keys, seed) if found is None else found
    told = first.result["sources"]
    table = []
    for key in keys:
        low, high = spread(runs, key)
        table.append(
            Row(
                key,
                told[key]["name"],
                pool.accuracy(key),
                told[key]["kind"],
                pairwise=pool.pairwise(key),
                gap=None if key == "states" else pool.gap(key),
                note="; ".join(filter(None, (told[key]["note"], f"runs {100 * low:.1f}–{100 * high:.1f}\u00a0%"))),
            )
        )
    listed = [row.key for row in table if compared(row.key, row.kind)]
    categories = sorted(set(first.data["categories"].tolist()))
    models = [name.removeprefix("surprise.") for name in first.data if name.startswith("surprise.")]
    crossing = pool.crossing
    drawn = {n[5:]: str(first.data[f"title.{n[5:]}"][1]) for n in first.data if n.startswith("grid.")}
    return Study(
        title=f"Is plausibility linearly decodable? {len(runs)} runs together",
        facts={
            "runs": str(len(runs)),
            "training seeds": str(crossing.seeds),
            "worlds": str(crossing.worlds),
            "scenes": str(sum(run.result["scenes"] for run in {run.world: run for run in runs}.values())),
        },
        rows=tuple(table),
        chance=CHANCE,
        checks=checks(table),
        grids=tuple(pool.grid(key) for key in heatmap_order(drawn)),
        categories=tuple(
            Group(CATEGORY_NAMES.get(c, c), {key: pool.accuracy(key, c) for key in listed}) for c in categories
        ),
        protocols=protocols_together(runs, table),
        replicates=tuple(Group(run.name, {key: run.estimate(key) for key in listed}) for run in runs),
        surprise=tuple(pool.surprise(model) for model in models),
        tables=found.tables({row.key: row.name for row in table}),
        conditional_on=(
            "the folds and the cells that the inner folds chose",
            "the autoencoder and the settings, which all runs share",
            crossing.caveat(),
            "bars in the figure of every run are that run's own: over its scenes only",
        ),
        notes=(
            *dict.fromkeys(note for run in runs for note in run.result.get("notes", ())),
            f"Intervals here are over scenes and seeds together: {crossing.caveat()}.",
        ),
    )


def result_json(study: Study, runs: Sequence[Run], crossing: Crossing, found: Statistics) -> dict[str, Any]:
    """result.json of the runs together; `headline` has the form that a single study's has."""
    result: dict[str, Any] = {
        "headline": study.headline(),
        "range": {row.key: dict(zip(("lowest", "highest"), spread(runs, row.key), strict=True)) for row in study.rows},
        "gaps": {row.key: estimate_json(row.gap) for row in study.rows if row.gap},
        "pairwise": {row.key: estimate_json(row.pairwise) for row in study.rows if row.pairwise},
        "checks": {check.name: check.met for check in study.checks},
        "categories": {g.name: {k: estimate_json(e) for k, e in g.values.items()} for g in study.categories},
        "protocols": {g.name: {k: estimate_json(e) for k, e in g.values.items()} for g in study.protocols},
        "replicates": [
            {
                "run": run.name,
                "model": run.config["model"],
                "structureless": run.config["structureless"],
                "encoders": run.config.get("encoders", []),
                "world": run.world,
                "headline": run.result["headline"],
                "scenes": run.result["scenes"],
            }
            for run in runs
        ],
        "clips": sum(run.result["clips"] for run in runs),
        "runs": len(runs),
        "training_seeds": crossing.seeds,
        "worlds": crossing.worlds,
        "intervals": crossing.caveat(),
        **found.json(),
    }
    if study.surprise:
        result["surprise"] = {}
        for curve in study.surprise:
            at = int(np.argmin(np.abs(curve.x - SURPRISE_LEVEL)))
            ends = (math.nan if part is None else float(part[at]) for part in (curve.low, curve.high))
            result["surprise"][curve.name] = estimate_json(Estimate(float(curve.y[at]), *ends))
            result["surprise"]["sigma"] = float(curve.x[at])
    return result


def csv_rows(study: Study, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every run's numbers and those of all together (run "all"), one a line."""
    lines: list[dict[str, Any]] = []

    def add(estimate: Estimate | None, **rest: Any) -> None:
        if estimate is not None:
            lines.append({"protocol": "corrected", "category": "all", **dataclasses.asdict(estimate), **rest})

    for run in runs:
        place = {"run": run.name, "model": run.config["model"], "world": run.world, "scenes": run.result["scenes"]}
        for key in run.data["sources"].tolist():
            add(run.estimate(key), **place, source=key, metric="accuracy")
        for key, entry in run.result["protocols"].get("published", {}).items():
            for metric in ("best", "mean"):
                add(Estimate(entry[metric]), **place, protocol="published", source=key, metric=f"{metric}_accuracy")
    for row in study.rows:
        for metric, estimate in (("accuracy", row.estimate), ("pairwise", row.pairwise), ("gap", row.gap)):
            add(estimate, run="all", source=row.key, metric=metric)
    for group in study.categories:
        for key, estimate in group.values.items():
            add(estimate, run="all", source=key, metric="accuracy", category=group.name)
    for curve in study.surprise:
        ends = [np.full(len(curve.x), np.nan) if part is None else part for part in (curve.low, curve.high)]
        for sigma, value, low, high in zip(curve.x, curve.y, *ends, strict=True):
            add(
                Estimate(value, low, high), run="all", model=curve.name, protocol=None, source="surprise", sigma=sigma,
                metric="pairwise",
            )  # fmt: skip
    return lines


def run_aggregate(studies: Sequence[Path], seed: int, workdir: Path) -> None:
    """Read the studies, write result.json, aggregate.csv, report.html and summary.md."""
    runs = read_runs(studies)
    # A study that was run again is another input: the workdir then refuses instead of keeping the old answer.
    digests = {str(folder): hashlib.sha256((folder / "DONE").read_bytes()).hexdigest() for folder in studies}
    with Workdir(workdir, {"studies": digests, "seed": seed}) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        found = Statistics.of(runs, runs[0].data["sources"].tolist(), seed)
        study = aggregate(runs, seed, found)
        result = result_json(study, runs, Pool(runs, seed).crossing, found)
        work.write_result(result)
        probe_csv(workdir / "aggregate.csv", csv_rows(study, runs), COLUMNS)
        report_run(work, dataclasses.replace(study, seeds={"bootstrap": seed}))
        write_summary(work, study, result, studies)
        work.finish(("result.json", "aggregate.csv"))
    for key, entry in result["headline"].items():
        if key != "chance":
            ends = result["range"][key]
            print(
                f"{key:>14}  {100 * entry['value']:5.1f} %  ({100 * entry['low']:.1f}-{100 * entry['high']:.1f})"
                f"  runs {100 * ends['lowest']:.1f}-{100 * ends['highest']:.1f}"
            )
    print(f"-> {workdir / 'report.html'}")
