"""Figures over noise levels and tables of mistakes, from the same held-out predictions as the headline."""

from collections.abc import Mapping

import numpy as np

from jaxdiff.probes import statistics
from jaxdiff.report.study import Curve, Estimate, Panel, Table
from jaxdiff.study.analysis import Answer, Labels

# Whose lines are drawn; more could not be told apart.
CURVES = ("states", "attention_maps", "structureless", "untrained", "noised")


def best_block(answer: Answer, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy at each noise level of the block that the inner folds choose there, and its interval over scenes.

    The best block of a level on the clips that are scored would be above chance by luck; here each outer fold's clips are
    told by the block (and penalty) that did best on the inner folds of the others.

    Parameters
    ----------
    name : an array of the source, candidates in blocks and within a block in levels.

    Returns
    -------
    sigmas [levels], accuracy [levels], interval [levels, 2]
    """
    result, candidates = answer.result, answer.source.features.candidates[name]
    sigmas = sorted({(c.slot, c.sigma) for c in candidates})
    inner = result.inner_accuracy[name].max(-1)  # [R, O, C]
    hits = statistics.hits(result.cells[name], result.labels)  # [R, C, n]
    found = []
    for slot, _ in sigmas:
        cells = np.array([i for i, c in enumerate(candidates) if c.slot == slot])
        chosen = cells[inner[:, :, cells].argmax(-1)]  # [R, O]; the first of equals
        of_clip = np.take_along_axis(chosen, result.folds, axis=1)  # [R, n]
        found.append(np.take_along_axis(hits, of_clip[:, None], axis=1)[:, 0].mean(0))
    rates = np.array(found)
    return (
        np.array([sigma for _, sigma in sigmas]),
        rates.mean(1),
        statistics.bootstrap_cells(rates, result.groups),
    )


def best_blocks(answers: Mapping[str, Answer]) -> tuple[Panel, ...]:
    """`best_block` of the model and its controls, as lines over the noise level."""
    curves = []
    for answer in (answers[key] for key in CURVES if key in answers):
        name = answer.source.mean_pooled
        if answer.source.title and name is not None:
            sigmas, accuracy, interval = best_block(answer, name)
            low, high = interval.T
            curves.append(Curve(answer.source.title, sigmas, accuracy, low, high, kind=answer.source.kind))
    if not curves or min(len(curve.x) for curve in curves) < 2:
        return ()
    return (
        Panel(
            "Best block at each noise level",
            tuple(curves),
            "noise level σ",
            "accuracy on held-out scenes, %",
            "At each level the block is chosen in inner folds and scored on the outer one, so that the best of many blocks "
            "gets no luck. Averages over all tokens, or attention maps; bands are 95 % intervals over scenes, one level at "
            "a time.",
            percent=True,
        ),
    )


def confusion(answers: Mapping[str, Answer], labels: Labels, names: Mapping[str, str], seed: int) -> tuple[Table, ...]:
    """How the model's own reads err: told possible and impossible, by category."""
    lines = []
    for answer in answers.values():
        source, result = answer.source, answer.result
        if source.kind != "states":
            continue
        hits = result.hits
        for category in sorted(set(labels.categories.tolist())):
            inside = labels.categories == category
            line: list[str | Estimate] = [source.name, names.get(category, category)]
            for chosen in (inside & result.labels, inside & ~result.labels, inside):
                value = float(hits[chosen].mean()) if chosen.any() else np.nan
                low, high = np.nan, np.nan
                if chosen.any():
                    low, high = statistics.cluster_bootstrap(hits[chosen], result.groups[chosen], seed=seed)
                line.append(Estimate(value, max(low, 0.0), min(high, 1.0)))  # of few scenes they reach beyond
            lines.append(tuple(line))
    return (
        Table(
            "What is told right, by category",
            ("read", "category", "possible clips", "impossible clips", "all"),
            tuple(lines),
            "Share of the clips of each kind told right; 95 % intervals over scenes. A probe that called every clip "
            "possible would have 100 % and 0 %.",
        ),
    )
