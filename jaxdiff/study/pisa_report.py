"""What a run of `experiments.pisa` comes to: numbers with intervals, the aims, and the page."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdiff.physics.pisa import average
from jaxdiff.probes import statistics
from jaxdiff.report import probe_csv, report_run
from jaxdiff.report.study import Check, Curve, Estimate, Gallery, Panel, Study, Table
from jaxdiff.study.pisa import BASE, FAR, SEEN, TUNED, PisaConfig, Scores
from jaxdiff.workdir import Workdir

NUMBERS = {"l2": "L2", "chamfer": "Chamfer", "lost": "1 - IoU"}
CELLS = {SEEN: "heights as in training", FAR: "heights that no training clip has"}
GIVEN = "the trained weights and the segmentation; only the held-out clips are drawn anew"
HALF = 0.5  # of the untrained L2: the paper's fine-tuning takes .175 to .076
SHOWN = 6  # clips on the page
COLUMNS = (
    "cell",
    "method",
    "clip",
    "l2",
    "chamfer",
    "iou",
    "missing",
    "published_l2",
    "published_chamfer",
    "published_iou",
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Scores of every cell and method, and what they say.

    scores : cell -> method -> "corrected" and "published" -> `jaxdiff.physics.pisa.pisa_metrics`.
    """

    config: PisaConfig
    scores: Mapping[str, Mapping[str, Mapping[str, Scores]]]

    def value(self, cell: str, method: str, number: str) -> Estimate:
        """Mean over clips, failures counted, with its interval."""
        found = self.scores[cell][method]["corrected"]
        return _estimate(1 - found["iou"] if number == "lost" else found[number])

    def difference(self, cell: str, method: str, other: str) -> Estimate:
        """L2 minus another method's, paired by clip and noise."""
        return _estimate(*(self.scores[cell][name]["corrected"]["l2"] for name in (method, other)))

    def checks(self) -> tuple[Check, ...]:
        """The aims: fine-tuning halves the untrained L2, and every reward lowers it further."""
        base, tuned = (self.value(SEEN, name, "l2").value for name in (BASE, TUNED))
        found = [
            Check("L2 after fine-tuning over untrained", f"{tuned / base:.2f}", f"at most {HALF}", tuned <= HALF * base)
        ]
        for name in self.config.rewards:
            change = self.difference(SEEN, name, TUNED)
            said = f"{100 * change.value:+.2f} points [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
            found.append(Check(f"L2 after the {name} reward minus before", said, "interval below 0", change.high < 0))
        return tuple(found)

    def result(self) -> dict[str, Any]:
        """result.json."""
        cells = {
            cell: {
                name: {number: _json(self.value(cell, name, number)) for number in NUMBERS}
                | {kind: _finite(average(found[kind])) for kind in ("corrected", "published")}
                for name, found in methods.items()
            }
            for cell, methods in self.scores.items()
        }
        return {
            "headline": {},
            "scores": cells,
            "differences": {
                cell: {name: _json(self.difference(cell, name, TUNED)) for name in self.config.rewards}
                for cell in cells
            },
            "checks": [dataclasses.asdict(check) | {"met": bool(check.met)} for check in self.checks()],
            "intervals": GIVEN,
        }

    def summary(self) -> str:
        """The finding in words."""
        base, tuned = (100 * self.value(SEEN, name, "l2").value for name in (BASE, TUNED))
        parts = [f"L2 {base:.1f} % of the diagonal untrained and {tuned:.1f} % after fine-tuning"]
        for name in self.config.rewards:
            change = self.difference(SEEN, name, TUNED)
            sure = math.isfinite(change.low) and not change.low <= 0 <= change.high
            word = ("lower" if change.value < 0 else "higher") if sure else "not clearly changed"
            parts.append(f"{100 * self.value(SEEN, name, 'l2').value:.1f} % after the {name} reward ({word})")
        lost = int(average(self.scores[SEEN][TUNED]["corrected"])["failures"])
        return (
            f"{', '.join(parts)}; the thing is missing in a frame of {lost} of {self.config.held_out} fine-tuned clips."
        )

    def tables(self) -> tuple[Table, ...]:
        """A table a cell: corrected numbers, failures, and the published ones beside them."""
        head = (
            "",
            *NUMBERS.values(),
            "failures",
            "published: L2",
            "Chamfer",
            "IoU",
            "left out",
        )
        made = []
        for cell, methods in self.scores.items():
            rows = []
            for name, found in methods.items():
                mine, theirs = average(found["corrected"]), average(found["published"])
                said = [theirs[key] for key in ("l2", "chamfer", "iou")]
                rows.append(
                    (
                        name,
                        *(self.value(cell, name, number) for number in NUMBERS),
                        int(mine["failures"]),
                        *(f"{value:.3f}" if math.isfinite(value) else "none" for value in said),
                        int(theirs["left_out"]),
                    )
                )
            caption = (
                "L2 and Chamfer distance in percent of the frame's diagonal, 1 - IoU in percent of what either mask covers; "
                "lower is better, and a missing thing costs the most that there is. 'Failures' are clips of which a frame misses "
                "the thing. Published: as PISA's code computes it, without such frames; 'left out' are clips that its average "
                "does not see."
            )
            made.append(Table(f"Held-out clips, {CELLS[cell]}", head, tuple(rows), caption))
        return tuple(made)

    def study(self, gallery: Gallery, panels: tuple[Panel, ...]) -> Study:
        """The page."""
        config = self.config
        return Study(
            title="Falling things: fine-tuning and object reward optimisation (PISA)",
            summary=self.summary(),
            facts={
                "training clips": str(config.clips),
                "fine-tuning": f"{config.steps} steps of {config.batch} clips",
                "rewards": f"{', '.join(config.rewards) or 'none'}; {config.reward_steps} steps of {config.reward_batch} samples",
                "sampling": f"{config.sampling_steps} steps",
                "gradient": "through all steps"
                if config.backward == "full"
                else f"{config.backward} {config.backward_steps}",
                "held-out clips": f"{config.held_out} a cell",
                "seed": str(config.seed),
            },
            checks=self.checks(),
            panels=panels,
            tables=self.tables(),
            gallery=gallery,
            conditional_on=(GIVEN,),
            notes=("All methods continue the same first frames from the same noise. Rewards see training clips only.",),
        )


