"""The IntPhys layout, written by the generated world and read by the real loader."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.intphys import load_intphys
from jaxdiff.data.video import read_video
from jaxdiff.data.worlds import WorldConfig, quadruplets
from jaxdiff.data.worlds.layout import write_intphys
from jaxdiff.data.worlds.render import LAYERS
from jaxdiff.errors import ConfigError, MissingDataError, Resumable

CONFIG = WorldConfig()
SCENES = 2


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_intphys(CONFIG, 5, SCENES, tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(written, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "world")


def made():
    return list(quadruplets(CONFIG, 5, SCENES))


# ------------------------------------------------------------------------------------------------- round trip


def test_what_is_written_is_read_back_losslessly(written):
    clips = load_intphys(written, scenes=SCENES)
    assert [c.name for c in clips[:5]] == ["O1/01/1", "O1/01/2", "O1/01/3", "O1/01/4", "O1/02/1"]
    assert len(clips) == 3 * SCENES * 4
    for q, group in zip(made(), np.reshape(np.array(clips, object), (-1, 4)), strict=True):
        for run, clip in enumerate(group):
            np.testing.assert_array_equal(read_video(clip.path, CONFIG.frames, CONFIG.size), q.frames.video[run])
            assert clip.possible is bool(q.possible[run])
            assert clip.group == f"{q.category}/{q.scene + 1:02d}"
            assert clip.category == q.category


def test_depth_masks_and_trajectories_are_written_as_intphys_has_them(written):
    for q in made():
        for run in range(4):
            folder = written / "dev" / q.category / f"{q.scene + 1:02d}" / str(run + 1)
            status = json.loads((folder / "status.json").read_text())
            assert len(status["frames"]) == CONFIG.frames
            for f in (0, CONFIG.switch, CONFIG.frames - 1):
                depth = np.asarray(Image.open(folder / "depth" / f"depth_{f + 1:03d}.png")).astype(np.int64)
                np.testing.assert_allclose(65535 - depth, q.frames.depth[run, f], atol=0.51)  # whole millimetres
                masks = np.asarray(Image.open(folder / "masks" / f"masks_{f + 1:03d}.png"))
                for value, layer in enumerate(LAYERS):
                    np.testing.assert_array_equal(
                        masks == status["frames"][f]["masks"][layer], q.frames.masks[run, f] == value
                    )
                thing = q.things[q.parts[run, int(f >= CONFIG.switch)]]
                assert ("object_1" in status["frames"][f]) == bool(thing.present)


def test_writing_again_changes_nothing_and_another_world_is_refused(world):
    before = {p: p.stat().st_mtime_ns for p in world.rglob("*.png")}
    assert write_intphys(CONFIG, 5, SCENES, world) == world
    assert {p: p.stat().st_mtime_ns for p in world.rglob("*.png")} == before
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        write_intphys(CONFIG, 6, SCENES, world)


def test_a_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="not empty"):
        write_intphys(CONFIG, 5, SCENES, tmp_path)


def test_an_interrupted_world_is_completed(tmp_path, written, monkeypatch):
    from jaxdiff.data.worlds import layout

    whole, calls = layout._write_quadruplet, []

    def full_disk(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return whole(*args)

    monkeypatch.setattr(layout, "_write_quadruplet", full_disk)
    with pytest.raises(Resumable, match="same command"):
        write_intphys(CONFIG, 5, SCENES, tmp_path / "w")
    monkeypatch.undo()
    write_intphys(CONFIG, 5, SCENES, tmp_path / "w")
    names = {p.relative_to(written) for p in written.rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path / "w") for p in (tmp_path / "w").rglob("*") if p.is_file()} == names
    assert all((tmp_path / "w" / n).read_bytes() == (written / n).read_bytes() for n in names)


# ------------------------------------------------------------------------------------------ the real archives


def test_older_scene_names_tell_their_conditions(world):
    (world / "dev/O1/01").rename(world / "dev/O1/0001_O1_test_occluded_dynamic_2_nobj3")
    clip = load_intphys(world)[0]
    assert clip.name == "O1/0001/1"
    assert clip.group == "O1/0001"
    assert clip.conditions == (("visibility", "occluded"), ("motion", "dynamic_2"), ("objects", "3"))


def test_the_split_folder_itself_is_accepted_and_blocks_can_be_chosen(world):
    shutil.rmtree(world / "dev/O2")
    assert {c.category for c in load_intphys(world / "dev", blocks=("O1", "O3"))} == {"O1", "O3"}


def test_the_label_comes_from_status_json_alone(world):
    runs = [world / "dev/O1/01" / str(i) for i in range(1, 5)]
    labels = [c.possible for c in load_intphys(world)[:4]]
    for run in runs:
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps({"header": {"is_possible": not status["header"]["is_possible"]}}))
    assert [c.possible for c in load_intphys(world)[:4]] == [not v for v in labels]


def test_splits_without_labels_are_refused_for_probing_with_the_reason(world):
    for status in world.rglob("status.json"):
        status.unlink()
    (world / "dev").rename(world / "test")
    with pytest.raises(MissingDataError, match="published without labels"):
        load_intphys(world, "test")
    clips = load_intphys(world, "test", labels=False)
    assert len(clips) == 24
    assert all(c.possible is None for c in clips)


def test_the_train_split_is_possible_movies_only(world, tmp_path):
    possible = load_intphys(world)[[c.possible for c in load_intphys(world)].index(True)]
    for i in (1, 2):
        shutil.copytree(possible.path.parent, tmp_path / f"data/train/0000{i}")
    with pytest.raises(MissingDataError, match="possible movies only"):
        load_intphys(tmp_path / "data", "train")
    assert [c.possible for c in load_intphys(tmp_path / "data", "train", labels=False)] == [True, True]


# -------------------------------------------------------------------------------------------------- bad input


def drop_frame(dev):
    (dev / "O2/02/3/scene/scene_007.png").unlink()


def drop_last_frame(dev):
    (dev / "O2/02/3/scene/scene_017.png").unlink()


def drop_frames(dev):
    shutil.rmtree(dev / "O2/02/3/scene")


def drop_run(dev):
    shutil.rmtree(dev / "O3/01/4")


def drop_scene(dev):
    shutil.rmtree(dev / "O1/01")


def drop_last_scene(dev):
    shutil.rmtree(dev / "O1/02")


def drop_block(dev):
    shutil.rmtree(dev / "O2")


def drop_status(dev):
    (dev / "O1/01/2/status.json").unlink()


def damage_status(dev):
    (dev / "O1/01/2/status.json").write_text('{"header": {')


def wrong_status(dev):
    (dev / "O1/01/2/status.json").write_text('{"header": {"is_possible": "yes"}}')


def unpair(dev):
    for run in "1234":
        (dev / "O3/02" / run / "status.json").write_text('{"header": {"is_possible": true}}')


def double_number(dev):
    shutil.copytree(dev / "O1/02", dev / "O1/0002_O1_test_visible_static_nobj1")


def stray_folder(dev):
    (dev / "O1/backup").mkdir()


DAMAGE = {
    drop_frame: "O2/02/3/scene/scene_007.png is missing",
    drop_last_frame: "O2/02: its runs have 17, 17, 16, 17 frames",
    drop_frames: "O2/02/3/scene/ is missing",
    drop_run: "O3/01/4 is missing",
    drop_scene: "O1/01 is missing",
    drop_last_scene: "the blocks differ in their number of scenes: O1 1, O2 2, O3 2",
    drop_block: "O2/ is missing",
    drop_status: "O1/01/2/status.json is missing",
    damage_status: "O1/01/2/status.json is damaged",
    wrong_status: "O1/01/2/status.json: header.is_possible is 'yes'",
    unpair: "O3/02 is unpaired: 4 of its 4 runs are possible",
    double_number: "O1/02 and O1/0002_O1_test_visible_static_nobj1 have the same number|have the same number",
    stray_folder: "O1/backup is not the name of a scene",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_incomplete_data_set_is_refused_and_the_missing_piece_named(world, damage):
    damage(world / "dev")
    with pytest.raises(MissingDataError, match=DAMAGE[damage]) as caught:
        load_intphys(world)
    assert caught.value.exit_code == 5


def test_all_problems_are_named_at_once(world):
    for damage in (drop_run, drop_frame, drop_status):
        damage(world / "dev")
    with pytest.raises(MissingDataError) as caught:
        load_intphys(world)
    for damage in (drop_run, drop_frame, drop_status):
        assert DAMAGE[damage] in str(caught.value)


def test_an_expected_number_of_scenes_is_held_to(written):
    with pytest.raises(MissingDataError, match="O1/03 is missing"):
        load_intphys(written, scenes=3)
    with pytest.raises(MissingDataError, match="holds 2 scenes, expected 1"):
        load_intphys(written, scenes=1)


def test_wrong_folders_splits_and_blocks_are_refused(written, tmp_path):
    with pytest.raises(MissingDataError, match="no such folder"):
        load_intphys(tmp_path / "none")
    with pytest.raises(MissingDataError, match="neither dev/ nor"):
        load_intphys(tmp_path)
    with pytest.raises(ConfigError, match="val"):
        load_intphys(written, "val")
    with pytest.raises(ConfigError, match="O4"):
        load_intphys(written, blocks=("O4",))
