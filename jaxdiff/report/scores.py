"""Numbers of several methods beside each other, a small panel a number: what an ablation comes to."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdiff.report import video
from jaxdiff.report.figures import WIDTH
from jaxdiff.report.page import details, drawing, esc, estimate, figure, table
from jaxdiff.report.study import Estimate, Gallery, Group
from jaxdiff.report.style import color, styled

ACROSS = 3
GAP = 2  # white pixels between clips
SCORES = "Percent; bars: 95 % intervals. Lower is better, but for the speed, which is neither. Dashed: the first line's value."
DIFFERENCES = "In points, paired; left of the dashed line is less. Orange: the 95 % interval leaves out zero."


@styled
def panels(items: Sequence[Group], *, zero: bool = False) -> Figure:
    """One panel a group, methods down it in the order of the first group, values in percent to the right.

    A dashed line stands at the group's first value, or at zero.
    """
    names = list(items[0].values)
    across = min(ACROSS, len(items))
    down = math.ceil(len(items) / across)
    row, above, below = 0.19, 0.36, 0.42  # inches
    tall = len(names) * row
    height = down * (tall + above + below)
    margin = 0.2 + 0.074 * max(map(len, names))
    gap = 0.32
    wide = (WIDTH - margin - 0.15 - gap * (across - 1)) / across
    picture = Figure((WIDTH, height))
    for index, group in enumerate(items):
        line, column = divmod(index, across)
        bottom = height - (line + 1) * (tall + above + below) + below
        axis = picture.add_axes(
            ((margin + column * (wide + gap)) / WIDTH, bottom / height, wide / WIDTH, tall / height)
        )
        bands: dict[str, Any] = {"color": color("band"), "linewidth": 72 * row, "zorder": 0}
        axis.hlines(range(0, len(names), 2), 0, 1, transform=axis.get_yaxis_transform(), **bands)
        for sure, shade in ((False, color("null")), (True, color("states"))):
            # A difference that excludes zero is what the reader looks for.
            shown = [
                (y, v) for y, v in enumerate(group.values.get(name) for name in names) if v and _sure(v, zero) is sure
            ]
            bars = [(y, v) for y, v in shown if math.isfinite(v.low)]
            ends = ([100 * getattr(v, end) for _, v in bars] for end in ("low", "high"))
            axis.hlines([y for y, _ in bars], *ends, color=shade, linewidth=1.5, alpha=0.75)
            axis.plot([100 * v.value for _, v in shown], [y for y, _ in shown], "o", color=shade, markersize=4)
        mark = 0.0 if zero else 100 * group.values[names[0]].value
        if math.isfinite(mark):
            axis.axvline(mark, color=color("soft"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_yticks(range(len(names)), names if column == 0 else [""] * len(names), color=color("ink"))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=5)
        axis.set_title(group.name, pad=5)
    return picture


def _sure(value: Estimate, zero: bool) -> bool:
    return zero and math.isfinite(value.low) and not value.low <= 0 <= value.high


def section(items: Sequence[Group], caption: str, *, zero: bool = False) -> str:
    """The panels, and their numbers folded away."""
    if not items:
        return ""
    names = list(items[0].values)
    rows = [(esc(name), *(estimate(group.values.get(name), points=zero) for group in items)) for name in names]
    notes = "".join(f"<li><b>{esc(g.name)}</b>: {esc(g.note)}</li>" for g in items if g.note)
    numbers = table(("", *(esc(g.name) for g in items)), rows, numeric=range(1, 1 + len(items)))
    drawn = figure(drawing(panels(items, zero=zero), "differences" if zero else "scores"), esc(caption))
    return drawn + (f'<ul class="plain">{notes}</ul>' if notes else "") + details("As numbers", numbers)


def gallery(items: Gallery | None) -> str:
    """Clips in a grid, a moving picture a row."""
    if items is None:
        return ""
    columns = len(items.columns)
    grid = f'style="display:grid;grid-template-columns:9em repeat({columns},1fr);gap:2px;align-items:center;font-size:11px"'
    soft = 'style="color:var(--soft)"'
    head = "".join(f"<span {soft}>{esc(name)}</span>" for name in ("", *items.columns))
    body = ""
    for name, clips in zip(items.rows, items.clips, strict=True):
        gap = np.full((*clips.shape[1:3], GAP, 3), 255, np.uint8)
        parts = [part for clip in clips for part in (clip, gap)]
        row = np.concatenate(parts, axis=2)  # one picture, so that the clips of a row move together
        still = row[:: max(1, len(row) // 4)][1:4]
        shown = f"{esc(name)}: {columns} clips"
        span = f'style="grid-column:span {columns};width:100%;image-rendering:pixelated'
        moving = video.data_uri(video.animation(row, items.fps))
        strip = video.data_uri(video.animation(np.concatenate(list(still), axis=0)[None], items.fps))
        body += f"<span {soft}>{esc(name)}</span>"
        body += f'<img class="moving" alt="{shown}" src="{moving}" {span}">'
        body += f'<img class="still" alt="three frames of {shown}" src="{strip}" {span}">'
    return f'<div class="scroll"><div class="clip" {grid}>{head}{body}</div></div>'
