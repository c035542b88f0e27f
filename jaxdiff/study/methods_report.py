"""Numbers of several methods put together: scores, paired differences with intervals over prompts and seeds, the report."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.physics import METRICS
from jaxdiff.physics.metrics import Metric
from jaxdiff.report.study import Estimate, Group, Study, Table
from jaxdiff.study.measuring import SETS, Scores, errors_table, estimates, estimates_json
from jaxdiff.study.two_level import Crossing, two_level

Values = dict[str, dict[str, Estimate]]  # method -> metric -> estimate
BESIDE = "Differences from methods that are told as much, paired"
LACK = "In them the thing is never whole, is not seen long enough, or does nothing that the number is about."


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

    def without(self, method: str, metric: str) -> float:
        """Share of the clips that have no such number."""
        return _without([self.scores[seed, method][metric] for seed in self.seeds])

    def difference(self, method: str, metric: str, other: str) -> Estimate:
        """Mean of a metric minus another method's, over the clips of equal prompt and noise in which both have one."""
        return self.mean([self.scores[seed, method][metric] - self.scores[seed, other][metric] for seed in self.seeds])


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, and what a reader must know.

    Parameters
    ----------
    title : of the report.
    titles : method -> what it is called.
    baseline : the method that differences are taken against.
    judged : methods of which the summary speaks, those that there are.
    facts : of budgets.
    given : what no interval knows of.
    metrics : the numbers.
    beside : method -> another one, whose difference is told as well: it shares with the method what the baseline does not.
    tables, notes : beside the scores.
    """

    title: str
    titles: Mapping[str, str]
    baseline: str
    judged: tuple[str, ...]
    facts: Mapping[str, str]
    given: str = "the checkpoint and the tracker"
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=lambda: METRICS)
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the methods come to.

    known, errors : of clips whose truth is known, as `reference_scores` gives them.
    """

    question: Question
    values: Values
    differences: Values
    beside: Values
    known: Values
    errors: Mapping[str, Mapping[str, float]]
    without: Mapping[str, Mapping[str, float]]
    intervals: str

    @classmethod
    def of(
        cls,
        tally: Tally,
        question: Question,
        known: Mapping[str, Scores],
        errors: Mapping[str, Mapping[str, float]],
    ) -> "Answer":
        """Means and paired differences of every method and metric."""
        titles, metrics = question.titles, question.metrics
        values = {name: {metric: tally.value(name, metric) for metric in metrics} for name in titles}

        def minus(pairs: Mapping[str, str]) -> Values:
            return {name: {m: tally.difference(name, m, other) for m in metrics} for name, other in pairs.items()}

        seeds = len(tally.seeds)
        draws = f"drawn anew are {seeds} fine-tuning seeds and {int(tally.groups.max()) + 1} prompts"
        intervals = (
            f"{draws}; so few seeds make a coarse interval, which is widened by {tally.crossing.widening:.2f}; {question.given} "
            "are given"
            if seeds > 1
            else "one fine-tuning seed: the intervals know prompts only"
        )
        return cls(
            question,
            values,
            minus({name: question.baseline for name in titles if name != question.baseline}),
            minus(question.beside),
            {key: estimates(scores) for key, scores in known.items()},
            errors,
            {name: {metric: tally.without(name, metric) for metric in metrics} for name in titles}
            | {key: {metric: _without([found[metric]]) for metric in metrics} for key, found in known.items()},
            intervals,
        )

    def result(self) -> dict[str, Any]:
        """result.json."""
        return {
            "scores": {name: estimates_json(found) for name, found in self.values.items()},
            "differences": {name: estimates_json(found) for name, found in self.differences.items()},
            "reference": {name: estimates_json(found) for name, found in self.known.items()},
            "without": self.without,
            "tracker": self.errors,
            "facts": self.question.facts,
            "intervals": self.intervals,
        } | (
            {"beside": {n: {"from": self.question.beside[n], **estimates_json(f)} for n, f in self.beside.items()}}
            if self.beside
            else {}
        )

    def clear(self) -> list[tuple[str, str, Estimate]]:
        """(method, metric, difference) of the violations whose interval leaves out zero; of methods that are told more than the
        baseline, the difference from one that is told as much."""
        return [
            (name, metric, e)
            for name, found in (self.differences | self.beside).items()
            for metric, e in found.items()
            if self.question.metrics[metric].violation and math.isfinite(e.low) and not e.low <= 0 <= e.high
        ]

    def summary(self) -> str:
        """The finding, from the intervals of the methods that are judged."""
        metrics, titles = self.question.metrics, self.question.titles
        judged = [metric for metric, how in metrics.items() if how.violation]
        parts = []
        for name in (name for name in self.question.judged if name in self.differences):
            mine = [(metric, e) for method, metric, e in self.clear() if method == name]
            better = [metrics[m].name for m, e in mine if e.value < 0]
            worse = [metrics[m].name for m, e in mine if e.value > 0]
            said = [f"{word} in {', '.join(which)}" for word, which in (("better", better), ("worse", worse)) if which]
            parts.append(f"{titles[name]}: {' and '.join(said) or 'no clear difference'}")
        told = " (a method that is told more: against one that is told as much)" if self.beside else ""
        return (
            f"Against the {titles[self.question.baseline]}{told}, of {len(judged)} numbers each, by intervals that leave out zero: "
            f"{'; '.join(parts)}. "
            f"The tracker misses {100 * self.errors['true']['missed']:.2f} % of the frames of true clips that show the thing whole."
        )

    @property
    def rows(self) -> dict[str, dict[str, Estimate]]:
        """Scores by title: of clips whose truth is known, then of the methods."""
        named = {self.question.titles[name]: found for name, found in self.values.items()}
        return {SETS[key]: found for key, found in self.known.items()} | named

    @property
    def minus(self) -> dict[str, dict[str, Estimate]]:
        """Differences from the baseline by title."""
        return {self.question.titles[name]: found for name, found in self.differences.items()}

    @property
    def minus_beside(self) -> dict[str, dict[str, Estimate]]:
        """Differences from the others, with what they are taken from."""
        titles, beside = self.question.titles, self.question.beside
        return {f"{titles[name]} minus {titles[beside[name]]}": found for name, found in self.beside.items()}

    @property
    def lack(self) -> dict[str, dict[str, Estimate]]:
        """Shares of the clips without a number by title."""
        titles = {key: SETS[key] for key in self.known} | dict(self.question.titles)
        return {text: {m: Estimate(share) for m, share in self.without[name].items()} for name, text in titles.items()}

    def tables(self) -> tuple[Table, ...]:
        """What stands beside the scores: what was asked for, differences from others, how many clips have no number."""
        heads = ("", *(metric.name for metric in self.question.metrics.values()))

        def table(title: str, rows: Mapping[str, Mapping[str, Estimate]], caption: str = "") -> Table:
            return Table(title, heads, tuple((name, *found.values()) for name, found in rows.items()), caption)

        beside = (table(BESIDE, self.minus_beside),) if self.beside else ()
        return (*self.question.tables, *beside, table("Clips without a number", self.lack, LACK))

    def study(self) -> Study:
        """The report."""
        metrics = self.question.metrics
        scores = tuple(
            Group(how.name, {n: found[m] for n, found in self.rows.items()}, how.title) for m, how in metrics.items()
        )
        differences = tuple(
            Group(how.name, {n: found[m] for n, found in self.minus.items()}) for m, how in metrics.items()
        )
        size = 32
        return Study(
            title=self.question.title,
            summary=self.summary(),
            facts=self.question.facts,
            scores=scores,
            differences=differences,
            tables=(*self.tables(), errors_table(self.errors, size)),
            conditional_on=(self.intervals,),
            notes=(
                *self.question.notes,
                f"{len(metrics) * len(self.differences)} differences are shown, each with its own 95 % interval: of as many that "
                "are nothing, one in twenty leaves out zero.",
            ),
        )

    def markdown(self) -> str:
        """The tables for docs, in percent."""
        metrics, question = self.question.metrics, self.question

        def lines(rows: Mapping[str, Mapping[str, Estimate]], signed: bool) -> list[str]:
            body = [[name, *(_cell(found[m], signed) for m in metrics)] for name, found in rows.items()]
            return _markdown(["", *(how.name for how in metrics.values())], body)

        true = self.errors["true"]
        return "\n".join(
            [
                f"# {question.title}",
                "",
                self.summary(),
                "",
                *(f"- {key}: {text}" for key, text in question.facts.items()),
                f"- intervals, 95 %: {self.intervals}",
                f"- tracker on true clips: misses {100 * true['missed']:.2f} % of the frames that show the thing whole, finds one in "
                f"{100 * true['false']:.2f} % of those that show none; centre off by {100 * true['position']:.2f} % of the side",
                "",
                *(f"{note}\n" for note in question.notes),
                *(line for table in question.tables for line in (*_section(table), "")),
                "All numbers below in percent:",
                *(f"**{how.name}** {how.title};" for how in metrics.values()),
                "",
                "## Scores",
                "",
                *lines(self.rows, False),
                "",
                f"## Differences from {question.titles[question.baseline]}, paired by prompt and noise",
                "",
                *lines(self.minus, True),
                "",
                *([f"## {BESIDE}", "", *lines(self.minus_beside, True), ""] if self.beside else []),
                "## Clips without a number",
                "",
                LACK,
                "",
                *lines(self.lack, False),
                "",
            ]
        )  # fmt: skip


def _without(values: Sequence[np.ndarray]) -> float:
    """Share of the clips that have no number."""
    return float(1 - np.isfinite(np.concatenate(values)).mean())


def _cell(e: Estimate, signed: bool) -> str:
    if not math.isfinite(e.value):
        return "–"
    mark = "+" if signed else ""
    text = f"{100 * e.value:{mark}.2f}"
    return text + (f" [{100 * e.low:{mark}.2f}, {100 * e.high:{mark}.2f}]" if math.isfinite(e.low) else "")


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def _section(table: Table) -> list[str]:
    """A table of text cells."""
    return [
        f"## {table.title}",
        "",
        *_markdown(table.columns, [[*map(str, row)] for row in table.rows]),
        "",
        table.caption,
    ]
