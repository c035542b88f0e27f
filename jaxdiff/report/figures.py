"""The figures of a report: each function takes parts of a `Study` and returns a matplotlib figure.

`style.svg` makes it inline SVG for the page, `style.png` a picture for other documents. Accuracy axes and
colours are centred at chance, so that "above" and "below" weigh the same to the eye; nothing is cut off to
make an effect larger.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from jaxdiff.report.study import Estimate, Grid, Group, Row
from jaxdiff.report.style import DIVERGING, ON_LIGHT, accuracy_norm, color, ink_on, series, styled

BELOW = 0.78  # inches under a heatmap, for its axis and the next one's title
WIDTH = 10.4  # inches; 1000 css pixels, the width of the page's wide column


def accuracy_limits(estimates: Sequence[Estimate], chance: float) -> tuple[float, float]:
    """Limits of an accuracy axis: chance in the middle, intervals inside, at least 15 points to each side."""
    ends = [v for e in estimates for v in (e.value, e.low, e.high) if math.isfinite(v)]
    reach = max([0.15, *(abs(v - chance) for v in ends)])
    reach = math.ceil((reach + 0.004) * 20) / 20
    return chance - reach, chance + reach


def percent_axis(axis: Axes, chance: float, limits: tuple[float, float], x: bool = False) -> None:
    """Make an axis one of accuracy: percent ticks, and chance as a dashed line."""
    (axis.set_xlim if x else axis.set_ylim)(limits)
    step = 0.1 if limits[1] - limits[0] > 0.35 else 0.05
    ticks = np.arange(math.ceil(limits[0] / step - 1e-9), math.floor(limits[1] / step + 1e-9) + 1) * step
    names = [f"{100 * t:.0f}" for t in ticks]
    if not x:
        names = [f"chance {n}" if abs(t - chance) < 1e-9 else n for n, t in zip(names, ticks, strict=True)]
    (axis.set_xticks if x else axis.set_yticks)(ticks, names)
    (axis.axvline if x else axis.axhline)(chance, color=color("soft"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axis.grid(axis="x" if x else "y")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart to at least `gap`, keeping their order and staying within [low, high]."""
    order = np.argsort(positions, kind="stable")
    placed = np.clip(np.asarray(positions, float)[order], low, high)
    for _ in range(60):
        for i in range(len(placed) - 1):
            overlap = gap - (placed[i + 1] - placed[i])
            if overlap > 1e-9:
                placed[i] -= overlap / 2
                placed[i + 1] += overlap / 2
        placed = np.clip(placed, low, high)
    out = np.empty(len(placed))
    out[order] = placed
    return out.tolist()


def end_labels(axis, labels: Sequence[tuple[str, float, str]], height: float) -> None:
    """Write names at the right end of their lines instead of in a legend; `height` of the axis in inches."""
    low, high = axis.get_ylim()
    log = axis.get_yscale() == "log"
    scale = np.log10 if log else np.asarray
    low, high = float(scale(low)), float(scale(high))
    at = [(float(scale(value)) - low) / (high - low) for _, value, _ in labels]
    for (name, _, shade), y in zip(labels, spread(at, 0.17 / height, 0.02, 0.98), strict=True):
        axis.text(
            1.015,
            y,
            name,
            color=shade,
            va="center",
            transform=axis.transAxes,
            fontweight="bold",
            fontsize=8.5,
        )


def sigma_text(value: float) -> str:
    """A sigma as short as it can be told: 0, .1, .25, 1."""
    return f"{value:.3g}".replace("0.", ".", 1) if 0 < value < 1 else f"{value:g}"


