"""Launchers and the document on scaling: what they tell a cluster to run exists, with its flags."""

import dataclasses
import importlib
import re
import subprocess

import pytest

from tests.imports import ROOT

LAUNCHERS = ROOT / "experiments" / "launch"
DOCUMENT = ROOT / "docs" / "scaling.md"
COMMON = {"workdir", "compilation_cache", "cpu_devices"}
MAKES_PROCESSES = {"distributed"}  # a flag of those binaries whose work several processes share


def commands(text):
    """(binary, flags) of every command of a launcher, a document or a job description."""
    text = re.sub(r"\\\n\s*#?\s*", " ", text)
    text = re.sub(r"\n\s*- (?=-)", " ", text)  # arguments in yaml, one a line
    starts = r"(?:slurm\.sbatch|tpu_vm\.sh run|experiments\.)"
    found = re.findall(starts + r"\s*([a-z]\w+)((?: +--\w+(?:=\S*)?)+)", text)
    return [(binary, re.findall(r"--(\w+)", flags)) for binary, flags in found]


def declared(binary):
    module = importlib.import_module(f"experiments.{binary}")
    known = {field.name for field in dataclasses.fields(module.Config)} | COMMON
    shares = "distributed=True" in (ROOT / "experiments" / f"{binary}.py").read_text()
    return known | (MAKES_PROCESSES if shares else set())


@pytest.mark.parametrize("file", [*sorted(LAUNCHERS.iterdir()), DOCUMENT], ids=lambda file: file.name)
def test_every_command_exists_with_its_flags(file):
    found = commands(file.read_text())
    assert found
    for binary, flags in found:
        assert {*flags} <= declared(binary), (binary, flags)


def test_the_check_sees_a_flag_that_is_not_there():
    ((binary, flags),) = commands("sbatch slurm.sbatch study --model=DIR \\\n#     --modle=DIR")
    assert binary == "study" and flags == ["model", "modle"] and "modle" not in declared("study")
    assert commands("- -m\n  - experiments.study\n  - --model=a\n  - --workdir=b") == [("study", ["model", "workdir"])]


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_vm.sh"])
def test_scripts_are_bash(name):
    assert subprocess.run(["bash", "-n", LAUNCHERS / name], check=False).returncode == 0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_COUNT": "8"}, "--shard=3/8"),
        ({"SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "4"}, "--distributed=auto 0,1,2,3"),
        ({"SLURM_JOB_NUM_NODES": "1"}, ""),
    ],
)
def test_slurm_is_told_to_start_what_its_comment_says(environment, expected, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\necho "$@" $JAX_LOCAL_DEVICE_IDS\n')
    srun.chmod(0o755)
    line = ["bash", LAUNCHERS / "slurm.sbatch", "study", "--model=nano", "--workdir=w"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **environment}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    usual = "--kill-on-bad-exit=1 python -m experiments.study --model=nano --workdir=w"
    assert done.returncode == 0 and done.stdout.strip() == f"{usual} {expected}".strip()


def test_a_job_that_was_stopped_is_queued_again(tmp_path):
    for name, body in {"srun": "exit 75", "scontrol": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    line = ["bash", LAUNCHERS / "slurm.sbatch", "study", "--model=nano"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "77"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 75 and done.stdout.strip() == "requeue 77"
