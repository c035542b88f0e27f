"""Figures: honest axes, colours that can be told apart, one picture for light, dark and paper."""

import re

import numpy as np
import pytest

from jaxdiff.report import Curve, Estimate, Fidelity, Grid, diagnostics, figures, style
from jaxdiff.report.figures import accuracy_limits
from tests.report.fake import study


@pytest.fixture(scope="module")
def full():
    return study(clips=1, size=16)


@pytest.mark.parametrize("ends", [(0.51, 0.5, 0.52), (0.9, 0.88, 0.93), (0.31, 0.2, 0.4), (0.5, 0.5, 0.5)])
def test_accuracy_axes_are_centred_at_chance_and_hold_every_interval(ends):
    low, high = accuracy_limits([Estimate(*ends)], 0.5)
    assert low + high == pytest.approx(1.0, abs=1e-12)
    assert low <= min(ends)
    assert max(ends) <= high
    assert high - low >= 0.3 - 1e-12  # an axis of a few points would make noise look like an effect


def test_one_colour_scale_for_all_panels_centred_at_chance(full):
    figure = figures.heatmaps(full.grids, 0.5, full.rows)
    norms = {
        id(c.norm): c.norm for a in figure.axes for c in a.collections if getattr(c, "cmap", None) is style.DIVERGING
    }
    assert len(norms) == 1
    (norm,) = norms.values()
    assert norm.vmin + norm.vmax == pytest.approx(1.0)
    assert norm.vmin <= min(g.accuracy.min() for g in full.grids)
    assert norm.vmax >= max(g.accuracy.max() for g in full.grids)


def test_colours_at_equal_distance_from_chance_are_equally_strong():
    for distance in (0.1, 0.2, 0.3, 0.4):
        below, above = (np.array(style.DIVERGING(0.5 + s * distance)[:3]) @ (0.2126, 0.7152, 0.0722) for s in (-1, 1))
        assert abs(below - above) < 0.12  # linear-weighted luma; the eye does not rank them below that


def test_series_are_told_apart_by_colour_or_marker():
    for kind, count in (("null", 6), ("comparison", 2)):
        assert len(set(style.series([kind] * count))) == count


def test_text_on_every_cell_can_be_read():
    def luminance(hexa):
        parts = [int(hexa[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for level in np.linspace(0, 1, 101):
        rgba = style.DIVERGING(level)
        cell = "#" + "".join(f"{round(255 * c):02x}" for c in rgba[:3])
        a, b = sorted((luminance(cell), luminance(style.ink_on(rgba))))
        assert (b + 0.05) / (a + 0.05) >= 4.0  # the accessibility guideline asks 3 of large and 4.5 of small text


def test_palette_texts_reach_contrast_on_both_pages():
    def luminance(hexa):
        parts = [int(hexa[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for name in ("ink", "soft", "states", "null", "comparison"):
        for page, shade in zip(("#ffffff", "#121418"), style.PALETTE[name], strict=True):
            a, b = sorted((luminance(page), luminance(shade)))
            assert (b + 0.05) / (a + 0.05) >= 4.0, (name, page)


def test_a_figure_follows_the_theme_of_the_page(full):
    text = style.svg(figures.depth(full.grids, 0.5), "depth")
    assert "var(--states)" in text
    assert "var(--sans)" in text
    left = set(re.findall(r"#[0-9a-f]{6}", text)) - {f"#{m}" for m in re.findall(r'href="#(m\w+)"', text)}
    assert left <= {"#000000"}
    assert "<metadata" not in text
    assert "http" not in text
    assert "<style" not in text


def test_figures_are_the_same_bytes_every_time(full):
    one, two = (style.svg(figures.heatmaps(full.grids, 0.5, full.rows), "grid") for _ in range(2))
    assert one == two
    one, two = (style.png(diagnostics.fidelity(full.fidelity)) for _ in range(2))
    assert one == two
    assert one.startswith(b"\x89PNG")


def test_every_cell_of_a_small_grid_shows_its_number(full):
    text = style.svg(figures.heatmaps(full.grids[:1], 0.5), "grid")
    shown = re.findall(r">(\d+)</text>", text)
    wanted = [f"{100 * v:.0f}" for v in full.grids[0].accuracy.ravel()]
    assert all(shown.count(v) >= wanted.count(v) for v in set(wanted))


@pytest.mark.parametrize("rows", [3, 14, 32, 50])
def test_grids_of_every_depth_can_be_drawn(rows):
    labels = ("state", *map(str, range(rows - 1)))
    grid = Grid("g", np.full((rows, 4), 0.6), np.array([0.0, 0.3, 0.6, 0.9]), labels, inputs=1)
    figure = figures.heatmaps([grid] * 4, 0.5)
    assert len(figure.axes) == 5
    ticks = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert ticks[0] == "state"
    assert ticks[-1] == str(rows - 2)
    figures.depth([grid], 0.5)


def test_labels_that_would_overlap_are_moved_apart_in_order():
    at = figures.spread([0.5, 0.51, 0.49, 0.9], 0.05, 0.0, 1.0)
    assert sorted(range(4), key=at.__getitem__) == [2, 0, 1, 3]
    assert min(np.diff(sorted(at))) >= 0.05 - 1e-6


def test_nothing_to_draw_is_no_figure():
    assert diagnostics.fidelity(Fidelity()) is None


def test_curves_with_gaps_are_drawn():
    curve = Curve("c", np.array([1.0, 2, 3]), np.array([0.5, np.nan, np.nan]))
    style.svg(diagnostics.curves([curve], percent=True), "gap")
    style.svg(diagnostics.fidelity(Fidelity(self_convergence=(curve,))), "gap")
