"""Reading clips: which frames, which pixels, and what happens to clips that cannot be read."""

import os
import struct
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.sampling import frame_indices, resize, to_uint8
from jaxdiff.data.video import (
    ClipReader,
    check_videos,
    list_videos,
    parse_shard,
    read_video,
    video_info,
    write_video,
)
from jaxdiff.errors import ConfigError, MissingDataError


def moving_square(frames=12, height=48, width=64):
    video = np.full((frames, height, width, 3), 40, np.uint8)
    for f in range(frames):
        video[f, 16:32, 3 * f : 3 * f + 16] = (220, 60, 20)
    return video


def write_pngs(folder, video):
    folder.mkdir(parents=True)
    for f, picture in enumerate(video):
        Image.fromarray(picture).save(folder / f"frame_{f + 1}.png")  # not zero-padded, on purpose
    return folder


# ----------------------------------------------------------------------------------------------- which frames


def test_linspace_covers_the_clip_and_truncates():
    np.testing.assert_array_equal(frame_indices(100, 5), [0, 24, 49, 74, 99])
    np.testing.assert_array_equal(frame_indices(7, 7), range(7))
    np.testing.assert_array_equal(frame_indices(7, 1), [0])


@pytest.mark.parametrize(
    ("available", "frames", "where", "expected"),
    # torch.linspace(0, available - 1, frames).long() where rounding in float64 (numpy.linspace) chooses
    # another frame
    [(109, 100, 55, 60), (118, 100, 22, 25), (209, 97, 54, 117), (225, 81, 45, 126), (254, 100, 90, 230)],
)
def test_linspace_rounds_as_torch_does(available, frames, where, expected):
    assert frame_indices(available, frames)[where] == expected
    assert np.linspace(0, available - 1, frames).astype(int)[where] != expected


def test_a_short_clip_is_continued_by_its_last_frame():
    for sampling in ("linspace", "stride"):
        np.testing.assert_array_equal(frame_indices(3, 6, sampling), [0, 1, 2, 2, 2, 2])


def test_stride_takes_every_nth_frame_from_the_start():
    np.testing.assert_array_equal(frame_indices(20, 4, "stride", 3), [0, 3, 6, 9])
    np.testing.assert_array_equal(frame_indices(20, None, "stride", 8), [0, 8, 16])
    np.testing.assert_array_equal(frame_indices(7, 4, "stride", 3), [0, 3, 6, 6])


def test_wrong_sampling_is_refused():
    with pytest.raises(ConfigError, match="random"):
        frame_indices(5, 3, "random")
    with pytest.raises(ConfigError, match="frames=0"):
        frame_indices(5, 0)


# ----------------------------------------------------------------------------------------------- which pixels


def test_resizing_covers_the_target_and_crops_the_centre():
    ramp = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (60, 120, 3))
    square = resize(ramp, 30)
    assert square.shape == (30, 30, 3)
    # the middle half of the ramp, at every second column; +-2 levels for the filter's rounding
    np.testing.assert_allclose(square[15, :, 0], ramp[0, 30:90:2, 0] + 1.0, atol=2)
    assert resize(ramp, (20, 60)).shape == (20, 60, 3)
    assert resize(np.ascontiguousarray(ramp.swapaxes(0, 1)), (20, 60)).shape == (20, 60, 3)


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize(stripes, 16)[4:-4, 4:-4].astype(float)
    assert small.std() < 8
    assert abs(small.mean() - 127.5) < 8


def test_a_clip_of_the_right_size_is_not_touched(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)
    np.testing.assert_array_equal(read_video(write_pngs(tmp_path / "clip", video), size=24), video)


def test_png_folders_are_read_losslessly_in_natural_order(tmp_path):
    video = moving_square()  # frame_2 sorts before frame_10
    folder = write_pngs(tmp_path / "clip", video)
    (folder / "._frame_1.png").write_bytes(b"AppleDouble")
    np.testing.assert_array_equal(read_video(folder), video)
    np.testing.assert_array_equal(read_video(folder, frames=3), video[[0, 5, 11]])
    np.testing.assert_array_equal(read_video(folder, frames=14)[-3:], video[[11, 11, 11]])


def test_mp4_round_trip_keeps_every_frame_in_place(tmp_path):
    video = moving_square()
    path = write_video(tmp_path / "clip.mp4", video, fps=10)
    info = video_info(path)
    assert (info.frames, info.height, info.width, info.fps) == (12, 48, 64, 10.0)
    read = read_video(path)
    assert read.shape == video.shape
    assert read.dtype == np.uint8
    # 4:2:0 blurs colours at edges; a frame off by one would differ by 3 columns of 180 levels
    assert np.abs(read.astype(int) - video).mean() < 3
    for f in range(12):
        assert np.argmin([np.abs(read[f].astype(int) - other).mean() for other in video]) == f
    np.testing.assert_array_equal(read_video(path, frames=3, sampling="stride", stride=4), read[[0, 4, 8]])
    assert read_video(path, 5, 32).shape == (5, 32, 32, 3)


