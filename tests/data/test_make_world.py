"""The binary that writes generated scenes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make_world(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.make_world", *flags],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_writes_what_the_loader_reads(tmp_path):
    done = make_world("--layout=intphys", f"--out={tmp_path}/w", "--scenes=1", "--seed=3", "--nodepth", "--nomasks")
    assert done.returncode == 0, done.stderr
    assert "12 clips of 17 frames" in done.stdout
    assert len(list(tmp_path.rglob("scene_*.png"))) == 3 * 4 * 17
    assert not list(tmp_path.rglob("depth*"))


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--frames=16", "4k+1"),
        ("--sizes=32", "did you mean --size"),
        ("--layout=imagenet", "imagenet"),
        ("extra", "extra"),
    ],
)
def test_wrong_flags_exit_with_one_and_say_what_is_wrong(tmp_path, flag, told):
    done = make_world(f"--out={tmp_path}/w", flag)
    assert done.returncode == 1
    assert told in done.stderr + done.stdout
    assert not (tmp_path / "w").exists()


def test_help_explains_the_flags():
    done = make_world("--help")
    for told in ("make_world --layout=intphys", "World seed", "--scenes"):
        assert told in done.stdout
