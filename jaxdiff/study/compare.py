"""Studies of several models on the same clips, side by side: differences are paired over scenes."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes import statistics
from jaxdiff.probes.cross_validation import NESTED
from jaxdiff.probes.permutation import exchange_test, holm, permutation_test
from jaxdiff.report import probe_csv, report_run
from jaxdiff.report.study import Estimate, Grid, Group, Points, Row, Study, Table, percent
from jaxdiff.study.aggregate import Run, read_run
from jaxdiff.study.measures import METRICS, estimate_json, p_text
from jaxdiff.study.results import CATEGORY_NAMES, CHANCE
from jaxdiff.workdir import Workdir

CONDITIONS = f"in every run, {NESTED}; the same scenes are drawn for all runs. One trained network each"
COLUMNS = (
    "run",
    "minus",
    "source",
    "metric",
    "category",
    "value",
    "low",
    "high",
    "p",
    "p_holm",
    "given",  # what the interval is conditional on; result.json has it in full
    "clips",
    "scenes",
)
COMPARED = {"accuracy": "accuracy per clip", "pairwise": "pairs ranked right", "auc": METRICS["auc"]}


@dataclasses.dataclass(frozen=True)
class Model:
    """One run, of one source, its clips in the order that all runs share."""

    run: Run
    source: str

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def margins(self) -> np.ndarray:
        return self.run.data[f"margin.{self.source}"]

    @property
    def hits(self) -> np.ndarray:
        return self.run.hits(self.source)

    @property
    def labels(self) -> np.ndarray:
        return self.run.data[f"label.{self.source}"]

    @property
    def groups(self) -> np.ndarray:
        return self.run.data["groups"]

    @property
    def matched(self) -> np.ndarray:
        """The sets inside which pairs are compared."""
        return self.run.data.get("matched", self.groups)

    def estimates(self, seed: int) -> dict[str, Estimate]:
        """Metric -> value and interval; pairs and relative errors only where a set holds both labels."""
        given: dict[str, Any] = {"seed": seed, "conditional_on": NESTED}
        found = {"accuracy": Estimate(self.hits.mean(), *statistics.cluster_bootstrap(self.hits, self.groups, **given))}
        arguments = self.margins, self.labels, self.groups
        area = Estimate(statistics.auc(*arguments[:2]), *statistics.auc_interval(*arguments, **given))
        if paired(self):
            right, pairs = statistics.pairs_by_group(*arguments, self.matched)
            interval = statistics.pairwise_interval(*arguments, matched=self.matched, **given)
            found["pairwise"] = Estimate(float(right.sum() / pairs.sum()), *interval)
        found["auc"] = area
        if paired(self):
            error = statistics.relative_error(*arguments)
            found["relative_error"] = Estimate(error, *statistics.relative_error_interval(*arguments, **given))
        found["absolute_error"] = Estimate(1 - area.value, 1 - area.high, 1 - area.low)
        return found

    def grid(self) -> Grid | None:
        """The run's heatmap of this source, if it has one."""
        data = self.run.data
        if f"grid.{self.source}" not in data:
            return None
        rows, inputs = tuple(data[f"rows.{self.source}"].tolist()), int(data[f"inputs.{self.source}"])
        cells = data[f"grid.{self.source}"].astype(float).mean(-1)
        return Grid(self.name, cells, data["sigmas"], rows, inputs=inputs)


def paired(model: Model) -> bool:
    """Whether some set holds clips of both labels."""
    y, sets = model.labels, model.matched
    return bool(set(sets[y].tolist()) & set(sets[~y].tolist()))


def read_models(folders: Sequence[Path], source: str = "states") -> list[Model]:
    """The finished studies in these workdirs, which must be about the same clips.

    Raises
    ------
    MissingDataError : a folder is no finished study.
    ConfigError : fewer than two runs or one twice, a run did not probe `source` under the corrected protocol, or clips,
        labels or scenes differ.
    """
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"{len(folders)} runs to compare; give the workdirs of at least two studies, each once")
    short = len({folder.name for folder in folders}) == len(folders)
    models = [Model(read_run(folder, folder.name if short else str(folder)), source) for folder in folders]
    for model in models:
        known = model.run.data["sources"].tolist()
        if source not in known:
            raise ConfigError(
                f"{model.name} did not probe {source!r} under the corrected protocol; it has {', '.join(known)}"
            )
    return [models[0], *(dataclasses.replace(m, run=_aligned(m.run, models[0].run)) for m in models[1:])]


