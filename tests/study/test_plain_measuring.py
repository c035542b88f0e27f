"""Scoring a folder of plain clips: what stands beside the numbers, what is counted as a failure, what is refused."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from experiments.measure import Config
from jaxdiff.data.video import write_video
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.physics.known import drawn, known_scenes
from jaxdiff.physics.mechanics import MECHANICS
from jaxdiff.study.plain_measuring import PlainConfig, run_plain

SIZE, FPS = (64, 80), 24.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fall, a collision in a clip of another length, and one in which nothing moves."""
    place = tmp_path_factory.mktemp("clips")
    for i, frames in enumerate((30, 36)):
        tracks = known_scenes(2, frames, SIZE, FPS, 9.81, seed=1).tracks[i]
        write_video(place / f"{i}.mp4", drawn(tracks, SIZE, seed=i)[0], fps=FPS)
    write_video(place / "2.mp4", np.full((30, *SIZE, 3), 90, np.uint8), fps=FPS)
    return place


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    run_plain(PlainConfig(folder, scale=0.05, scenes=2), workdir)
    return workdir


def test_every_number_has_its_floor_its_ceiling_and_the_clips_without_it(run):
    result = json.loads((run / "result.json").read_text())
    assert result["headline"].keys() == MECHANICS.keys()
    assert set(result["reference"]) == {"shuffled", "exact", "floor", "ceiling"}
    assert result["clips"] == 3
    assert list(result["refused"]) == ["2.mp4"]
    for name in ("gravity", "flight"):
        assert result["headline"][name]["without"] == pytest.approx(2 / 3)  # one does not fall, one shows nothing
        assert result["reference"]["exact"][name]["value"] < 1e-9
        assert result["reference"]["floor"][name]["value"] < 0.05 < result["reference"]["ceiling"][name]["value"]
    assert result["headline"]["missing"]["without"] == pytest.approx(1 / 3)
    assert result["reference"]["exact"]["collisions"]["value"] == 0
    assert list(result["fitted_gravity"]) == ["0.mp4"]


def test_the_table_has_a_line_for_every_clip_and_the_report_says_who_was_refused(run):
    lines = list(csv.DictReader((run / "clips.csv").read_text().splitlines()))
    assert [line["clip"] for line in lines if line["set"] == "clips"] == ["0.mp4", "1.mp4", "2.mp4"]
    assert [line["frames"] for line in lines if line["set"] == "clips"] == ["30", "36", "30"]
    assert "nothing moves" in lines[2]["reason"]
    assert lines[2]["energy"] == ""
    report = (run / "report.html").read_text()
    for text in (
        "1 cannot be tracked",
        "nothing moves",
        "known motion, tracked (floor)",
        "what is followed",
        "--floor",
    ):
        assert text in report


def test_what_is_wrong_is_said_before_anything_is_made(folder, tmp_path):
    with pytest.raises(MissingDataError, match="no clips"):
        run_plain(PlainConfig(tmp_path), tmp_path / "out")
    np.save(tmp_path / "a.npy", np.zeros((9, 32, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"a\.npy knows no frame rate.*--fps"):
        run_plain(PlainConfig(tmp_path), tmp_path / "out")
    (tmp_path / "captions.csv").write_text("video,text\na.npy,b\n")
    with pytest.raises(MissingDataError, match="video,caption"):
        run_plain(PlainConfig(tmp_path, tmp_path / "captions.csv"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for name in ("fps", "scale", "floor"):
        for value in (0.0, -1.0, math.inf):
            with pytest.raises(ConfigError, match=f"--{name}"):
                PlainConfig(folder, **{name: value})
    with pytest.raises(ConfigError, match="--scenes=1"):
        PlainConfig(folder, scenes=1)


def test_a_folder_without_captions_is_plain_and_one_with_them_is_the_worlds_unless_told(folder):
    assert Config(videos=folder).plain
    assert not Config(generated=folder).plain
    captioned = Config(videos=folder, captions=folder / "c.csv")
    assert not captioned.plain
    assert dataclasses.replace(captioned, tracker="plain").plain
    for wrong, message in (
        ({}, "either --generated, or --videos"),
        ({"generated": folder, "videos": folder}, "either --generated, or --videos"),
        ({"videos": folder, "tracker": "world"}, "give --captions"),
        ({"generated": folder, "scale": 0.1}, "--scale is of plain clips"),
        ({"generated": folder, "tracker": "plain"}, "--videos=RUN/videos"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config(**wrong)
