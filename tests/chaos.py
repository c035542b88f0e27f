"""A small study, killed at random moments and gone on with on other numbers of devices: the same bytes every time.

    python -m tests.chaos --runs=20 --workdir=runs/chaos

Every run is started, killed (SIGKILL) after a random part of the time that an undisturbed one takes, started again, and so on,
and then left to end. Its result.json, probe.csv, predictions and decoded store arrays must be those of the undisturbed run, and
every clip must have been committed once. Writes result.json: when each process was killed, on how many devices, and with
how many clips. Processes share a compilation cache, as restarts do.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import CheckFailed, ConfigError
from jaxdiff.progress import progress
from jaxdiff.store import ActivationStore
from jaxdiff.store.index import INDEX
from jaxdiff.workdir import Workdir
from tests.experiments.processes import ROOT, assert_same, command, tiny_inputs

STORES = ("store/trained", "store/untrained", "store/shuffled_frames", "noised/trained")
FILES = ("result.json", "probe.csv", "predictions.npz")
DEVICES = (1, 2, 4)


def study(inputs: Path, workdir: Path) -> list[str]:
    """The command of a study of eight clips with controls, a minute at most."""
    return command(
        "study", workdir, model=inputs / "checkpoint", data_dir=inputs / "world", frames=17, size=32, scenes=2,
        steps=4, capture_sigmas="0,0.5", text_embeddings="zeros", fidelity_clips=0, outer=2, inner=2,
        clips_per_device=2, published_seeds=1, taps="block_out.mean,self_attention_map.frame_map",
        controls="untrained,noised,shuffled_frames,gaussian,projections",
    )  # fmt: skip


def start(line: list[str], devices: int, log: Path) -> subprocess.Popen:
    """The command as a process that sees so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    with open(log, "ab") as file:
        return subprocess.Popen(line, cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags}, stdout=file, stderr=file)


def to_the_end(line: list[str], devices: int, log: Path) -> float:
    """Seconds that the command takes.

    Raises
    ------
    CheckFailed : it failed.
    """
    began = time.monotonic()
    if code := start(line, devices, log).wait():
        raise CheckFailed(f"exit code {code}; see {log}:\n{log.read_text(errors='replace')[-2000:]}")
    return time.monotonic() - began


def finished(workdir: Path) -> int:
    """Clips committed so far, over all stores."""
    count = 0
    for path in STORES:
        with contextlib.suppress(OSError, ValueError):  # not there yet
            count += len(ActivationStore.open(workdir / path).finished())
    return count


def killed(line: list[str], devices: int, seconds: float, workdir: Path, log: Path) -> dict[str, Any]:
    """Start, wait, kill; what was there then. "killed" is False where it had ended before."""
    process = start(line, devices, log)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise CheckFailed(f"exit code {code}; see {log}:\n{log.read_text(errors='replace')[-2000:]}")
    return {"devices": devices, "after": round(seconds, 2), "killed": code != 0, "clips": finished(workdir)}


def check(whole: Path, run: Path) -> None:
    """Raise AssertionError unless `run` ended as `whole` did, each clip committed once."""
    for store in STORES:
        assert_same(whole, run, store, FILES)
        clips = [json.loads(line)["clip"] for line in (run / store / INDEX).read_text().splitlines()]
        assert sorted(clips) == sorted(set(clips)), f"{store}: a clip was committed twice"
    assert (run / "DONE").exists()


def chaos(folder: Path, runs: int, seed: int = 0, kills: int = 3) -> dict[str, Any]:
    """`runs` studies, each killed up to `kills` times; result.json's content.

    Raises
    ------
    CheckFailed : a run failed or ended in other bytes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    inputs, whole, log = tiny_inputs(folder / "inputs"), folder / "whole", folder / "log.txt"
    to_the_end(study(inputs, folder / "warm"), 1, log)  # compiles
    seconds = to_the_end(study(inputs, whole), 1, log)
    rng = np.random.default_rng(seed)
    told = []
    with progress("kill and go on", runs, unit="runs") as task:
        for number in range(runs):
            workdir = folder / f"run{number}"
            line = study(inputs, workdir)
            events = [
                killed(line, int(rng.choice(DEVICES)), float(rng.uniform(0.1, 1) * seconds), workdir, log)
                for _ in range(int(rng.integers(1, kills + 1)))
            ]
            devices = int(rng.choice(DEVICES))
            to_the_end(line, devices, log)
            try:
                check(whole, workdir)
            except AssertionError as error:
                raise CheckFailed(f"{workdir} differs from {whole}: {error}; {events}") from error
            told.append({"kills": events, "ended_on": devices})
            shutil.rmtree(workdir)
            task.advance()
    return {
        "headline": {
            "runs": runs,
            "kills": sum(event["killed"] for run in told for event in run["kills"]),
            "different": 0,
        },
        "clips": finished(whole),
        "undisturbed_seconds": round(seconds, 2),
        "runs": told,
        "seed": seed,
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """How often."""

    runs: int = setting(20, "Studies.")
    seed: int = setting(0, "Of the moments and the numbers of devices.")

    def __post_init__(self):
        if self.runs < 1:
            raise ConfigError(f"--runs={self.runs} must be at least 1")


def run(config: Config, workdir: Path) -> None:
    """Kill, go on, compare."""
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        result = chaos(workdir / "studies", config.runs, config.seed)
        work.write_result(result)
        work.finish()
    print(
        f"{config.runs} runs, {result['headline']['kills']} kills: every result.json, probe.csv and array as undisturbed"
    )


if __name__ == "__main__":
    run_binary(run, Config)
