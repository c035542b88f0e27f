"""GRASP level 2: every possible clip has its impossible partner of the same name."""

import shutil

import numpy as np
import pytest

from jaxdiff.data.grasp import PROPERTIES, load_grasp
from jaxdiff.data.video import read_video, write_video
from jaxdiff.errors import ConfigError, MissingDataError

SCENES = 3


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """One file that is copied wherever a clip has to be readable."""
    ramp = np.arange(3 * 16 * 16 * 3, dtype=np.uint32).reshape(3, 16, 16, 3) % 251
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", ramp.astype(np.uint8))


@pytest.fixture
def root(tmp_path, video):
    for name in PROPERTIES:
        for prefix in ("P_", "IP_"):
            (tmp_path / "level2" / f"{prefix}{name}").mkdir(parents=True)
            for scene in range(SCENES):
                # not a video: listing must not open it
                (tmp_path / "level2" / f"{prefix}{name}" / f"{scene:03d}.mp4").write_bytes(b"closed")
    shutil.copy(video, tmp_path / "level2" / "IP_Gravity" / "001.mp4")
    return tmp_path


def test_clips_of_one_name_are_a_pair_whose_label_is_the_folder(root):
    clips = load_grasp(root)
    assert len(clips) == 2 * SCENES * len(PROPERTIES) == len({c.name for c in clips})
    for possible, impossible in zip(clips[::2], clips[1::2], strict=True):
        assert possible.possible is True and impossible.possible is False
        assert possible.group == impossible.group == f"{possible.category}/{possible.path.stem}"
        assert possible.path.parent.name == f"P_{possible.category}"
        assert impossible.path.parent.name == f"IP_{possible.category}"
        assert possible.path.name == impossible.path.name
    assert len({c.group for c in clips}) == SCENES * len(PROPERTIES)


def test_what_is_listed_can_be_read(root):
    (clip,) = (c for c in load_grasp(root) if c.name == "IP_Gravity/001")
    assert read_video(clip.path).shape == (3, 16, 16, 3)


def test_the_level_itself_is_accepted_and_properties_can_be_chosen(root):
    shutil.rmtree(root / "level2" / "P_Inertia")
    clips = load_grasp(root / "level2", ("Gravity", "Collision"), scenes=SCENES)
    assert [c.category for c in clips] == ["Gravity"] * 6 + ["Collision"] * 6


def test_hidden_files_are_no_clips(root):
    (root / "level2" / "P_Gravity" / "._001.mp4").touch()
    assert len(load_grasp(root)) == 2 * SCENES * len(PROPERTIES)


def drop_clip(level):
    (level / "IP_Collision" / "001.mp4").unlink()


def drop_possible(level):
    (level / "P_Collision" / "001.mp4").unlink()


def drop_pair(level):
    for prefix in ("P_", "IP_"):
        (level / f"{prefix}Gravity" / "000.mp4").unlink()


def drop_last_pair(level):
    for prefix in ("P_", "IP_"):
        (level / f"{prefix}Gravity" / "002.mp4").unlink()


def drop_folder(level):
    shutil.rmtree(level / "IP_Inertia2")


def empty_folder(level):
    for path in (level / "P_Inertia2").iterdir():
        path.unlink()


def add_clip(level):
    (level / "P_Inertia" / "003.mp4").touch()


def add_file(level):
    (level / "P_Inertia" / "000 (1).mp4").touch()


def add_folder(level):
    (level / "IP_Inertia" / "004.mp4").mkdir()


def repeat_number(level):
    (level / "P_Inertia" / "1.mp4").touch()


def rename_one(level):
    (level / "P_Inertia" / "001.mp4").rename(level / "P_Inertia" / "1.mp4")


def add_property(level):
    (level / "IP_Magnetism").mkdir()


DAMAGE = {
    drop_clip: "IP_Collision/001.mp4 is missing, the partner of P_Collision/001.mp4",
    drop_possible: "\n  P_Collision/001.mp4 is missing, the partner of IP_Collision/001.mp4",
    drop_pair: "P_Gravity/000.mp4 and IP_Gravity/000.mp4 are missing",
    drop_last_pair: "the properties differ in their number of scenes: .*Gravity 2",
    drop_folder: "IP_Inertia2/ is missing",
    empty_folder: "\n  P_Inertia2/ holds no clips",
    add_clip: "IP_Inertia/003.mp4 is missing, the partner of P_Inertia/003.mp4",
    add_file: r"P_Inertia/000 \(1\).mp4 is not a clip",
    add_folder: "IP_Inertia/004.mp4 is not a clip",
    repeat_number: "P_Inertia/1.mp4 and P_Inertia/001.mp4 have the same number",
    rename_one: "the clips of scene 1 of Inertia differ in their names: 001.mp4, 1.mp4",
    add_property: "IP_Magnetism/ is of no property",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_incomplete_level_is_refused_and_the_missing_piece_named(root, damage):
    damage(root / "level2")
    with pytest.raises(MissingDataError, match=DAMAGE[damage]) as caught:
        load_grasp(root)
    assert "Unpack" in str(caught.value)


def test_all_problems_are_named_at_once(root):
    for damage in (drop_clip, drop_folder, add_file):
        damage(root / "level2")
    with pytest.raises(MissingDataError) as caught:
        load_grasp(root)
    for damage in (drop_clip, drop_folder):
        assert DAMAGE[damage] in str(caught.value)
    assert "000 (1).mp4" in str(caught.value)


def test_the_number_of_scenes_can_be_demanded(root):
    assert load_grasp(root, scenes=SCENES)
    with pytest.raises(MissingDataError, match=r"P_Gravity/003\.mp4 and IP_Gravity/003.mp4 are missing"):
        load_grasp(root, ("Gravity",), scenes=SCENES + 1)
    with pytest.raises(MissingDataError, match=r"IP_Gravity/002\.mp4 is one too many: expected 2"):
        load_grasp(root, ("Gravity",), scenes=SCENES - 1)


def test_a_wrong_folder_or_property_is_refused(root, tmp_path):
    with pytest.raises(MissingDataError, match="no such folder"):
        load_grasp(root / "nowhere")
    (tmp_path / "other" / "stuff").mkdir(parents=True)
    with pytest.raises(MissingDataError, match="it holds stuff"):
        load_grasp(tmp_path / "other")
    with pytest.raises(ConfigError, match="Magnetism"):
        load_grasp(root, ("Gravity", "Magnetism"))
    for properties in ((), ("Gravity", "Gravity")):
        with pytest.raises(ConfigError, match="once"):
            load_grasp(root, properties)
