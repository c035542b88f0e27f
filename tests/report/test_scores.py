"""Scores of several methods, as a reader gets them."""

import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.report.html import render
from jaxdiff.report.scores import panels
from jaxdiff.report.study import Estimate, Gallery, Group, Study

SCORES = (
    Group("permanence", {"true": Estimate(0.01, 0.0, 0.02), "plain": Estimate(0.1, 0.08, 0.12)}, "frames without it"),
    Group("bounce", {"true": Estimate(0.02), "plain": Estimate(float("nan"))}),
)


def test_every_number_of_the_panels_stands_in_the_page_and_what_is_not_measured_is_a_dash():
    minus = (Group("permanence", {"drift": Estimate(-0.04, -0.06, -0.02)}),)
    clips = np.zeros((1, 2, 4, 8, 8, 3), np.uint8)
    page = render(
        Study("t", scores=SCORES, differences=minus, gallery=Gallery(("plain", "drift"), ("red disc",), clips))
    )
    for text in ("10.0 %", "8.0–12.0", "2.0 %", "<b>permanence</b>: frames without it", "−4.0", ">–<", "red disc"):
        assert text in page
    assert page.count("data:image/webp") == 2  # moving, and still for paper


def test_a_panel_has_a_line_for_every_method_and_marks_differences_that_leave_out_zero():
    picture = panels((Group("m", {"a": Estimate(0.1, 0.05, 0.2), "b": Estimate(0.1, -0.1, 0.2)}),), zero=True)
    (axis,) = picture.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    marks = [line.get_color() for line in axis.lines if line.get_marker() == "o"]
    assert len(set(marks)) == 2


def test_a_gallery_with_another_number_of_clips_than_names_is_refused():
    with pytest.raises(ConfigError, match=r"Gallery\.clips"):
        Gallery(("a",), ("x", "y"), np.zeros((1, 1, 4, 8, 8, 3), np.uint8))
