"""Answers as tables: probe.csv, result.json and the data of the report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.probes import statistics
from jaxdiff.report.study import Check, Curve, Estimate, Grid, Group, Row, Study, percent
from jaxdiff.study.analysis import Answer, Labels
from jaxdiff.study.features import Candidate
from jaxdiff.study.inputs import Surprise

CHANCE = 0.5
CATEGORY_NAMES = {
    "O1": "object permanence",
    "O2": "shape constancy",
    "O3": "spatio-temporal continuity",
}
MODEL_NAMES = {"trained": "trained", "structureless": "structure-less", "untrained": "untrained, gates open"}
KINDS = {"trained": "states", "structureless": "null", "untrained": "null"}
MODELS = ("states", "structureless", "untrained")  # sources that are a model's blocks
INPUTS = {"states": "input", "structureless": "structureless.input", "untrained": "untrained.input"}

# Aims that were set before the run; see docs. A miss is reported as one.
AIM_ACCURACY, AIM_GAP = 0.62, 0.08

SURPRISE_LEVEL = 0.7  # the noise level whose surprise is quoted in result.json


def _estimate(value: float, interval) -> Estimate:
    return Estimate(float(value), *map(float, interval))


def estimate_json(estimate: Estimate) -> dict[str, float | None]:
    """An estimate for result.json; None where there is no number."""
    parts = dataclasses.asdict(estimate)
    return {name: float(value) if np.isfinite(value) else None for name, value in parts.items()}


def _pairwise(answer: Answer) -> Estimate | None:
    value, interval = answer.result.pairwise, answer.result.pairwise_interval
    return None if value is None else _estimate(value, interval)


def paired_gap(answer: Answer, other: Answer, seed: int) -> Estimate:
    """Accuracy of `answer` minus that of `other`, paired over scenes."""
    a, b = answer.result, other.result
    return _estimate(*statistics.paired_difference(a.hits, b.hits, a.groups, seed=seed))


def pairwise_surprise(found: Surprise, labels: Labels, seed: int) -> list[Estimate]:
    """Share of (possible, impossible) pairs of a scene in which the impossible clip has the higher denoising loss,
    ties one half, one estimate a level."""
    y, groups = labels.possible, labels.groups
    return [
        _estimate(
            statistics.pairwise_accuracy(-column, y, groups),
            statistics.pairwise_interval(-column, y, groups, seed=seed),
        )
        for column in found.losses.T
    ]


def rows(answers: Mapping[str, Answer], seed: int) -> tuple[Row, ...]:
    """The headline table."""
    states = answers["states"]
    table = []
    for key, answer in answers.items():
        if not answer.source.listed:
            continue
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


def grid_rows(
    answers: Mapping[str, Answer], key: str, sigmas: int, of: Callable[[Answer, str], Sequence[np.ndarray]]
) -> tuple[tuple[str, ...], int, list[np.ndarray]]:
    """Rows of a model's heatmap from the bottom: VAE latents, x_sigma, then its blocks.

    The latents' row is their average over tokens, so that it is pooled as all other rows are; it has one noise level, 0.

    Parameters
    ----------
    of : what is known of an array's candidates: (answer, array's name) -> arrays [candidates, ...].

    Returns
    -------
    Names of the rows, how many are inputs, and the arrays of `of` as [rows, sigmas, ...], nan where there is none.
    """
    answer = answers[key]
    name = _read(answer)
    blocks = sorted({c.block for c in answer.source.features.candidates[name]})
    names = [str(block) for block in blocks]
    parts = [[part.reshape(len(blocks), sigmas, *part.shape[1:]) for part in of(answer, name)]]
    entering = answers.get(INPUTS[key])
    if entering is not None:
        parts.insert(0, [part[None] for part in of(entering, name.replace("block_out", "input"))])
        names.insert(0, "x_sigma")
    latents = answers.get("latents")
    if latents is not None and latents.source.mean_pooled:
        clean = of(latents, latents.source.mean_pooled)
        rest = [np.full((sigmas - 1, *part.shape[1:]), np.nan, part.dtype) for part in clean]
        parts.insert(0, [np.concatenate([a, b])[None] for a, b in zip(clean, rest, strict=True)])
        names.insert(0, "latents")
    return tuple(names), len(names) - len(blocks), [np.concatenate(rows) for rows in zip(*parts, strict=True)]


def _read(answer: Answer) -> str:
    """The array of a model's heatmap."""
    return answer.source.mean_pooled or next(iter(answer.source.features.arrays))


