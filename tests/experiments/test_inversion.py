"""`experiments.invert` and `experiments.study` as processes: killed and restarted, streamed, and given bad input."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import invert as invert_binary
from experiments._main import verdict
from jaxdiff.data.worlds import WorldConfig
from jaxdiff.data.worlds.layout import write_intphys
from jaxdiff.errors import JaxdiffError
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig, WanVAE, WanVAEConfig
from jaxdiff.pipeline import Pipeline
from jaxdiff.store import ActivationStore
from ports.writer import save_pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny checkpoint, generated scenes, and a folder of four of their clips."""
    folder = tmp_path_factory.mktemp("inputs")
    small = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 16}
    transformer = Network.init(WanTransformer, dataclasses.replace(WanTransformerConfig.nano(), **small), 0)
    vae = Network.init(WanVAE, dataclasses.replace(WanVAEConfig.nano(), base_dim=4), 0)
    save_pipeline(Pipeline(transformer, Wan(), UniPCFlow(shift=1.0), vae), folder / "checkpoint")
    write_intphys(WorldConfig(frames=17, size=32), 0, 2, folder / "world", depth=False, masks=False)
    for i in range(1, 5):
        shutil.copytree(folder / "world/dev/O1/01" / str(i) / "scene", folder / f"videos/clip{i}")
    return folder


def command(binary, workdir, **flags):
    settings = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", f"experiments.{binary}", f"--workdir={workdir}", *settings]


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


def study(inputs, workdir):
    return command(
        "study", workdir, model=inputs / "checkpoint", data_dir=inputs / "world", frames=17, size=32, scenes=2,
        steps=4, capture_sigmas="0,0.5", text_embeddings="zeros", fidelity_clips=0, outer=2, inner=2,
        clips_per_device=2, published_seeds=1, taps="block_out.mean,self_attention_map.frame_map",
        controls="untrained,noised,shuffled_frames,gaussian,projections",
    )  # fmt: skip


def run(line):
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kill_after_first_clip(line, store):
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if ActivationStore.open(store).finished():
                    break
            except (OSError, ValueError):  # not there yet
                pass
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    return ActivationStore.open(store).finished()


def assert_same(a, b, store, files):
    for name in files:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    left, right = ActivationStore.open(a / store), ActivationStore.open(b / store)
    assert left.finished() == right.finished() and left.records() == right.records()
    for name in left.specs:
        np.testing.assert_array_equal(left.read(name), right.read(name), err_msg=name)


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


def test_killed_study_ends_in_the_bits_of_an_uninterrupted_one(inputs, tmp_path):
    run(study(inputs, tmp_path / "whole"))
    finished = kill_after_first_clip(study(inputs, tmp_path / "run"), tmp_path / "run/store/trained")
    assert finished and not (tmp_path / "run/DONE").exists()
    run(study(inputs, tmp_path / "run"))
    files = ["result.json", "probe.csv", "predictions.npz"]
    for store in ("store/trained", "store/untrained", "store/shuffled_frames", "noised/trained"):
        assert_same(tmp_path / "whole", tmp_path / "run", store, files)


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
