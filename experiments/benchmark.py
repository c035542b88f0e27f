"""What a physics benchmark says of a model, from its clips or its scorers' result files, with intervals over prompts.

    python -m experiments.benchmark --name=videophy2 --sa=output_sa.csv --pc=output_pc.csv --input=videophy2.csv --workdir=DIR
    python -m experiments.benchmark --name=phygenbench --results=result/MODEL.json --workdir=DIR
    python -m experiments.benchmark --name=pisa --results=sim_default_task.json --input=sim_example.jsonl --workdir=DIR
    python -m experiments.benchmark --name=physics-iq --videos=MODEL --real=physics-IQ-benchmark --workdir=DIR

Clips for VideoPhy, VideoPhy-2 and PhyGenBench are made by experiments.generate with --naming, and judged by the benchmarks' own
scorers. Physics-IQ is scored here; its metrics are written as MODEL.csv, as its own code writes them. Writes result.json.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError

NEEDS = {
    "videophy": ("sa", "pc"),
    "videophy2": ("sa", "pc"),
    "phygenbench": ("results",),
    "pisa": ("results",),
    "physics-iq": ("videos", "real"),
}
MAY = {"videophy": ("input",), "videophy2": ("input",), "pisa": ("input",)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which benchmark, and its files."""

    name: Literal["videophy", "videophy2", "phygenbench", "pisa", "physics-iq"] = setting(help="Which benchmark.")
    sa: Path | None = setting(None, "VideoPhy, VideoPhy-2: the scorer's output for adherence to the caption.")
    pc: Path | None = setting(None, "VideoPhy, VideoPhy-2: its output for physical commonsense.")
    results: Path | None = setting(None, "PhyGenBench, PISA: the file of results.")
    input: Path | None = setting(
        None,
        "VideoPhys: what the scorer was given, so that clips of one prompt count together. PISA: the config, to count failures.",
    )
    videos: Path | None = setting(None, "Physics-IQ: folder of the model's clips, ID_anything.mp4.")
    real: Path | None = setting(None, "Physics-IQ: folder of the benchmark, with split-videos.")
    fps: int = setting(30, "Physics-IQ: frames a second of both.")
    seed: int = setting(0, "Seed of the bootstrap.")

    def __post_init__(self):
        flags = ("sa", "pc", "results", "input", "videos", "real")
        needed, allowed = NEEDS[self.name], NEEDS[self.name] + MAY.get(self.name, ())
        if missing := [f"--{flag}" for flag in needed if getattr(self, flag) is None]:
            raise ConfigError(f"--name={self.name} needs {' and '.join(missing)}")
        if foreign := [f"--{flag}" for flag in flags if getattr(self, flag) is not None and flag not in allowed]:
            raise ConfigError(f"--name={self.name} has no use for {', '.join(foreign)}")


def run(config: Config, workdir: Path) -> None:
    """Read, score, write."""
    from jaxdiff.study.benchmarks import run_benchmark

    run_benchmark(config, workdir)


if __name__ == "__main__":
    run_binary(run, Config)
