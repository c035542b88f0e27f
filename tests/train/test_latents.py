"""Clips to latents: what a clip becomes depends on nothing but itself, an interruption leaves no trace, and what cannot be
encoded is refused before anything slow."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxdiff
from experiments.encode_latents import Config, run
from jaxdiff.data.video import read_video, write_video
from jaxdiff.data.worlds import WorldConfig, prompts
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.store import LatentStore
from jaxdiff.study.models import ASSETS
from jaxdiff.train import latents
from jaxdiff.train.latents import VideoClips, WorldClips, embedder, encode_clips, find_clips, latent_shape
from jaxdiff.train.nano import clips_key

WORLD = WorldConfig(frames=9)


@pytest.fixture(scope="module")
def nano():
    return jaxdiff.load(ASSETS / "nano")


class Stopped(Exception):
    pass


@dataclasses.dataclass
class Stopping(WorldClips):
    def read(self, ids, ahead):
        for k, item in enumerate(super().read(ids, ahead)):
            if k == 3:
                raise Stopped
            yield item


def test_generated_clips_are_those_of_their_seed_and_an_interruption_leaves_no_trace(nano, tmp_path):
    embed = embedder(nano, world=True)
    with pytest.raises(Stopped):
        encode_clips(nano, Stopping(5, 3, world=WORLD), tmp_path / "a", embed, batch=2)
    with pytest.raises(MissingDataError, match="3 of its 5 clips are missing"):
        LatentStore.open(tmp_path / "a")
    resumed = encode_clips(nano, WorldClips(5, 3, world=WORLD), tmp_path / "a", embed, batch=2)
    whole = encode_clips(nano, WorldClips(5, 3, world=WORLD), tmp_path / "b", embed, batch=2)
    for a, b in zip(resumed.read(range(5)), whole.read(range(5)), strict=True):
        np.testing.assert_array_equal(a, b)
    video, words = latents._world_batch(jax.random.fold_in(clips_key(3), 0), WORLD, "plausible")
    clips = whole.read(range(5))
    np.testing.assert_array_equal(clips.latents[:2], nano.encode(video[:2]))
    np.testing.assert_array_equal(clips.latents[4:], nano.encode(video[np.array([4, 4])])[:1])  # padded
    np.testing.assert_array_equal(clips.text, prompts.embed(words[:5], 16))
    assert whole.captions[0] == prompts.as_text(words[0]) and whole.names[4] == "world-3-000004"
    assert whole.header.latent_shape == (3, 8, 8, 16) and whole.header.size == (32, 32)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    for name, shape in (("a", (9, 32, 32, 3)), ("b", (12, 32, 32, 3)), ("short", (8, 32, 32, 3))):
        np.save(tmp_path / "clips" / f"{name}.npy", rng.integers(0, 256, shape, np.uint8))
    (tmp_path / "c.csv").write_text("video,caption\na.npy,red disc hops-left\nb.npy,\nshort.npy,\n")
    return tmp_path


def test_clips_that_cannot_be_encoded_are_named_or_left_out(nano, folder, capsys):
    (folder / "clips" / "torn.npy").write_bytes((folder / "clips" / "a.npy").read_bytes()[:-9])
    with open(folder / "c.csv", "a") as file:
        file.write("torn.npy,\n")
    ask = {"frames": 9, "size": None, "fps": None}
    with pytest.raises(MissingDataError, match=r"(?s)2 of 4 clips.*short.*8 frames.*torn.*--skip_bad_clips"):
        VideoClips.find(folder / "clips", folder / "c.csv", **ask)
    config = Config("nano", str(folder / "clips"), folder / "c.csv", frames=9, batch=2, skip_bad_clips=True)
    run(config, folder / "run")
    assert "2 clips of (3, 8, 8, 16) latents, 2 left out" in capsys.readouterr().out
    store = LatentStore.open(folder / "run")
    assert store.names == ("a.npy", "b.npy") and sorted(store.skipped) == ["short.npy", "torn.npy"]
    videos = np.stack([read_video(folder / "clips" / name, frames=9) for name in store.names])
    np.testing.assert_array_equal(store.read([0, 1]).latents, nano.encode(videos))
    text = store.read([0, 1]).text
    np.testing.assert_array_equal(text[0], prompts.encode("red disc hops-left", 16))
    assert not np.any(text[1])


def test_what_does_not_go_together_is_refused(nano, folder):
    with pytest.raises(ConfigError, match=r"6 frames do not fit 4k\+1"):
        run(Config("nano", str(folder / "clips"), folder / "c.csv", frames=6), folder / "bad")
    with pytest.raises(ConfigError, match=r"are 2 latent frames .* at least 3 latent frames are needed"):
        latent_shape(nano, (5, 32, 32, 3))
    with pytest.raises(ConfigError, match="needs --captions"):
        Config("nano", str(folder / "clips"))
    with pytest.raises(ConfigError, match="leave out --captions"):
        find_clips("world", folder / "c.csv")
    with pytest.raises(ConfigError, match="--size=1,2,3"):
        find_clips("world", None, size=(1, 2, 3))
    with pytest.raises(ConfigError, match="has 2 words"):
        embedder(nano, world=True)(["red disc"])
    np.save(folder / "clips" / "short.npy", np.zeros((9, 16, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"2 sizes, \[\(16, 32\), \(32, 32\)\]"):
        find_clips(str(folder / "clips"), None, frames=9)


def test_frames_are_taken_at_the_rate_that_is_asked_for(tmp_path):
    values = np.linspace(0, 240, 25).astype(np.uint8)
    clip = np.broadcast_to(values[:, None, None, None], (25, 16, 16, 3))
    path = write_video(tmp_path / "v.mp4", clip, fps=24)
    taken = read_video(path, frames=9, fps=8.0)
    np.testing.assert_allclose(taken.mean((1, 2, 3)), values[::3], atol=4)  # the codec's rounding
    with pytest.raises(MissingDataError, match="24 frames a second, and 30"):
        read_video(path, frames=2, fps=30)
    with pytest.raises(MissingDataError, match="25 frames, and at least 28"):
        VideoClips.find(tmp_path, None, frames=10, size=(16, 16), fps=8.0)
