"""The registry: every data set opens by name, whole or said to be a part, and says what reports must print."""

import csv
import hashlib
import itertools
import shutil

import h5py
import numpy as np
import pytest

from jaxdiff.data.datasets import SPLITS, open_dataset
from jaxdiff.data.grasp import PROPERTIES
from jaxdiff.data.inflevel import CAMERAS, NO_TRAINING, PLAUSIBLE
from jaxdiff.data.intphys2 import TYPES
from jaxdiff.data.phyworld import NEUTRAL_PROMPT
from jaxdiff.data.worlds import WorldConfig
from jaxdiff.data.worlds.layout import write_intphys
from jaxdiff.errors import ConfigError, MissingDataError


def make_intphys2(root):
    for split in ("Main", "HeldOut"):
        videos = root / split / "Videos"
        videos.mkdir(parents=True)
        rows = [
            {"SceneIndex": "0", "name": hashlib.sha256(f"{split}{kind}".encode()).hexdigest(), "type": kind,
             "condition": "solidity"}
            for kind in TYPES
        ]  # fmt: skip
        for row in rows:
            (videos / f"{row['name']}.mp4").touch()
        if split == "Main":
            with open(root / split / "metadata.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


def make_inflevel(root):
    for variant, (category, events) in itertools.product(("lab", "sim"), PLAUSIBLE.items()):
        folder = root / f"inflevel_{variant}" / category
        folder.mkdir(parents=True)
        for camera, event in itertools.product(CAMERAS, events):
            directions = ("__LR", "__RL") if (variant, category) == ("lab", "continuity") else ("",)
            for direction in directions:
                (folder / f"{camera}__{category}__bluecup__duck__{event}{direction}.mp4").touch()


def make_grasp(root):
    for prefix, name in itertools.product(("P", "IP"), PROPERTIES):
        folder = root / "level2" / f"{prefix}_{name}"
        folder.mkdir(parents=True)
        (folder / "000.mp4").touch()


def make_parabola(root):
    with h5py.File(root / "parabola_eval.hdf5", "w") as file:
        speed = np.array([1.0, 2.0, 3.0])
        positions = np.zeros((3, 32, 2))
        positions[..., 0] = 2.0 + speed[:, None] * (0.01 + 0.1 * np.arange(32))
        file["init_streams/00000"] = np.stack([np.array([0.7, 0.8, 0.9]), speed], -1)
        file["position_streams/00000"] = positions
        file["video_streams/00000"] = np.zeros((3, 8), np.uint8)


def make_labelled(root):
    for name in "ab":
        np.save(root / f"{name}.npy", np.zeros((2, 8, 8, 3), np.uint8))
    (root / "labels.csv").write_text("clip,possible,group,category\na.npy,1,g,ball\nb.npy,0,g,ball\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All data sets, far smaller than published."""
    folder = tmp_path_factory.mktemp("sets")
    write_intphys(WorldConfig(frames=9, size=32), 0, 1, folder / "world", depth=False, masks=False)
    for name, make in (
        ("intphys2", make_intphys2), ("inflevel", make_inflevel), ("grasp", make_grasp), ("phyworld", make_parabola),
        ("labelled", make_labelled),
    ):  # fmt: skip
        (folder / name).mkdir()
        make(folder / name)
    return folder


FOLDERS = {"intphys": "world", "inflevel_lab": "inflevel", "inflevel_sim": "inflevel"}
CLIPS = {
    "world": 12, "intphys": 12, "intphys2": 4, "inflevel_lab": 48, "inflevel_sim": 36, "grasp": 32, "phyworld": 3,
    "labelled": 2,
}  # fmt: skip


def opened(root, name, **settings):
    return open_dataset(name, root / FOLDERS.get(name, name), **settings)


@pytest.mark.parametrize("name", SPLITS)
def test_every_data_set_opens_by_its_name(root, name):
    data = opened(root, name, subset=True)
    assert (data.name, len(data), len(data.matched)) == (name, CLIPS[name], CLIPS[name])
    assert data.measured == (name == "phyworld") == all(clip.possible is None for clip in data.clips)
    assert any("--subset" in note for note in data.notes)
    some = data.only([2, 0] if len(data) > 2 else [1, 0])
    assert some.clips[1] == data.clips[0] and some.matched[1] == data.matched[0] and len(some) == 2


@pytest.mark.parametrize("name", ["intphys", "intphys2", "inflevel_lab", "grasp", "phyworld"])
def test_published_counts_are_held_to_unless_a_part_is_asked_for(root, name):
    with pytest.raises(MissingDataError, match=r"(?s)(missing|expected|the release|holds|shape).*--subset takes it"):
        opened(root, name)


def test_what_is_no_whole_part_is_not_offered_as_one(root, tmp_path):
    folder = shutil.copytree(root / "world", tmp_path / "world")
    shutil.rmtree(folder / "dev/O2/01/3")
    with pytest.raises(MissingDataError) as caught:
        open_dataset("intphys", folder)
    assert "is missing" in str(caught.value) and "--subset" not in str(caught.value)


def test_the_generated_world_reads_the_same_as_intphys(root):
    assert opened(root, "world").clips == opened(root, "intphys", subset=True).clips


@pytest.mark.parametrize(("name", "split"), [("intphys", "test"), ("intphys2", "HeldOut")])
def test_a_split_without_labels_is_refused_for_probing_and_the_way_to_submit_named(root, tmp_path, name, split):
    folder = root / FOLDERS.get(name, name)
    if name == "intphys":
        (tmp_path / "test").mkdir()
        folder = tmp_path
    with pytest.raises(
        MissingDataError, match=rf"without labels.*experiments\.submit --dataset={name} --split={split}"
    ):
        open_dataset(name, folder, split=split, subset=True)


def test_a_split_without_labels_is_listed_to_be_submitted(root):
    data = opened(root, "intphys2", split="HeldOut", subset=True, to_submit=True)
    assert {clip.possible for clip in data.clips} == {None} and not data.measured


def test_inflevel_says_its_authors_rule_and_pairs_within_smaller_sets_than_it_splits_by(root):
    data = opened(root, "inflevel_lab", subset=True)
    assert NO_TRAINING in data.notes
    assert len(set(data.matched)) == 12 and len({clip.group for clip in data.clips}) == 3
    of_set = {}
    for clip, matched in zip(data.clips, data.matched, strict=True):
        of_set.setdefault(matched, set()).add(clip.group)
    assert all(len(groups) == 1 for groups in of_set.values())


def test_parabolas_tell_their_numbers_only_under_the_flag_and_then_say_so(root):
    data = opened(root, "phyworld", subset=True)
    assert (data.prompt, data.prompts) == (NEUTRAL_PROMPT, None)
    np.testing.assert_allclose(data.targets["v0"], [1, 2, 3])
    assert data.units["x0"] == "m" and not any("LEAK" in note for note in data.notes)
    leaking = opened(root, "phyworld", subset=True, leaking_prompt=True)
    assert "2.00 m/s" in leaking.prompts[1] and any("LEAK" in note for note in leaking.notes)
    assert leaking.only([1]).prompts == (leaking.prompts[1],)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("imagenet", {}, "unknown; choose one of world"),
        ("intphys", {"split": "val"}, "dev, test, train"),
        ("grasp", {"split": "test"}, "no splits"),
        ("grasp", {"labels": "a.csv"}, "--labels is for --dataset=labelled"),
        ("intphys", {"leaking_prompt": True}, "--leaking_prompt is for --dataset=phyworld"),
    ],
)
def test_arguments_of_another_data_set_are_refused(root, name, settings, told):
    with pytest.raises(ConfigError, match=told):
        open_dataset(name, root, **settings)


def test_a_data_set_without_its_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--data_dir"):
        open_dataset("grasp", None)
    for name in ("intphys", "intphys2", "inflevel_lab", "inflevel_sim", "grasp", "phyworld", "labelled"):
        with pytest.raises(MissingDataError, match="no such"):
            open_dataset(name, tmp_path / "none")


def test_a_group_of_two_categories_is_refused_by_name(tmp_path):
    for name in "abcd":
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 8, 8, 3), np.uint8))
    rows = ["a.npy,1,g7,ball", "b.npy,0,g7,ball", "c.npy,1,g7,cube", "d.npy,0,g7,cube"]
    (tmp_path / "labels.csv").write_text("\n".join(["clip,possible,group,category", *rows]))
    with pytest.raises(ConfigError, match="'g7' has clips of the categories ball, cube"):
        open_dataset("labelled", tmp_path)