def _aligned(run: Run, first: Run) -> Run:
    """The run with its clips in the order of `first`; refuses other clips, labels or scenes."""
    names, own = first.data["names"].tolist(), run.data["names"].tolist()
    strangers = [name for name in own if name not in set(names)] or [name for name in names if name not in set(own)]
    if strangers or len(own) != len(names):
        raise ConfigError(
            f"{first.name} and {run.name} are not about the same clips: {len(names)} and {len(own)} of them, "
            f"{strangers[0]!r} in one alone. Compare studies of the same data set, with the same clips left out"
        )
    place = {name: i for i, name in enumerate(own)}
    order = np.array([place[name] for name in names])
    per_clip = {"names", "groups", "categories", "possible", "matched"}
    data = {
        key: value[..., order] if key in per_clip or key.startswith(("margin.", "label.", "grid.")) else value
        for key, value in run.data.items()
    }
    told = {"possible": "labels", "groups": "scenes", "categories": "categories", "matched": "matched sets"}
    for key, what in told.items():
        a, b = first.data.get(key, first.data["groups"]), data.get(key, data["groups"])
        differing = np.flatnonzero(a != b)
        if len(differing):
            at = int(differing[0])
            raise ConfigError(
                f"{first.name} and {run.name} give their clips different {what}: {names[at]!r} has {a[at]} and {b[at]}, "
                f"and {len(differing) - 1} more differ"
            )
    return dataclasses.replace(run, data=data)


@dataclasses.dataclass(frozen=True)
class Difference:
    """`first` minus `second`: metric of `COMPARED` -> difference and interval, and p of the accuracies' difference."""

    first: str
    second: str
    values: dict[str, Points]
    categories: dict[str, Points]
    p: float
    p_holm: float


def differences(models: Sequence[Model], seed: int = 0) -> list[Difference]:
    """Every two models, the earlier minus the later; p by exchanging their answers scene by scene, Holm over pairs."""
    found = []
    for a, b in itertools.combinations(models, 2):
        y, groups = a.labels, a.groups
        given: dict[str, Any] = {"seed": seed, "conditional_on": CONDITIONS}
        values = {"accuracy": _points(statistics.paired_difference(a.hits, b.hits, groups, **given))}
        if paired(a):
            (right, pairs), (other, _) = (statistics.pairs_by_group(m.margins, y, groups, m.matched) for m in (a, b))
            values["pairwise"] = _points(statistics.difference_of_sums(right - other, pairs, **given))
        values["auc"] = _points(statistics.auc_difference(a.margins, b.margins, y, groups, **given))
        categories = {}
        for category in np.unique(a.run.data["categories"]).tolist():
            at = a.run.data["categories"] == category
            categories[category] = _points(statistics.paired_difference(a.hits[at], b.hits[at], groups[at], **given))
        p = exchange_test(a.hits, b.hits, groups, seed=seed).p
        found.append(Difference(a.name, b.name, values, categories, p, p))
    adjusted = holm([difference.p for difference in found])
    return [dataclasses.replace(d, p_holm=float(p)) for d, p in zip(found, adjusted, strict=True)]


def _points(found: tuple[float, statistics.Interval]) -> Points:
    return Points(found[0], *found[1])


def above_chance(models: Sequence[Model], seed: int = 0) -> dict[str, tuple[float, float]]:
    """Of every model p of its accuracy with labels exchanged inside scenes, and Holm's adjusted over models."""
    tested = [m for m in models if paired(m)]
    p = [permutation_test(m.margins, m.labels, m.matched, seed=seed).p for m in tested]
    return {m.name: (a, float(b)) for m, a, b in zip(tested, p, holm(p), strict=True)}


