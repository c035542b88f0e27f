"""The sections of a report that state what was found."""

import math
from collections.abc import Sequence

import numpy as np

from jaxdiff.report import figures
from jaxdiff.report.page import Forest, details, drawing, esc, estimate, figure, table
from jaxdiff.report.study import Estimate, Grid, Group, Row, Study, percent

_PARTS = {
    "states": ("States", "read while the clip runs backwards through the trained network"),
    "null": ("Null controls", "should be at chance"),
    "further null": (
        "Null controls of the further reads",
        "the same sites in the control models; the gap is to that read",
    ),
    "comparison": ("Comparisons", "may be as good: cheaper or nonlinear reads of the same input, or other inputs"),
    "baseline": ("Baselines", "other ways of seeing the clips: classical motion, and encoders of video"),
}
_INPUTS = (
    ": the latents of the autoencoder, averaged over all tokens as the blocks are, and x_sigma, the state of the "
    "trajectory in the linear embedding that enters block 0. "
)
WIDE = 7  # series; more become the rows of a table of groups
_CSS_COLOR = {
    "states": "var(--states)",
    "null": "var(--null)",
    "comparison": "var(--comparison)",
    "baseline": "var(--baseline)",
}


def result(study: Study) -> str:
    """The headline table and the aims that were set before the run."""
    body = ""
    if study.rows:
        body += _headline(study.rows, study.chance)
    if study.checks:
        cells = [
            (
                esc(c.name),
                esc(c.value),
                esc(c.bar),
                f'<span class="{"met" if c.met else "miss"}">{"met" if c.met else "missed"}</span>',
            )
            for c in study.checks
        ]
        body += "<h3>Aims set before the run</h3>" + table(("aim", "measured", "bar", ""), cells, numeric=(1, 2))
    return body


