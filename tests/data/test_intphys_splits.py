"""The test and train splits of IntPhys 2019 in their published layout, and submissions to its challenge."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.intphys import BLOCKS, PUBLISHED_SCENES, RUNS, answer_lines, load_intphys, write_answers
from jaxdiff.data.video import read_video
from jaxdiff.errors import ConfigError, MissingDataError

SCENES, FRAMES = 2, 2


def make_movie(folder, possible):
    """`possible` None: a test movie, without status.json."""
    (folder / "scene").mkdir(parents=True)
    for i in range(FRAMES):
        picture = np.full((16, 16, 3), 40 * i, np.uint8)
        Image.fromarray(picture).save(folder / "scene" / f"scene_{i + 1:03d}.png")
    if possible is not None:
        (folder / "status.json").write_text(json.dumps({"header": {"is_possible": possible}}))


def make_quadruplets(root, split, suffix=""):
    for block in BLOCKS:
        for scene in range(1, SCENES + 1):
            for run in RUNS:
                label = None if split == "test" else run in "23"
                make_movie(root / split / block / f"{scene:04d}{suffix}" / run, label)
    return root


@pytest.fixture
def unlabelled_split(tmp_path):
    return make_quadruplets(tmp_path / "data", "test")


@pytest.fixture
def train(tmp_path):
    for i in range(1, 4):
        make_movie(tmp_path / f"train/{i:05d}", True)
    return tmp_path


def scored(clips):
    return {c.name: i / len(clips) for i, c in enumerate(clips)}


# ----------------------------------------------------------------------------------------------- the test split


def test_the_test_split_is_listed_without_labels_and_refused_for_probing(unlabelled_split):
    with pytest.raises(MissingDataError, match="test split of IntPhys is published without labels"):
        load_intphys(unlabelled_split, "test")
    clips = load_intphys(unlabelled_split, "test", labels=False, scenes=SCENES)
    assert len(clips) == 3 * SCENES * 4
    assert all(c.possible is None for c in clips)
    assert clips[5].group == "O1/0002"
    assert read_video(clips[0].path).shape == (FRAMES, 16, 16, 3)


def test_a_labelled_split_in_the_place_of_the_test_split_is_refused(tmp_path):
    make_quadruplets(tmp_path, "dev")
    (tmp_path / "dev").rename(tmp_path / "test")
    with pytest.raises(MissingDataError, match=r"O1/0001/1/status.json is there, but the test split has none"):
        load_intphys(tmp_path, "test", labels=False)


def test_the_dev_split_keeps_its_labels_however_it_is_listed(tmp_path):
    make_quadruplets(tmp_path, "dev")
    assert load_intphys(tmp_path, labels=False) == load_intphys(tmp_path)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_run_or_block_too_many_is_refused(tmp_path, split):
    make_quadruplets(tmp_path, split)
    make_movie(tmp_path / split / "O2/0001/5", None if split == "test" else True)
    with pytest.raises(MissingDataError, match="O2/0001/5 is none of the runs 1, 2, 3, 4"):
        load_intphys(tmp_path, split, labels=False)
    (tmp_path / split / "O2/0001/5").rename(tmp_path / split / "O4")
    with pytest.raises(MissingDataError, match="O4/ is none of the blocks O1, O2, O3"):
        load_intphys(tmp_path, split, labels=False)


def test_the_counts_of_the_release_are_held_to(unlabelled_split, train):
    assert {split: n * (1 if split == "train" else 12) for split, n in PUBLISHED_SCENES.items()} == {
        "dev": 360,
        "test": 12_960,
        "train": 15_000,
    }
    with pytest.raises(MissingDataError, match="O1/0003 is missing"):
        load_intphys(unlabelled_split, "test", labels=False, scenes=PUBLISHED_SCENES["test"])
    with pytest.raises(MissingDataError, match="3 movies are in order, expected 15000"):
        load_intphys(train, "train", labels=False, scenes=PUBLISHED_SCENES["train"])


# ---------------------------------------------------------------------------------------------- the train split


def test_the_train_split_is_flat_and_possible(train):
    with pytest.raises(MissingDataError, match="possible movies only"):
        load_intphys(train, "train")
    clips = load_intphys(train, "train", labels=False, scenes=3)
    assert [(c.name, c.possible) for c in clips] == [(f"train/{i:05d}", True) for i in (1, 2, 3)]


def impossible(movie):
    (movie / "status.json").write_text('{"header": {"is_possible": false}}')


def unlabelled(movie):
    (movie / "status.json").unlink()


def stray(movie):
    (movie.parent / "O1").mkdir()


def frameless(movie):
    (movie / "scene/scene_001.png").unlink()


@pytest.mark.parametrize(
    "damage, message",
    [
        (impossible, "00002/status.json says impossible, but all training movies are possible"),
        (unlabelled, "00002/status.json is missing"),
        (stray, "O1 is not the number of a movie"),
        (frameless, "00002/scene/scene_001.png is missing"),
    ],
)
def test_a_damaged_train_split_is_refused_and_the_piece_named(train, damage, message):
    damage(train / "train/00002")
    with pytest.raises(MissingDataError, match=message):
        load_intphys(train, "train", labels=False)


# -------------------------------------------------------------------------------------------------- submissions


def test_answers_are_one_line_a_movie_in_the_order_of_the_split(unlabelled_split):
    clips = load_intphys(unlabelled_split, "test", labels=False)
    lines = answer_lines(clips, scored(clips), SCENES).splitlines()
    assert lines[:2] == ["O1/0001/1 0.0", f"O1/0001/2 {1 / 24!r}"]
    assert [line.split()[0] for line in lines] == [
        f"{b}/{s:04d}/{r}" for b in BLOCKS for s in range(1, SCENES + 1) for r in RUNS
    ]
    assert [float(line.split()[1]) for line in lines] == list(scored(clips).values())  # nothing is rounded


def test_scenes_of_the_older_release_are_answered_under_their_folder(tmp_path):
    make_quadruplets(tmp_path, "test", "_O1_test_visible_static_nobj1")
    clips = load_intphys(tmp_path, "test", labels=False)
    assert clips[0].name == "O1/0001/1"
    lines = answer_lines(clips, scored(clips), SCENES)
    assert lines.startswith("O1/0001_O1_test_visible_static_nobj1/1 0.0\n")


def test_the_zip_holds_answer_txt_alone_and_is_the_same_each_time(unlabelled_split, tmp_path):
    clips = load_intphys(unlabelled_split, "test", labels=False)
    packed = write_answers(tmp_path / "a", clips, scored(clips), SCENES)
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == ["answer.txt"]
        assert archive.read("answer.txt").decode() == answer_lines(clips, scored(clips), SCENES)
    assert (tmp_path / "a/answer.txt").read_text() == answer_lines(clips, scored(clips), SCENES)
    assert write_answers(tmp_path / "b", clips, scored(clips), SCENES).read_bytes() == packed.read_bytes()


def test_answers_that_the_challenge_would_reject_are_refused(unlabelled_split, tmp_path):
    clips = load_intphys(unlabelled_split, "test", labels=False)
    scores = scored(clips)
    with pytest.raises(ConfigError, match="8 movies of O1, but the benchmark scores all 4320"):
        write_answers(tmp_path, clips, scores)
    with pytest.raises(ConfigError, match="4 movies of O3"):
        write_answers(tmp_path, clips[:-4], scores, SCENES)
    with pytest.raises(ConfigError, match=r"has the score 1\.5, not a number in \[0, 1\]"):
        write_answers(tmp_path, clips, {**scores, "O2/0001/3": 1.5}, SCENES)
    with pytest.raises(ConfigError, match="O2/0001/3 has no score"):
        write_answers(tmp_path, clips, {k: v for k, v in scores.items() if k != "O2/0001/3"}, SCENES)
    assert not (tmp_path / "answer.txt").exists()


def test_labelled_clips_are_not_submitted(tmp_path):
    clips = load_intphys(make_quadruplets(tmp_path, "dev"))
    with pytest.raises(ConfigError, match="O1/0001/1 has a label"):
        answer_lines(clips, scored(clips), SCENES)