def compare(models: Sequence[Model], seed: int = 0) -> tuple[Study, dict[str, Any], list[dict[str, Any]]]:
    """The report, result.json and the lines of compare.csv."""
    estimates = {m.name: m.estimates(seed) for m in models}
    chance, found = above_chance(models, seed), differences(models, seed)
    first = models[0]
    categories = sorted(set(first.run.data["categories"].tolist()))
    by_category = {
        m.name: statistics.by_category(m.margins, m.labels, m.groups, first.run.data["categories"], seed=seed)
        for m in models
    }
    clips, scenes = len(first.groups), len(set(first.groups.tolist()))
    study = Study(
        title=f"{len(models)} models on the same clips",
        summary=_sentence(estimates, found),
        facts={"models": str(len(models)), "clips": f"{clips} of {scenes} scenes", "read": first.source},
        rows=tuple(
            Row(m.name, m.name, estimates[m.name]["accuracy"], "states", pairwise=estimates[m.name].get("pairwise"),
                note=str(m.run.config.get("model", "")))
            for m in models
        ),
        chance=CHANCE,
        grids=tuple(grid for m in models if (grid := m.grid()) is not None),
        categories=tuple(
            Group(CATEGORY_NAMES.get(c, c), {n: Estimate(t[c][0], *t[c][1]) for n, t in by_category.items()})
            for c in categories
        ),
        protocols=_protocols(models, estimates),
        tables=(_pairs_table(found), _measures_table(estimates, chance), *_sources_table(models)),
        conditional_on=(CONDITIONS, "p values: the same; Holm's correction is over the pairs, and over the models"),
        notes=tuple(dict.fromkeys(note for m in models for note in m.run.result.get("notes", ()))),  # of their data
    )  # fmt: skip
    result: dict[str, Any] = {
        "clips": clips,
        "notes": list(study.notes),
        "scenes": scenes,
        "source": first.source,
        "models": {m.name: m.run.config.get("model") for m in models},
        "differences": {
            f"{d.first} - {d.second}": {
                **{metric: estimate_json(value) for metric, value in d.values.items()}, "p": d.p, "p_holm": d.p_holm
            }
            for d in found
        },
        "above_chance": {name: {"p": p, "p_holm": adjusted} for name, (p, adjusted) in chance.items()},
        "intervals": {"level": 0.95, "conditional_on": CONDITIONS},
        **{
            metric: {name: estimate_json(e[metric]) for name, e in estimates.items() if metric in e}
            for metric in ("accuracy", "pairwise", *METRICS)
        },
    }  # fmt: skip
    lines: list[dict[str, Any]] = []
    base = {"source": first.source, "category": "all", "clips": clips, "scenes": scenes}
    for name, table in estimates.items():
        lines += [{**base, "run": name, "metric": metric, **dataclasses.asdict(e)} for metric, e in table.items()]
        if name in chance:
            p, adjusted = chance[name]
            lines.append({**base, "run": name, "metric": "above_chance", "p": p, "p_holm": adjusted})
    for name, by in by_category.items():
        for category, (value, (low, high)) in by.items():
            entry = {"category": category, "metric": "accuracy", "value": value, "low": low, "high": high}
            lines.append({**base, "run": name, **entry})
    for d in found:
        pair = {**base, "run": d.first, "minus": d.second}
        for metric, value in d.values.items():
            tested = {"p": d.p, "p_holm": d.p_holm} if metric == "accuracy" else {}
            lines.append({**pair, "metric": metric, **dataclasses.asdict(value), **tested})
        for category, value in d.categories.items():
            lines.append({**pair, "category": category, "metric": "accuracy", **dataclasses.asdict(value)})
    return study, result, [{**line, "given": "fits, choices"} if "low" in line else line for line in lines]


def _sentence(estimates: dict[str, dict[str, Estimate]], found: Sequence[Difference]) -> str:
    """What can be said: who is first, and which differences are clear of 0 after Holm's correction."""
    order = sorted(estimates, key=lambda name: -estimates[name]["accuracy"].value)
    told = ", ".join(f"{name} {percent(estimates[name]['accuracy'].value)}" for name in order)
    clear = [d for d in found if d.p_holm <= 0.05]
    if not clear:
        return f"Clips told right: {told}. No two models differ by more than scenes explain (Holm-corrected p > .05)."
    parts = []
    for d in clear:
        value = d.values["accuracy"].value
        ahead, behind = (d.first, d.second) if value > 0 else (d.second, d.first)
        parts.append(f"{ahead} is {100 * abs(value):.1f} points ahead of {behind}")
    return f"Clips told right: {told}. With Holm's correction, {'; '.join(parts)}."


