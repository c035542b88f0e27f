"""A study whose clips carry numbers instead of labels: R2 of every source, its tables, files and report."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.datasets import Dataset
from jaxdiff.pipeline import Pipeline
from jaxdiff.probes.regression import RegressionResult, nested_ridge, r2_difference, shuffle_targets
from jaxdiff.progress import progress
from jaxdiff.report import probe_csv, report_run
from jaxdiff.report.study import Curve, Estimate, Panel, Study, Table
from jaxdiff.study.analysis import Protocol, Source
from jaxdiff.study.batches import Prompts
from jaxdiff.study.features import place_columns
from jaxdiff.study.inversion import measure, noise_measures, summary
from jaxdiff.study.results import estimate_json
from jaxdiff.workdir import Workdir

if TYPE_CHECKING:
    from jaxdiff.study.config import StudyConfig

FILE = "predictions.npz"
MAIN = "states"

MEANING = (
    "R2 = 1 - squared error / squared distance from the mean of the clips that were fitted on, over held-out clips: 1 is "
    "exact, 0 is what that mean gives, and it can be negative. 95 % intervals over groups. Cell, pooling and penalty of a "
    "ridge regression are chosen in inner folds, for each target by itself."
)
SHUFFLED = "targets dealt to other clips"


@dataclasses.dataclass(frozen=True)
class TargetAnswer:
    """A source, and how well every target is read from it."""

    source: Source
    result: RegressionResult

    def estimate(self, target: str) -> Estimate:
        return Estimate(self.result.r2[target], *self.result.interval[target])


def analyse_targets(sources: Sequence[Source], data: Dataset, protocol: Protocol) -> dict[str, TargetAnswer]:
    """Nested ridge regression of every source; key -> TargetAnswer."""
    groups = np.array([clip.group for clip in data.clips])
    answers = {}
    with progress("probe", len(sources), unit="sources") as task:
        for source in sources:
            targets = dict(data.targets)
            if source.shuffled:
                source = dataclasses.replace(source, name="shuffled targets", note=SHUFFLED)
                targets = shuffle_targets(targets, seed=protocol.seed)
            answers[source.key] = TargetAnswer(
                source,
                nested_ridge(
                    source.features.arrays,
                    targets,
                    groups,
                    outer=protocol.outer,
                    inner=protocol.inner,
                    repeats=protocol.repeats,
                    seed=protocol.seed,
                ),
            )
            task.advance()
    return answers


def gaps(answers: Mapping[str, TargetAnswer], seed: int) -> dict[str, dict[str, Estimate]]:
    """R2 of the states minus that of every other source on the same clips and targets; source -> target -> Estimate."""
    states = answers[MAIN].result
    return {
        key: {
            name: Estimate(value, *ends)
            for name, (value, ends) in r2_difference(states, answer.result, seed=seed).items()
        }
        for key, answer in answers.items()
        if key != MAIN and not answer.source.shuffled
    }


def target_result(answers: Mapping[str, TargetAnswer], data: Dataset, seed: int) -> dict[str, Any]:
    """The part of result.json that the probes determine; `headline` has an entry "<source>.<target>" each."""
    listed = {key: answer for key, answer in answers.items() if answer.source.listed}
    return {
        "task": "regression",
        "metric": "r2",
        "targets": dict(data.units),
        "headline": {
            f"{key}.{name}": estimate_json(answer.estimate(name))
            for key, answer in listed.items()
            for name in data.targets
        },
        "gaps": {
            f"{key}.{name}": estimate_json(gap)
            for key, found in gaps(listed, seed).items()
            for name, gap in found.items()
        },
        "sources": {
            key: {"name": a.source.name, "kind": a.source.kind, "note": a.source.note} for key, a in listed.items()
        },
    }


def target_rows(answers: Mapping[str, TargetAnswer], clips: int, groups: int) -> list[dict[str, Any]]:
    """probe.csv: metric "r2.<target>" of every source, of every cell of it, and what the folds chose."""
    lines: list[dict[str, Any]] = []
    for answer in answers.values():
        source, result = answer.source, answer.result
        base = {
            "protocol": "corrected", "model": source.model, "source": source.key, "category": "all", "clips": clips,
            "scenes": groups,
        }  # fmt: skip
        candidates = source.features.candidates
        for t, name in enumerate(result.targets):
            found = answer.estimate(name)
            metric = f"r2.{name}"
            lines.append({**base, "metric": metric, "value": found.value, "low": found.low, "high": found.high})
            lines += [
                {
                    **base, **place_columns(candidates[c.name][c.candidate]), "metric": f"chosen.{name}", "repeat": c.repeat,
                    "fold": c.fold, "penalty": c.penalty,
                }
                for c in result.chosen
                if c.target == name
            ]  # fmt: skip
            for array, grid in result.grid.items():
                for candidate, value, (low, high) in zip(
                    candidates[array], grid[:, t], result.grid_interval[array][:, t], strict=True
                ):
                    lines.append(
                        {**base, **place_columns(candidate), "metric": metric, "value": value, "low": low, "high": high}
                    )
    return lines


def pack_targets(answers: Mapping[str, TargetAnswer], data: Dataset) -> bytes:
    """predictions.npz: `names`, `groups` [n], `targets` [T], `values` [n, T], `prediction.<source>` [R, n, T]."""
    file = io.BytesIO()
    np.savez_compressed(
        file,
        allow_pickle=False,
        names=np.array([clip.name for clip in data.clips]),
        groups=np.array([clip.group for clip in data.clips]),
        targets=np.array(list(data.targets)),
        values=np.stack(list(data.targets.values()), -1),
        sources=np.array([key for key, answer in answers.items() if answer.source.listed]),
        **{f"prediction.{key}": a.result.predictions for key, a in answers.items() if a.source.listed},
    )
    return file.getvalue()


def target_report(answers: Mapping[str, TargetAnswer], data: Dataset, seed: int) -> Study:
    """What of the report follows from the numbers."""
    listed = {key: answer for key, answer in answers.items() if answer.source.listed}
    differences = gaps(listed, seed)
    names = list(data.targets)
    columns = ("", "", *(f"{name} ({data.units[name]})" for name in names), *(f"states minus this, {n}" for n in names))
    lines = [
        (
            answer.source.name,
            answer.source.kind,
            *(_text(answer.estimate(name)) for name in names),
            *(_text(differences[key][name], signed=True) if key in differences else "" for name in names),
        )
        for key, answer in listed.items()
    ]
    states = listed[MAIN]
    said = ", ".join(f"{_text(states.estimate(name))} for {name}" for name in names)
    return Study(
        title="",
        summary=f"A linear read-out of the states reaches an R2 of {said}, where 0 is to know nothing.",
        tables=(Table("R2 of every target", columns, tuple(lines), MEANING),),
        panels=_panels(states, names),
        conditional_on=(
            "the trained network and the folds of this seed",
            "groups, which are resampled; clips whose targets are all equal are one group",
        ),
    )


def _panels(states: TargetAnswer, names: Sequence[str]) -> tuple[Panel, ...]:
    """R2 of every target by block, one curve a noise level, for the states' first array."""
    array = states.source.mean_pooled or next(iter(states.source.features.arrays))
    candidates = states.source.features.candidates[array]
    grid = states.result.grid[array]
    levels = sorted({c.sigma for c in candidates})
    shown = [levels[i] for i in sorted({0, len(levels) // 2, len(levels) - 1})]
    panels = []
    for t, name in enumerate(names):
        curves = []
        for sigma in shown:
            rows = [k for k, c in enumerate(candidates) if c.sigma == sigma]
            ends = states.result.grid_interval[array][rows, t]
            blocks = np.array([candidates[k].block for k in rows], float)
            curves.append(Curve(f"σ {sigma:.3g}", blocks, grid[rows, t], ends[:, 0], ends[:, 1]))
        panels.append(
            Panel(
                f"R2 of {name} by block",
                tuple(curves),
                "block",
                "R2",
                "One fixed cell a point; the best of many is above what it is worth by luck.",
                reference=0.0,
            )
        )
    return tuple(panels)


def _text(found: Estimate, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if not np.isfinite(found.low):
        return f"{found.value:{sign}.3f}"
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def target_headline(headline: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The lines that the binary prints."""
    return [
        f"{key:>24}  R2 {entry['value']:6.3f}  ({entry['low']:.3f} to {entry['high']:.3f})"
        for key, entry in headline.items()
    ]


def finish_targets(
    work: Workdir,
    config: "StudyConfig",
    data: Dataset,
    sources: Sequence[Source],
    pipeline: Pipeline,
    records: Mapping[int, Mapping[str, Any]],
    kept: Sequence[int],
    cond: Conditioning | Prompts,
    about: Mapping[str, Any],
) -> None:
    """The last part of a study of numbers: probe, measure the inversion, write every file, print the headline.

    Parameters
    ----------
    data, kept : the clips that are used, and their numbers in the store.
    sources : what is probed, the states among them.
    records : of the model's store.
    about : fields of `Study` that say what was read.
    """
    with work.stage("probe", clips=len(data)):
        answers = analyse_targets(sources, data, config.protocol())
    with work.stage("fidelity"):
        chosen = data.clips[:: max(1, len(data) // max(1, config.fidelity_clips))][: config.fidelity_clips]
        measured, views, attention = measure(pipeline, chosen, cond, config.reading())
        measured = dataclasses.replace(measured, noise=noise_measures({i: dict(records[i]) for i in kept}))
    groups = len({clip.group for clip in data.clips})
    work.write(FILE, pack_targets(answers, data))
    probe_csv(work.path / "probe.csv", target_rows(answers, len(data), groups))
    result = target_result(answers, data, config.seed)
    skipped = [name for name, _ in about["skipped"]]
    said = {"notes": list(data.notes), "text": "; ".join(about["notes"][len(data.notes) :])}
    work.write_result(
        {**result, **said, "clips": len(data), "scenes": groups, "skipped": skipped, "fidelity": summary(measured)}
    )
    with work.stage("report"):
        study = dataclasses.replace(
            target_report(answers, data, config.seed),
            title=f"What can be read linearly from the states of {config.model}?",
            fidelity=measured,
            attention=attention,
            clips=views,
            **about,
        )
        report_run(work, study)
    work.finish(("result.json", "probe.csv", FILE))
    print("\n".join([*target_headline(result["headline"]), f"-> {work.path / 'report.html'}"]))
