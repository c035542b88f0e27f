"""Answers as tables: probe.csv, result.json and the data of the report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.probes import statistics
from jaxdiff.probes.cross_validation import NESTED
from jaxdiff.report.study import Check, Curve, Estimate, Grid, Group, Row, Study
from jaxdiff.study.analysis import Answer, Labels, matched_pairs
from jaxdiff.study.curves import best_blocks, confusion
from jaxdiff.study.features import place_columns
from jaxdiff.study.inputs import Surprise
from jaxdiff.study.measures import (
    GIVEN,
    capacity_json,
    capacity_lines,
    capacity_table,
    csv_lines,
    estimate_json,
    flat_json,
    measures_table,
)
from jaxdiff.study.protocols import protocols, protocols_json, published_rows, published_summary

CHANCE = 0.5
CATEGORY_NAMES = {
    "O1": "object permanence",
    "O2": "shape constancy",
    "O3": "spatio-temporal continuity",
}
MODEL_NAMES = {"trained": "trained", "structureless": "structure-less", "untrained": "untrained, gates open"}
KINDS = {"trained": "states", "structureless": "null", "untrained": "null"}
INPUTS = {"states": "input", "structureless": "structureless.input", "untrained": "untrained.input"}

# Aims that were set before the run; see docs. A miss is reported as one.
AIM_ACCURACY, AIM_GAP = 0.62, 0.08

SURPRISE_LEVEL = 0.7  # the noise level whose surprise is quoted in result.json


def _estimate(value: float, interval) -> Estimate:
    return Estimate(float(value), *map(float, interval))


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
    return [_estimate(*matched_pairs(-column, labels, seed=seed)) for column in found.losses.T]


def rows(answers: Mapping[str, Answer], seed: int) -> tuple[Row, ...]:
    """The headline table: the corrected protocol's accuracies, none where it was not run."""
    states = answers["states"]
    table = []
    for key, answer in answers.items():
        if not answer.source.listed or answer.nested is None:
            continue
        table.append(
            Row(
                key,
                answer.source.name,
                _estimate(answer.result.accuracy, answer.result.interval),
                answer.source.kind,
                pairwise=_pairwise(answer),
                gap=None if key == "states" else paired_gap(answers.get(key.partition(".")[2], states), answer, seed),
                note=answer.source.note,
            )
        )
    return tuple(table)


def checks(table: Sequence[Row]) -> tuple[Check, ...]:
    """The aims: states at 62 % and 8 points above every null control."""
    if not table:
        return ()
    states = table[0].estimate
    made = [
        Check("accuracy of the states", f"{100 * states.value:.1f} %", f"at least {100 * AIM_ACCURACY:.0f} %",
              states.value >= AIM_ACCURACY)
    ]  # fmt: skip
    for row in table:
        if row.controls_claim:
            gap = states.value - row.estimate.value
            made.append(
                Check(f"states above {row.name}", f"{100 * gap:+.1f} points", f"at least {100 * AIM_GAP:.0f} points",
                      gap >= AIM_GAP)
            )  # fmt: skip
    return tuple(made)


def grid_rows(
    answers: Mapping[str, Answer], key: str, sigmas: int, of: Callable[[Answer, str], Sequence[np.ndarray]]
) -> tuple[tuple[str, ...], int, list[np.ndarray]]:
    """Rows of a source's heatmap from the bottom: for the models of `INPUTS` VAE latents and x_sigma, then the blocks.

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
    if key not in INPUTS:
        return tuple(names), 0, parts[0]
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


def heatmaps(answers: Mapping[str, Answer]) -> list[str]:
    """Keys of the sources with a heatmap: the models, then each further read beside its controls, then the others."""
    return heatmap_order({key: answer.source.kind for key, answer in answers.items() if answer.source.title})


def heatmap_order(kinds: Mapping[str, str]) -> list[str]:
    """Those keys in their order; key -> kind."""
    reads = [key for key, kind in kinds.items() if kind == "states" and key not in INPUTS]
    place = {f"{before}{read}": i for i, read in enumerate(reads) for before in ("", *(f"{key}." for key in INPUTS))}
    return sorted(kinds, key=lambda key: -1 if key in INPUTS else place.get(key, len(reads)))


def grids(answers: Mapping[str, Answer], sigmas: Sequence[float]) -> tuple[Grid, ...]:
    """Depth by noise level, one heatmap for every source that has a title for it; see `grid_rows`."""
    made = []
    for key in heatmaps(answers):
        answer = answers[key]
        names, inputs, (accuracy, low, high) = grid_rows(answers, key, len(sigmas), _cells)
        chosen: dict[tuple[int, int], int] = {}
        for array, candidate, _ in answer.chosen:
            if array == _read(answer):
                cell = (names.index(str(candidate.block)), candidate.slot)
                chosen[cell] = chosen.get(cell, 0) + 1
        made.append(
            Grid(
                answer.source.title,
                accuracy,
                np.asarray(sigmas, float),
                names,
                kind=answer.source.kind,
                inputs=inputs,
                low=low,
                high=high,
                chosen=tuple((row, column, folds) for (row, column), folds in sorted(chosen.items())),
            )
        )
    return tuple(made)


def _cells(answer: Answer, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy, low and high of every candidate of an array; without the corrected protocol, mean over published splits."""
    if answer.nested is None:
        unknown = np.full(len(answer.source.features.candidates[name]), np.nan)
        published = {} if answer.published is None else answer.published.accuracy
        return published[name].mean(0) if name in published else unknown, unknown, unknown
    interval = answer.nested.grid_interval[name]
    return answer.nested.grid[name], interval[:, 0], interval[:, 1]


