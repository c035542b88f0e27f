"""Figures of physics-informed diffusion on Darcy flow: the residual while training, and generated fields beside data."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxdiff.report.figures import WIDTH, end_labels
from jaxdiff.report.style import DIVERGING, color, styled

SHADES = ("states", "null", "comparison", "baseline")


@styled
def residual_curve(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], levels: Mapping[str, float]) -> Figure:
    """R_MAE of generated fields over training steps, logarithmic; `levels` are horizontal lines with their names."""
    height = 3.4
    figure = Figure((WIDTH * 0.82, height))
    axis = figure.add_axes((0.1, 0.15, 0.6, 0.8))
    labels = []
    for shade, (name, (steps, values)) in zip(map(color, SHADES), curves.items(), strict=False):
        axis.plot(steps, values, color=shade, marker="o" if len(steps) <= 40 else None)
        labels.append((name, values[-1], shade))
    for name, value in levels.items():
        axis.axhline(value, color=color("soft"), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        labels.append((name, value, color("soft")))
    axis.set_yscale("log")
    axis.grid(axis="y")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("training step")
    axis.set_ylabel("mean |residual| of generated fields")
    end_labels(axis, labels, height * 0.8)
    return figure


@styled
def fields(rows: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Maps [C, n, n], a row for each quantity of each set: ``(name, maps)``. A quantity that has both signs is centred at zero
    and coloured by sign; colours of a quantity ("data: pressure" and "generated: pressure") have the scale of its first row."""
    across = max(len(maps) for _, maps in rows)
    cell, left, gap = 1.25, 1.5, 0.06
    bar = 0.75
    figure = Figure((left + across * (cell + gap) + bar, len(rows) * (cell + gap) + 0.1))
    width, height = figure.get_size_inches()
    scales: dict[str, np.ndarray] = {}
    for name, maps in rows:
        scales.setdefault(name.split(": ")[-1], np.ravel(maps))
    for r, (name, maps) in enumerate(rows):
        values = scales[name.split(": ")[-1]]
        reach = float(np.quantile(np.abs(values), 0.995)) or 1.0
        signed = values.min() < -0.05 * reach
        colours, least = (DIVERGING, -reach) if signed else ("viridis", 0.0)
        bottom = height - 0.05 - (r + 1) * (cell + gap)
        for c, field in enumerate(maps):
            axis = figure.add_axes(((left + c * (cell + gap)) / width, bottom / height, cell / width, cell / height))
            picture = axis.imshow(field.T, origin="lower", cmap=colours, vmin=least, vmax=reach)
            axis.set_axis_off()
        place = ((left + across * (cell + gap) + 0.04) / width, bottom / height, 0.1 / width, cell / height)
        figure.colorbar(picture, cax=figure.add_axes(place))
        figure.text(
            (left - 0.08) / width, (bottom + cell / 2) / height, name.replace(": ", "\n"), ha="right", va="center"
        )
    return figure
