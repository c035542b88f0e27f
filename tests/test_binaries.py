"""What every binary shares: flags from a frozen config, one clear block for an error, and the exit code."""

import dataclasses
import errno
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from typing import Literal

import pytest

from experiments._flags import from_mapping
from experiments._main import guarded, verdict
from jaxdiff.errors import (
    CheckFailed,
    CheckpointError,
    ConfigError,
    MissingDataError,
    NonFiniteError,
    Resumable,
)

BINARY = '''
"""Invert clips."""
import atexit, dataclasses, os, pathlib, sys, time
from typing import Literal
from experiments._main import run_binary
from experiments._flags import setting
from jaxdiff.errors import ConfigError

@dataclasses.dataclass(frozen=True)
class Probe:
    penalties: tuple[float, ...] = (0.1, 1.0)

@dataclasses.dataclass(frozen=True)
class Config:
    videos: pathlib.Path = setting(help="Folder of mp4 files.")
    steps: int = setting(100, "Steps of the solver.")
    solver: Literal["euler", "midpoint"] = setting("euler", "How to step.")
    guidance: float | None = None
    taps: tuple[str, ...] = ("block_out.mean",)
    resume: bool = True
    probe: Probe = dataclasses.field(default_factory=Probe)

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"--steps={self.steps}; expected at least 1")

def run(config, workdir):
    if config.steps == 7:
        atexit.register(os.abort)  # a runtime that crashes while the interpreter ends
        print("started", flush=True)
        time.sleep(60)
    if config.steps == 8:
        return {}["key"]
    import jax
    cache = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    print(config, workdir, *cache)

if __name__ == "__main__":
    run_binary(run, Config)
'''
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    path = tmp_path_factory.mktemp("binary") / "invert.py"
    path.write_text(BINARY)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env["XDG_CACHE_HOME"] = str(path.parent / "cache")

    def start(*flags):
        return subprocess.Popen(
            [sys.executable, str(path), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            cwd=path.parent,
        )

    return start


def call(binary, *flags):
    process = binary(*flags)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_flags_fill_the_config_with_its_types(binary):
    flags = (
        "--videos=clips",
        "--workdir=w",
        "--steps=20",
        "--solver=midpoint",
        "--guidance=1.5",
        "--noresume",
    )
    code, out, err = call(binary, *flags, "--taps=a,b", "--probe.penalties=0.01,1,10")
    assert code == 0, err
    assert "videos=PosixPath('clips'), steps=20, solver='midpoint', guidance=1.5, taps=('a', 'b'), resume=False" in out
    assert "penalties=(0.01, 1.0, 10.0)" in out
    assert "jaxdiff/xla/" in out  # the compilation cache is on, in the user's cache folder
    assert out.rstrip().endswith(" 0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--stesp=20",), "unknown flag --stesp; did you mean --steps?"),
        (("--probe.penalty=1",), "did you mean --probe.penalties?"),
        (("--mesh=data=2",), "there is no --mesh here"),
        (("--steps=ten",), "--steps"),
        (("--solver=eulr",), "--solver"),
        (("--steps=0",), "--steps=0; expected at least 1"),
        (("--probe.penalties=1,x",), "--probe.penalties[1] is 'x'"),
        (("20",), "unexpected argument '20'"),
    ],
)
def test_a_wrong_flag_is_one_clear_error_before_anything_runs(binary, flags, message):
    code, out, err = call(binary, "--videos=clips", "--workdir=w", *flags)
    assert code == 1
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 3


def test_a_missing_required_flag_is_named(binary):
    code, _, err = call(binary, "--workdir=w")
    assert code == 1
    assert "--videos" in err


def test_help_lists_every_flag_with_its_text(binary):
    _, out, _ = call(binary, "--help")
    assert "Invert clips." in out
    for text in (
        "--videos",
        "Folder of mp4 files.",
        "--steps",
        "Steps of the solver.",
        "--probe.penalties",
        "--workdir",
    ):
        assert text in out


def test_an_unexpected_error_is_one_block_and_debug_adds_the_traceback(binary):
    code, _, err = call(binary, "--videos=c", "--workdir=w", "--steps=8")
    assert code == 1
    assert "unexpected KeyError: 'key'" in err
    assert "invert.py:" in err
    assert "Traceback" not in err
    code, _, err = call(binary, "--videos=c", "--workdir=w", "--steps=8", "--debug")
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_its_code_and_says_how_to_go_on(binary, number, code):
    process = binary("--videos=c", "--workdir=w", "--steps=7")
    assert process.stdout.readline() == "started\n"
    time.sleep(0.2)  # until it sleeps
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command goes on" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 1),
        (CheckFailed("a"), 3),
        (NonFiniteError("step 3"), 4),
        (MissingDataError("a"), 5),
        (CheckpointError("a"), 5),
        (FileNotFoundError(errno.ENOENT, "none", "x.mp4"), 5),
        (Resumable("a"), 75),
        (OSError(errno.ENOSPC, "No space left on device", "store/x"), 75),
        (KeyboardInterrupt(), 130),
        (TypeError("a"), 1),
    ],
)
def test_exit_codes(error, code, capsys):
    def work():
        raise error

    assert guarded(work) == code
    assert capsys.readouterr().err.startswith("\nerror: ")
    assert guarded(lambda: None) == 0
    assert guarded(lambda: 3) == 3


def test_an_error_that_came_out_of_a_callback_wrapped_keeps_its_code():
    error = RuntimeError("INTERNAL: CpuCallback error")
    error.__cause__ = NonFiniteError("step 17")
    assert verdict(error) == (4, "step 17")
    assert verdict(error, stopped=signal.SIGTERM)[0] == 75


def test_a_signal_is_not_lost_to_code_that_goes_on_after_any_exception():
    def work():
        try:  # as jax reads its compilation cache
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except Exception:
            return 0

    assert guarded(work) == 75


@dataclasses.dataclass(frozen=True)
class Inner:
    outer: int = 5


@dataclasses.dataclass(frozen=True)
class Config:
    videos: str
    steps: int = 100
    solver: Literal["euler", "midpoint"] = "euler"
    penalties: tuple[float, ...] = (1.0,)
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_a_config_that_was_written_as_json_comes_back_equal():
    config = Config("a", 50, "midpoint", (0.5, 2.0), Inner(3))
    values = {
        "videos": "a",
        "steps": 50.0,
        "solver": "midpoint",
        "penalties": [0.5, 2],
        "inner": {"outer": 3},
    }
    assert from_mapping(Config, values) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"videos": "a", "stpes": 1}, "unknown key stpes; did you mean steps"),
        ({"videos": "a", "inner": {"otter": 1}}, r"unknown key inner\.otter; did you mean inner\.outer"),
        ({"steps": 1}, "missing videos"),
        ({"videos": "a", "steps": 1.5}, "steps is 1.5"),
        ({"videos": "a", "solver": "x"}, "solver is 'x'; expected one of euler, midpoint"),
        ({"videos": "a", "inner": 3}, "inner is 3; expected a mapping"),
    ],
)
def test_a_wrong_mapping_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(Config, values)


def test_an_unusable_cache_folder_means_no_cache(tmp_path, run_python):
    (tmp_path / "file").write_text("x")
    code = """
        import sys
        from experiments._main import use_cache
        import jax
        use_cache(sys.argv[1])
        assert not jax.config.jax_enable_compilation_cache
        print(jax.jit(lambda x: x + 1)(1))
    """
    assert run_python(textwrap.dedent(code), str(tmp_path / "file" / "cache")).strip() == "2"
