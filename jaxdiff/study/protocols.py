"""The published protocol beside the corrected one, as tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.probes.cross_validation import NESTED
from jaxdiff.probes.published import PublishedResult
from jaxdiff.report.study import Estimate, Group, percent
from jaxdiff.study.analysis import Answer
from jaxdiff.study.features import place_columns


def protocols(answers: Mapping[str, Answer]) -> tuple[Group, ...]:
    """The same sources under the published protocol (all of its numbers) and under the corrected one.

    The published numbers have no interval: their spread over seeds does not know that seeds share clips.
    """
    both = {key: answer for key, answer in answers.items() if answer.published is not None}
    if not both:
        return ()
    found = {key: answer.published for key, answer in both.items() if answer.published is not None}
    middle = {key: answer.at_middle for key, answer in both.items() if answer.at_middle is not None}
    first = next(iter(found.values()))
    seeds, share = len(first.best_by_seed), first.test.mean()
    how = f"{100 * (1 - share):.0f}/{100 * share:.0f} split by scene, no standardisation, Adam for 50 epochs, mean of {seeds} splits"
    optimism = "The cell is chosen on the fold that is reported, which is optimistic: the best of many is above chance"
    if "shuffled" in found:
        witness = found["shuffled"]
        cells = sum(array.shape[1] for array in witness.accuracy.values())
        optimism += (
            f" by luck. Labels shuffled inside scenes, where there is nothing to find, are the witness: the best of "
            f"{cells} cells reports {percent(witness.best)} for them. A source with a single cell gets no such bonus"
        )
    level = both["states"].middle if "states" in both else next(iter(both.values())).middle
    half = f"sigma {level:.3g}, where half of the steps lead (t = 0.5 of the paper); inputs without levels at their own"
    groups = [
        Group(
            "published, best block of each split",
            {key: Estimate(result.best) for key, result in middle.items()},
            f"Among the blocks at {half}. Chosen on the fold that is reported: optimistic.",
        ),
        Group(
            "published, mean of blocks",
            {key: Estimate(result.mean) for key, result in middle.items()},
            f"The blocks at {half}. Nothing is chosen, and good blocks are diluted by bad ones.",
        ),
        Group(
            "published, best cell",
            {key: Estimate(result.best) for key, result in found.items()},
            f"Of all blocks and levels. {optimism}. {how}.",
        ),
        Group(
            "published, mean of cells",
            {key: Estimate(result.mean) for key, result in found.items()},
            "The same probes averaged over all cells: nothing is chosen, and good cells are diluted by bad ones.",
        ),
    ]
    categories = {key: answer.by_category for key, answer in both.items() if answer.by_category}
    if categories:
        groups.insert(
            0,
            Group(
                "published, a probe for each category, best block",
                {key: Estimate(_over_categories(found)["best_block"]) for key, found in categories.items()},
                f"As the paper does on IntPhys, averaged over categories. Among the blocks at {half}. Optimistic twice: the "
                "choice is made on the reported fold, and on the few clips of one category.",
            ),
        )
    corrected = {key: answer.nested for key, answer in both.items() if answer.nested is not None}
    if corrected:
        groups.append(
            Group(
                "corrected",
                {key: Estimate(result.accuracy, *result.interval) for key, result in corrected.items()},
                "Cell, pooling and penalty are chosen in inner folds; scored on outer ones; 95 % interval over scenes, "
                f"conditional on {NESTED}.",
            )
        )
    return tuple(groups)


def _published_json(result: PublishedResult) -> dict[str, Any]:
    errors = {"best_error": result.best_error, "mean_error": result.mean_error, "best_pairwise": result.best_pairwise}
    return {
        "best": result.best,
        "mean": result.mean,
        "seeds": len(result.best_by_seed),
        **{name: None if value is None or not np.isfinite(value) else value for name, value in errors.items()},
    }


def protocols_json(answers: Mapping[str, Answer]) -> dict[str, Any]:
    """The published protocol's numbers of every source that it was run on, for result.json."""
    published = {}
    for key, answer in answers.items():
        if answer.published is not None and answer.at_middle is not None:
            published[key] = {
                **_published_json(answer.published),
                "best_block": answer.at_middle.best,
                "mean_of_blocks": answer.at_middle.mean,
                "middle_sigma": answer.middle,
            }
            if answer.by_category:
                published[key]["by_category"] = {
                    "average": _over_categories(answer.by_category),
                    **{c: {"best_block": r.best, "mean_of_blocks": r.mean} for c, r in answer.by_category.items()},
                }
    return {"published": published} if published else {}


def _over_categories(found: Mapping[str, PublishedResult]) -> dict[str, float]:
    return {
        "best_block": float(np.mean([result.best for result in found.values()])),
        "mean_of_blocks": float(np.mean([result.mean for result in found.values()])),
    }


def published_summary(answers: Mapping[str, Answer]) -> str:
    """The report's first sentence where the corrected protocol was not run; empty otherwise."""
    states = answers["states"]
    if states.nested is not None or states.published is None or states.at_middle is None:
        return ""
    return (
        f"Under the published protocol the states reach {percent(states.at_middle.best)} with the block of each split "
        f"that does best on the reported fold, and {percent(states.at_middle.mean)} on average over blocks. The first "
        "number is biased upwards, and neither has an interval over scenes: the corrected protocol was not run."
    )


def published_rows(answer: Answer, base: dict[str, Any]) -> list[dict[str, Any]]:
    """The paper's numbers, each split's best cell, and every cell averaged over splits."""
    result, middle, candidates = answer.published, answer.at_middle, answer.source.features.candidates
    if result is None or middle is None:
        return []
    lines = [
        {**base, "metric": "best_accuracy", "value": result.best},
        {**base, "metric": "mean_accuracy", "value": result.mean},
        {**base, "metric": "best_block_accuracy", "sigma": answer.middle, "value": middle.best},
        {**base, "metric": "mean_of_blocks_accuracy", "sigma": answer.middle, "value": middle.mean},
    ]
    for category, found in answer.by_category.items():
        place = {"sigma": answer.middle, "category": category}
        lines.append({**base, **place, "metric": "best_block_accuracy", "value": found.best})
        lines.append({**base, **place, "metric": "mean_of_blocks_accuracy", "value": found.mean})
    for repeat, ((name, cell), value) in enumerate(zip(result.best_cells, result.best_by_seed, strict=True)):
        place = place_columns(candidates[name][cell])
        lines.append({**base, **place, "metric": "best_accuracy", "repeat": repeat, "value": value})
    for name, accuracy in result.accuracy.items():
        for candidate, value in zip(candidates[name], accuracy.mean(0), strict=True):
            lines.append({**base, **place_columns(candidate), "value": value})
    return lines