def grids(answers: Mapping[str, Answer], sigmas: Sequence[float]) -> tuple[Grid, ...]:
    """Depth by noise level, one heatmap a model; see `grid_rows`."""
    made = []
    for key in MODELS:
        if key not in answers:
            continue
        answer = answers[key]
        names, inputs, (accuracy, low, high) = grid_rows(answers, key, len(sigmas), _cells)
        chosen: dict[tuple[int, int], int] = {}
        for array, candidate, _ in answer.chosen:
            if array == _read(answer):
                cell = (names.index(str(candidate.block)), candidate.slot)
                chosen[cell] = chosen.get(cell, 0) + 1
        model = answer.source.model
        made.append(
            Grid(
                MODEL_NAMES.get(model, model),
                accuracy,
                np.asarray(sigmas, float),
                names,
                kind=KINDS.get(model, "states"),
                inputs=inputs,
                low=low,
                high=high,
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
        if answer.source.listed and answer.source.kind != "comparison"
    }
    return tuple(
        Group(
            CATEGORY_NAMES.get(category, category),
            {key: _estimate(*table[category]) for key, table in found.items()},
        )
        for category in sorted(set(labels.categories.tolist()))
    )


def protocols(answers: Mapping[str, Answer]) -> tuple[Group, ...]:
    """The same sources under the published protocol (its two numbers) and under the corrected one.

    The published numbers have no interval: their spread over seeds does not know that seeds share clips.
    """
    both = {key: answer for key, answer in answers.items() if answer.published is not None}
    if not both:
        return ()
    found = {key: answer.published for key, answer in both.items() if answer.published is not None}
    seeds = len(next(iter(found.values())).best_by_seed)
    optimism = "The cell is chosen on the fold that is reported, which is optimistic: the best of many is above chance"
    if "shuffled" in found:
        witness = found["shuffled"]
        cells = sum(array.shape[1] for array in witness.accuracy.values())
        optimism += (
            f" by luck. Labels shuffled inside scenes, where there is nothing to find, are the witness: the best of "
            f"{cells} cells reports {percent(witness.best)} for them. A source with a single cell gets no such bonus"
        )
    return (
        Group(
            "published, best cell",
            {key: Estimate(result.best) for key, result in found.items()},
            f"{optimism}. 60/40 split by scene, no standardisation, Adam for 50 epochs, mean of {seeds} splits.",
        ),
        Group(
            "published, mean of cells",
            {key: Estimate(result.mean) for key, result in found.items()},
            "The same probes averaged over all cells: nothing is chosen, and good cells are diluted by bad ones.",
        ),
        Group(
            "corrected",
            {key: _estimate(answer.result.accuracy, answer.result.interval) for key, answer in both.items()},
            "Cell, pooling and penalty are chosen in inner folds; scored on outer ones; 95 % interval over scenes.",
        ),
    )


def _protocols_json(answers: Mapping[str, Answer]) -> dict[str, Any]:
    published = {}
    for key, answer in answers.items():
        result = answer.published
        if result is not None:
            errors = {"best_error": result.best_error, "mean_error": result.mean_error}
            published[key] = {
                "best": result.best,
                "mean": result.mean,
                "seeds": len(result.best_by_seed),
                **{name: value if np.isfinite(value) else None for name, value in errors.items()},
            }
    return {"published": published} if published else {}


def report_study(
    answers: Mapping[str, Answer],
    labels: Labels,
    surprises: Mapping[str, Surprise],
    sigmas: Sequence[float],
    seed: int,
) -> Study:
    """Everything of the report that follows from the numbers."""
    table = rows(answers, seed)
    curves = []
    for model, found in surprises.items():
        points = pairwise_surprise(found, labels, seed)
        curves.append(
            Curve(
                MODEL_NAMES.get(model, model),
                found.sigmas,
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
        protocols=protocols(answers),
        surprise=tuple(curves),
        conditional_on=(
            "the trained networks (one training seed each) and the folds of this seed",
            "scenes, which are resampled; clips of one scene stay together",
        ),
    )


def result_json(
    answers: Mapping[str, Answer], labels: Labels, surprises: Mapping[str, Surprise], seed: int
) -> dict[str, Any]:
    """The part of result.json that the probes determine."""
    table = rows(answers, seed)
    study = Study(title="", rows=table, chance=CHANCE)
    result: dict[str, Any] = {
        "headline": study.headline(),
        "gaps": {row.key: estimate_json(row.gap) for row in table if row.gap},
        "pairwise": {row.key: round(row.pairwise.value, 6) for row in table if row.pairwise},
        "checks": {check.name: check.met for check in checks(table)},
        "sources": {row.key: {"name": row.name, "kind": row.kind, "note": row.note} for row in table},
        "protocols": _protocols_json(answers),
    }
    if surprises:
        result["surprise"] = {}
        for name, found in surprises.items():
            at = int(np.argmin(np.abs(found.sigmas - SURPRISE_LEVEL)))
            point = pairwise_surprise(found, labels, seed)[at]
            result["surprise"]["sigma"] = float(found.sigmas[at])
            result["surprise"][name] = estimate_json(point)
    return result


def csv_rows(
    answers: Mapping[str, Answer], labels: Labels, surprises: Mapping[str, Surprise], seed: int
) -> list[dict[str, Any]]:
    """probe.csv: every cell of every source under both protocols, what the folds chose, and the surprise."""
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
        lines += _published_rows(answer, {**base, "protocol": "published"})
    for model, found in surprises.items():
        for sigma, point in zip(found.sigmas, pairwise_surprise(found, labels, seed), strict=True):
            lines.append(
                {**common, "model": model, "source": "surprise", "sigma": sigma, "metric": "pairwise",
                 "value": point.value, "low": point.low, "high": point.high}
            )  # fmt: skip
    return lines


def _published_rows(answer: Answer, base: dict[str, Any]) -> list[dict[str, Any]]:
    """The paper's two numbers, each split's best cell, and every cell averaged over splits."""
    result, candidates = answer.published, answer.source.features.candidates
    if result is None:
        return []
    lines = [
        {**base, "metric": "best_accuracy", "value": result.best},
        {**base, "metric": "mean_accuracy", "value": result.mean},
    ]
    for repeat, ((name, cell), value) in enumerate(zip(result.best_cells, result.best_by_seed, strict=True)):
        place = _place(candidates[name][cell])
        lines.append({**base, **place, "metric": "best_accuracy", "repeat": repeat, "value": value})
    for name, accuracy in result.accuracy.items():
        for candidate, value in zip(candidates[name], accuracy.mean(0), strict=True):
            lines.append({**base, **_place(candidate), "value": value})
    return lines


def _place(candidate: Candidate) -> dict[str, Any]:
    block = None if candidate.block < 0 else candidate.block
    return {
        "site": candidate.site,
        "pooling": candidate.pooling,
        "block": block,
        "step": candidate.slot,
        "sigma": candidate.sigma,
    }
