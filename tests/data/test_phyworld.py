"""PhyWorld's parabolas: targets from one HDF5 file, and a prompt that does not tell them."""

import h5py
import numpy as np
import pytest

from jaxdiff.data.phyworld import LEAKING_PROMPT, NEUTRAL_PROMPT, load_parabola
from jaxdiff.data.targets import target_values
from jaxdiff.data.video import ClipReader, check_videos, read_video, write_video
from jaxdiff.errors import MissingDataError

COUNTS = {"00000": 3, "00001": 2}
FRAMES = 32
BYTES = h5py.vlen_dtype(np.dtype("uint8"))


def picture(part, row):
    return np.full((16, 16, 3), 60 * int(part) + 40 * row + 20, np.uint8)


def numbers(part, count):
    """Radius and speed, and trajectories as PhyWorld's generator records them."""
    rng = np.random.default_rng(int(part))
    initial = np.stack([rng.uniform(0.7, 1.4, count), rng.uniform(1, 4, count)], -1)
    start, height = rng.uniform(1.5, 3, count), rng.uniform(7, 8, count)
    seconds = 0.01 + 0.1 * np.arange(FRAMES)
    x = start[:, None] + initial[:, 1:] * seconds
    y = height[:, None] - 1.25 * seconds**2
    return initial, np.stack([x, y], -1).astype(np.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of which every test gets a copy."""
    folder = tmp_path_factory.mktemp("phyworld")
    with h5py.File(folder / "parabola_eval.hdf5", "w") as file:
        for part, count in COUNTS.items():
            initial, positions = numbers(part, count)
            file[f"init_streams/{part}"] = initial
            file[f"position_streams/{part}"] = positions
            videos = file.create_dataset(f"video_streams/{part}", (count,), BYTES)
            for row in range(count):
                clip = write_video(folder / "clip.mp4", np.stack([picture(part, row)] * 3))
                videos[row] = np.frombuffer(clip.read_bytes(), np.uint8)
    return (folder / "parabola_eval.hdf5").read_bytes()


@pytest.fixture
def file(tmp_path, written):
    path = tmp_path / "id_ood_data" / "parabola_eval.hdf5"
    path.parent.mkdir()
    path.write_bytes(written)
    return path


def test_targets_have_names_units_and_groups(file):
    clips = load_parabola(file, counts=COUNTS)
    assert [m.clip.name for m in clips] == ["00000/00000", "00000/00001", "00000/00002", "00001/00000", "00001/00001"]
    assert {m.clip.possible for m in clips} == {None}
    assert [m.clip.category for m in clips] == ["00000"] * 3 + ["00001"] * 2
    assert len({m.clip.group for m in clips}) == 5
    for m in clips:
        assert [(t.name, t.unit) for t in m.targets] == [("x0", "m"), ("v0", "m/s"), ("x0_published", "m")]
    initial, positions = (np.concatenate(a) for a in zip(*(numbers(*item) for item in COUNTS.items()), strict=True))
    np.testing.assert_array_equal(target_values(clips, "v0"), initial[:, 1])
    np.testing.assert_array_equal(target_values(clips, "x0"), positions[:, 0, 0])
    np.testing.assert_array_equal(target_values(clips, "x0_published"), initial[:, 0])
    with pytest.raises(KeyError):
        target_values(clips, "mass")


def test_packed_videos_are_read_like_files(file):
    clips = load_parabola(file, counts=COUNTS)
    assert check_videos([m.clip.path for m in clips]) == {}
    for m, (part, row) in zip(
        clips, [("00000", 0), ("00000", 1), ("00000", 2), ("00001", 0), ("00001", 1)], strict=True
    ):
        video = read_video(m.clip.path, 5)
        assert video.shape == (5, 16, 16, 3)
        np.testing.assert_allclose(video[4], picture(part, row), atol=3)  # x264 in 4:2:0


def test_threads_may_read_one_packed_file_together(file):
    paths = [m.clip.path for m in load_parabola(file, counts=COUNTS)] * 4
    for i, video in ClipReader(paths, threads=4, ahead=8):
        np.testing.assert_array_equal(video, read_video(paths[i]))


def test_a_damaged_or_absent_packed_video_is_named(file):
    with h5py.File(file, "a") as data:
        data["video_streams/00000"][1] = np.arange(50, dtype=np.uint8)
    clips = load_parabola(file, counts=COUNTS)  # listing opens no video
    with pytest.raises(MissingDataError, match=r"parabola_eval.hdf5/00000/00001: the clip cannot be read"):
        read_video(clips[1].clip.path)
    with pytest.raises(MissingDataError, match="it holds 2 clips in 00001"):
        read_video(file / "00001" / "00002")
    with pytest.raises(MissingDataError, match="00009/00000: the clip cannot be read"):
        read_video(file / "00009" / "00000")


def test_the_prompt_tells_the_targets_only_when_asked(file):
    assert {m.prompt for m in load_parabola(file, counts=COUNTS)} == {NEUTRAL_PROMPT}
    assert not any(letter.isdigit() for letter in NEUTRAL_PROMPT)
    for m in load_parabola(file, counts=COUNTS, leak_targets_in_prompt=True):
        values = {t.name: t.value for t in m.targets}
        assert m.prompt == LEAKING_PROMPT.format(first=values["x0_published"], second=values["v0"])
        assert f"{values['v0']:.2f}" in m.prompt


def test_equal_clips_stay_together(file):
    with h5py.File(file, "a") as data:
        for group in ("init_streams", "position_streams"):
            data[f"{group}/00001"][1] = data[f"{group}/00000"][2]
    assert [m.clip.group for m in load_parabola(file, counts=COUNTS)][-1] == "00000/00002"


def test_the_folders_above_the_file_are_accepted(file):
    for path in (file.parent, file.parent.parent):
        assert load_parabola(path, counts=COUNTS) == load_parabola(file, counts=COUNTS)


def test_the_published_counts_are_demanded(file):
    with pytest.raises(MissingDataError, match=r"init_streams/00000 has the shape \[3, 2\], expected \[1000, 2\]"):
        load_parabola(file)


def drop_part(data):
    del data["video_streams/00001"]


def drop_group(data):
    del data["position_streams"]


def add_part(data):
    data["init_streams/00002"] = np.zeros((2, 2))


def drop_row(data):
    rows = data["init_streams/00000"][:2]
    del data["init_streams/00000"]
    data["init_streams/00000"] = rows


def drop_video(data):
    del data["video_streams/00000"]
    data.create_dataset("video_streams/00000", (2,), BYTES)


def drop_frame(data):
    rows = data["position_streams/00000"][:, :31]
    del data["position_streams/00000"]
    data["position_streams/00000"] = rows


def unmerged(data):
    """One of the files that the generator writes before it merges them."""
    rows = data["init_streams/00000"][()]
    del data["init_streams"]
    data["init_streams"] = rows


def nest(data):
    del data["init_streams/00000"]
    data["init_streams/00000/rows"] = np.zeros((3, 2))


def lose_number(data):
    data["position_streams/00001"][1, 30, 0] = np.nan


def mislabel(data):
    data["init_streams/00001"][0, 1] += 0.01


def swap_columns(data):
    data["init_streams/00000"][...] = data["init_streams/00000"][()][:, ::-1]


DAMAGE = {
    drop_part: "video_streams/00001 is missing",
    drop_group: "position_streams/00000 is missing\n  position_streams/00001 is missing",
    add_part: "init_streams/00002 is unexpected",
    drop_row: r"init_streams/00000 has the shape \[2, 2\], expected \[3, 2\]",
    drop_video: r"video_streams/00000 has the shape \[2\], expected \[3\]",
    drop_frame: r"position_streams/00000 has the shape \[3, 31, 2\], expected \[3, 32, 2\]",
    unmerged: "init_streams/00000 is missing\n  init_streams/00001 is missing",
    nest: "init_streams/00000 is missing",
    lose_number: "00001/00001: its numbers are not all finite",
    mislabel: "00001/00000: its trajectory starts at .* but v0 is",
    swap_columns: "00000/00000: its trajectory starts at",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_incomplete_file_is_refused_and_the_missing_piece_named(file, damage):
    with h5py.File(file, "a") as data:
        damage(data)
    with pytest.raises(MissingDataError, match=DAMAGE[damage]) as caught:
        load_parabola(file, counts=COUNTS)
    assert "Download" in str(caught.value)


def test_all_problems_are_named_at_once(file):
    with h5py.File(file, "a") as data:
        for damage in (add_part, drop_row, lose_number):
            damage(data)
    with pytest.raises(MissingDataError) as caught:
        load_parabola(file, counts=COUNTS)
    for part in ("00002 is unexpected", "[2, 2], expected [3, 2]", "00001/00001: its numbers"):
        assert part in str(caught.value)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(MissingDataError, match="no such file"):
        load_parabola(tmp_path / "nowhere")
    with pytest.raises(MissingDataError, match=r"holds no parabola_eval\.hdf5"):
        load_parabola(tmp_path)


def test_a_damaged_file_is_refused(file, written):
    for content in (b"<html>", written[: len(written) // 2]):
        file.write_bytes(content)
        with pytest.raises(MissingDataError, match="cannot be read as HDF5"):
            load_parabola(file, counts=COUNTS)
