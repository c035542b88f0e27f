"""What was found of programs, as lines for people: one program, a ranking of meshes, and the tables of docs/scaling.md."""

import dataclasses
from typing import Any

from jaxdiff.errors import ConfigError
from jaxdiff.scaling.roofline import GB, STUDIES, Chip, speed_of
from jaxdiff.scaling.search import shared

PARTS = ("compute", "memory", "interconnect")
CHIP_COUNTS = (1, 4, 16, 64, 256, 1024)


def described(found: dict[str, Any], chip: Chip | None) -> dict[str, str]:
    """What `measure` found, as name -> text."""
    lines = {"arguments": f"{found['argument_gb_per_device']:.3g} GB"}
    if "hbm_gb_per_device" in found:
        lines["temporaries"] = f"{found['temporary_gb_per_device']:.3g} GB"
        lines["all memory"] = f"{found['hbm_gb_per_device']:.3g} GB"
        if chip is not None:
            verdict = "fits" if found["fits"] else "DOES NOT FIT"
            lines["all memory"] += f" of {chip.memory / GB:.0f} GB: {verdict}"
        for kind, entry in found["collectives"].items():
            lines[f"{kind}, {entry['count']} times"] = f"{number(entry['received'] / GB)} GB"
        lines["read and written"] = f"{number(found['traffic_bytes_per_device'] / GB)} GB"
    else:
        lines["DOES NOT FIT"] = found["why"]
    lines["operations"] = f"{number(found['flops_per_device'] / 1e12)} T"
    if "seconds" in found:
        steps = found["steps"]
        names = {
            "compute": "products, at peak",
            "memory": "memory, at full speed",
            "interconnect": "collectives, all links",
        }
        for kind, name in names.items():
            mark = "  <- what it takes at least" if kind == found["bound"] else ""
            lines[name] = f"{found['seconds'][kind] / steps:.3g} s a step{mark}"
        lines["clips"] = f"{number(found['clips_per_hour'])} an hour at best, {found['clips']} at once"
        for study, clips in STUDIES.items():
            lines[f"{study}, {clips:,} clips"] = f"{number(found['chip_hours'][study])} chip-hours at best"
    return lines


def ranking(found: list[dict[str, Any]]) -> list[str]:
    """One line a mesh."""
    lines = [f"{'mesh':24} {'GB':>7} {'s a step':>9} {'bound':>13} {'clips/h':>9}"]
    for entry in found:
        if not entry.get("fits", True):
            lines.append(f"{entry['mesh']:24} does not fit: {entry.get('why') or size(entry) + ' GB'}")
        elif "seconds" in entry:
            lines.append(
                f"{entry['mesh']:24} {size(entry):>7} {entry['seconds_per_step']:9.3g} {entry['bound']:>13} "
                f"{entry['clips_per_hour']:9.4g}"
            )
        else:
            lines.append(f"{entry['mesh']:24} {size(entry):>7}")
    return lines


def size(found: dict[str, Any]) -> str:
    """Gigabytes per chip."""
    return number(found["hbm_gb_per_device"]) if "hbm_gb_per_device" in found else "-"


def number(value: float) -> str:
    """Three digits, and no more than whole numbers."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# ------------------------------------------------------------------------------------------------ docs/scaling.md


def grid_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: one line for each model, program and slice, of the slowest part in bold; of a row not compiled yet, "found" is
    None."""
    head = [
        "model",
        "program",
        "slice",
        "mesh",
        "fits",
        "GB a chip",
        *(f"s a step, {part}" for part in PARTS),
        *STUDIES,
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells, found = [row["model"], row["program"], row["slice"]], row["found"]
        if found is None:
            cells += ["not compiled yet"]
        elif not found["fits"]:
            cells += [found["mesh"], "no", size(found)]
        else:
            steps = {part: number(value / found["steps"]) for part, value in found["seconds"].items()}
            steps[found["bound"]] = f"**{steps[found['bound']]}**"
            cells += [found["mesh"], "yes", size(found), *(steps[part] for part in PARTS)]
            cells += [number(found["chip_hours"][study]) for study in STUDIES]
        lines.append(f"| {' | '.join(cells + [''] * (len(head) - len(cells)))} |")
    return lines


def frames_table(counted: dict[str, dict[str, float]], chip: Chip) -> list[str]:
    """Markdown: seconds at a chip's peak for one step of one clip of so many frames, from its operations, model -> frames ->
    operations; and how many times those of the shortest clip that is."""
    lines: list[str] = []
    for model, values in counted.items():
        ordered = sorted((int(frames), operations) for frames, operations in values.items())
        cells = [f"{n}: {number(x / chip.flops)} s ({x / ordered[0][1]:.1f})" for n, x in ordered]
        if not lines:
            lines = [
                "| model | frames: seconds (times the shortest)" + " |" * len(cells),
                "|---" * (1 + len(cells)) + "|",
            ]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return lines


def chips_table(rows: list[dict[str, Any]], chip: Chip, chips: tuple[int, ...] = CHIP_COUNTS) -> list[str]:
    """Markdown: hours (and chip-hours) of the studies on more or fewer chips, from programs that were compiled for one slice.

    A group of chips that shares weights or clips works as it does there; there are only more or fewer groups of them. What a
    study's last batch leaves idle counts.
    """
    lines = ["| model | chips of a group | study | " + " | ".join(f"{n} chips" for n in chips) + " |"]
    lines.append("|---" * (3 + len(chips)) + "|")
    for row in rows:
        speed, group = speed_of(row["found"], chip), shared(row["found"]["mesh"])
        for study, clips in STUDIES.items():
            cells = []
            for n in chips:
                here = dataclasses.replace(speed, devices=n, clips=speed.clips * n // speed.devices)
                whole = n % group == 0 and here.clips
                cells.append(f"{number(here.hours(clips))} ({number(here.chip_hours(clips))})" if whole else "-")
            lines.append(f"| {row['model']} | {group} | {study}, {clips:,} clips | " + " | ".join(cells) + " |")
    return lines


def replaced(document: str, name: str, lines: list[str]) -> str:
    """`document` with these lines between its marks ``<!-- name -->`` and ``<!-- /name -->``.

    Raises
    ------
    ConfigError : the marks are not there, once each and in this order.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opening, rest = document.partition(start)
    _, closing, after = rest.partition(end)
    if not opening or not closing or start in rest:
        raise ConfigError(
            f"the document has no place for the table {name!r}: it must hold {start} and, below it, {end}"
        )
    return "\n".join([before + start, *lines, end + after])
