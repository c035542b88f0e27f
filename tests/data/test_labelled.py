"""Folders of one's own clips with a csv of labels."""

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.labelled import Label, load_labelled, read_labels
from jaxdiff.data.video import read_video, write_video
from jaxdiff.errors import MissingDataError

HEADER = "clip,possible,group,category"
ROWS = ["b/10.mp4,1,01,ball", "b/9.mp4,0,01,ball", "frames/x,0,02,box", "frames/y,1,02,box"]


def write_csv(path, rows=ROWS, header=HEADER):
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


@pytest.fixture
def folder(tmp_path):
    clips = tmp_path / "clips"
    (clips / "b").mkdir(parents=True)
    for name in ("9", "10"):
        (clips / "b" / f"{name}.mp4").write_bytes(b"closed")  # listing must not open it
    for name in ("x", "y"):
        (clips / "frames" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((16, 16, 3), 100 + i, np.uint8)).save(clips / "frames" / name / f"{i}.png")
    return clips


def test_videos_and_folders_of_frames_get_the_labels_of_their_rows(folder, tmp_path):
    clips = load_labelled(folder, write_csv(tmp_path / "labels.csv"))
    assert [(c.name, c.possible, c.group, c.category) for c in clips] == [
        ("b/9.mp4", False, "01", "ball"),
        ("b/10.mp4", True, "01", "ball"),
        ("frames/x", False, "02", "box"),
        ("frames/y", True, "02", "box"),
    ]
    assert read_video(clips[2].path).shape == (2, 16, 16, 3)
    write_video(clips[0].path, np.zeros((3, 16, 16, 3), np.uint8))
    assert read_video(clips[0].path).shape == (3, 16, 16, 3)


def test_neither_the_order_of_rows_nor_that_of_columns_matters(folder, tmp_path):
    expected = load_labelled(folder, write_csv(tmp_path / "labels.csv"))
    shuffled = [",".join(reversed(row.split(","))) for row in reversed(ROWS)]
    header = ",".join(reversed(HEADER.split(",")))
    assert load_labelled(folder, write_csv(folder / "labels.csv", shuffled, header)) == expected


def test_csvs_of_spreadsheets_are_read(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(('\ufeff"clip",possible,group,category\r\n"a, b.mp4",1,01,ball\r\n\r\n').encode())
    assert read_labels(path) == {"a, b.mp4": Label(True, "01", "ball")}


BAD = {
    "the column group is missing": ("clip,possible,category", ["a,1,ball"]),
    "the column 'label' is unknown": (HEADER + ",label", ["a,1,01,ball,1"]),
    "the column 'clip' comes 2 times": (HEADER + ",clip", ["a,1,01,ball,a"]),
    "line 3: possible is 'True' for 'b'": (HEADER, ["a,1,01,ball", "b,True,01,ball"]),
    "line 2: possible is ' 1' for 'a'": (HEADER, ["a, 1,01,ball"]),
    "line 2: possible is '2' for 'a'": (HEADER, ["a,2,01,ball"]),
    "line 2: possible is empty": (HEADER, ["a,,01,ball"]),
    "line 2: clip, group are empty": (HEADER, [",1, ,ball"]),
    "line 4: 'a' has a row already, line 2": (HEADER, ["a,1,01,ball", "b,0,01,ball", "a,0,01,ball"]),
    "line 2 has 3 fields, not 4": (HEADER, ["a,1,01"]),
    "line 2 has 5 fields, not 4": (HEADER, ["a,1,01,ball,more"]),
    "there are no rows": (HEADER, []),
}


@pytest.mark.parametrize("problem", BAD)
def test_a_wrong_csv_is_refused_and_the_place_named(tmp_path, problem):
    header, rows = BAD[problem]
    with pytest.raises(MissingDataError, match=problem) as caught:
        read_labels(write_csv(tmp_path / "labels.csv", rows, header))
    assert "labels.csv" in str(caught.value)
    assert "with the columns clip, possible, group, category" in str(caught.value)


def test_a_csv_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(MissingDataError, match=r"nowhere.csv: the labels cannot be read"):
        read_labels(tmp_path / "nowhere.csv")
    for content in (b"clip,possible\n\xff\xfe,1\n", b'clip,possible\n"a,1\n'):
        (tmp_path / "labels.csv").write_bytes(content)
        with pytest.raises(MissingDataError, match="cannot be read"):
            read_labels(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"")
    with pytest.raises(MissingDataError, match="the column clip is missing"):
        read_labels(tmp_path / "labels.csv")


def test_a_missing_and_an_extra_clip_are_named(folder, tmp_path):
    labels = write_csv(tmp_path / "labels.csv", [*ROWS, "b/11.mp4,1,03,ball", "b/12.mp4,0,03,ball"])
    (folder / "b" / "8.mp4").touch()
    with pytest.raises(MissingDataError) as caught:
        load_labelled(folder, labels)
    for name in ("11", "12"):
        assert f"'b/{name}.mp4' is not a clip below {folder}" in str(caught.value)
    assert f"'b/8.mp4' lies below {folder} and has no row" in str(caught.value)


def test_an_unpaired_group_is_refused_unless_groups_need_not_match(folder, tmp_path):
    labels = write_csv(tmp_path / "labels.csv", [*ROWS[:3], "frames/y,0,02,box"])
    with pytest.raises(MissingDataError, match="group '02' of category 'box' is unpaired: 0 possible and 2 impossible"):
        load_labelled(folder, labels)
    assert [c.possible for c in load_labelled(folder, labels, matched=False)] == [False, True, False, False]


def test_all_problems_are_named_at_once(folder, tmp_path):
    rows = [ROWS[0], "b/9.mp4,no,01,ball", ROWS[2], ROWS[2], "c.mp4,1,04,ball"]
    with pytest.raises(MissingDataError) as caught:
        load_labelled(folder, write_csv(tmp_path / "labels.csv", rows))
    message = str(caught.value)
    for part in ("possible is 'no'", "line 5: 'frames/x' has a row", "'c.mp4' is not a clip", "'frames/y' lies below"):
        assert part in message
    assert "'b/9.mp4' lies below" not in message  # it has a row, a wrong one


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(MissingDataError, match="no such folder"):
        load_labelled(tmp_path / "nowhere", write_csv(tmp_path / "labels.csv"))