def write(answer: Answer, clips: Mapping[str, Mapping[str, np.ndarray]], work: Workdir) -> None:
    """result.json, clips.csv, report.html and DONE."""
    config = answer.config
    names = list(clips[SEEN])
    shown = np.stack([clips[SEEN][name][:SHOWN] for name in names], 1)
    rows = tuple(f"clip {i}" for i in range(len(shown)))
    probe_csv(work.path / "clips.csv", _rows(answer), COLUMNS)
    work.write_result(answer.result())
    report_run(work, answer.study(Gallery(tuple(names), rows, shown), curves(work)))
    work.finish(("result.json", "clips.csv"))
    print(f"{answer.summary()}\n-> {work.path / 'report.html'} ({', '.join((TUNED, *config.rewards))} in pipelines/)")


def curves(work: Workdir) -> tuple[Panel, ...]:
    """What each stage optimised, over its steps."""
    stages: dict[str, dict[int, float]] = {}
    for line in work.metrics():
        if line.get("event") == "train":
            stages.setdefault(line["stage"], {})[line["step"]] = line.get("reward", line["loss"])
    return tuple(
        Panel(
            "Fine-tuning" if name == TUNED else f"Reward: {name}",
            (Curve(name, np.array(sorted(found)), np.array([found[step] for step in sorted(found)])),),
            "step",
            "denoising loss" if name == TUNED else "mean reward of the step's samples",
        )
        for name, found in stages.items()
    )


def _rows(answer: Answer) -> list[dict[str, Any]]:
    found = []
    for cell, methods in answer.scores.items():
        for name, kinds in methods.items():
            for i in range(len(kinds["corrected"]["l2"])):
                mine = {key: float(values[i]) for key, values in kinds["corrected"].items()}
                theirs = {f"published_{key}": float(kinds["published"][key][i]) for key in ("l2", "chamfer", "iou")}
                found.append({"cell": cell, "method": name, "clip": i} | mine | theirs)
    return found


def _estimate(values: np.ndarray, minus: np.ndarray | float = 0.0) -> Estimate:
    values = np.asarray(values - minus, np.float64)
    if len(values) < 2 or not np.ptp(values):
        return Estimate(float(values.mean()))
    ends = statistics.cluster_bootstrap(values, np.arange(len(values)), conditional_on=GIVEN)
    return Estimate(float(values.mean()), ends.low, ends.high)


def _json(estimate: Estimate) -> dict[str, float | int | None]:
    return _finite(dataclasses.asdict(estimate))


def _finite(values: Mapping[str, float]) -> dict[str, float | int | None]:
    def digits(value: float) -> float | int | None:
        return value if isinstance(value, int) else float(f"{value:.6g}") if math.isfinite(value) else None

    return {key: digits(value) for key, value in values.items()}
