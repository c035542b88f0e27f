"""The figures that say how far to trust a run: curves, fidelity of the inversion, frame attention."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxdiff.report.figures import WIDTH, accuracy_limits, end_labels, percent_axis, sigma_text
from jaxdiff.report.study import Curve, Estimate, Fidelity, FrameAttention
from jaxdiff.report.style import DIVERGING, color, series, styled


@styled
def curves(
    items: Sequence[Curve],
    *,
    xlabel: str = "",
    ylabel: str = "",
    percent: bool = False,
    reference: float | None = None,
    log: bool = False,
    chance: float = 0.5,
) -> Figure:
    """Lines with intervals. `percent` centres the axis at `chance`; `log` makes it logarithmic."""
    height = 3.3
    figure = Figure((WIDTH * 0.82, height))
    axis = figure.add_axes((0.105, 0.155, 0.68, 0.8))
    _draw_curves(axis, items, percent, reference, log, chance)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    end_labels(axis, _ends(items), height * 0.8)
    return figure


def _ends(items: Sequence[Curve]) -> list[tuple[str, float, str]]:
    looks = series([c.kind for c in items])
    finite = [np.asarray(c.y, float)[np.isfinite(np.asarray(c.y, float))] for c in items]
    return [(c.name, y[-1], shade) for c, y, (shade, _) in zip(items, finite, looks, strict=True) if len(y)]


def _draw_curves(
    axis, items: Sequence[Curve], percent: bool, reference: float | None, log: bool, chance: float
) -> None:
    estimates = []
    for curve, (shade, marker) in zip(items, series([c.kind for c in items]), strict=True):
        x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
        low = y if curve.low is None else np.asarray(curve.low, float)
        high = y if curve.high is None else np.asarray(curve.high, float)
        estimates += [Estimate(*v) for v in zip(y, low, high, strict=True)]
        if curve.low is not None:
            axis.fill_between(x, low, high, color=shade, alpha=0.16, linewidth=0)
        axis.plot(x, y, color=shade, marker=marker if len(x) <= 40 else None)
    if all(np.all(np.asarray(curve.x, float) % 1 == 0) for curve in items):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))  # blocks, steps
    if log:
        axis.set_yscale("log")
    if percent:
        percent_axis(axis, chance, accuracy_limits(estimates, chance))
    else:
        axis.grid(axis="y")
        if reference is not None:
            axis.axhline(reference, color=color("soft"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)


@styled
def fidelity(part: Fidelity) -> Figure | None:
    """Self-convergence over sigma, round-trip PSNR per clip, and the errors of clips told right and wrong."""
    panels = [
        name
        for name, present in (
            ("convergence", bool(part.self_convergence)),
            ("psnr", part.round_trip is not None),
            ("mistakes", part.mistakes is not None),
        )
        if present
    ]
    if not panels:
        return None
    height = 3.0
    figure = Figure((WIDTH * len(panels) / 3 if len(panels) > 1 else WIDTH * 0.5, height))
    each = 1 / len(panels)
    for index, name in enumerate(panels):
        margin = 0.18 * each
        axis = figure.add_axes((index * each + margin, 0.165, each - margin - 0.06 * each, 0.72))
        if name == "convergence":
            _convergence(axis, part)
        elif name == "psnr":
            _psnr(axis, part)
        else:
            _mistakes(axis, part)
    return figure


def _convergence(axis, part: Fidelity) -> None:
    _draw_curves(axis, part.self_convergence, False, None, True, 0.5)
    axis.set_title("N steps against 2N")
    axis.set_xlabel("noise level σ")
    axis.set_ylabel("relative difference")
    for curve, (shade, _) in zip(part.self_convergence, series([c.kind for c in part.self_convergence]), strict=True):
        at = np.flatnonzero(np.isfinite(np.asarray(curve.y, float)))[-1:]
        for x, y in zip(np.asarray(curve.x)[at], np.asarray(curve.y)[at], strict=True):
            axis.annotate(
                curve.name,
                (x, y),
                (2, 7),
                textcoords="offset points",
                color=shade,
                ha="right",
                fontsize=8.5,
                fontweight="bold",
            )
    axis.margins(y=0.14)


def _psnr(axis, part: Fidelity) -> None:
    sets = [("round trip", np.asarray(part.round_trip, float), color("states"), 0.85)]
    if part.autoencoder is not None:
        sets.insert(0, ("autoencoder alone", np.asarray(part.autoencoder, float), color("line"), 1.0))
    finite = [values[np.isfinite(values)] for _, values, _, _ in sets]
    everything = np.concatenate(finite) if any(len(f) for f in finite) else np.zeros(1)
    edges = np.linspace(everything.min() - 0.5, everything.max() + 0.5, 25)
    tallest = 1
    for (_, _, shade, alpha), values in zip(sets, finite, strict=True):
        counts, *_ = axis.hist(values, edges, color=shade, alpha=alpha, edgecolor=color("paper"), linewidth=0.5)
        tallest = max(tallest, counts.max(initial=0))
    axis.set_ylim(0, tallest * 1.28)
    axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    for place, ((name, _, shade, _), values) in enumerate(zip(sets, finite, strict=True)):
        text = f"{name}, median {np.median(values):.1f} dB" if len(values) else name
        shade = color("soft") if shade == color("line") else shade
        axis.text(
            0.02,
            0.97 - 0.085 * place,
            text,
            color=shade,
            va="top",
            transform=axis.transAxes,
            fontsize=8.5,
            fontweight="bold",
        )
    axis.set_title("Round trip, per clip")
    axis.set_xlabel("PSNR against the source, dB")
    axis.set_ylabel("clips")
    axis.grid(axis="y")


def _mistakes(axis, part: Fidelity) -> None:
    wrong, error = np.asarray(part.mistakes, bool), np.asarray(part.clip_error, float)
    noise = np.random.default_rng(0)  # sideways scatter only, so that dots do not cover each other
    for place, (chosen, shade) in enumerate(((~wrong, color("null")), (wrong, color("states")))):
        values = error[chosen]
        x = place + noise.uniform(-0.22, 0.22, len(values))
        axis.plot(x, values, "o", color=shade, alpha=0.35, markersize=3, markeredgewidth=0)
        if len(values):
            axis.hlines(np.median(values), place - 0.32, place + 0.32, color=color("ink"), linewidth=1.8)
    axis.set_xlim(-0.6, 1.6)
    axis.set_xticks([0, 1], [f"right ({(~wrong).sum()})", f"wrong ({wrong.sum()})"])
    axis.tick_params(axis="x", length=0)
    axis.set_ylim(bottom=0)
    axis.set_title("Error and the probe's mistakes")
    axis.set_ylabel("error of the clip")
    axis.set_xlabel("clip was told (bars: medians)")
    axis.grid(axis="y")


@styled
def attention(items: Sequence[FrameAttention]) -> Figure:
    """Frame-by-frame attention, mean over heads, relative to uniform; rows models, columns blocks."""
    across = min(6, max(len(item.blocks) for item in items))
    size = min(1.55, (WIDTH - 0.9) / across - 0.2)
    height = len(items) * (size + 0.62) + 0.75
    figure = Figure((WIDTH, height))
    norm = TwoSlopeNorm(0, -3, 3)
    for row, item in enumerate(items):
        maps = np.asarray(item.maps, float).mean(axis=1)
        picks = np.unique(np.linspace(0, len(item.blocks) - 1, across).round().astype(int))
        frames = maps.shape[-1]
        top = height - row * (size + 0.62)
        figure.text(
            0.0,
            (top - 0.08) / height,
            f"{item.name}, σ = {sigma_text(item.sigma)}",
            fontweight="bold",
            va="top",
            fontsize=9.5,
        )
        for column, pick in enumerate(picks):
            left = 0.62 + column * (size + 0.2)
            axis = figure.add_axes((left / WIDTH, (top - 0.5 - size) / height, size / WIDTH, size / height))
            ratio = np.log2(np.maximum(maps[pick] * frames, 1e-3))
            axis.pcolormesh(
                ratio,
                norm=norm,
                cmap=DIVERGING,
                edgecolors=color("paper"),
                linewidth=0.4 if frames <= 12 else 0,
            )
            axis.set_ylim(frames, 0)
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
            ticks = [0, frames - 1]
            axis.set_xticks(np.array(ticks) + 0.5, ["1", str(frames)] if row == len(items) - 1 else ["", ""])
            axis.set_yticks(np.array(ticks) + 0.5, ["1", str(frames)] if column == 0 else ["", ""])
            same = np.trace(maps[pick]) / frames
            axis.set_title(f"block {item.blocks[pick]}", fontsize=8.5, fontweight="normal", pad=4)
            axis.set_title(f"{100 * same:.0f} %", loc="right", fontsize=8.5, fontweight="normal", pad=4)
            if column == 0:
                axis.set_ylabel("query frame", labelpad=1)
            if row == len(items) - 1:
                axis.set_xlabel("key frame", labelpad=1)
    axis = figure.add_axes((0.62 / WIDTH, 0.3 / height, 2.6 / WIDTH, 0.11 / height))
    bar = figure.colorbar(ScalarMappable(norm, DIVERGING), cax=axis, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["⅛", "¼", "½", "1", "2", "4", "8×"])
    text = "attention mass, as a multiple of attending to all frames alike"
    axis.text(1.04, 0.5, text, transform=axis.transAxes, va="center", color=color("soft"))
    return figure