def compared(key: str, kind: str) -> bool:
    """Whether a source is taken apart further: not comparisons, controls of further reads, nor features made of nothing."""
    return kind != "comparison" and "." not in key and key not in ("projections", "gaussian", "frame_bag")


def by_category(answers: Mapping[str, Answer], labels: Labels, seed: int) -> tuple[Group, ...]:
    """Accuracy within each category, from the same out-of-fold predictions."""
    found = {
        key: statistics.by_category(
            answer.result.predictions, answer.result.labels, labels.groups, labels.categories, seed=seed
        )
        for key, answer in answers.items()
        if answer.source.listed and compared(key, answer.source.kind) and answer.nested is not None
    }
    if not found:
        return ()
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
    surprises: Mapping[str, Surprise],
    sigmas: Sequence[float],
    seed: int,
) -> Study:
    """Everything of the report that follows from the numbers."""
    table = rows(answers, seed)
    names = {row.key: row.name for row in table}
    measured = {key: answers[key].measures for key in names}
    tables = [measures_table(names, {k: m for k, m in measured.items() if m is not None})] if names else []
    tables += [capacity_table(a.capacity) for a in answers.values() if a.capacity is not None]
    told = {key: answer for key, answer in answers.items() if answer.nested is not None}
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
        summary=published_summary(answers),
        rows=table,
        chance=CHANCE,
        checks=checks(table),
        grids=grids(answers, sigmas),
        categories=by_category(answers, labels, seed),
        protocols=protocols(answers),
        surprise=tuple(curves),
        panels=best_blocks(told),
        tables=(*(confusion(told, labels, CATEGORY_NAMES, seed) if told else ()), *tables),
        conditional_on=(
            "the trained networks (one training seed each) and the folds of this seed",
            "scenes, which are resampled; clips of one scene stay together",
            f"accuracies, pairs, gaps, AUC and error rates of sources: {NESTED}",
            f"cells of the heatmaps: {GIVEN['fits']}",
            f"surprise: {GIVEN['nothing fitted']}",
        ),
    )


def result_json(
    answers: Mapping[str, Answer], labels: Labels, surprises: Mapping[str, Surprise], seed: int
) -> dict[str, Any]:
    """The part of result.json that the probes determine."""
    table = rows(answers, seed)
    study = Study(title="", rows=table, chance=CHANCE)
    listed = {key: answer for key, answer in answers.items() if answer.source.listed}
    result: dict[str, Any] = {
        "headline": study.headline(),
        "gaps": {row.key: estimate_json(row.gap) for row in table if row.gap},
        "pairwise": {row.key: round(row.pairwise.value, 6) for row in table if row.pairwise},
        "checks": {check.name: check.met for check in checks(table)},
        "sources": {
            key: {"name": answer.source.name, "kind": answer.source.kind, "note": answer.source.note}
            for key, answer in listed.items()
        },
        "protocols": protocols_json(answers),
        "statistics": flat_json({key: a.measures for key, a in listed.items() if a.measures is not None}),
        "intervals": {
            "level": 0.95,
            "headline, gaps, pairwise, statistics, capacity": GIVEN["fits, choices"],
            "cells": GIVEN["fits"],
            "surprise": GIVEN["nothing fitted"],
        },
    }
    states = answers["states"].capacity
    if states is not None:
        result["capacity"] = capacity_json(states)
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
        base = {**common, "protocol": "corrected", "model": answer.source.model, "source": answer.source.key}
        lines += _corrected_rows(answer, base)
        lines += published_rows(answer, {**base, "protocol": "published", "metric": "accuracy"})
    for model, found in surprises.items():
        for sigma, point in zip(found.sigmas, pairwise_surprise(found, labels, seed), strict=True):
            lines.append(
                {**common, "model": model, "source": "surprise", "sigma": sigma, "metric": "pairwise",
                 "value": point.value, "low": point.low, "high": point.high, "given": "nothing fitted"}
            )  # fmt: skip
    return lines


def _corrected_rows(answer: Answer, base: dict[str, Any]) -> list[dict[str, Any]]:
    """The source's statistics, what the folds chose, and every cell."""
    result, candidates = answer.nested, answer.source.features.candidates
    if result is None:
        return []
    headline = [("accuracy", result.accuracy, result.interval)]
    if result.pairwise is not None and result.pairwise_interval is not None:
        headline.append(("pairwise", result.pairwise, result.pairwise_interval))
    lines: list[dict[str, Any]] = [
        {**base, "metric": metric, "value": value, "low": low, "high": high, "given": "fits, choices"}
        for metric, value, (low, high) in headline
    ]
    places = [place_columns(c) for name in result.cells for c in candidates[name]]
    if answer.measures is not None:
        lines += csv_lines(answer.measures, places, base)
    if answer.capacity is not None:
        lines += capacity_lines(answer.capacity, base)
    for choice, (_, candidate, penalty) in zip(result.chosen, answer.chosen, strict=True):
        fold = {"repeat": choice.repeat, "fold": choice.fold, "penalty": penalty}
        lines.append({**base, **place_columns(candidate), "metric": "chosen", **fold})
    for name in candidates:
        for candidate, value, low, high in zip(candidates[name], *_cells(answer, name), strict=True):
            ends = {"low": low, "high": high, "given": "fits"}
            lines.append({**base, **place_columns(candidate), "metric": "accuracy", "value": value, **ends})
    return lines
