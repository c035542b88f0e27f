"""Clips for the page: what is shown is what was given."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from jaxdiff.report import video


def clip(frames=5, size=24, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (frames, size, size, 3), np.uint8)


def frames_of(data):
    image = Image.open(io.BytesIO(data))
    out = []
    for i in range(image.n_frames):
        image.seek(i)
        out.append(np.asarray(image.convert("RGB")))
    return np.stack(out), image


def test_small_clips_are_stored_without_loss():
    source, other = clip(), clip(seed=1)
    frames, image = frames_of(video.animation(video.panels(source, other), fps=10))
    np.testing.assert_array_equal(frames[:, :, :24], source)
    np.testing.assert_array_equal(frames[:, :, 26:50], other)
    assert image.info["loop"] == 0
    assert image.info["duration"] == 100


def test_difference_is_grey_where_equal_and_signed():
    source = np.full((1, 2, 2, 3), 100, np.uint8)
    assert (video.difference(source, source) == 128).all()
    assert (video.difference(source, source + 5) == 128 + 5 * video.GAIN).all()
    assert (video.difference(source, source - 5) == 128 - 5 * video.GAIN).all()
    assert (video.difference(source, source + 150) == 255).all()


def test_floats_in_plus_minus_one_and_bytes_are_the_same_clip():
    source = clip()
    np.testing.assert_array_equal(video.to_uint8(source / np.float32(127.5) - 1), source)
    assert video.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_large_clips_are_shrunk_with_their_shape():
    source = np.zeros((2, 240, 480, 3), np.uint8)
    assert video.panels(source, source).shape == (2, 112, 3 * 224 + 2 * video.GAP, 3)


def test_the_strip_shows_first_and_last_frame():
    source = clip(frames=9, size=20)
    picture = np.asarray(Image.open(io.BytesIO(video.strip(source, source, count=4))).convert("RGB"))
    step = 20 + video.GAP
    assert picture.shape == (3 * step, 4 * step, 3)
    np.testing.assert_array_equal(picture[:20, :20], source[0])
    np.testing.assert_array_equal(picture[:20, 3 * step : 3 * step + 20], source[8])


def test_one_frame_is_enough():
    source = clip(frames=1)
    frames, _ = frames_of(video.animation(video.panels(source, source), fps=8))
    assert len(frames) == 1
    video.strip(source, source)


def test_an_address_holds_the_bytes():
    kind, data = video.data_uri(b"abc").split(",")
    assert kind == "data:image/webp;base64"
    assert base64.b64decode(data) == b"abc"


@pytest.mark.parametrize("fps", [4, 8, 25])
def test_the_speed_is_the_clip_s(fps):
    _, image = frames_of(video.animation(clip(), fps=fps))
    assert image.info["duration"] == round(1000 / fps)
