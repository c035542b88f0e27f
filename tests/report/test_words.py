"""Sentences about further reads follow from their numbers and their controls."""

import dataclasses

from jaxdiff.report.html import render
from jaxdiff.report.study import Estimate, Row, Study
from jaxdiff.report.words import further

STATES = Row("states", "inverted states", Estimate(0.57, 0.49, 0.66), "states")
MAPS = Row("maps", "attention maps", Estimate(0.92, 0.82, 0.99), "states")
CONTROL = Row(
    "untrained.maps", "untrained: attention maps", Estimate(0.65, 0.53, 0.79), "null", gap=Estimate(0.27, 0.1, 0.4)
)


def test_a_further_read_that_tells_is_named_beside_its_strongest_control():
    said = further(Study("t", rows=(STATES, MAPS, CONTROL)))
    assert said == (
        "Read as attention maps, 92.0 % (82.0–99.0) are told right, 27.0 points above the same read of the strongest "
        "control model (65.0 %)."
    )
    page = render(Study("t", rows=(STATES, MAPS, CONTROL)))
    assert "No linearly decodable sign" in page and said in page


def test_a_further_read_without_a_clear_gap_is_said_as_such_and_one_at_chance_not_at_all():
    unclear = dataclasses.replace(CONTROL, gap=Estimate(0.27, -0.1, 0.4))
    assert "not clearly above" in further(Study("t", rows=(STATES, MAPS, unclear)))
    chance = dataclasses.replace(MAPS, estimate=Estimate(0.55, 0.45, 0.65))
    assert further(Study("t", rows=(STATES, chance, CONTROL))) == "" == further(Study("t", rows=(STATES,)))
