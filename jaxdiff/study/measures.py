"""The statistics beside a source's accuracy: rankings, tests, and what its probes could do with any labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.probes import capacity, statistics
from jaxdiff.probes.controls import control_labels
from jaxdiff.probes.cross_validation import NESTED, NestedResult, nested_cross_validate
from jaxdiff.probes.permutation import CROSSED, MaxStatistic, max_statistic, permutation_test
from jaxdiff.report.study import Estimate, Points, Table

# What a 95 % interval takes for granted, by the word that stands beside it in probe.csv.
GIVEN = {
    "fits": f"{statistics.GIVEN_FITS}; {CROSSED:.2f} times as wide as a bootstrap's, because out-of-fold answers of one cell "
    "have learnt from one another's labels",
    "fits, choices": NESTED,
    "nothing fitted": "the network and the noise; nothing was fitted, and only scenes are drawn anew",
}

METRICS = {
    "auc": "AUC over all clips",
    "relative_error": "IntPhys relative error",
    "absolute_error": "IntPhys absolute error",
}


@dataclasses.dataclass(frozen=True)
class Measures:
    """Of one source, from its out-of-fold margins.

    estimates : metric of `METRICS` -> value and interval; relative_error only where a set holds both labels.
    permutation : p of the accuracy, labels exchanged inside scenes; None where there is nothing to exchange.
    maximum : family-wise test of all its cells, in the order of its arrays.
    """

    estimates: dict[str, Estimate]
    permutation: float | None = None
    maximum: MaxStatistic | None = None


def measure_result(result: NestedResult, sets: np.ndarray, *, seed: int = 0) -> Measures:
    """`sets` [n] are the scenes, or the smaller sets inside which labels are matched."""
    margins, y, groups = result.predictions, result.labels, result.groups
    area = statistics.auc_interval(margins, y, groups, seed=seed, conditional_on=NESTED)
    value = statistics.auc(margins, y)
    found = {"auc": Estimate(value, *area), "absolute_error": Estimate(1 - value, 1 - area.high, 1 - area.low)}
    if result.pairwise is None:
        return Measures(found)
    interval = statistics.relative_error_interval(margins, y, groups, seed=seed, conditional_on=NESTED)
    found["relative_error"] = Estimate(statistics.relative_error(margins, y, groups), *interval)
    cells = np.concatenate(list(result.cells.values()), axis=1)
    return Measures(
        {name: found[name] for name in METRICS},
        permutation_test(margins, y, sets, seed=seed).p,
        max_statistic(cells, y, sets, seed=seed),
    )


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What the states' probes could do with any labels; see `jaxdiff.probes.capacity`.

    training : accuracy on the clips that they were fitted on, with the true labels.
    code : prequential, of the true labels.
    selectivity : None where no attribute of the clips recurs.
    """

    training: float
    memorised: capacity.Memorised
    code: capacity.Code
    selectivity: capacity.Selectivity | None = None


def measure_capacity(
    arrays: Mapping[str, np.ndarray],
    result: NestedResult,
    attribute: np.ndarray | None,
    *,
    strata: np.ndarray,
    outer: int,
    inner: int,
    repeats: int,
    seed: int,
) -> Capacity:
    """Of the candidates `arrays` and their `result`.

    Everything has the columns of the nested cross-validation, so that its programs are used again.
    """
    penalties = result.penalties
    code = capacity.prequential(
        arrays, result.labels, result.groups, penalties=penalties, orders=repeats * outer, portions=inner + 1, seed=seed
    )
    selectivity = None
    if attribute is not None:
        control = nested_cross_validate(
            arrays, control_labels(attribute, result.groups, seed=seed), result.groups, penalties=penalties,
            outer=outer, inner=inner, repeats=repeats, seed=seed, strata=strata,
        )  # fmt: skip
        selectivity = capacity.selectivity(result, control, len(np.unique(attribute)), seed=seed)
    return Capacity(
        result.training_accuracy,
        capacity.memorised(arrays, result, draws=inner + 1, seed=seed),
        code,
        selectivity,
    )


def estimate_json(estimate: Estimate) -> dict[str, float | None]:
    """An estimate for result.json; None where there is no number."""
    parts = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: float(value) if np.isfinite(value) else None for name, value in parts.items()}


def flat_json(measured: Mapping[str, Measures]) -> dict[str, Any]:
    """`source.metric` -> number or estimate, for result.json."""
    found: dict[str, Any] = {}
    for key, item in measured.items():
        found |= {f"{key}.{metric}": estimate_json(estimate) for metric, estimate in item.estimates.items()}
        if item.permutation is not None and item.maximum is not None:
            found[f"{key}.permutation_p"] = item.permutation
            found[f"{key}.max_statistic_p"] = float(item.maximum.p.min())
            found[f"{key}.max_statistic_threshold"] = float(item.maximum.threshold)
            found[f"{key}.cells"] = len(item.maximum.p)
            found[f"{key}.cells_above_threshold"] = int(np.sum(item.maximum.p <= 0.05))
    return found


