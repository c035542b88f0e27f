"""Answers as tables: probe.csv, result.json and the data of the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.probes import statistics
from jaxdiff.report.study import Check, Curve, Estimate, Grid, Group, Row, Study
from jaxdiff.study.analysis import Answer, Labels

CHANCE = 0.5
CATEGORY_NAMES = {
    "O1": "object permanence",
    "O2": "shape constancy",
    "O3": "spatio-temporal continuity",
}
MODEL_NAMES = {"trained": "trained", "structureless": "structure-less", "untrained": "untrained, gates open"}
KINDS = {"trained": "states", "structureless": "null", "untrained": "null"}

# Aims that were set before the run; see docs. A miss is reported as one.
AIM_ACCURACY, AIM_GAP = 0.62, 0.08


def _estimate(value: float, interval) -> Estimate:
    return Estimate(float(value), *map(float, interval))


def _pairwise(answer: Answer) -> Estimate | None:
    value, interval = answer.result.pairwise, answer.result.pairwise_interval
    return None if value is None else _estimate(value, interval)


def paired_gap(answer: Answer, other: Answer, seed: int) -> Estimate:
    """Accuracy of `answer` minus that of `other`, paired over scenes."""
    a, b = answer.result, other.result
    return _estimate(*statistics.paired_difference(a.hits, b.hits, a.groups, seed=seed))


def pairwise_surprise(losses: np.ndarray, labels: Labels, seed: int) -> list[Estimate]:
    """Share of (possible, impossible) pairs of a scene in which the impossible clip has the higher denoising loss,
    ties one half, for a loss [n, sigmas]."""
    y, groups = labels.possible, labels.groups
    return [
        _estimate(
            statistics.pairwise_accuracy(-column, y, groups),
            statistics.pairwise_interval(-column, y, groups, seed=seed),
        )
        for column in losses.T
    ]


def rows(answers: Mapping[str, Answer], seed: int) -> tuple[Row, ...]:
    """The headline table."""
    states = answers["states"]
    table = []
    for key, answer in answers.items():
        table.append(
            Row(
                key,
                answer.source.name,
                _estimate(answer.result.accuracy, answer.result.interval),
                answer.source.kind,
                pairwise=_pairwise(answer),
                gap=None if key == "states" else paired_gap(states, answer, seed),
                note=answer.source.note,
            )
        )
    return tuple(table)


def checks(table: Sequence[Row]) -> tuple[Check, ...]:
    """The aims: states at 62 % and 8 points above every null control."""
    states = table[0].estimate
    made = [
        Check("accuracy of the states", f"{100 * states.value:.1f} %", f"at least {100 * AIM_ACCURACY:.0f} %",
              states.value >= AIM_ACCURACY)
    ]  # fmt: skip
    for row in table:
        if row.kind == "null":
            gap = states.value - row.estimate.value
            made.append(
                Check(f"states above {row.name}", f"{100 * gap:+.1f} points", f"at least {100 * AIM_GAP:.0f} points",
                      gap >= AIM_GAP)
            )  # fmt: skip
    return tuple(made)


def grids(answers: Mapping[str, Answer], sigmas: Sequence[float]) -> tuple[Grid, ...]:
    """Depth by noise level, one heatmap a model; the input's row on top where there is one."""
    made = []
    for key in ("states", "structureless", "untrained"):
        if key not in answers:
            continue
        answer = answers[key]
        arrays = answer.source.features.arrays
        name = next((n for n in arrays if n.endswith(".mean")), next(iter(arrays)))
        candidates = answer.source.features.candidates[name]
        blocks = sorted({c.block for c in candidates})
        shape = (len(blocks), len(sigmas))
        values = [part.reshape(shape) for part in _cells(answer, name)]
        labels = tuple(str(b) for b in blocks)
        inputs = 0
        if key == "states" and "input" in answers:
            entering = _cells(answers["input"], name.replace("block_out", "input"))
            values = [np.concatenate([e[None], v]) for e, v in zip(entering, values, strict=True)]
            labels, inputs = ("x_sigma", *labels), 1
        model = answer.source.model
        chosen: dict[tuple[int, int], int] = {}
        for array, candidate, _ in answer.chosen:
            if array == name:
                cell = (inputs + blocks.index(candidate.block), candidate.slot)
                chosen[cell] = chosen.get(cell, 0) + 1
        made.append(
            Grid(
                MODEL_NAMES.get(model, model),
                values[0],
                np.asarray(sigmas, float),
                labels,
                kind=KINDS.get(model, "states"),
                inputs=inputs,
                low=values[1],
                high=values[2],
                chosen=tuple((row, column, folds) for (row, column), folds in sorted(chosen.items())),
            )
        )
    return tuple(made)


