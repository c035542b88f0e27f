"""Files of prompts, and the names and tables that scorers read."""

import csv
import io
import json

import pytest

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.generation.naming import name_clips, tables
from jaxdiff.generation.prompts import Prompt, read_prompts, world_prompts

VIDEOPHY = """video_url,caption,states_of_matter,source,complexity,majority_sa,majority_pc
a.mp4,"A ball, red, rolls.",solid_solid,x,0,1,1
b.mp4,Honey drips.,fluid_fluid,x,1,0,1
c.mp4,"A ball, red, rolls.",solid_solid,y,0,0,0
"""


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_captions_of_a_text_file_are_its_lines(tmp_path):
    path = written(tmp_path, "all_dimension.txt", "\ufeffa cat\n\n a dog \n")
    assert read_prompts(path) == (Prompt("a cat", "a cat"), Prompt("a dog", "a dog"))


def test_videophy_has_a_row_for_each_scored_model_and_a_prompt_for_each_caption(tmp_path):
    found = read_prompts(written(tmp_path, "videophy_test_public.csv", VIDEOPHY))
    assert [p.caption for p in found] == ["A ball, red, rolls.", "Honey drips."]
    assert [p.groups for p in found] == [("solid_solid",), ("fluid_fluid",)]


def test_the_model_may_be_told_the_upsampled_caption_and_names_keep_the_caption(tmp_path):
    path = written(tmp_path, "videophy2.csv", "caption,upsampled_caption\nA cat.,A very fine cat.\n")
    assert read_prompts(path)[0].told == "A cat."
    (prompt,) = read_prompts(path, upsampled=True)
    assert prompt == Prompt("A cat.", "A very fine cat.")
    assert name_clips((prompt,), "videophy2")[0].file == "A_cat.mp4"
    with pytest.raises(ConfigError, match="no upsampled_caption for 'A ball, red"):
        read_prompts(written(tmp_path, "v1.csv", VIDEOPHY), upsampled=True)


def test_vbench_prompts_carry_their_dimensions(tmp_path):
    entries = [
        {"prompt_en": "a cat", "dimension": ["color"], "auxiliary_info": {}},
        {"prompt_en": "a still lake", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a cat", "dimension": ["motion_smoothness"]},
    ]
    found = read_prompts(written(tmp_path, "VBench_full_info.json", json.dumps(entries)))
    assert [(p.caption, p.groups) for p in found] == [
        ("a cat", ("color", "motion_smoothness")), ("a still lake", ("temporal_flickering",))
    ]  # fmt: skip
    clips = name_clips(found, "vbench")
    assert [sum(c.prompt is p for c in clips) for p in found] == [5, 25]
    assert [c.file for c in clips[:5]] == [f"a cat-{i}.mp4" for i in range(5)]


def test_phygenbench_prompts_are_numbered_from_1_and_carry_their_categories(tmp_path):
    entry = {"caption": "A stone sinks.", "physical_laws": "x", "sub_category": "Buoyancy", "main_category": "Force"}
    found = read_prompts(written(tmp_path, "prompts.json", json.dumps([entry, {**entry, "caption": "Ice."}, entry])))
    assert [(p.caption, p.groups) for p in found] == [
        (caption, ("Force", "Buoyancy")) for caption in ("A stone sinks.", "Ice.", "A stone sinks.")
    ]
    assert [c.file for c in name_clips(found, "phygenbench")] == [f"output_video_{n}.mp4" for n in (1, 2, 3)]


def test_names_and_tables_are_those_of_the_scorers(tmp_path):
    prompts = (Prompt("A ball, red,  rolls.", "told", ("solid_solid",)), Prompt("Honey / oil", "Honey / oil"))

    def table(naming, name):
        clips = name_clips(prompts, naming)
        return list(csv.reader(io.StringIO(tables(clips, naming, tmp_path / "videos")[name])))

    first = str(tmp_path / "videos/A_ball,_red,_rolls.mp4")
    assert table("videophy", "videophy.csv")[:2] == [["videopath", "caption"], [first, prompts[0].caption]]
    assert table("videophy2", "videophy2.csv")[:2] == [["caption", "videopath"], [prompts[0].caption, first]]
    assert table("plain", "prompts.csv") == [
        ["video", "caption", "prompt", "sample", "groups"],
        ["0000-0.mp4", "A ball, red,  rolls.", "told", "0", "solid_solid"],
        ["0001-0.mp4", "Honey / oil", "Honey / oil", "0", ""],
    ]
    assert set(tables(name_clips(prompts, "plain"), "plain", tmp_path)) == {"prompts.csv"}
    assert [c.file for c in name_clips(prompts[1:], "videophy", 2)] == ["Honey_oil-0.mp4", "Honey_oil-1.mp4"]


def test_the_world_has_72_prompts_in_an_order_that_the_seed_draws():
    one, other = world_prompts(0), world_prompts(1)
    assert len(set(one)) == 72 and set(one) == set(other) and one != other and one == world_prompts(0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.txt", "\n \n", "holds no prompt"),
        ("empty.csv", "caption\n", "holds no prompt"),
        ("twice.txt", "a cat\na dog\na cat\n", "lines 1 and 3 are the same prompt, 'a cat'"),
        ("other.csv", "text,label\na,b\n", "no column 'caption'; it has text, label"),
        ("prompts.yaml", "a cat\n", "read from .txt, .csv, .json, or world"),
    ],
)
def test_wrong_files_are_refused(tmp_path, name, text, message):
    with pytest.raises(ConfigError, match=message):
        read_prompts(written(tmp_path, name, text))


def test_unreadable_files_are_missing_data(tmp_path):
    with pytest.raises(MissingDataError, match=r"none\.txt: the prompts cannot be read: No such file"):
        read_prompts(tmp_path / "none.txt")
    for text in ("{", '["a cat"]'):
        with pytest.raises(MissingDataError, match=r"bad\.json"):
            read_prompts(written(tmp_path, "bad.json", text))


def test_names_that_no_file_can_have_or_that_two_clips_share_are_refused():
    with pytest.raises(ConfigError, match=r"'A cat' and 'A cat\.' the same file, A_cat\.mp4"):
        name_clips((Prompt("A cat.", ""), Prompt("A cat", "")), "videophy")
    for caption in ("a/b", "x" * 300, "../up"):
        with pytest.raises(ConfigError, match="cannot be the name of a file"):
            name_clips((Prompt(caption, ""),), "vbench")
    with pytest.raises(
        ConfigError, match="--naming=vbnch is unknown; choose from plain, videophy, videophy2, vbench, phygenbench"
    ):
        name_clips((Prompt("a", ""),), "vbnch")
    with pytest.raises(ConfigError, match="--samples=0"):
        name_clips((Prompt("a", ""),), "plain", 0)
