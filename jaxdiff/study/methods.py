"""Methods compared on the generated world: every one samples every prompt from equal noise, and one tracker scores all clips.

For every seed the same checkpoint is trained in several ways; a method is a way to clips with one of the networks that come
out. Networks have checkpoints and the clips of a seed and a method are one file, so that a run that was stopped goes on.
"""

import abc
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import ConfigError
from jaxdiff.generation import Sampling, embed_prompts, generate, world_prompts
from jaxdiff.physics import measure
from jaxdiff.physics.reference import references
from jaxdiff.pipeline import Pipeline
from jaxdiff.progress import progress
from jaxdiff.report import probe_csv, report_run
from jaxdiff.report.study import Gallery
from jaxdiff.study.measuring import Measures, reference_scores, score, words_of
from jaxdiff.study.methods_report import Answer, Question, Tally
from jaxdiff.train.latents import embedder
from jaxdiff.workdir import Workdir, write_atomic

SHOWN = 8  # prompts of the contact sheet
Clips = dict[tuple[int, str], np.ndarray]  # (seed, method) -> uint8 [N, T, S, S, 3]


class Way(Protocol):
    """A method: its title, and what was trained for it (None: nothing)."""

    @property
    def title(self) -> str: ...

    @property
    def trained(self) -> str | None: ...


class Budget(Protocol):
    """What a comparison reads of its configuration."""

    @property
    def seeds(self) -> tuple[int, ...]: ...

    @property
    def samples(self) -> int: ...

    @property
    def scenes(self) -> int: ...

    @property
    def world_seed(self) -> int: ...


def check_counts(config: Any, *names: str) -> None:
    """Raise a `ConfigError` for seeds that are none or not each once, and for counts, flags of these names, below 1."""
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"--seeds={','.join(map(str, config.seeds))}: give at least one, and each once")
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name}={getattr(config, name)} must be at least 1")


def clips_of(samples: int, limit: int | None = None) -> tuple[list[str], list[int]]:
    """Every prompt of the world, or the first `limit`, `samples` times: prompts, and which sample of its prompt each clip is."""
    prompts = [prompt.told for prompt in world_prompts(0)[:limit] for _ in range(samples)]
    return prompts, list(range(samples)) * (len(prompts) // samples)


class Comparison(abc.ABC):
    """The clips of several methods, each made once and kept in the workdir."""

    def __init__(self, config: Budget, pipeline: Pipeline, work: Workdir, *, limit: int | None = None):
        self.config: Any = config
        self.pipeline, self.work = pipeline, work
        self.prompts, self.samples = clips_of(config.samples, limit)
        self.told = embed_prompts([*self.prompts, ""], embedder(pipeline, world=True))

    @property
    @abc.abstractmethod
    def methods(self) -> Mapping[str, Way]:
        """Name -> method, in the order of the report."""

    @abc.abstractmethod
    def network(self, seed: int, trained: str | None) -> Pipeline:
        """What was trained; from its own checkpoints if it was trained before."""

    @abc.abstractmethod
    def clips(self, seed: int, name: str, pipeline: Pipeline) -> np.ndarray:
        """A method's clips uint8 [N, T, H, W, 3], in the order of `prompts`."""

    def folder(self, seed: int) -> Path:
        """Where a seed's files are."""
        return self.work.path / f"seed{seed}"

    def reporter(self, name: str, task: Any) -> Any:
        """Metrics of a training to metrics.jsonl and to the progress bar."""

        def report(step: int, metrics: dict[str, float]) -> None:
            self.work.log("train", run=name, step=step, **{k: float(f"{v:.6g}") for k, v in metrics.items()})
            task.advance(step - task.done, loss=metrics["loss"])

        return report

    def sampled(self, title: str, pipeline: Pipeline, sampling: Sampling, **options: Any) -> np.ndarray:
        """A clip of every prompt, as `generate` makes them."""
        with progress(title, len(self.prompts)) as task:
            videos = []
            made = generate(
                pipeline, self.prompts, sampling, samples=self.samples, told=self.told, **options
            )  # in the order of the prompts
            for _, video in made:
                videos.append(video)
                task.advance()
        return np.stack(videos)

    def run(self) -> Clips:
        """Clips of every seed and method; what lies in the workdir is not made again."""
        found: Clips = {}
        for seed in self.config.seeds:
            files = {name: self.folder(seed) / f"{name}.npy" for name in self.methods}
            for trained in dict.fromkeys(method.trained for method in self.methods.values()):
                todo = [n for n, method in self.methods.items() if method.trained == trained and not files[n].exists()]
                if todo:
                    with self.work.stage("train", seed=seed, trained=trained or "base"):
                        pipeline = self.network(seed, trained)
                for name in todo:
                    with self.work.stage("sample", seed=seed, method=name):
                        write_atomic(files[name], _npy(self.clips(seed, name, pipeline)))
            found |= {(seed, name): np.load(file) for name, file in files.items()}
        return found

    def rows(self, scores: Mapping[tuple[int, str], Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
        """clips.csv: every clip's numbers."""
        clips = list(zip(self.prompts, self.samples, strict=True))
        return [
            {"method": name, "seed": seed, "prompt": prompt, "sample": sample}
            | {metric: float(values[i]) for metric, values in found.items()}
            for (seed, name), found in scores.items()
            for i, (prompt, sample) in enumerate(clips)
        ]

    def gallery(self, clips: Clips) -> Gallery:
        """The first prompts' clips of the first seed, by every method."""
        first = [i for i, sample in enumerate(self.samples) if sample == 0][:SHOWN]
        shown = np.stack([clips[self.config.seeds[0], name][first] for name in self.methods], 1)
        return Gallery(tuple(m.title for m in self.methods.values()), tuple(self.prompts[i] for i in first), shown)

    def conclude(
        self, clips: Clips, question: Question, measures: Measures = measure, further: Mapping[str, Any] | None = None
    ) -> str:
        """Score the clips beside true ones, write result.json, clips.csv, README.md and report.html; the summary.

        `further` goes into result.json as it is.
        """
        work, words = self.work, words_of(self.prompts)
        with work.stage("measure"):
            scores = {key: score(video, words, measures) for key, video in clips.items()}
            true, impossible = references(WorldConfig(), self.config.world_seed, self.config.scenes)
            known, errors = reference_scores(true, impossible, self.pipeline, 0, measures)
        tally = Tally(scores, np.unique(self.prompts, return_inverse=True)[1], self.config.seeds)
        answer = Answer.of(tally, question, known, errors)
        columns = ("method", "seed", "prompt", "sample", *question.metrics)
        probe_csv(work.path / "clips.csv", self.rows(scores), columns)
        work.write_result(answer.result() | dict(further or {}))
        write_atomic(work.path / "README.md", answer.markdown().encode())
        report_run(work, dataclasses.replace(answer.study(), gallery=self.gallery(clips)))
        work.finish(("result.json", "clips.csv", "README.md"))
        return answer.summary()


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()
