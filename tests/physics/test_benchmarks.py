"""Files of the physics benchmarks: what they hold comes back, and what is no such file is refused by name."""

import math

import pytest

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.physics.benchmarks import FORMATS, NUMBER, TEXT, phygenbench, pisa, read, videophy, write

FILLED = {TEXT: 'a "b", c', NUMBER: 0.25}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_again(tmp_path, name):
    row = {column.replace("*", "wan"): FILLED.get(kind, [0.1, 1e-9]) for column, kind in FORMATS[name].columns.items()}
    rows = [row, {**row, "caption": "another"} if "caption" in row else row]
    assert read(name, write(name, tmp_path / "file", rows)) == rows


def test_outputs_of_the_official_scorers_are_read(tmp_path):
    (tmp_path / "pc.csv").write_text(
        'a/1.mp4,"The following is a conversation.\nHuman: <|video|>\nAI: ",0.5\nb/2.mp4,"x",0.13\n'
    )
    rows = read("videophy/output", tmp_path / "pc.csv")
    assert [(row["videopath"], row["score"]) for row in rows] == [("a/1.mp4", 0.5), ("b/2.mp4", 0.13)]
    (tmp_path / "sa.csv").write_text(
        ',caption,videopath,score\n0,"A jetski, fast.",a/1.mp4,4.0\n1,Syrup.,b/2.mp4,5.0\n'
    )
    rows = read("videophy2/output", tmp_path / "sa.csv")
    assert rows[0] == {"": "0", "caption": "A jetski, fast.", "videopath": "a/1.mp4", "score": 4.0}
    (tmp_path / "eval.jsonl").write_text('{"l2": NaN, "chamfer_distance": 0.2, "iou": 0.1, "config": {"gt_fps": 16}}\n')
    (row,) = read("pisa/results", tmp_path / "eval.jsonl")
    assert math.isnan(row["l2"])
    assert row["config"] == {"gt_fps": 16}


def test_both_adherences_make_the_joint_one():
    def rows(*scores):
        return [{"videopath": f"{i}.mp4", "score": score} for i, score in enumerate(scores)]

    found = videophy(rows(4, 5, 3, 4), list(reversed(rows(5, 3, 5, 4))), least=4)
    assert found["sa"].tolist() == [1, 1, 0, 1]
    assert found["pc"].tolist() == [1, 0, 1, 1]
    assert found["joint"].tolist() == [1, 0, 0, 1]
    assert videophy(rows(0.5, 0.49), rows(0.9, 0.9), least=0.5)["joint"].tolist() == [1, 0]
    with pytest.raises(ConfigError, match=r"0\.mp4 is judged twice"):
        videophy(rows(1) * 2, rows(1), least=0.5)
    with pytest.raises(ConfigError, match=r"1 clips.*1\.mp4"):
        videophy(rows(1, 1), rows(1), least=0.5)
    with pytest.raises(ConfigError, match="no score"):
        videophy(rows(math.nan), rows(1), least=0.5)


def test_phygenbench_and_pisa_say_what_they_publish_and_pisa_what_it_leaves_out():
    rows = [{"caption": "c", "main_category": m, "wan_average": v} for m, v in (("Force", 3), ("Light", 1))]
    found = phygenbench(rows)
    assert found["score"].tolist() == pytest.approx([1, 1 / 3])
    assert found["category"].tolist() == ["Force", "Light"]
    results = [
        {"l2": 0.1, "chamfer_distance": 0.2, "iou": 0.4},
        {"l2": math.nan, "chamfer_distance": math.nan, "iou": 0.0},
    ]
    told = pisa(results, [{}] * 4)
    assert told["published"] == pytest.approx({"l2": 0.1, "chamfer_distance": 0.2, "iou": 0.2})
    assert told["corrected"] == pytest.approx({"l2": 3.1 / 4, "chamfer_distance": 6.2 / 4, "iou": 0.1})
    assert told["failed"] == 0.75
    assert pisa(results)["failed"] == 0.5
    with pytest.raises(ConfigError, match="2 results of 1"):
        pisa(results, [{}])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("videophy2/output", "videopath,points\na.mp4,1\n", "no column 'score'.*videopath, points"),
        ("videophy2/output", "videopath,score\na.mp4,good\n", "row 1: score is 'good', no number"),
        ("videophy/output", "a.mp4,0.5\n", "row 1 has another number of cells"),
        ("phygenbench/prompts", "{}", "expected a list of objects"),
        ("phygenbench/prompts", "[", "cannot be read as phygenbench/prompts"),
        ("phygenbench/results", '[{"caption": "a", "main_category": "b"}]', r"no column '\*_average'"),
        ("physics-iq/prompts", "", "holds no row"),
        ("pisa/results", "[1]\n", "expected a list of objects"),
    ],
)
def test_what_is_no_such_file_is_said(tmp_path, name, text, message):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(MissingDataError, match=message):
        read(name, path)


def test_a_missing_file_and_an_unknown_layout_and_an_incomplete_row_are_said(tmp_path):
    with pytest.raises(MissingDataError, match="No such file"):
        read("videophy/input", tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="videophy/prompts"):
        read("videophy3", tmp_path)
    with pytest.raises(ConfigError, match="row 1 lacks caption"):
        write("videophy/input", tmp_path / "a.csv", [{"videopath": "a"}])
    with pytest.raises(ConfigError, match="no row"):
        write("videophy/input", tmp_path / "a.csv", [])
    assert not (tmp_path / "a.csv").exists()