def _headline(rows: Sequence[Row], chance: float) -> str:
    forest = Forest([r.estimate for r in rows], chance)
    pairs, gaps = any(r.pairwise for r in rows), any(r.gap for r in rows)
    width = 3 + pairs + gaps
    head = '<th></th><th class="num">accuracy per clip, 95 %</th><th class="plot">' + forest.axis() + "</th>"
    head += '<th class="num">pairs ranked right</th>' * pairs + '<th class="num">states minus this, points</th>' * gaps
    body = ""
    claim = next((r for r in rows if r.kind == "states"), None)
    for part, (title, meaning) in _PARTS.items():
        kind = part.removeprefix("further ")
        chosen = [r for r in rows if r.kind == kind and (part != "null" or r.controls_claim)]
        if part != kind:
            chosen = [r for r in chosen if not r.controls_claim]
        if not chosen:
            continue
        body += f'<tr class="part"><td colspan="{width}"><b>{title}</b> &nbsp;{meaning}</td></tr>'
        for row in chosen:
            above = kind == "null" and row.estimate.low > chance
            flag = '<span class="flag">interval above chance</span>' if above else ""
            note = f'<span class="note">{esc(row.note)}</span>' if row.note else ""
            body += f"<tr{' class=main' if row is claim else ''}><td>{esc(row.name)}{flag}{note}</td>"
            body += f'<td class="num">{estimate(row.estimate)}</td>'
            body += f'<td class="plot">{forest.cell([(row.estimate, _CSS_COLOR[kind], True)])}</td>'
            body += f'<td class="num">{estimate(row.pairwise)}</td>' * pairs
            body += f'<td class="num">{estimate(row.gap, points=True) if row.gap else ""}</td>' * gaps + "</tr>"
    body += f'<tr class="part"><td><b>Chance</b> &nbsp;guessing</td><td class="num">{percent(chance)}</td>'
    body += f'<td class="plot">{forest.cell([])}</td>{"<td></td>" * (width - 3)}</tr>'
    return (
        '<p class="lead">Share of clips told possible or impossible correctly, by a linear probe that never '
        "saw another clip of the same scene. The axis is centred at chance.</p>"
        f'<div class="scroll"><table class="head"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def grids(study: Study) -> str:
    """The block by sigma heatmaps, and all their cells as tables."""
    if not study.grids:
        return ""
    caption = (
        "Accuracy (%) of one probe per cell, on held-out scenes. All panels, inputs and controls share one "
        "colour scale, centred at chance: near-white is chance, orange above it, blue below. "
    )
    if any(g.inputs for g in study.grids):
        caption += "The rows at the bottom, set apart, are what goes into the network"
        caption += _INPUTS if {"latents", "x_sigma"} & {label for g in study.grids for label in g.labels} else ". "
    if any(g.chosen for g in study.grids):
        caption += "Outlined cells were chosen inside the folds. "
    caption += (
        "A single cell read off this map is <b>not</b> a result: the best of many cells is above chance by "
        "luck alone. The headline chooses its cell inside the folds."
    )
    tables = "".join(_grid_table(g) for g in study.grids)
    return _heatmaps(study, caption) + details("All cells as numbers", tables)


def _heatmaps(study: Study, caption: str) -> str:
    """The panels: models with what goes into them first, then whatever else was read, on the same colours."""
    models = [g for g in study.grids if g.inputs] or list(study.grids)
    others = [g for g in study.grids if not g.inputs][: len(study.grids) - len(models)]
    main = figures.heatmaps(models, study.chance, study.rows, scale=study.grids)
    out = figure(drawing(main, "accuracy by block and noise level"), caption)
    if others:
        more = figures.heatmaps(others, study.chance, study.rows, scale=study.grids, bar=False)
        words = "The same colours as above. What is read elsewhere in the network, or of other inputs."
        out += figure(drawing(more, "accuracy by block and noise level, other sites and inputs"), words)
    return out


def _grid_table(grid: Grid) -> str:
    rows = []
    for i in reversed(range(len(grid.labels))):
        cells = []
        for j, value in enumerate(np.asarray(grid.accuracy, float)[i]):
            low, high = (math.nan if a is None else float(a[i][j]) for a in (grid.low, grid.high))
            cells.append(estimate(Estimate(value, low, high)).replace(" %", ""))
        rows.append((esc(grid.labels[i] if i < grid.inputs else f"block {grid.labels[i]}"), *cells))
    head = ("", *(f"σ {s:.4g}" for s in grid.sigmas))
    title = f"<b>{esc(grid.name)}</b>, accuracy in %" + (" and 95 % interval" if grid.low is not None else "")
    folds = ", ".join(
        f"{grid.labels[r]} at σ {grid.sigmas[c]:.4g} ({n} fold{'s' * (n != 1)})" for r, c, n in grid.chosen
    )
    chosen = f"<p>Chosen inside the folds: {esc(folds)}.</p>" if folds else ""
    return table(head, rows, numeric=range(1, len(head)), caption=title) + chosen


def depth_title(study: Study) -> str:
    """Heading of `depth`: only at sigma 0 is it the cleanest evidence."""
    clean = bool(study.grids) and min(float(np.min(g.sigmas)) for g in study.grids) < 1e-6
    return "The cleanest evidence: no noise" if clean else "By block, at the lowest noise level"


def depth(study: Study) -> str:
    """Accuracy by block at the lowest sigma, with what it shows in words that follow from the intervals."""
    grids = [g for g in study.grids if len(g.labels) > g.inputs]
    grids = [g for g in grids if g.inputs] or grids
    if not grids:
        return ""
    sigma = float(grids[0].sigmas[figures.clean_column(grids[0])])
    same = [g for g in grids if abs(float(g.sigmas[figures.clean_column(g)]) - sigma) < 1e-9]
    picture = drawing(figures.depth(same, study.chance), "accuracy by block at the lowest noise level")
    if sigma < 1e-6:
        lead = (
            "At σ = 0 the network sees the clean latents and nothing else: no inversion step has been taken, "
            "so nothing the model did before can have leaked into its input. "
        )
        lead += "If the input is at chance and a block is not, the network computed it. " + _depth_words(
            same, study.chance
        )
    else:
        lead = (
            f"The lowest noise level measured is σ = {sigma:.3g}, not 0: the input here is already a state "
            "of the inverted trajectory and may carry the model's own reaction. Capture σ = 0 for the clean "
            "version of this figure."
        )
    bars = (
        "Bars and bands are 95 % intervals over scenes, conditional on the fitted probes; one point at a time, not "
        "corrected for looking at many."
        if any(g.low is not None for g in same)
        else "No intervals were computed."
    )
    bars += " Each point is a fixed cell; no choice was made." + _finer_latents(study, same)
    return f"<p>{lead}</p>" + figure(picture, bars)


def _finer_latents(study: Study, grids: Sequence[Grid]) -> str:
    """What the figure must not hide: it averages over tokens, and the input may hold more than its average."""
    row = study.row("latents")
    if row is None or not row.estimate.low > study.chance or not any(g.inputs for g in grids):
        return ""
    return (
        f" All points are averages over tokens. Pooled more finely, the same latents reach {percent(row.estimate.value)} "
        f"(&ldquo;{esc(row.name)}&rdquo; in the table above), so part of what the blocks hold was linearly there before "
        "the network."
    )


def _depth_words(grids: Sequence[Grid], chance: float) -> str:
    grid = next((g for g in grids if g.kind == "states" and g.inputs and g.low is not None), None)
    if grid is None:
        return ""
    column = figures.clean_column(grid)
    low, high = np.asarray(grid.low, float)[:, column], np.asarray(grid.high, float)[:, column]
    values = np.asarray(grid.accuracy, float)[:, column]
    holds = all(a <= chance <= b for a, b in zip(low[: grid.inputs], high[: grid.inputs], strict=True))
    inputs = "the interval of every input row holds chance" if holds else "not every input row is at chance"
    above = np.flatnonzero(low[grid.inputs :] > chance) + grid.inputs
    if not len(above):
        return f"Here {inputs}, and no block's interval lies above it."
    total = len(values) - grid.inputs
    count = f"{len(above)} of {total} blocks {'have' if len(above) != 1 else 'has'} an interval above chance"
    luck = f"about {0.025 * total:.1g} would by luck alone"
    first = f"the first is block {grid.labels[above[0]]} ({percent(values[above[0]])})"
    return f"Here {inputs}; {count} ({luck}), {first}."


def _series_names(study: Study, items: Sequence[Group]) -> dict[str, str]:
    keys = dict.fromkeys(key for group in items for key in group.values)
    return {key: row.name if (row := study.row(key)) else key for key in keys}


def _group_table(study: Study, items: Sequence[Group], first: str) -> str:
    names = _series_names(study, items)
    if len(names) > WIDE and not any(g.note for g in items):
        turned = [(esc(name), *(estimate(g.values.get(key)) for g in items)) for key, name in names.items()]
        return table(("", *(esc(g.name) for g in items)), turned, numeric=range(1, 1 + len(items)))
    rows = [
        (
            esc(g.name) + (f'<span class="note">{esc(g.note)}</span>' if g.note else ""),
            *(estimate(g.values.get(key)) for key in names),
        )
        for g in items
    ]
    return table((first, *map(esc, names.values())), rows, numeric=range(1, 1 + len(names)))


def categories(study: Study) -> str:
    """Accuracy by category of the data set."""
    if not study.categories:
        return ""
    picture = drawing(figures.groups(study.categories, study.rows, study.chance), "accuracy by category")
    return figure(picture) + _group_table(study, study.categories, "category")


def replicates(study: Study) -> str:
    """Every run of the study, by its seeds."""
    if not study.replicates:
        return ""
    picture = drawing(figures.groups(study.replicates, study.rows, study.chance), "accuracy of every run")
    lead = '<p class="lead">Every pair of seeds that was run, none left out.</p>'
    return lead + figure(picture) + _group_table(study, study.replicates, "run")


def protocols(study: Study) -> str:
    """The same features under the published protocol and the corrected one."""
    if not study.protocols:
        return ""
    items = study.protocols
    names = _series_names(study, items)
    forest = Forest([e for g in items for e in g.values.values()], study.chance)
    rows = []
    for key, name in names.items():
        row = study.row(key)
        shade = _CSS_COLOR[row.kind if row else "null"]
        found = [(g.values[key], shade, i == len(items) - 1) for i, g in enumerate(items) if key in g.values]
        height = max(34, 12 + 11 * len(items))
        rows.append((esc(name), *(estimate(g.values.get(key)) for g in items), forest.cell(found, height)))
    last = len(items) + 1
    out = table(("", *(esc(g.name) for g in items), forest.axis()), rows, numeric=range(1, last))
    out = out.replace("<td><svg", '<td class="plot"><svg').replace("<th><svg", '<th class="plot"><svg')
    notes = "".join(f"<li><b>{esc(g.name)}</b>: {esc(g.note)}</li>" for g in items if g.note)
    lead = (
        '<p class="lead">The same features under each protocol. In each row the marks stand in the order of '
        "the columns; "
        f"the filled one is <b>{esc(items[-1].name)}</b>.</p>"
    )
    return lead + out + (f'<ul class="plain">{notes}</ul>' if notes else "")
