"""SIGKILL at any moment: what was committed stays, the rest is computed again, to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxdiff.store import ActivationStore
from jaxdiff.store.index import INDEX
from tests.conftest import ROOT
from tests.store import program as p

CLIPS = 8

# Counts what happens to the files (a chunk about to be written, written, index lines about to be appended,
# half appended, appended) and kills itself at the given event. A batch of two clips is 27 events.
CHILD = """
import os, signal, sys
from jaxdiff.mesh import data_mesh
from jaxdiff.store import ActivationStore, layout
from tests.store import program as p

path, stream, kill_at, clips = sys.argv[1], sys.argv[2] == "stream", sys.argv[3], int(sys.argv[4])
layout.CHUNK_BYTES = 200  # two slots of one array, or rows of the other
count = {"any": 0}

def event(kind):
    for name in ("any", kind):
        count[name] = count.get(name, 0) + 1
        if kill_at == f"{name}:{count[name]}":
            os.kill(os.getpid(), signal.SIGKILL)

write_job, pwrite = ActivationStore._write_job, os.pwrite

def counted_write_job(self, job):
    event("before write")
    write_job(self, job)
    event("after write")

def counted_pwrite(descriptor, data, offset):
    event("before append")
    pwrite(descriptor, data[: len(data) // 2], offset)
    event("half appended")
    written = pwrite(descriptor, data, offset)
    event("after append")
    return written

ActivationStore._write_job, os.pwrite = counted_write_job, counted_pwrite
with p.create(path, clips) as store:
    p.run(store, data_mesh(), stream)
print(count["any"])
"""


def start(path, stream, kill_at):
    command = [sys.executable, "-c", CHILD, str(path), stream, kill_at, str(CLIPS)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(path, stream, kill_at):
    process = start(path, stream, kill_at)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode, out


def finished(path):
    return ActivationStore.open(path).finished() if (path / "zarr.json").exists() else set()


def check(path):
    """The finished store is the uninterrupted one, and each clip was committed once."""
    assert finished(path) == set(range(CLIPS))
    lines = (path / INDEX).read_text().splitlines()
    assert sorted(json.loads(line)["clip"] for line in lines) == list(range(CLIPS))
    p.assert_same(p.arrays(path), p.reference(CLIPS))


@pytest.mark.parametrize("stream", ["stream", "return"])
def test_killed_at_random_events_a_store_ends_bit_identical(tmp_path, stream):
    path = tmp_path / "s"
    rng = np.random.default_rng(0 if stream == "stream" else 1)
    before, kills = set(), 0
    for kill_at in rng.integers(5, 50, 4):
        kills += run(path, stream, f"any:{kill_at}")[0] == -signal.SIGKILL
        assert before <= finished(path)  # nothing that was committed is lost
        before = finished(path)
        for clip in before:  # and what is committed is right at every moment
            for name, expected in p.reference(CLIPS).items():
                assert ActivationStore.open(path).read(name, [clip])[0].tobytes() == expected[clip].tobytes()
    assert kills >= 2
    assert run(path, stream, "never")[0] == 0
    check(path)


@pytest.mark.parametrize(
    ("kill_at", "left"),
    [("before append:2", {0, 1}), ("half appended:2", {0, 1}), ("after append:2", {0, 1, 2, 3})],
)
def test_killed_around_a_commit_a_store_ends_bit_identical(tmp_path, kill_at, left):
    path = tmp_path / "s"
    assert run(path, "stream", kill_at)[0] == -signal.SIGKILL
    if kill_at == "half appended:2":
        # Two clips are committed by one append: the half that arrived is one line and a bit at most.
        assert not (path / INDEX).read_bytes().endswith(b"\n") or len(finished(path)) == 3
        left = finished(path)
        assert {0, 1} <= left <= {0, 1, 2}
    assert finished(path) == left
    assert run(path, "stream", "never")[0] == 0
    check(path)


def test_killed_from_outside_a_store_ends_bit_identical(tmp_path):
    path = tmp_path / "s"
    process = start(path, "stream", "never")
    while process.poll() is None and not (path / "zarr.json").exists():
        time.sleep(0.001)
    time.sleep(0.05)
    process.kill()
    process.communicate(timeout=120)
    assert run(path, "stream", "never")[0] == 0
    check(path)