def _pairs_table(found: Sequence[Difference]) -> Table:
    metrics = [metric for metric in COMPARED if metric in found[0].values]
    rows = [
        (d.first, d.second, *(d.values[metric] for metric in metrics), p_text(d.p), p_text(d.p_holm)) for d in found
    ]
    return Table(
        "Differences",
        ("run", "minus", *(COMPARED[metric] for metric in metrics), "p", "p, Holm"),
        tuple(rows),
        f"In points, with 95 % intervals over scenes, {CONDITIONS}. p: of the difference in accuracy, two-sided, when the "
        "answers of the two models are exchanged in every scene by lot; Holm's correction is over all pairs.",
    )


def _measures_table(estimates: dict[str, dict[str, Estimate]], chance: dict[str, tuple[float, float]]) -> Table:
    metrics = [metric for metric in METRICS if all(metric in table for table in estimates.values())]
    rows = []
    for name, table in estimates.items():
        tested = tuple(map(p_text, chance[name])) if name in chance else ("–", "–")
        rows.append((name, *(table[metric] for metric in metrics), *tested))
    return Table(
        "Statistics of every model",
        ("run", *(METRICS[metric] for metric in metrics), "p, above chance", "p, Holm"),
        tuple(rows),
        "p: share of labelings, exchanged inside scenes, that are told at least as well; Holm's correction is over the "
        f"models. Intervals are 95 %, over scenes, and conditional on {NESTED}.",
    )


def _sources_table(models: Sequence[Model]) -> list[Table]:
    """What else the runs probed: controls, comparisons, baselines."""
    told: dict[str, str] = {}
    for model in models:
        told |= {key: entry["name"] for key, entry in model.run.result["sources"].items()}
    rows = []
    for key, name in told.items():
        headlines = [m.run.result["headline"].get(key) for m in models]
        rows.append((name, *(Estimate(np.nan) if h is None or h["value"] is None else _entry(h) for h in headlines)))
    caption = f"Accuracy per clip of everything that the runs probed. Intervals are 95 %, over scenes, given {NESTED}."
    return [Table("Controls of every run", ("source", *(m.name for m in models)), tuple(rows), caption)] if rows else []


def _entry(entry: dict[str, float | None]) -> Estimate:
    return Estimate(*(np.nan if (value := entry[k]) is None else value for k in ("value", "low", "high")))


def _protocols(models: Sequence[Model], estimates: dict[str, dict[str, Estimate]]) -> tuple[Group, ...]:
    """The published protocol's numbers where every run has them, beside the corrected accuracies."""
    published = {m.name: m.run.result["protocols"].get("published", {}).get(m.source) for m in models}
    if not all(published.values()):
        return ()
    names = {
        "best_block": ("published, best block of each split", "Chosen on the fold that is reported: optimistic."),
        "mean_of_blocks": ("published, mean of blocks", "Nothing is chosen."),
    }
    groups = [
        Group(title, {name: Estimate(entry[key]) for name, entry in published.items() if entry}, note)
        for key, (title, note) in names.items()
    ]
    corrected = {name: table["accuracy"] for name, table in estimates.items()}
    return (*groups, Group("corrected", corrected, f"95 % intervals over scenes, conditional on {NESTED}."))


def run_compare(folders: Sequence[Path], source: str, seed: int, workdir: Path) -> None:
    """Read the studies, write result.json, compare.csv and report.html."""
    models = read_models(folders, source)
    # A study that was run again is another input: the workdir then refuses instead of keeping the old answer.
    digests = [[str(folder), hashlib.sha256((folder / "DONE").read_bytes()).hexdigest()] for folder in folders]
    with Workdir(workdir, {"runs": digests, "source": source, "seed": seed}) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        study, result, lines = compare(models, seed)
        work.write_result(result)
        probe_csv(workdir / "compare.csv", lines, COLUMNS)
        report_run(work, dataclasses.replace(study, seeds={"bootstrap": seed}))
        work.finish(("result.json", "compare.csv"))
    print(study.summary)
    print(f"-> {workdir / 'report.html'}")