@styled
def heatmaps(
    grids: Sequence[Grid], chance: float, rows: Sequence[Row] = (), *, scale: Sequence[Grid] = (), bar: bool = True
) -> Figure:
    """Accuracy by block (up) and sigma (right), one panel a model, all on one colour scale centred at chance.

    Input rows lie below the blocks, set apart. Cells that inner folds chose are outlined. `rows` (the
    headline table) are marked on the colour bar, so that the controls can be read on the same scale as the
    cells. `scale` are more grids that the scale must hold, of other figures with the same colours; `bar` draws it.
    """
    values = np.concatenate([np.ravel(g.accuracy) for g in (*grids, *scale)])
    norm = accuracy_norm(np.append(values, [r.estimate.value for r in rows]), chance)
    across = len(grids) if len(grids) <= 4 else 3
    down = math.ceil(len(grids) / across)
    most = max(len(g.labels) for g in grids)
    cell = 0.27 if most <= 14 else 0.165
    panel = most * cell + 0.3
    marks = _marks(rows)
    lines = math.ceil(len(marks) / _columns(marks, across))
    floor = 0.95 + 0.17 * max(0, lines - 3) if bar else 0.05  # inches under the panels
    height = down * (panel + BELOW) + floor
    figure = Figure((WIDTH, height))
    left, gap, top = 0.085, 0.035 if _same_labels(grids) else 0.085, 0.34 / height
    places = across if bar else max(across, 3)  # a lone panel below others has their width
    width = (1 - left - 0.01 - gap * (places - 1)) / places
    for index, grid in enumerate(grids):
        column, row = index % across, index // across
        bottom = 1 - top - (row + 1) * (panel + BELOW) / height + BELOW / height
        axis = figure.add_axes((left + column * (width + gap), bottom, width, panel / height))
        _heatmap(axis, grid, norm, label_rows=column == 0 or not _same_labels(grids), label_x=True)
    if bar:
        up = (floor - 0.61) / height
        place = figure.add_axes((left, up, max(width if across > 1 else 0, 0.29), 0.13 / height))
        _scale_bar(figure, place, norm, chance, rows, _columns(marks, across))
    return figure


def _same_labels(grids: Sequence[Grid]) -> bool:
    return all(g.labels == grids[0].labels and g.inputs == grids[0].inputs for g in grids)


def _heatmap(axis, grid: Grid, norm, label_rows: bool, label_x: bool) -> None:
    count, columns = np.shape(grid.accuracy)
    lift = np.where(np.arange(count) < grid.inputs, 0.0, 0.4 if grid.inputs else 0.0)
    bottoms = np.arange(count) + lift
    annotate = count <= 14 and columns <= 12
    for y, line in zip(bottoms, np.asarray(grid.accuracy, float), strict=True):
        axis.pcolormesh(
            np.arange(columns + 1),
            [y, y + 1],
            line[None],
            norm=norm,
            cmap=DIVERGING,
            edgecolors=color("paper"),
            linewidth=0.7,
        )
        for x, value in enumerate(line):
            if not math.isfinite(value):
                axis.text(x + 0.5, y + 0.46, "–", ha="center", va="center", fontsize=7.5, color=color("soft"))
            elif annotate:
                shade = ink_on(DIVERGING(norm(value)))
                axis.text(
                    x + 0.5,
                    y + 0.46,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=shade,
                )
    for row, column, _ in grid.chosen:
        box = (
            (column + 0.06, column + 0.94, column + 0.94, column + 0.06),
            bottoms[row] + np.array([0.06, 0.06, 0.94, 0.94]),
        )
        axis.fill(*box, fill=False, edgecolor=ON_LIGHT, linewidth=1.5, joinstyle="miter")
    axis.set_title(grid.name, pad=7)
    axis.set_xlim(0, columns)
    axis.set_ylim(0, bottoms[-1] + 1)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    names = [sigma_text(round(float(s), 2)) for s in grid.sigmas]
    room = axis.get_position().width * WIDTH / (0.075 * max(map(len, names)) + 0.06)  # labels that fit
    thin = max(1, math.ceil(columns / room))
    axis.set_xticks(np.arange(columns)[::thin] + 0.5, names[::thin])
    step = 1 if annotate else max(1, math.ceil((count - grid.inputs) / 10))
    shown = [i for i in range(count) if i < grid.inputs or (i - grid.inputs) % step == 0 or i == count - 1]
    if len(shown) > 1 and shown[-1] - shown[-2] < step and shown[-2] >= grid.inputs:
        shown.pop(-2)
    axis.set_yticks(bottoms[shown] + 0.5, [grid.labels[i] for i in shown] if label_rows else [""] * len(shown))
    if label_x:
        axis.set_xlabel("clean  ←  noise level σ  →  noise", labelpad=3)
    if label_rows and grid.inputs < count:
        middle = (bottoms[grid.inputs] + bottoms[-1] + 1) / 2 / (bottoms[-1] + 1)
        axis.text(
            -0.36 / (axis.get_position().width * WIDTH),  # inches, left of the row labels
            middle,
            "block",
            rotation=90,
            va="center",
            ha="center",
            transform=axis.transAxes,
            color=color("soft"),
        )


