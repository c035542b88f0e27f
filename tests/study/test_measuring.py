"""Scoring a folder of clips: what is read, and what stands beside the scores."""

import csv
import json

import numpy as np
import pytest

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.study import measuring
from jaxdiff.study.measuring import MeasureConfig, estimates, generated_clips, run_measure, words_of
from tests.physics.test_tracking import drawn, known


@pytest.fixture
def folder(tmp_path):
    """Four clips of a disc that moves evenly, and one of none."""
    clips = [drawn(np.linspace(8, 20, 17))[0] for _ in range(4)] + [np.full((17, 32, 32, 3), 128, np.uint8)]
    (tmp_path / "videos").mkdir()
    for i, clip in enumerate(clips):
        np.save(tmp_path / "videos" / f"{i}.npy", clip)
    rows = [("video", "caption"), *((f"{i}.npy", "red disc slides-right") for i in range(5))]
    (tmp_path / "captions.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    return tmp_path


def test_a_folder_is_scored_beside_clips_whose_truth_is_known(folder, monkeypatch):
    true = known(np.linspace(10, 22, 17))
    monkeypatch.setattr(measuring, "references", lambda *_: (true, true))
    config = MeasureConfig(folder / "videos", folder / "captions.csv", scenes=1)
    run_measure(config, folder / "out", None)
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["headline"]["empty"]["value"] == pytest.approx(0.2)
    assert result["headline"]["velocity"]["value"] == pytest.approx(0, abs=1e-3)
    assert result["headline"]["words"]["value"] == 0
    assert result["tracker"]["true"]["missed"] == 0
    assert set(result["reference"]) == {"true", "shuffled", "impossible"}
    lines = list(csv.DictReader((folder / "out" / "clips.csv").read_text().splitlines()))
    assert [(line["clip"], line["empty"], line["velocity"] == "") for line in lines][3:5] == [
        ("3.npy", "0", False),
        ("4.npy", "1", True),
    ]
    assert "true clips, frames shuffled" in (folder / "out" / "report.html").read_text()


def test_what_is_wrong_is_said_before_anything_is_made(folder):
    for name in ("prompts.csv", "DONE"):
        with pytest.raises(MissingDataError, match=r"no finished experiments\.generate"):
            generated_clips(folder)
        (folder / name).write_text("video,caption,prompt\n9.mp4,red disc slides-left,x\n")
    with pytest.raises(MissingDataError, match=r"9\.mp4"):
        generated_clips(folder)
    np.save(folder / "videos" / "4.npy", np.zeros((9, 32, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match="differ in shape"):
        run_measure(MeasureConfig(folder / "videos", folder / "captions.csv"), folder / "out", None)
    with pytest.raises(ConfigError, match="a colour"):
        words_of(["a dog rolls"])


def test_clips_without_a_number_do_not_enter_its_mean():
    found = estimates({"bounce": np.array([0.1, np.nan, 0.3]), "mass": np.full(3, np.nan)})
    assert found["bounce"].value == pytest.approx(0.2)
    assert 0 <= found["bounce"].low < 0.2 < found["bounce"].high
    assert np.isnan(found["mass"].value)
