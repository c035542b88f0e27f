"""IntPhys 2 in its published layout, made of tiny videos."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest

from jaxdiff.data import sources
from jaxdiff.data.intphys2 import PUBLISHED_VIDEOS, TYPES, load_intphys2, write_heldout
from jaxdiff.data.video import read_video, write_video
from jaxdiff.errors import ConfigError, MissingDataError

CONDITIONS = ("permanence", "immutability_texture", "continuity_swap", "solidity")
COLUMNS = ("SceneIndex", "name", "game_name", "condition", "env", "type", "Difficulty", "Camera")


def name_of(*parts):
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def write_rows(folder, rows, columns=COLUMNS):
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(folder):
    with open(folder / "metadata.csv", newline="") as file:
        return list(csv.DictReader(file))


def make_split(root, split, scenes, renders, video):
    (root / split / "Videos").mkdir(parents=True)
    rows = []
    for scene in range(scenes):
        for kind in TYPES:
            for render in range(renders):
                rows.append(
                    {
                        "SceneIndex": str(scene),
                        "name": name_of(split, scene, kind, render),
                        "game_name": "BoxSoldity",
                        "condition": CONDITIONS[scene % 4],
                        "env": "None",  # as released: a name, not a missing value
                        "type": kind,
                        "Difficulty": "Hard",
                        "Camera": "Moving",
                    }
                )
    for row in rows:
        shutil.copy(video, root / split / "Videos" / f"{row['name']}.mp4")
    if split != "HeldOut":
        write_rows(root / split, rows[::-1])
    return rows


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("IntPhys2")
    rng = np.random.default_rng(0)
    video = write_video(root / "video.mp4", rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    make_split(root, "Main", 4, 1, video)
    make_split(root, "Debug", 2, 3, video)
    make_split(root, "HeldOut", 2, 1, video)
    return root


@pytest.fixture
def main(written, tmp_path):
    """A copy of Main that a test may damage."""
    return shutil.copytree(written / "Main", tmp_path / "IntPhys2" / "Main")


def test_main_is_read_by_scene_and_type(written):
    clips = load_intphys2(written, videos=16)
    assert [dict(c.conditions)["type"] for c in clips] == list(TYPES) * 4
    assert [c.possible for c in clips] == [True, False, True, False] * 4
    assert [c.group for c in clips] == [f"Main/{scene}" for scene in range(4) for _ in range(4)]
    assert [c.category for c in clips[::4]] == ["permanence", "immutability", "continuity", "solidity"]
    assert len({c.name for c in clips}) == 16
    assert dict(clips[0].conditions)["env"] == "None"
    assert read_video(clips[0].path).shape == (4, 16, 16, 3)


def test_an_impossible_video_is_never_taken_for_a_possible_one(written):
    types = {row["name"]: row["type"] for row in read_rows(written / "Main")}
    for clip in load_intphys2(written):
        assert clip.possible is (types[clip.name].split("_")[1] == "Possible")


def test_the_three_renders_of_debug_share_a_group(written):
    clips = load_intphys2(written, "Debug", videos=24)
    assert {g: sum(c.group == g for c in clips) for g in {c.group for c in clips}} == {"Debug/0": 12, "Debug/1": 12}


def test_the_split_folder_itself_is_accepted_but_not_for_another_split(written):
    assert load_intphys2(written / "Main") == load_intphys2(written)
    with pytest.raises(MissingDataError, match="this is IntPhys 2's Main/, not Debug/"):
        load_intphys2(written / "Main", "Debug")


def test_the_older_name_of_the_name_column_is_accepted(main):
    clips = load_intphys2(main)
    rows = [{**row, "filename": row["name"] + ".mp4"} for row in read_rows(main)]
    for row in rows:
        del row["name"]
    write_rows(main, rows, [c if c != "name" else "filename" for c in COLUMNS])
    assert load_intphys2(main) == clips


def test_no_video_is_opened_while_listing(written, monkeypatch):
    def opened(*args):
        raise AssertionError("a video was opened")

    monkeypatch.setattr(sources, "open_clip", opened)
    monkeypatch.setattr(sources.VideoFile, "__init__", opened)
    monkeypatch.setattr("av.open", opened)
    assert len(load_intphys2(written)) == 16
    assert len(load_intphys2(written, "HeldOut", labels=False)) == 8


# -------------------------------------------------------------------------------------------------- bad input


def first(folder):
    return load_intphys2(folder)[0].name


def edit(folder, change):
    rows = read_rows(folder)
    target = next(row for row in rows if row["name"] == first(folder))
    change(rows, target)
    write_rows(folder, rows)


def drop_video(folder):
    (folder / "Videos" / f"{first(folder)}.mp4").unlink()


def extra_video(folder):
    shutil.copy(folder / "Videos" / f"{first(folder)}.mp4", folder / "Videos" / "stray.mp4")


def stray_file(folder):
    (folder / "Videos" / "notes.txt").touch()


def drop_metadata(folder):
    (folder / "metadata.csv").unlink()


def empty_metadata(folder):
    write_rows(folder, [])


def drop_column(folder):
    rows = [{k: v for k, v in row.items() if k != "type"} for row in read_rows(folder)]
    write_rows(folder, rows, [c for c in COLUMNS if c != "type"])


def cut_row(folder):
    text = (folder / "metadata.csv").read_text().rstrip("\r\n")
    (folder / "metadata.csv").write_text(text[: text.rindex(",")])


def binary_metadata(folder):
    (folder / "metadata.csv").write_bytes(b"\xff\xfe\x00name")


def twice(folder):
    edit(folder, lambda rows, row: rows.append(dict(row)))


def unpair(folder):
    edit(folder, lambda rows, row: row.update(type="1_Impossible"))


def mislabel(folder):
    edit(folder, lambda rows, row: row.update(type="possible"))


def mix(folder):
    edit(folder, lambda rows, row: row.update(condition="solidity"))


def unknown_condition(folder):
    edit(folder, lambda rows, row: row.update(condition="gravity"))


def odd_scene(folder):
    edit(folder, lambda rows, row: row.update(SceneIndex="none"))


def unlist_scene(folder):
    write_rows(folder, [row for row in read_rows(folder) if row["SceneIndex"] != "0"])


DAMAGE = {
    drop_video: r"\.mp4 is missing; metadata.csv lists it",
    extra_video: "Videos/stray.mp4 is not listed in metadata.csv",
    stray_file: "Videos/notes.txt is not an mp4 file",
    drop_metadata: "metadata.csv is missing",
    empty_metadata: "metadata.csv lists no videos",
    drop_column: "metadata.csv has no column type",
    cut_row: "metadata.csv: row 17 has not as many fields",
    binary_metadata: "metadata.csv is damaged",
    twice: "metadata.csv lists [0-9a-f]{64} 2 times",
    unpair: "scene 0 is unpaired: it has 0 1_Possible, 2 1_Impossible, 1 2_Possible, 1 2_Impossible, expected 1",
    mislabel: "its type is 'possible', not one of 1_Possible",
    mix: "scene 0 mixes the conditions permanence, solidity",
    unknown_condition: "its condition is 'gravity'",
    odd_scene: "its SceneIndex is 'none', not a number",
    unlist_scene: "is not listed in metadata.csv",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_incomplete_split_is_refused_and_the_piece_named(main, damage):
    damage(main)
    with pytest.raises(MissingDataError, match=DAMAGE[damage]) as caught:
        load_intphys2(main)
    assert str(main) in str(caught.value)
    assert caught.value.exit_code == 5


def test_all_problems_are_named_at_once(main):
    name = first(main)
    unknown_condition(main)
    stray_file(main)
    (main / "Videos" / f"{name}.mp4").unlink()
    with pytest.raises(MissingDataError) as caught:
        load_intphys2(main)
    for piece in ("notes.txt", f"{name}.mp4 is missing", "'gravity'"):
        assert piece in str(caught.value)


def test_the_number_of_videos_is_held_to(written):
    assert PUBLISHED_VIDEOS == {"Debug": 5 * 4 * 3, "Main": 253 * 4, "HeldOut": 86 * 4}
    with pytest.raises(MissingDataError, match="Videos/ holds 16 videos, expected 1012"):
        load_intphys2(written, videos=PUBLISHED_VIDEOS["Main"])
    with pytest.raises(MissingDataError, match="Videos/ holds 8 videos, expected 344"):
        load_intphys2(written, "HeldOut", labels=False, videos=PUBLISHED_VIDEOS["HeldOut"])


def test_renders_of_main_are_refused(written, tmp_path):
    shutil.copytree(written / "Debug", tmp_path / "Main")
    with pytest.raises(MissingDataError, match=r"scene 0 is unpaired: it has 3 1_Possible, .* expected 1 of each"):
        load_intphys2(tmp_path)


def test_wrong_folders_and_splits_are_refused(written, tmp_path):
    with pytest.raises(MissingDataError, match="no such folder"):
        load_intphys2(tmp_path / "none")
    with pytest.raises(MissingDataError, match=r"neither Main/ nor Videos/ \(it holds nothing\)"):
        load_intphys2(tmp_path)
    with pytest.raises(ConfigError, match="'dev'"):
        load_intphys2(written, "dev")


# --------------------------------------------------------------------------------------------------- held out


def test_heldout_is_refused_for_probing_and_listed_without_labels(written):
    with pytest.raises(MissingDataError, match="HeldOut split of IntPhys 2 is published without labels"):
        load_intphys2(written, "HeldOut")
    clips = load_intphys2(written, "HeldOut", labels=False)
    assert all(c.possible is None for c in clips)
    assert len({c.group for c in clips}) == 8


def test_metadata_of_heldout_is_held_to_but_may_not_label(written, tmp_path):
    held = shutil.copytree(written / "HeldOut", tmp_path / "HeldOut")
    names = sorted(p.stem for p in (held / "Videos").iterdir())
    write_rows(held, [{"name": name} for name in names], ["name"])
    assert [c.name for c in load_intphys2(held, "HeldOut", labels=False)] == names
    write_rows(held, [{"name": name} for name in names[1:]], ["name"])
    with pytest.raises(MissingDataError, match=f"{names[0]}.mp4 is not listed"):
        load_intphys2(held, "HeldOut", labels=False)
    write_rows(held, [{"name": name, "type": TYPES[0]} for name in names], ["name", "type"])
    with pytest.raises(MissingDataError, match="published without labels"):
        load_intphys2(held, "HeldOut", labels=False)


def test_a_submission_holds_a_line_a_video_with_the_keys_of_the_leaderboard(written, tmp_path):
    clips = load_intphys2(written, "HeldOut", labels=False)
    answers = {c.name: i % 3 == 0 for i, c in enumerate(clips)}
    lines = write_heldout(tmp_path / "out.jsonl", clips, answers, videos=8).read_text().splitlines()
    assert lines[0] == (
        f'{{"data_name": "intphys2", "task": "HeldOut", "row_id": "{clips[0].name}", "model_answer": 1}}'
    )
    assert {row["row_id"]: row["model_answer"] for row in map(json.loads, lines)} == {
        name: int(answer) for name, answer in answers.items()
    }


def test_a_submission_that_is_not_all_of_heldout_is_refused(written, tmp_path):
    clips = load_intphys2(written, "HeldOut", labels=False)
    answers = {c.name: True for c in clips}
    with pytest.raises(ConfigError, match="8 clips, but HeldOut has 344"):
        write_heldout(tmp_path / "out.jsonl", clips, answers)
    with pytest.raises(ConfigError, match="has no score"):
        write_heldout(tmp_path / "out.jsonl", clips, {}, videos=8)
    with pytest.raises(ConfigError, match=r"is 0\.5, not true or false"):
        write_heldout(tmp_path / "out.jsonl", clips, {**answers, clips[3].name: 0.5}, videos=8)
    labelled = load_intphys2(written)
    with pytest.raises(ConfigError, match="has a label"):
        write_heldout(tmp_path / "out.jsonl", labelled, {c.name: True for c in labelled}, videos=16)
    with pytest.raises(ConfigError, match=r"takes a \.jsonl"):
        write_heldout(tmp_path / "out.json", clips, answers, videos=8)
    assert not any(tmp_path.iterdir())


def test_a_renamed_video_cannot_be_submitted(written, tmp_path):
    held = shutil.copytree(written / "HeldOut", tmp_path / "HeldOut")
    next((held / "Videos").iterdir()).rename(held / "Videos" / "mine.mp4")
    clips = load_intphys2(held, "HeldOut", labels=False)
    with pytest.raises(ConfigError, match="mine is no row_id"):
        write_heldout(tmp_path / "out.jsonl", clips, {c.name: True for c in clips}, videos=8)