def _looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each row's key: the same in every figure of the report."""
    rows = sorted(rows, key=lambda r: "." in r.key)  # controls of further reads, which figures leave out, come last
    return dict(zip([r.key for r in rows], series([r.kind for r in rows]), strict=True))


def _marks(rows: Sequence[Row]) -> list[Row]:
    """The claim and its controls; controls of further reads are in the table."""
    claim = next((r for r in rows if r.kind == "states"), None)
    return [r for r in rows if (r is claim or r.controls_claim) and math.isfinite(r.estimate.value)]


def _columns(marks: Sequence[Row], across: int) -> int:
    """Columns of the legend beside the colour bar, which is as wide as a panel."""
    space = WIDTH * (0.9 - 0.9 / max(across, 3))
    longest = 0.066 * max((len(row.name) + 5 for row in marks), default=1) + 0.36  # inches, at this size of type
    return max(1, min(math.ceil(len(marks) / 2), int(space / longest)))


def _scale_bar(figure: Figure, axis, norm, chance: float, rows: Sequence[Row], columns: int) -> None:
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), cax=axis, orientation="horizontal")
    bar.outline.set_visible(False)
    step = 0.1 if norm.vmax - chance < 0.35 else 0.2
    count = int((norm.vmax - chance) / step + 1e-9)
    ticks = [chance + step * i for i in range(-count, count + 1)]
    bar.set_ticks(
        ticks,
        labels=[f"{100 * t:.0f}" if i != count else f"chance {100 * t:.0f}" for i, t in enumerate(ticks)],
    )
    axis.tick_params(length=3)
    axis.set_xlabel("accuracy on held-out scenes, %", labelpad=2)
    looks = _looks(rows)
    marks = _marks(rows)
    handles = []
    for row in marks:
        style = {
            "marker": looks[row.key][1],
            "color": looks[row.key][0],
            "markersize": 4.5,
            "linestyle": "none",
        }
        axis.plot(row.estimate.value, 1.6, transform=axis.get_xaxis_transform(), clip_on=False, **style)
        handles += axis.plot([], [], label=f"{row.name} {100 * row.estimate.value:.1f}", **style)
    if marks:
        box = axis.get_position()
        figure.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(box.x1 + 0.03, (box.y0 + box.y1) / 2),
            ncols=columns,
            handletextpad=0.2,
            columnspacing=1.4,
            borderpad=0,
            fontsize=8.5,
            title="the headline's rows on the same scale",
            title_fontproperties={"size": 8.5},
            labelcolor=color("soft"),
            alignment="left",
        )


def clean_column(grid: Grid) -> int:
    """The column of the lowest sigma."""
    return int(np.argmin(grid.sigmas))