def capacity_json(found: Capacity) -> dict[str, Any]:
    """The numbers of `Capacity`, for result.json."""
    entries: dict[str, Any] = {
        "training_accuracy": found.training,
        "memorised_accuracy": found.memorised.accuracy,
        "code_bits_per_clip": found.code.bits / found.code.clips,
    }
    if found.selectivity is not None:
        chosen = found.selectivity
        entries |= {
            "control_task": estimate_json(Estimate(chosen.control, *chosen.interval)),
            "control_task_values": chosen.values,
            "selectivity": estimate_json(Estimate(chosen.difference, *chosen.difference_interval)),
        }
    return entries


def measures_table(names: Mapping[str, str], measured: Mapping[str, Measures]) -> Table:
    """The statistics of the listed sources, key -> name in `names`."""
    rows = []
    for key, name in names.items():
        item = measured[key]
        estimates = [item.estimates.get(metric, Estimate(np.nan)) for metric in METRICS]
        tests: tuple[Any, ...] = ("–", "–", "–")
        if item.permutation is not None and item.maximum is not None:
            above = int(np.sum(item.maximum.p <= 0.05))
            tests = (
                p_text(item.permutation),
                f"{above} of {len(item.maximum.p)}",
                Estimate(float(item.maximum.threshold)),
            )
        rows.append((name, *estimates, *tests))
    return Table(
        "Statistics of every source",
        (
            "source",
            *METRICS.values(),
            "p, permutation",
            "cells above chance, all tested at once",
            "accuracy that this takes",
        ),
        tuple(rows),
        "From out-of-fold margins. AUC pools margins of different folds, whose scales differ; the relative error compares "
        "the possible with the impossible clips of a scene, and 50 % is chance for it and for the absolute error. p: share "
        "of labelings, exchanged inside scenes, that are told at least as well. Cells above chance: the family-wise test "
        "by the best cell of each such labeling, at .05. Intervals are 95 %, over scenes, and conditional on "
        f"{NESTED}; the tests are conditional on the same.",
    )


def capacity_table(found: Capacity) -> Table:
    """What the states' probes could do with any labels."""
    rows: list[tuple[Any, ...]] = [
        ("training clips told right, true labels", Estimate(found.training), ""),
        (
            "training clips told right, labels exchanged inside scenes",
            Estimate(found.memorised.accuracy),
            "what these probes memorise: the nearer to 100 %, the less the line above says",
        ),
        (
            "prequential code, bits a clip",
            f"{found.code.bits / found.code.clips:.3f}",
            f"1 is knowing nothing, and takes {found.code.compression:.2f} times as many; mixture of all cells and "
            f"penalties, {len(found.code.by_order)} orders of the scenes",
        ),
    ]
    chosen = found.selectivity
    if chosen is None:
        rows.append(("control task", "not measured", "no attribute with enough values recurs in these clips' scenes"))
    else:
        rows += [
            (
                "control task: random labels of a recurring attribute",
                Estimate(chosen.control, *chosen.interval),
                f"{chosen.values} values, each True or False by lot; held-out scenes",
            ),
            (
                "selectivity: task minus control task, points",
                Points(chosen.difference, *chosen.difference_interval),
                "paired over scenes; below 0 where the attribute is the easier of the two",
            ),
        ]
    return Table(
        "How much the probes can do with any labels",
        ("", "states", ""),
        tuple(rows),
        f"Intervals are 95 %, over scenes, and conditional on {NESTED}.",
    )


def p_text(p: float) -> str:
    """A p value as it is read."""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def csv_lines(measured: Measures, places: Sequence[Mapping[str, Any]], base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines of probe.csv; `places` say where each cell was read, in the order of the source's arrays."""
    lines: list[dict[str, Any]] = [
        {**base, "metric": metric, "value": e.value, "low": e.low, "high": e.high, "given": "fits, choices"}
        for metric, e in measured.estimates.items()
    ]
    if measured.permutation is not None and measured.maximum is not None:
        threshold = float(measured.maximum.threshold)
        lines.append({**base, "metric": "permutation_p", "value": measured.permutation})
        lines.append(
            {**base, "metric": "max_statistic_threshold", "value": threshold if np.isfinite(threshold) else None}
        )
        lines += [
            {**base, **place, "metric": "max_statistic_p", "value": p}
            for place, p in zip(places, measured.maximum.p, strict=True)
        ]
    return lines


def capacity_lines(found: Capacity, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines of probe.csv."""
    lines = []
    for metric, entry in capacity_json(found).items():
        if isinstance(entry, dict):
            lines.append({**base, "metric": metric, **entry, "given": "fits, choices"})
        else:
            lines.append({**base, "metric": metric, "value": entry})
    return lines
