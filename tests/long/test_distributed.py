"""Two real processes of four devices each, which find each other over jax.distributed, do what one process does alone."""

import socket
import subprocess

import jax
import numpy as np
import pytest

import jaxdiff
from experiments import encode_latents, finetune, train_motion_field
from jaxdiff.lamo import load_motion_field
from jaxdiff.store import LatentStore
from tests.experiments.processes import ROOT, assert_same, command, run, tiny_inputs

COMMON = {
    "frames": 17, "size": 32, "steps": 4, "capture_sigmas": "0,0.5", "text_embeddings": "zeros", "clips_per_device": 1,
    "taps": "block_out.mean", "fidelity_clips": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_inputs(tmp_path_factory.mktemp("inputs"))


def together(binary, workdir, count, devices=4, **flags):
    """`count` processes that meet at a free port of this machine; their outputs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lines = [
        command(binary, workdir, cpu_devices=devices, distributed=f"127.0.0.1:{port},{count},{i}", **flags)
        for i in range(count)
    ]
    running = [
        subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for line in lines
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * count, "\n\n".join(outputs)
    return outputs


def chunks(store):
    """Every file of a store's arrays, by its bytes: a clip is a chunk of its own, whoever wrote it."""
    files = [path for path in store.rglob("*") if path.is_file() and not path.name.startswith((".", "index"))]
    assert sum(path.name.startswith("c.") for path in files) == 8  # four clips of two arrays
    return {path.relative_to(store): path.read_bytes() for path in files}


def assert_near(one, two):
    """Equal weights, but for the order in which devices' gradients are summed."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5)


def test_two_processes_leave_the_bytes_of_one(inputs, tmp_path):
    flags = {"checkpoint": inputs / "checkpoint", "videos": inputs / "videos", **COMMON}
    run(command("invert", tmp_path / "alone", **flags))
    outputs = together("invert", tmp_path / "both", 2, **flags)
    assert "clips inverted" in outputs[0] and "clips inverted" not in outputs[1]
    assert_same(tmp_path / "alone", tmp_path / "both", "store", ["result.json", "DONE"])
    assert chunks(tmp_path / "alone/store") == chunks(tmp_path / "both/store")


def test_a_study_of_two_processes_answers_as_one_does(inputs, tmp_path):
    flags = {
        "model": inputs / "checkpoint", "data_dir": inputs / "world", "dataset": "intphys", "subset": True, "outer": 2,
        "inner": 2, "published_seeds": 0, "controls": "gaussian", **COMMON,
    }  # fmt: skip
    run(command("study", tmp_path / "alone", **flags))
    together("study", tmp_path / "both", 2, **flags)
    assert_same(tmp_path / "alone", tmp_path / "both", "store/trained", ["result.json", "probe.csv", "predictions.npz"])


def test_two_processes_encode_and_train_as_one_does(tmp_path):
    clips = {"model": "nano", "videos": "world", "clips": 5, "frames": 9}
    encode_latents.run(encode_latents.Config(**clips), tmp_path / "alone")
    outputs = together("encode_latents", tmp_path / "both", 2, devices=2, **clips)
    assert "5 clips" in outputs[0] and "5 clips" not in outputs[1]
    assert_same(tmp_path / "alone", tmp_path / "both", "store", ["result.json", "DONE"])
    latents = LatentStore.open(tmp_path / "both").path
    assert sorted(path.name for path in latents.glob("index*")) == ["index.0-of-2.jsonl", "index.1-of-2.jsonl"]
    assert all(len((latents / f"index.{i}-of-2.jsonl").read_text().splitlines()) == 3 - i for i in range(2))

    flags = {"latents": tmp_path / "both", "held_out": 0.2, "steps": 3, "batch": 4}
    train_motion_field.run(train_motion_field.Config(**flags), tmp_path / "field")
    outputs = together("train_motion_field", tmp_path / "fields", 2, devices=2, **flags)
    assert "1 held-out clips" in outputs[0] and "held-out" not in outputs[1]
    one, two = (load_motion_field(tmp_path / name / "motion_field").params for name in ("field", "fields"))
    assert_near(one, two)

    flags = {
        "model": "nano", "config": "nano", "latents": str(tmp_path / "both"), "loss": "drift", "steps": 2, "batch": 2,
        "learning_rate": 1e-4, "checkpoint_every": 1,
    }  # fmt: skip
    finetune.run(finetune.Config(**flags), tmp_path / "one")
    # Weights are split over the processes, tokens within them.
    together("finetune", tmp_path / "two", 2, devices=2, mesh="data=1,fsdp=2,seq=2", **flags)
    assert (tmp_path / "one/result.json").read_bytes() == (tmp_path / "two/result.json").read_bytes()
    one, two = (jaxdiff.load(tmp_path / name / "pipeline").transformer.params for name in ("one", "two"))
    assert_near(one, two)


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:80,2,2", "10.0.0.1:80,2"])
def test_what_is_no_address_is_refused_at_once(text):
    line = command("invert", "unused", checkpoint="a", videos="b", distributed=text)
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1 and "write auto, or host:port,processes,index" in done.stderr