@styled
def depth(grids: Sequence[Grid], chance: float) -> Figure:
    """Accuracy by block at the lowest sigma, one line a model: is it in the input, or made by the network?"""
    height = 3.7
    figure = Figure((WIDTH * 0.82, height))
    axis = figure.add_axes((0.105, 0.145, 0.69, 0.82))
    longest = max(grids, key=lambda g: len(g.labels))
    blocks, most = len(longest.labels) - longest.inputs, max(g.inputs for g in grids)
    unit = max(1.0, blocks / 9)  # room for the name of an input, however many blocks there are
    crowded = blocks > 14
    estimates, labels = [], []
    for place, (grid, (shade, marker)) in enumerate(zip(grids, series([g.kind for g in grids]), strict=True)):
        column, first = clean_column(grid), grid.inputs
        y, low, high = (
            np.full(len(grid.labels), np.nan) if a is None else np.asarray(a, float)[:, column]
            for a in (grid.accuracy, grid.low, grid.high)
        )
        estimates += [Estimate(*v) for v in zip(y, low, high, strict=True)]
        x = np.concatenate([(np.arange(first) - first) * unit, np.arange(len(y) - first)])
        x += (place - (len(grids) - 1) / 2) * 0.09 * (~(crowded & (x >= 0)) * unit)
        axis.plot(x[:first], y[:first], marker=marker, color=shade, zorder=3, linestyle="none")
        axis.plot(x[first - 1 : first + 1], y[first - 1 : first + 1], ":", color=shade, lw=1.4)
        axis.plot(x[first:], y[first:], marker=None if crowded else marker, color=shade, zorder=3)
        bars = x < 0 if crowded else np.full(len(x), True)
        axis.vlines(x[bars], low[bars], high[bars], color=shade, linewidth=1.3, alpha=0.75, zorder=2)
        if crowded:
            axis.fill_between(x[first:], low[first:], high[first:], color=shade, alpha=0.13, linewidth=0)
        labels.append((grid.name, y[np.isfinite(y)][-1] if np.isfinite(y).any() else chance, shade))
    edge = -unit / 2
    axis.set_xlim(edge - most * unit, blocks - 0.5)
    percent_axis(axis, chance, accuracy_limits(estimates, chance))
    if most:
        axis.axvspan(edge - most * unit, edge, color=color("band"), zorder=0, linewidth=0)
        style: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "va": "top", "color": color("soft")}
        axis.text(edge - most * unit / 2, 0.975, "input", ha="center", **style)
        axis.text(edge + 0.12 * unit, 0.975, "inside the network", **style)
    shown = list(range(0, blocks, max(1, math.ceil(blocks / 12))))
    deepest = max(grids, key=lambda g: g.inputs)
    ticks = [(i - most) * unit for i in range(most)] + shown
    names = [*deepest.labels[:most], *(longest.labels[longest.inputs + i] for i in shown)]
    axis.set_xticks(ticks, names)
    axis.set_xlabel("what is read: the input, then the output of block 0, 1, 2, …")
    axis.set_ylabel("accuracy on held-out scenes, %")
    end_labels(axis, labels, height * 0.82)
    return figure


@styled
def groups(items: Sequence[Group], rows: Sequence[Row], chance: float) -> Figure:
    """Accuracy with intervals, one band a group (category, replicate), one marker a series."""
    keys = list(dict.fromkeys(key for group in items for key in group.values))
    names = {row.key: row.name for row in rows}
    strangers = [key for key in keys if key not in names]
    looks = _looks(rows) | dict(zip(strangers, series(["null"] * len(strangers)), strict=True))
    pitch = 0.17 if len(items) <= 5 else 0.115
    band = pitch * len(keys) + 0.14
    margin = 0.15 + 0.072 * max(len(group.name) for group in items)
    room = (WIDTH * 0.82 - margin) / (0.3 + 0.066 * max(len(names.get(key, key)) for key in keys))
    across = max(1, min(len(keys), int(room)))
    above = 0.3 + 0.2 * math.ceil(len(keys) / across)  # inches for the legend
    height = len(items) * band + 0.5 + above
    figure = Figure((WIDTH * 0.82, height))
    left = margin / figure.get_figwidth()
    axis = figure.add_axes((left, 0.5 / height, 0.98 - left, (height - 0.5 - above) / height))
    for index, group in enumerate(items):
        if index % 2 == 0:
            axis.axhspan(index, index + 1, color=color("band"), zorder=0, linewidth=0)
        for place, key in enumerate(keys):
            if key not in group.values or not math.isfinite(group.values[key].value):
                continue
            estimate, (shade, marker) = group.values[key], looks[key]
            y = index + (0.07 + pitch * (place + 0.5)) / band
            axis.hlines(y, estimate.low, estimate.high, color=shade, linewidth=1.6, alpha=0.75)
            axis.plot(estimate.value, y, marker, color=shade)
    percent_axis(axis, chance, accuracy_limits([e for g in items for e in g.values.values()], chance), x=True)
    axis.set_ylim(len(items), 0)
    axis.set_yticks(np.arange(len(items)) + 0.5, [g.name for g in items], color=color("ink"))
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("accuracy on held-out scenes, %  (dashed: chance; bars: 95 % intervals)")
    handles = [axis.plot([], [], looks[k][1], color=looks[k][0], label=names.get(k, k))[0] for k in keys]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left - 0.012, 1.0),
        ncols=across,
        handletextpad=0.1,
        columnspacing=1.5,
    )
    return figure