def test_a_clip_filmed_sideways_is_turned_upright(tmp_path):
    """Phones store the sensor's rows, and a note in the track header that the player shall turn them."""
    path = write_video(tmp_path / "clip.mp4", moving_square(2))
    data, one = bytearray(path.read_bytes()), 0x10000
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    assert struct.unpack_from(">9i", data, at) == (one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    upright = read_video(path)
    struct.pack_into(">9i", data, at, 0, one, 0, -one, 0, 0, 0, 0, 0x40000000)  # right goes down, down goes left
    path.write_bytes(data)
    np.testing.assert_array_equal(read_video(path), np.rot90(upright, -1, axes=(1, 2)))


def test_arrays_and_odd_sizes(tmp_path):
    video = moving_square(3, 33, 47)
    np.save(tmp_path / "bytes.npy", video)
    np.save(tmp_path / "floats.npy", video.astype(np.float32) / 127.5 - 1)
    np.testing.assert_array_equal(read_video(tmp_path / "bytes.npy"), video)
    np.testing.assert_array_equal(read_video(tmp_path / "floats.npy"), video)
    write_video(tmp_path / "odd.mp4", video)
    assert read_video(tmp_path / "odd.mp4").shape == (3, 34, 48, 3)


def test_float_pixels_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        to_uint8(np.full((1, 2, 2, 3), 200.0))
    with pytest.raises(ValueError, match="finite"):
        to_uint8(np.full((1, 2, 2, 3), np.nan))


# -------------------------------------------------------------------------------------------------- bad clips


def _good(folder):
    return write_video(folder / "good.mp4", moving_square())


def empty_file(folder):
    (folder / "bad.mp4").touch()
    return folder / "bad.mp4"


def text_file(folder):
    (folder / "bad.mp4").write_text("<html>404 not found</html>")
    return folder / "bad.mp4"


def truncated_mp4(folder):
    whole = _good(folder).read_bytes()
    (folder / "bad.mp4").write_bytes(whole[: len(whole) // 2])
    return folder / "bad.mp4"


def sound_without_pictures(folder):
    import av

    with av.open(str(folder / "bad.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    return (folder / "bad.wav").rename(folder / "bad.mp4")


def empty_folder(folder):
    (folder / "bad").mkdir()
    return folder / "bad"


def damaged_png(folder):
    clip = write_pngs(folder / "bad", moving_square(4))
    data = (clip / "frame_3.png").read_bytes()
    (clip / "frame_3.png").write_bytes(data[: len(data) // 2])
    return clip


def pictures_of_two_sizes(folder):
    clip = write_pngs(folder / "bad", moving_square(4))
    Image.new("RGB", (8, 8)).save(clip / "frame_3.png")
    return clip


def array_of_another_shape(folder):
    np.save(folder / "bad.npy", np.zeros((4, 8, 8), np.uint8))
    return folder / "bad.npy"


def pickled_array(folder):
    np.save(folder / "bad.npy", np.array([{"a": 1}]), allow_pickle=True)
    return folder / "bad.npy"


def absent(folder):
    return folder / "bad.mp4"


BAD = {
    empty_file: "empty file",
    text_file: "cannot be read",
    truncated_mp4: "cannot be read",
    sound_without_pictures: "no video stream",
    empty_folder: "no png or jpg",
    damaged_png: "frame_3.png",
    pictures_of_two_sizes: "frame_3.png is 8x8",
    array_of_another_shape: r"uint8 \[4, 8, 8\]",
    pickled_array: "cannot be read",
    absent: "no such clip",
}


@pytest.mark.parametrize("make", BAD)
def test_an_unreadable_clip_is_named_with_its_reason(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(MissingDataError, match=BAD[make]) as caught:
        read_video(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_file_cut_behind_its_index_is_recognised(tmp_path):
    """With the index in front (fast start) the container still promises all frames."""
    import av

    video = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    with av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    whole = (tmp_path / "fast.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(MissingDataError, match=r"truncated: \d+ of the 12 frames"):
        video_info(tmp_path / "cut.mp4")


WRITE = """
import sys
import numpy as np
from jaxdiff.data.video import write_video
pixels = np.random.default_rng(0).integers(0, 256, (17, 8, 8, 3), np.uint8)
write_video(sys.argv[1], pixels.repeat(8, 1).repeat(8, 2))
"""


def test_equal_frames_give_equal_files_whatever_lies_in_fresh_memory(tmp_path):
    files = []
    for pattern in ("1", "200"):  # what glibc fills new memory with
        file = tmp_path / f"{pattern}.mp4"
        subprocess.run([sys.executable, "-c", WRITE, file], check=True, env=os.environ | {"MALLOC_PERTURB_": pattern})
        files.append(file.read_bytes())
    assert files[0] == files[1]


def test_a_damaged_frame_in_the_middle_is_recognised(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    good = write_video(tmp_path / "clip.mp4", video).read_bytes()
    noticed = 0
    # H.264 has no checksum, and damage may happen to be a valid stream: not every place need be noticed
    for part in range(1, 9):
        data, at = bytearray(good), len(good) * part // 10
        data[at : at + 4000] = bytes(4000)  # more than a frame takes
        (tmp_path / "clip.mp4").write_bytes(data)
        reader = ClipReader([tmp_path / "clip.mp4"], skip_bad_clips=True)
        assert len(list(reader)) + len(reader.skipped) == 1
        noticed += len(reader.skipped)
    assert noticed >= 6


def test_a_clip_shorter_than_demanded_is_an_error_instead_of_padded(tmp_path):
    path = _good(tmp_path)
    with pytest.raises(MissingDataError, match="too short: 12 frames, and at least 17"):
        read_video(path, frames=17, min_frames=17)
    assert len(read_video(path, frames=17)) == 17


def test_all_bad_clips_are_found_before_anything_is_decoded(tmp_path):
    good, empty = _good(tmp_path), (tmp_path / "empty.mp4")
    empty.touch()
    assert set(check_videos([good, empty, tmp_path / "none.mp4"])) == {empty, tmp_path / "none.mp4"}
    assert set(check_videos([good], min_frames=13)) == {good}


# ----------------------------------------------------------------------------------------- many clips at once


def test_clips_of_a_folder_are_listed_in_order(tmp_path):
    for name in ("b/clip10.mp4", "b/clip2.mp4", "a.mp4", "._a.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write_pngs(tmp_path / "frames", moving_square(2))
    write_pngs(tmp_path / "run" / "scene", moving_square(2))
    write_pngs(tmp_path / "run" / "depth", moving_square(2))
    listed = [p.relative_to(tmp_path).as_posix() for p in list_videos(tmp_path)]
    assert listed == ["a.mp4", "b/clip2.mp4", "b/clip10.mp4", "frames", "run/scene"]


def test_a_folder_without_clips_is_an_error(tmp_path):
    with pytest.raises(MissingDataError, match="no clips below"):
        list_videos(tmp_path)
    with pytest.raises(MissingDataError, match="no such folder"):
        list_videos(tmp_path / "none")


def test_the_reader_keeps_order_and_counts_what_it_skips(tmp_path):
    clips = []
    for i in range(9):
        np.save(tmp_path / f"{i}.npy", np.full((3, 8, 8, 3), i, np.uint8))
        clips.append(tmp_path / f"{i}.npy")
    clips[4].write_bytes(b"")
    reader = ClipReader(clips, frames=2, skip_bad_clips=True, ahead=3)
    read = list(reader)
    assert [i for i, _ in read] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert len(reader) == 9
    assert all((clip == i).all() and clip.shape == (2, 8, 8, 3) for i, clip in read)
    assert list(reader.skipped) == [str(clips[4])]
    assert "empty file" in reader.skipped[str(clips[4])]
    with pytest.raises(MissingDataError, match=r"4\.npy"):
        list(ClipReader(clips))


def test_sound_arrays_are_read_however_many_threads_open_them(tmp_path):
    np.save(tmp_path / "clip.npy", np.zeros((1, 2, 2, 3), np.uint8))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        read = [i for i, _ in ClipReader([tmp_path / "clip.npy"] * 1000, threads=4, ahead=8)]
    finally:
        sys.setswitchinterval(interval)
    assert read == list(range(1000))


def test_a_reader_that_is_dropped_leaves_no_thread_behind(tmp_path):
    np.save(tmp_path / "clip.npy", np.zeros((3, 8, 8, 3), np.uint8))
    iterator = iter(ClipReader([tmp_path / "clip.npy"] * 50))
    next(iterator)
    assert [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]
    iterator.close()
    deadline = time.monotonic() + 30  # they end when what they decode is decoded
    while [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_shards_share_the_clips_out_and_keep_their_places(tmp_path):
    clips = []
    for i in range(7):
        np.save(tmp_path / f"{i}.npy", np.full((1, 8, 8, 3), i, np.uint8))
        clips.append(tmp_path / f"{i}.npy")
    parts = [ClipReader(clips, shard=(k, 3)) for k in range(3)]
    read = [[(i, int(clip.max())) for i, clip in part] for part in parts]
    assert read[1] == [(1, 1), (4, 4)] and [len(part) for part in parts] == [3, 2, 2]
    assert sorted(pair for part in read for pair in part) == [(i, i) for i in range(7)]
    assert list(ClipReader(clips[:1], shard=(1, 2))) == []
    with pytest.raises(ConfigError, match="shard 3 of 3"):
        ClipReader(clips, shard=(3, 3))


def test_a_shard_is_written_as_which_of_how_many():
    assert parse_shard("") is None and parse_shard("auto") == (0, 1) and parse_shard("3/4") == (3, 4)
    for text in ("4/4", "1", "a/2", "-1/2"):
        with pytest.raises(ConfigError, match="k/n"):
            parse_shard(text)


def test_processes_that_are_not_told_apart_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="--shard=auto"):
        parse_shard("")
