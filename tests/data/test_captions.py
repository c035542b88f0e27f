"""Captions of videos: both formats, and everything that does not match is named."""

import numpy as np
import pytest

from jaxdiff.data.captions import captioned_videos, read_captions
from jaxdiff.errors import MissingDataError


@pytest.fixture
def clips(tmp_path):
    (tmp_path / "clips" / "deep").mkdir(parents=True)
    for name in ("a.npy", "b.npy", "deep/c.npy"):
        np.save(tmp_path / "clips" / name, np.zeros((2, 4, 4, 3), np.uint8))
    return tmp_path / "clips"


def test_a_csv_and_finetrainers_two_files_say_the_same(clips, tmp_path):
    (tmp_path / "c.csv").write_text('\ufeffvideo,caption\na.npy,"red, and round"\ndeep/c.npy,\nb.npy,blue\n', "utf-8")
    (tmp_path / "prompts.txt").write_text("red, and round\n\nblue\n")
    (tmp_path / "videos.txt").write_text("a.npy\ndeep/c.npy\nb.npy\n")
    expected = [
        ("a.npy", clips / "a.npy", "red, and round"),
        ("b.npy", clips / "b.npy", "blue"),
        ("deep/c.npy", clips / "deep" / "c.npy", ""),
    ]
    for file in ("c.csv", "prompts.txt"):
        assert captioned_videos(clips, tmp_path / file) == expected


def test_captions_without_videos_and_videos_without_captions_are_all_named(clips, tmp_path):
    (tmp_path / "c.csv").write_text("video,caption\na.npy,x\na.npy,y\nnone.mp4,z\n")
    with pytest.raises(MissingDataError) as error:
        captioned_videos(clips, tmp_path / "c.csv")
    for part in (
        "'a.npy' has 2 captions",
        "'none.mp4' has a caption and is no clip",
        "'b.npy' lies below",
        "'deep/c.npy' lies",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "video;caption\n", "expected 'video,caption'"),
        ("c.csv", "", "expected 'video,caption'"),
        ("c.csv", "video,caption\na.npy,red, and round\n", "needs quotes"),
        ("prompts.txt", "one\ntwo\n", "has 2 lines and .*videos.txt has 1"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(tmp_path, name, text, message):
    (tmp_path / "videos.txt").write_text("a.npy\n")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(MissingDataError, match=message):
        read_captions(tmp_path / name)