def _cells(answer: Answer, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy, low and high of every candidate of an array."""
    interval = answer.result.grid_interval[name]
    return answer.result.grid[name], interval[:, 0], interval[:, 1]


def by_category(answers: Mapping[str, Answer], labels: Labels, seed: int) -> tuple[Group, ...]:
    """Accuracy within each category, from the same out-of-fold predictions."""
    found = {
        key: statistics.by_category(
            answer.result.predictions, answer.result.labels, labels.groups, labels.categories, seed=seed
        )
        for key, answer in answers.items()
        if answer.source.kind != "comparison"
    }
    return tuple(
        Group(
            CATEGORY_NAMES.get(category, category),
            {key: _estimate(*table[category]) for key, table in found.items()},
        )
        for category in sorted(set(labels.categories.tolist()))
    )


def report_study(
    answers: Mapping[str, Answer],
    labels: Labels,
    losses: Mapping[str, np.ndarray],
    sigmas: Sequence[float],
    seed: int,
) -> Study:
    """Everything of the report that follows from the numbers."""
    table = rows(answers, seed)
    curves = []
    for model, loss in losses.items():
        points = pairwise_surprise(loss, labels, seed)
        curves.append(
            Curve(
                MODEL_NAMES.get(model, model),
                np.asarray(sigmas, float),
                np.array([p.value for p in points]),
                np.array([p.low for p in points]),
                np.array([p.high for p in points]),
                kind=KINDS.get(model, "states"),
            )
        )
    return Study(
        title="",
        rows=table,
        chance=CHANCE,
        checks=checks(table),
        grids=grids(answers, sigmas),
        categories=by_category(answers, labels, seed),
        surprise=tuple(curves),
        conditional_on=(
            "the trained networks (one training seed each) and the folds of this seed",
            "scenes, which are resampled; clips of one scene stay together",
        ),
    )


def result_json(
    answers: Mapping[str, Answer],
    labels: Labels,
    losses: Mapping[str, np.ndarray],
    sigmas: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    """The part of result.json that the probes determine."""
    table = rows(answers, seed)
    study = Study(title="", rows=table, chance=CHANCE)
    at = int(np.argmin(np.abs(np.asarray(sigmas) - 0.7)))
    result: dict[str, Any] = {
        "headline": study.headline(),
        "pairwise": {row.key: round(row.pairwise.value, 6) for row in table if row.pairwise},
        "checks": {check.name: check.met for check in checks(table)},
    }
    if losses:
        found = {name: pairwise_surprise(loss, labels, seed)[at] for name, loss in losses.items()}
        result["surprise"] = {
            "sigma": float(sigmas[at]),
            **{k: {"value": e.value, "low": e.low, "high": e.high} for k, e in found.items()},
        }
    return result


def csv_rows(
    answers: Mapping[str, Answer],
    labels: Labels,
    losses: Mapping[str, np.ndarray],
    sigmas: Sequence[float],
    seed: int,
) -> list[dict[str, Any]]:
    """probe.csv: every cell of every source, what the folds chose, and the surprise."""
    clips, scenes = len(labels.possible), len(set(labels.groups.tolist()))
    common = {"clips": clips, "scenes": scenes, "category": "all"}
    lines: list[dict[str, Any]] = []
    for answer in answers.values():
        source = answer.source
        base = {
            **common,
            "protocol": "corrected",
            "model": source.model,
            "source": source.key,
            "metric": "accuracy",
        }
        low, high = answer.result.interval
        lines.append({**base, "value": answer.result.accuracy, "low": low, "high": high})
        for fold, (_, candidate, penalty) in enumerate(answer.chosen):
            lines.append({**base, **_place(candidate), "metric": "chosen", "fold": fold, "penalty": penalty})
        for name, candidates in source.features.candidates.items():
            for candidate, value, low, high in zip(candidates, *_cells(answer, name), strict=True):
                lines.append({**base, **_place(candidate), "value": value, "low": low, "high": high})
    for model, loss in losses.items():
        for sigma, point in zip(sigmas, pairwise_surprise(loss, labels, seed), strict=True):
            lines.append(
                {**common, "model": model, "source": "surprise", "sigma": sigma, "metric": "pairwise",
                 "value": point.value, "low": point.low, "high": point.high}
            )  # fmt: skip
    return lines


def _place(candidate) -> dict[str, Any]:
    block = None if candidate.block < 0 else candidate.block
    return {
        "site": candidate.site,
        "pooling": candidate.pooling,
        "block": block,
        "step": candidate.slot,
        "sigma": candidate.sigma,
    }
