"""Bounds on time, what studies cost by them, and the tables of the document."""

import dataclasses

import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.scaling.roofline import Chip, Speed, costs
from jaxdiff.scaling.search import shared
from jaxdiff.scaling.table import chips_table, described, frames_table, grid_table, ranking, replaced

CHIP = Chip(memory=10e9, flops=1e12, bandwidth=1e11, interconnect=1e10)
FOUND = {
    "mesh": "data=4,fsdp=2", "devices": 8, "clips": 8, "steps": 100, "flops": 1.6e16, "flops_per_device": 2e15, "fits": True,
    "traffic_bytes_per_device": 1e14, "argument_gb_per_device": 1.0, "temporary_gb_per_device": 2.0, "hbm_gb_per_device": 3.5,
    "collectives": {"all-gather": {"count": 3, "bytes": 4e12, "received": 2e12}},
}  # fmt: skip


def test_a_program_takes_as_long_as_its_slowest_part():
    found = costs(FOUND, CHIP)
    assert found["seconds"] == {"compute": 2000.0, "memory": 1000.0, "interconnect": 200.0}
    assert found["bound"] == "compute" and found["seconds_per_step"] == 20.0
    assert costs(FOUND, dataclasses.replace(CHIP, flops=1e14))["bound"] == "memory"
    assert found["clips_per_hour"] == pytest.approx(8 * 3600 / 2000)


def test_devices_without_a_clip_are_paid_for():
    speed = Speed(3600.0, 1.0, 1.0, clips=8, devices=16)
    assert [speed.hours(n) for n in (1, 8, 9)] == [1.0, 1.0, 2.0]
    assert speed.chip_hours(9) == 32.0


def test_more_chips_shorten_a_study_until_each_has_one_clip():
    row = {"model": "wan", "program": "invert", "found": FOUND | costs(FOUND, CHIP)}
    head, _, intphys, inflevel = chips_table([row], CHIP, (1, 2, 8, 16, 1024))
    assert head.count("chips |") == 5
    cells = [cell.strip() for cell in intphys.split("|")[4:-1]]
    assert cells[0] == "-"  # two chips share the weights
    hours = [float(cell.split()[0].replace(",", "")) for cell in cells[1:]]
    assert hours == pytest.approx([180 * 2000 / 3600, 45 * 2000 / 3600, 23 * 2000 / 3600, 2000 / 3600], rel=0.01)
    assert "(569)" in cells[-1]  # 1024 chips for the time that 360 clips take at once
    assert "5,772 clips" in inflevel and shared("data=4,fsdp=2,seq=2") == 4


def test_the_grid_says_what_does_not_fit_and_what_is_missing():
    rows = [
        {"model": "a", "program": "invert", "slice": "v5e-256", "found": FOUND | costs(FOUND, CHIP)},
        {
            "model": "b",
            "program": "invert",
            "slice": "v5e-256",
            "found": {"mesh": "data=8", "fits": False, "why": "too large"},
        },
        {"model": "c", "program": "invert", "slice": "v5e-256", "found": None},
    ]
    lines = grid_table(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert "| yes | 3.5 | **20** | 10 | 2 |" in lines[2] and "| no |" in lines[3] and "not compiled yet" in lines[4]


def test_a_program_is_described_with_its_bound_marked():
    lines = described(FOUND | costs(FOUND, CHIP), CHIP)
    assert lines["all memory"] == "3.5 GB of 10 GB: fits"
    assert lines["all-gather, 3 times"] == "2,000 GB" and "<-" in lines["products, at peak"]
    assert (
        described({"argument_gb_per_device": 20.0, "flops_per_device": 1.0, "why": "20 GB"}, CHIP)["DOES NOT FIT"]
        == "20 GB"
    )
    best, worst = ranking([FOUND | costs(FOUND, CHIP), {"mesh": "data=8", "fits": False, "why": "54 GB of 16"}])[1:]
    assert best.startswith("data=4,fsdp=2") and "does not fit: 54 GB of 16" in worst


def test_cost_grows_with_frames_as_it_was_counted():
    lines = frames_table({"wan": {"17": 1e12, "81": 8e12}}, CHIP)
    assert lines[-1] == "| wan | 17: 1 s (1.0) | 81: 8 s (8.0) |"
    assert len({line.count("|") for line in lines}) == 1


def test_tables_go_between_their_marks_and_nowhere_else():
    text = "a\n<!-- t -->\nold\n<!-- /t -->\nb\n"
    once = replaced(text, "t", ["| x |"])
    assert once == "a\n<!-- t -->\n| x |\n<!-- /t -->\nb\n" == replaced(once, "t", ["| x |"])
    for wrong in ("a", "<!-- /t --><!-- t -->"):
        with pytest.raises(ConfigError, match="no place for the table 't'"):
            replaced(wrong, "t", [])
