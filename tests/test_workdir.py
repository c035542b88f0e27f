"""The run's folder: what it refuses, what it writes, and what a kill at any moment leaves behind."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.workdir import Workdir, dump_json, plain, write_atomic


@dataclasses.dataclass(frozen=True)
class Inner:
    outer: int = 5
    penalties: tuple[float, ...] = (0.1, 1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 100
    solver: str = "euler"
    probe: Inner = dataclasses.field(default_factory=Inner)


def test_result_bytes_depend_on_content_only(tmp_path):
    one = {"b": {"y": np.float32(0.1), "x": np.int64(3)}, "a": (1, 2), "c": jnp.asarray([0.5, 0.25])}
    two = {"c": [0.5, 0.25], "a": [1, 2], "b": {"x": 3, "y": 0.1}}
    with Workdir(tmp_path / "one", {}) as work:
        work.write_result(one)
    with Workdir(tmp_path / "two", {"seed": 1}) as work:
        work.write_result(two)
    text = (tmp_path / "one/result.json").read_bytes()
    assert text == (tmp_path / "two/result.json").read_bytes()
    assert list(json.loads(text)) == ["a", "b", "c"]
    assert text.endswith(b"}\n")


def test_numbers_that_json_cannot_hold_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"headline\.states is nan"):
        dump_json({"headline": {"states": float("nan")}})
    with pytest.raises(ConfigError, match=r"model\[1\] is a object"):
        plain({"model": [1, object()]})


def test_reopening_with_the_same_config_goes_on(tmp_path):
    with Workdir(tmp_path, Config()) as work:
        work.write_result({"clips": 1})
    with Workdir(tmp_path, Config(probe=Inner(penalties=(0.1, 1)))) as work:  # 1 and 1.0 are one value
        assert not work.done
        assert work.config["probe"]["penalties"] == [0.1, 1]
        assert len(work.sessions()) == 2
        assert work.sessions()[-1]["versions"]["numpy"] == np.__version__
        assert work.sessions()[-1]["devices"]


def test_another_config_is_refused_with_every_difference_and_changes_nothing(tmp_path):
    with Workdir(tmp_path, Config()) as work:
        work.write_result({"clips": 1})
        work.finish()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ConfigError) as caught:
        Workdir(
            tmp_path,
            {"steps": 50, "solver": "euler", "probe": {"outer": True, "penalties": [0.1, 1.0]}, "new": 1},
        )
    message = str(caught.value)
    assert "steps: 100 there, 50 now" in message
    assert "probe.outer: 5 there, true now" in message
    assert "new: (absent) there, 1 now" in message
    assert "solver" not in message
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    Workdir(tmp_path, Config()).close()  # the refusal left no lock behind


def test_a_file_and_a_foreign_config_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        Workdir(tmp_path / "file", {})
    (tmp_path / "config.json").write_text("steps: 100")
    with pytest.raises(ConfigError, match=r"config\.json is not json"):
        Workdir(tmp_path, {})


def test_done_needs_its_files_and_comes_last(tmp_path):
    work = Workdir(tmp_path, {})
    with pytest.raises(FileNotFoundError, match=r"probe\.csv"):
        work.finish(("probe.csv",))
    assert not (tmp_path / "DONE").exists()
    work.write_result({"clips": 1})
    work.write("probe.csv", b"a\n")
    work.finish(("result.json", "probe.csv"))
    work.close()
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != ".lock"}
    assert max(files, key=files.get).name == "DONE"
    with Workdir(tmp_path, {}) as again:
        assert again.done


@pytest.mark.parametrize("damage", ["change", "remove", "garble"])
def test_done_over_incomplete_files_is_taken_back(tmp_path, damage):
    with Workdir(tmp_path, {}) as work:
        work.write_result({"clips": 1})
        work.finish()
    if damage == "change":
        (tmp_path / "result.json").write_text("{}")
    elif damage == "remove":
        (tmp_path / "result.json").unlink()
    else:
        (tmp_path / "DONE").write_text("[1]")
    with Workdir(tmp_path, {}) as again:
        assert not again.done
        assert not (tmp_path / "DONE").exists()


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomic(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_process_killed_between_write_and_rename_leaves_the_old_file(tmp_path):
    write_atomic(tmp_path / "result.json", b"old")
    code = f"""
        import os, signal
        from jaxdiff import workdir
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        workdir.write_atomic({str(tmp_path / "result.json")!r}, b"new")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, cwd=os.getcwd())
    assert done.returncode == -9
    assert (tmp_path / "result.json").read_bytes() == b"old"


def test_a_second_run_is_refused_until_the_first_process_is_gone(tmp_path):
    code = f"""
        import sys, time
        from jaxdiff.workdir import Workdir
        work = Workdir({str(tmp_path)!r}, {{}})
        print("locked", flush=True)
        time.sleep(60)
    """
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match=f"another run is at work.*process {other.pid} on"):
            Workdir(tmp_path, {})
    finally:
        other.kill()
        other.communicate()
    Workdir(tmp_path, {}).close()  # the kernel dropped the lock of the killed process


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path):
    with Workdir(tmp_path, {"a": 1}), Workdir(tmp_path, {"a": 1}, primary=False) as second:
        before = sorted(p.name for p in tmp_path.iterdir())
        second.write_result({})
        second.log("step")
        second.finish()
        assert sorted(p.name for p in tmp_path.iterdir()) == before
        with pytest.raises(ConfigError, match="a: 1 there, 2 now"):
            Workdir(tmp_path, {"a": 2}, primary=False)


def test_metrics_survive_a_torn_last_line(tmp_path):
    with Workdir(tmp_path, {}) as work:
        work.log("compile", seconds=1.5)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"event": "inv')
    with Workdir(tmp_path, {}) as work:
        with work.stage("invert", clips=3) as extra:
            extra["evaluations"] = 100
        lines = work.metrics()
    assert [line["event"] for line in lines] == ["compile", "invert"]
    assert lines[1]["clips"] == 3
    assert lines[1]["evaluations"] == 100
    assert lines[1]["seconds"] >= 0


def test_an_unfinished_run_does_not_go_on_on_another_kind_of_device(tmp_path):
    with Workdir(tmp_path, Config()):
        pass
    file = tmp_path / "env.json"
    before = json.loads(file.read_bytes())
    before[0]["devices"] = ["gpu:0 NVIDIA H200"]
    file.write_text(json.dumps(before))
    with pytest.raises(ConfigError, match="was started on a gpu, and this is a cpu"):
        Workdir(tmp_path, Config())
    assert json.loads(file.read_bytes()) == before
    (tmp_path / "DONE").write_text("{}")
    with Workdir(tmp_path, Config()) as work:  # a finished one is read anywhere
        assert work.done
