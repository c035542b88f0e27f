"""summary.md of an aggregate: its tables, and every command, seed and machine that its numbers come from.

It is what stands beside a report that is kept in a repository, so that no number there is typed by hand.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdiff.report.study import Estimate, Study, sentence
from jaxdiff.report.words import further
from jaxdiff.workdir import Workdir, command_line

FILE = "summary.md"
DEEPEST = 8  # runs that need runs that need runs
KINDS = {"states": "states", "null": "null control", "comparison": "comparison", "baseline": "baseline"}


def write_summary(work: Workdir, study: Study, result: Mapping[str, Any], studies: Sequence[Path]) -> None:
    """Write the summary of `study`, whose result.json is `result`, into `work`; `studies` are the workdirs put together."""
    work.write(FILE, "\n\n".join(sections(study, result, lineage([work.path, *studies]))).encode() + b"\n")


def sections(study: Study, result: Mapping[str, Any], made: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """The parts of the page."""
    tested = result.get("statistics", {})
    headline = [
        (
            row.name, KINDS[row.kind], told(row.estimate), _range(result["range"][row.key]),
            told(row.gap, points=True) if row.gap else "", told(row.pairwise) if row.pairwise else "",
            _p(tested.get(f"{row.key}.permutation_p")),
        )
        for row in study.rows
    ]  # fmt: skip
    head = ("source", "kind", "accuracy, 95 %", "runs", "states minus this, points", "pairs ranked right", "p")
    keys = [key for key in dict.fromkeys(k for group in study.replicates for k in group.values) if study.row(key)]
    names = [row.name for row in map(study.row, keys) if row is not None]
    out = [
        f"# {study.title}",
        " ".join(filter(None, (sentence(study), further(study)))),
        *(f"- {note}" for note in study.notes),
        table(head, headline),
    ]
    if study.checks:
        aims = [(check.name, check.value, check.bar, "met" if check.met else "missed") for check in study.checks]
        out += ["## Aims that were set before", table(("aim", "measured", "bar", ""), aims)]
    for title, groups in (("By category", study.categories), ("Every run, over its own scenes", study.replicates)):
        if groups:
            cells = [[told(group.values.get(key)) for key in keys] for group in groups]
            heads, sides = names, [group.name for group in groups]
            if len(groups) < len(keys):  # as high as can be, for it is the width that is read with trouble
                cells, heads, sides = [list(column) for column in zip(*cells, strict=True)], sides, heads
            lines = [(side, *line) for side, line in zip(sides, cells, strict=True)]
            out += [f"## {title}", table(("", *heads), lines)]
    surprise = {name: entry for name, entry in result.get("surprise", {}).items() if name != "sigma"}
    if surprise:
        lines = [(name, told(Estimate(*(math.nan if e[k] is None else e[k] for k in ("value", "low", "high")))))
                 for name, e in surprise.items()]  # fmt: skip
        level = result["surprise"]["sigma"]
        out += [f"## Surprise: pairs ranked right by the denoising loss at σ {level:.3g}", table(("model", ""), lines)]
    models = [f"{run['run']}: {run['world']}, model {run['model']}" for run in result.get("replicates", ())]
    return [*out, *provenance(study, models, made)]


def provenance(study: Study, seeds: Sequence[str], made: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """Where the numbers come from: seeds, commands in the order in which they were needed, machines."""
    above = os.path.commonpath(list(made)) if made else ""  # whose place says nothing
    runs = [
        (
            command_line(entry["session"]).replace(f"{above}/", ""),
            f"{entry['seconds'] / 60:.0f} min" if entry["seconds"] else "",
        )
        for entry in made.values()
    ]
    where = dict.fromkeys(machine(entry["session"]) for entry in made.values())
    return [
        "## Seeds",
        "; ".join(f"{name}: {value}" for name, value in {**study.facts, **study.seeds}.items()),
        "\n".join(f"- {name}" for name in seeds),
        "## Commands",
        "Each with the time of its stages.",
        "\n".join(["```sh", *(f"{line}{f'  # {time}' if time else ''}" for line, time in runs), "```"]),
        "## Machines",
        "\n".join(f"- {text}" for text in where),
    ]


def lineage(folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """The workdirs and all that their commands name, and so on: workdir -> its last `session`, and `seconds` of its stages.

    What a run needs comes before it.
    """
    found: dict[Path, dict[str, Any]] = {}
    depths: dict[Path, int] = {}
    todo = [(folder.resolve(), depth) for depth, folder in zip((0, *[1] * len(folders)), folders, strict=False)]
    while todo:
        folder, depth = todo.pop(0)
        session = json.loads((folder / "env.json").read_bytes())[-1]
        found[folder] = {"session": session, "seconds": _seconds(folder / "metrics.jsonl")}
        depths[folder] = max(depth, depths.get(folder, 0))
        for argument in map(str, session["command"][1:]):
            for value in filter(None, argument.partition("=")[2].split(",")):
                place = next((p for p in _upwards(Path(value)) if (p / "env.json").is_file()), folder)
                if depths.get(place, -1) <= depth < DEEPEST and place != folder:
                    todo.append((place, depth + 1))
    return {folder: found[folder] for folder in sorted(found, key=lambda folder: -depths[folder])}


def _upwards(path: Path) -> list[Path]:
    path = path.resolve()
    return [path, *path.parents]


def _seconds(file: Path) -> float:
    """Time of the stages and of the training steps that a metrics.jsonl tells of."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    total, before = 0.0, 0
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        total += event.get("seconds", 0.0)
        if "seconds_per_step" in event:
            total += max(0, event["step"] - before) * event["seconds_per_step"]
            before = event["step"]
    return total


def machine(session: Mapping[str, Any]) -> str:
    """The hardware and the versions of an entry of env.json."""
    versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
    devices = ", ".join(session["devices"])
    where = f"{session['processor']}, {session['cores']} cores, {session['system']}"
    return f"{where}; {devices}; Python {session['python']}, {versions}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


def told(value: Estimate | None, points: bool = False) -> str:
    """An accuracy as "73.6 % (71.2-76.3)", a difference as "+14.2 (10.7 to 17.9)"; empty where it was not measured."""
    if value is None or not math.isfinite(value.value):
        return ""
    middle, low, high = (100 * part for part in (value.value, value.low, value.high))
    if points:
        return f"{middle:+.1f}" + (f" ({low:.1f} to {high:.1f})" if math.isfinite(low) else "")
    return f"{middle:.1f} %" + (f" ({low:.1f}-{high:.1f})" if math.isfinite(low) else "")


def _range(entry: Mapping[str, float]) -> str:
    return f"{100 * entry['lowest']:.1f}-{100 * entry['highest']:.1f}"


def _p(p: float | None) -> str:
    return "" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"
