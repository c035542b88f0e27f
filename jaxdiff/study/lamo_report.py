"""The numbers of an ablation put together: scores, paired differences with intervals over prompts and seeds, the report."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.physics import METRICS
from jaxdiff.report.study import Estimate, Group, Study
from jaxdiff.study.measuring import SETS, Scores, errors_table, estimates, estimates_json
from jaxdiff.study.two_level import Crossing, two_level

Values = dict[str, dict[str, Estimate]]  # method -> metric -> estimate


@dataclasses.dataclass(frozen=True)
class Tally:
    """Scores of every seed and method, and how they are put together.

    scores : (seed, method) -> metric -> [N]; groups : the prompt's number of every clip, [N].
    """

    scores: Mapping[tuple[int, str], Mapping[str, np.ndarray]]
    groups: np.ndarray
    seeds: tuple[int, ...]

    @property
    def crossing(self) -> Crossing:
        """Seeds are drawn anew, and prompts, which all seeds share."""
        return Crossing(tuple(map(str, self.seeds)), ("prompts",) * len(self.seeds))

    def mean(self, values: Sequence[np.ndarray]) -> Estimate:
        """Mean over the clips that have a number, of one array [N] a seed."""
        count = int(self.groups.max()) + 1
        there = [np.isfinite(v) for v in values]
        if not any(t.any() for t in there):
            return Estimate(math.nan)
        sums = [np.bincount(self.groups, np.where(t, v, 0.0), count)[None] for v, t in zip(values, there, strict=True)]
        sizes = [np.bincount(self.groups, t, count) for t in there]
        return two_level(self.crossing, sums, sizes)[0]

    def value(self, method: str, metric: str) -> Estimate:
        """Mean of a metric."""
        return self.mean([self.scores[seed, method][metric] for seed in self.seeds])

    def difference(self, method: str, metric: str, other: str) -> Estimate:
        """Mean of a metric minus another method's, over the clips of equal prompt and noise in which both have one."""
        return self.mean([self.scores[seed, method][metric] - self.scores[seed, other][metric] for seed in self.seeds])


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the ablation says.

    titles : method -> what it is called; baseline : the method that differences are taken against.
    known, errors : of clips whose truth is known, as `reference_scores` gives them.
    facts : what a reader must know.
    """

    titles: Mapping[str, str]
    baseline: str
    values: Values
    differences: Values
    known: Values
    errors: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, str]
    intervals: str

    @classmethod
    def of(
        cls,
        tally: Tally,
        titles: Mapping[str, str],
        baseline: str,
        known: Mapping[str, Scores],
        errors: Mapping[str, Mapping[str, float]],
        facts: Mapping[str, str],
    ) -> "Answer":
        """Means and paired differences of every method and metric."""
        values = {name: {metric: tally.value(name, metric) for metric in METRICS} for name in titles}
        others = [name for name in titles if name != baseline]
        differences = {n: {metric: tally.difference(n, metric, baseline) for metric in METRICS} for n in others}
        seeds = len(tally.seeds)
        draws = f"drawn anew are {seeds} fine-tuning seeds and {int(tally.groups.max()) + 1} prompts"
        intervals = (
            f"{draws}; so few seeds make a coarse interval, which is widened by {tally.crossing.widening:.2f}; the checkpoint, "
            "the motion fields and the tracker are given"
            if seeds > 1
            else "one fine-tuning seed: the intervals know prompts only"
        )
        found = {key: estimates(scores) for key, scores in known.items()}
        return cls(titles, baseline, values, differences, found, errors, facts, intervals)

    def result(self) -> dict[str, Any]:
        """result.json."""
        return {
            "scores": {name: estimates_json(found) for name, found in self.values.items()},
            "differences": {name: estimates_json(found) for name, found in self.differences.items()},
            "reference": {name: estimates_json(found) for name, found in self.known.items()},
            "tracker": self.errors,
            "facts": self.facts,
            "intervals": self.intervals,
        }

    def clear(self) -> list[tuple[str, str, Estimate]]:
        """(method, metric, difference) of the violations whose interval leaves out zero."""
        return [
            (name, metric, e)
            for name, found in self.differences.items()
            for metric, e in found.items()
            if METRICS[metric].violation and math.isfinite(e.low) and not e.low <= 0 <= e.high
        ]

    def summary(self) -> str:
        """The finding, from the intervals of LaMo's three methods."""
        judged = [metric for metric, how in METRICS.items() if how.violation]
        parts = []
        for name in (name for name in ("drift", "guidance", "both") if name in self.differences):
            mine = [(metric, e) for method, metric, e in self.clear() if method == name]
            better = [METRICS[m].name for m, e in mine if e.value < 0]
            worse = [METRICS[m].name for m, e in mine if e.value > 0]
            said = [f"{word} in {', '.join(which)}" for word, which in (("better", better), ("worse", worse)) if which]
            parts.append(f"{self.titles[name]}: {' and '.join(said) or 'no clear difference'}")
        return (
            f"Against the plain fine-tune, of {len(judged)} numbers each, by intervals that leave out zero: {'; '.join(parts)}. "
            f"The tracker misses {100 * self.errors['true']['missed']:.2f} % of the frames of true clips that show the thing whole."
        )

    def study(self) -> Study:
        """The report."""
        sets = {SETS[key]: found for key, found in self.known.items()}
        rows = sets | {self.titles[name]: found for name, found in self.values.items()}
        scores = tuple(
            Group(METRICS[m].name, {n: found[m] for n, found in rows.items()}, how.title) for m, how in METRICS.items()
        )
        minus = {self.titles[name]: found for name, found in self.differences.items()}
        differences = tuple(Group(METRICS[m].name, {n: found[m] for n, found in minus.items()}) for m in METRICS)
        size = 32
        return Study(
            title="LaMo on the nano model: drift loss and motion guidance",
            summary=self.summary(),
            facts=self.facts,
            scores=scores,
            differences=differences,
            tables=(errors_table(self.errors, size),),
            conditional_on=(self.intervals,),
            notes=(
                "Methods differ in one thing at a time; budgets, clips, their order and the noise of training and sampling are "
                "equal. A number is a mean over clips that have it: what shows no thing has no motion, and is in the empty clips.",
                f"{len(METRICS) * len(self.differences)} differences are shown, each with its own 95 % interval: of as many that "
                "are nothing, one in twenty leaves out zero.",
            ),
        )

    def markdown(self) -> str:
        """The tables for docs, in percent."""

        def cell(e: Estimate, signed: bool) -> str:
            if not math.isfinite(e.value):
                return "–"
            mark = "+" if signed else ""
            text = f"{100 * e.value:{mark}.2f}"
            return text + (f" [{100 * e.low:{mark}.2f}, {100 * e.high:{mark}.2f}]" if math.isfinite(e.low) else "")

        def lines(rows: Mapping[str, Mapping[str, Estimate]], signed: bool) -> list[str]:
            head = ["", *(METRICS[m].name for m in METRICS)]
            body = [[name, *(cell(found[m], signed) for m in METRICS)] for name, found in rows.items()]
            return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]

        sets = {SETS[key]: found for key, found in self.known.items()}
        named = {self.titles[name]: found for name, found in self.values.items()}
        minus = {self.titles[name]: found for name, found in self.differences.items()}
        true = self.errors["true"]
        return "\n".join(
            [
                "# LaMo on the nano model",
                "",
                self.summary(),
                "",
                *(f"- {key}: {text}" for key, text in self.facts.items()),
                f"- intervals, 95 %: {self.intervals}",
                f"- tracker on true clips: misses {100 * true['missed']:.2f} % of the frames that show the thing whole, finds one in "
                f"{100 * true['false']:.2f} % of those that show none; centre off by {100 * true['position']:.2f} % of the side",
                "",
                "All numbers in percent:",
                *(f"**{METRICS[m].name}** {how.title};" for m, how in METRICS.items()),
                "",
                "## Scores",
                "",
                *lines(sets | named, False),
                "",
                f"## Differences from {self.titles[self.baseline]}, paired by prompt and noise",
                "",
                *lines(minus, True),
                "",
            ]
        )
