"""InfLevel in its published layout: everything is in the names."""

import shutil

import numpy as np
import pytest

from jaxdiff.data import inflevel
from jaxdiff.data.inflevel import (
    CAMERAS,
    CATEGORIES,
    DIRECTIONS,
    NO_TRAINING,
    PLAUSIBLE,
    PUBLISHED,
    load_inflevel,
    matched_set,
    parse_name,
    write_scores,
)
from jaxdiff.data.video import read_video, write_video
from jaxdiff.errors import ConfigError, MissingDataError


def names(category, variant, cells):
    """The names of whole sets."""
    for cover, thing in cells:
        for camera in CAMERAS:
            for event in PLAUSIBLE[category]:
                if variant == "sim":
                    yield f"{camera}__{category}__{thing}__{cover}__{event}"
                elif category == "continuity":
                    for direction in DIRECTIONS:
                        yield f"{camera}__{category}__{cover}__{thing}__{event}__{direction}"
                else:
                    yield f"{camera}__{category}__{cover}__{thing}__{event}"


def make(root, variant, cells, video=None):
    for category in CATEGORIES:
        folder = root / f"inflevel_{variant}" / category
        folder.mkdir(parents=True)
        (folder / "._appledouble.mp4").touch()
        for name in names(category, variant, cells):
            if video is None:
                (folder / f"{name}.mp4").touch()
            else:
                shutil.copy(video, folder / f"{name}.mp4")
    return root


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("inflevel")
    rng = np.random.default_rng(0)
    video = write_video(root / "video.mp4", rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    make(root, "lab", [("bluecup", "duck")], video)
    make(root, "sim", [("Bowl_7b", "Clock_1f")], video)
    return root


@pytest.fixture
def lab(tmp_path):
    return make(tmp_path, "lab", [("bluecup", "duck"), ("redcup", "duck")]) / "inflevel_lab"


def test_lab_is_read_from_names(written):
    clips = load_inflevel(written)
    assert len(clips) == 24 + 12 + 12
    clip = next(c for c in clips if c.name == "continuity/center__continuity__bluecup__duck__iv__RL")
    assert (clip.category, clip.group, clip.possible) == ("continuity", "continuity/bluecup/duck", False)
    assert clip.conditions == (
        ("camera", "center"),
        ("cover", "bluecup"),
        ("object", "duck"),
        ("event", "iv"),
        ("direction", "RL"),
    )
    assert matched_set(clip) == "continuity/center/bluecup/duck/RL"
    assert read_video(clip.path).shape == (4, 16, 16, 3)


def test_the_middle_names_of_sim_are_the_other_way_round(written):
    clips = load_inflevel(written, "sim")
    assert len(clips) == 3 * 12
    assert {c.group for c in clips} == {f"{c}/Bowl_7b/Clock_1f" for c in CATEGORIES}
    assert {dict(c.conditions)["object"] for c in clips} == {"Clock_1f"}
    assert all("direction" not in dict(c.conditions) for c in clips)


def test_a_matched_set_is_two_plausible_and_two_implausible_and_lies_in_one_group(written):
    clips = load_inflevel(written)
    for name in {matched_set(c) for c in clips}:
        members = [c for c in clips if matched_set(c) == name]
        assert sorted(c.possible for c in members) == [False, False, True, True]
        assert len({c.group for c in members}) == 1


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("letter", [0, 1])
def test_neither_fact_alone_tells_the_label(category, letter):
    for fact in {event[letter] for event in PLAUSIBLE[category]}:
        labels = [label for event, label in PLAUSIBLE[category].items() if event[letter] == fact]
        assert sorted(labels) == [False, True]


@pytest.mark.parametrize(
    "stem, category, variant, message",
    [
        ("center__gravity__cup__duck", "gravity", "lab", "4 fields, or an empty one, instead of 5"),
        ("center__gravity__cup__duck__ci__LR", "gravity", "lab", "6 fields"),
        ("center__continuity__cup__duck__vv", "continuity", "lab", "instead of 6"),
        ("center__continuity__cup__duck__vv__LR", "continuity", "sim", "instead of 5"),
        ("center__gravity____duck__ci", "gravity", "lab", "an empty one"),
        ("top__gravity__cup__duck__ci", "gravity", "lab", "its camera is 'top'"),
        ("left__solidity__cup__duck__ci", "gravity", "lab", "names the category 'solidity', but lies in gravity/"),
        ("left__gravity__cup__duck__vv", "gravity", "lab", "its event is 'vv', not one of ui, cv, uv, ci"),
        ("left__continuity__cup__duck__vV__LR", "continuity", "lab", "its event is 'vV'"),
        ("left__continuity__cup__duck__vv__UD", "continuity", "lab", "its direction is 'UD'"),
    ],
)
def test_a_name_that_says_something_else_is_refused(stem, category, variant, message):
    with pytest.raises(ValueError, match=message):
        parse_name(stem, category, variant)


def test_no_video_is_opened_while_listing(written, monkeypatch):
    def opened(*args, **kwargs):
        raise AssertionError("a video was opened")

    monkeypatch.setattr("av.open", opened)
    assert len(load_inflevel(written)) == 48


# -------------------------------------------------------------------------------------------------- bad input


def drop_video(lab):
    (lab / "gravity/left__gravity__bluecup__duck__ci.mp4").unlink()


def drop_category(lab):
    shutil.rmtree(lab / "solidity")


def empty_category(lab):
    for path in (lab / "solidity").iterdir():
        path.unlink()


def misplace(lab):
    name = "left__gravity__bluecup__duck__ci.mp4"
    (lab / "gravity" / name).rename(lab / "solidity" / name)


def mislabel(lab):
    folder = lab / "continuity"
    (folder / "left__continuity__bluecup__duck__vv__LR.mp4").rename(
        folder / "left__continuity__bluecup__duck__xx__LR.mp4"
    )


def stray_file(lab):
    (lab / "gravity/readme.txt").touch()


def half_set(lab):
    (lab / "gravity/left__gravity__greencup__duck__ci.mp4").touch()


DAMAGE = {
    drop_video: "gravity/left__gravity__bluecup__duck__ci.mp4 is missing",
    drop_category: "solidity/ is missing",
    empty_category: "solidity/ holds no videos",
    misplace: "names the category 'gravity', but lies in solidity/",
    mislabel: "continuity/left__continuity__bluecup__duck__xx__LR.mp4: its event is 'xx'",
    stray_file: "gravity/readme.txt is not an mp4 file",
    half_set: "gravity/left__gravity__greencup__duck__cv.mp4 is missing",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_incomplete_folder_is_refused_and_the_piece_named(lab, damage):
    damage(lab)
    with pytest.raises(MissingDataError, match=DAMAGE[damage]) as caught:
        load_inflevel(lab)
    assert str(lab) in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_missing_video_of_sim_is_named_as_sim_names_it(written, tmp_path):
    sim = shutil.copytree(written / "inflevel_sim", tmp_path / "inflevel_sim")
    name = "left__gravity__Clock_1f__Bowl_7b__ci.mp4"
    (sim / "gravity" / name).unlink()
    with pytest.raises(MissingDataError, match=f"gravity/{name} is missing"):
        load_inflevel(sim, "sim")


def test_categories_can_be_chosen(lab):
    drop_category(lab)
    assert {c.category for c in load_inflevel(lab, categories=("gravity",))} == {"gravity"}


def test_wrong_folders_variants_and_categories_are_refused(written, tmp_path):
    with pytest.raises(MissingDataError, match="no such folder"):
        load_inflevel(tmp_path / "none")
    with pytest.raises(MissingDataError, match=r"neither inflevel_lab/ nor any of continuity/.*it holds nothing"):
        load_inflevel(tmp_path)
    with pytest.raises(MissingDataError, match="this is inflevel_sim/, not inflevel_lab/"):
        load_inflevel(written / "inflevel_sim")
    with pytest.raises(ConfigError, match="'real'"):
        load_inflevel(written, "real")
    with pytest.raises(ConfigError, match="'collision'"):
        load_inflevel(written, categories=("collision",))
    with pytest.raises(ConfigError, match="counts of InfLevel-sim are not known"):
        load_inflevel(written, "sim", published=True)


# -------------------------------------------------------------------------------------------------- the release


@pytest.fixture
def release(lab, monkeypatch):
    """A small release: in gravity, one set lacks events at all three cameras."""
    for camera in CAMERAS:
        for event in ("ui", "uv"):
            (lab / f"gravity/{camera}__gravity__greencup__duck__{event}.mp4").touch()
    monkeypatch.setattr(inflevel, "PUBLISHED", {"continuity": (48, 0), "gravity": (24 + 6, 3), "solidity": (24, 0)})
    return lab


def test_sets_that_the_release_lacks_are_left_out_only_when_it_is_said_to_be_the_release(release):
    clips = load_inflevel(release, published=True)
    assert len(clips) == 48 + 24 + 24
    assert not any("greencup" in c.name for c in clips)
    with pytest.raises(MissingDataError, match=r"left__gravity__greencup__duck__cv.mp4 is missing"):
        load_inflevel(release)


def test_a_video_that_the_release_has_is_missed_and_told_from_those_that_it_lacks(release):
    drop_video(release)
    with pytest.raises(MissingDataError) as caught:
        load_inflevel(release, published=True)
    assert "gravity/left__gravity__bluecup__duck__ci.mp4 is missing" in str(caught.value)
    assert "gravity/ holds 29 videos, the release 30" in str(caught.value)
    assert "gravity/ holds 4 incomplete sets, the release 3" in str(caught.value)
    assert "greencup" not in str(caught.value)


def test_a_camera_without_the_set_that_others_have_is_noticed(release):
    for event in PLAUSIBLE["solidity"]:
        (release / f"solidity/right__solidity__redcup__duck__{event}.mp4").unlink()
    with pytest.raises(MissingDataError, match=r"solidity/right__solidity__redcup__duck__ui.mp4 is missing"):
        load_inflevel(release, published=True)


def test_whole_objects_that_are_missing_are_noticed_by_the_counts(release):
    for path in release.glob("solidity/*redcup*"):
        path.unlink()
    with pytest.raises(MissingDataError, match="solidity/ holds 12 videos, the release 24"):
        load_inflevel(release, published=True)


def test_the_counts_of_the_release_agree_with_its_number_of_whole_sets():
    lacking = {"continuity": 3, "gravity": 2, "solidity": 2}  # videos of an incomplete set
    whole = {c: (files - lacking[c] * incomplete) / 4 for c, (files, incomplete) in PUBLISHED.items()}
    assert whole == {"continuity": 540, "gravity": 591, "solidity": 225}


# ------------------------------------------------------------------------------------------------------- scores


def test_the_score_table_has_the_columns_that_the_evaluator_groups_by(written, tmp_path):
    clips = load_inflevel(written)
    scores = {c.name: -i / 7 for i, c in enumerate(clips)}
    paths = write_scores(tmp_path, clips, scores)
    assert [p.name for p in paths] == ["continuity.tsv", "gravity.tsv", "solidity.tsv"]
    head, *rows = (line.split("\t") for line in paths[0].read_text().splitlines())
    assert head == ["camera_loc", "cover", "obj", "trial_type", "dir", "score"]
    assert len(rows) == 24
    for row in rows:
        camera, cover, thing, event, direction, score = row
        name = f"continuity/{camera}__continuity__{cover}__{thing}__{event}__{direction}"
        assert float(score) == scores[name]
    assert paths[1].read_text().startswith("camera_loc\tcover\tobj\ttrial_type\tscore\n")


def test_sim_has_no_column_of_directions_and_keeps_cover_and_object_apart(written, tmp_path):
    clips = load_inflevel(written, "sim")
    path = write_scores(tmp_path, clips, {c.name: 0.0 for c in clips})[0]
    head, row, *_ = path.read_text().splitlines()
    assert head == "camera_loc\tcover\tobj\ttrial_type\tscore"
    assert row == "center\tBowl_7b\tClock_1f\tii\t0.0"


def test_scores_of_a_broken_set_or_without_a_number_are_refused(written, tmp_path):
    clips = load_inflevel(written)
    scores = {c.name: 0.0 for c in clips}
    with pytest.raises(ConfigError, match="has no score"):
        write_scores(tmp_path, clips, {})
    with pytest.raises(ConfigError, match="not a finite number"):
        write_scores(tmp_path, clips, {**scores, clips[0].name: float("nan")})
    less = dict(scores)
    del less[clips[0].name]
    with pytest.raises(ConfigError, match="needs all four events of continuity/center/bluecup/duck/LR"):
        write_scores(tmp_path, clips[1:], less)
    assert not any(tmp_path.iterdir())


def test_the_rule_of_the_authors_names_what_it_forbids_and_what_it_allows():
    assert "evaluation only" in NO_TRAINING
    assert "not even of a linear probe" in NO_TRAINING
    assert "off-protocol" in NO_TRAINING
