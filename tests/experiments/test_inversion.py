"""`experiments.invert` as a process: killed and restarted, streamed, and given bad input."""

import json
import shutil

import pytest

from experiments import invert as invert_binary
from experiments._main import verdict
from jaxdiff.errors import JaxdiffError
from tests.experiments.processes import assert_same, command, kill_after_first_clip, run, tiny_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


def invert(inputs, workdir):
    return command(
        "invert", workdir, checkpoint=inputs / "checkpoint", videos=inputs / "videos", frames=17, steps=4,
        capture_sigmas="0,0.5", text_embeddings="zeros", fidelity_clips=0,
    )  # fmt: skip


def invert_here(inputs, workdir, **flags):
    """The same command without a process of its own, for what needs none: a start costs more than the run."""
    base = {
        "checkpoint": inputs / "checkpoint", "videos": inputs / "videos", "frames": 17, "steps": 4,
        "capture_sigmas": (0.0, 0.5), "text_embeddings": "zeros", "fidelity_clips": 0,
    }  # fmt: skip
    invert_binary.run(invert_binary.Config(**{**base, **flags}), workdir)


def refused(inputs, workdir, code, **flags):
    """What it says when it ends with this exit code (`experiments._main.verdict` hands it on)."""
    with pytest.raises(JaxdiffError) as caught:
        invert_here(inputs, workdir, **flags)
    assert verdict(caught.value) == (code, str(caught.value))
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(invert(inputs, workdir))
    return workdir


def test_killed_inversion_ends_in_the_bits_of_an_uninterrupted_one(inputs, whole, tmp_path):
    assert (whole / "DONE").exists()
    finished = kill_after_first_clip(invert(inputs, tmp_path / "run"), tmp_path / "run/store")
    assert finished and not (tmp_path / "run/DONE").exists()
    run(invert(inputs, tmp_path / "run"))
    assert (tmp_path / "run/DONE").exists()
    start, end = json.loads((whole / "result.json").read_text())["walked"]
    assert start == 0.0 and 0.99 < end <= 1.0
    assert_same(whole, tmp_path / "run", "store", ["result.json"])


def test_streamed_captures_equal_returned_ones(inputs, whole, tmp_path):
    invert_here(inputs, tmp_path / "run", stream=True)
    assert_same(whole, tmp_path / "run", "store", ["result.json"])


def test_another_configuration_in_the_workdir_is_refused(inputs, whole):
    before = (whole / "result.json").read_bytes()
    said = refused(inputs, whole, 1, steps=5)
    assert "another configuration" in said and "steps: 4 there, 5 now" in said
    assert (whole / "result.json").read_bytes() == before


def test_a_folder_that_is_no_checkpoint_is_named(inputs, tmp_path):
    assert str(inputs / "videos") in refused(inputs, tmp_path / "run", 5, checkpoint=inputs / "videos")


def test_pickled_weights_are_refused(inputs, tmp_path):
    shutil.copytree(inputs / "checkpoint", tmp_path / "checkpoint")
    for weights in (tmp_path / "checkpoint/transformer").glob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    said = refused(inputs, tmp_path / "run", 5, checkpoint=tmp_path / "checkpoint")
    assert "pickle" in said or ".bin" in said


def test_a_prompt_without_a_text_encoder_names_the_flag_that_replaces_it(inputs, tmp_path):
    assert "--text_embeddings" in refused(inputs, tmp_path / "run", 5, text_embeddings=None)


def test_an_unreadable_clip_stops_the_run_or_is_counted(inputs, tmp_path, capsys):
    shutil.copytree(inputs / "videos", tmp_path / "videos")
    (tmp_path / "videos/a.mp4").write_bytes(b"not a video")  # the first by name
    assert "a.mp4" in refused(inputs, tmp_path / "stops", 5, videos=tmp_path / "videos")
    invert_here(inputs, tmp_path / "run", videos=tmp_path / "videos", skip_bad_clips=True)
    assert "4 clips inverted, 1 skipped" in capsys.readouterr().out
    assert '"a.mp4"' in (tmp_path / "run/result.json").read_text()
