"""Binaries as processes of their own: started, killed, and what they leave compared; and small inputs for them."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.data.worlds.layout import write_intphys
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan, WanTransformer, WanTransformerConfig, WanVAE, WanVAEConfig
from jaxdiff.pipeline import Pipeline
from jaxdiff.store import ActivationStore
from ports.writer import save_pipeline

ROOT = Path(__file__).resolve().parents[2]


def tiny_inputs(folder):
    """A tiny checkpoint, generated scenes, and a folder of four of their clips, in `folder`."""
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
