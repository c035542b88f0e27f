"""`experiments.measure`: physics of generated clips of world prompts, beside what the same numbers say of true clips."""

import csv
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.data.captions import captioned_videos
from jaxdiff.data.video import read_video
from jaxdiff.data.worlds import WorldConfig, prompts
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.physics import METRICS, Track, measure, track, truth_errors
from jaxdiff.physics.reference import Reference, references
from jaxdiff.pipeline import Pipeline
from jaxdiff.probes import statistics
from jaxdiff.progress import progress
from jaxdiff.report import probe_csv, report_run
from jaxdiff.report.study import Estimate, Study, Table
from jaxdiff.study.measures import estimate_json
from jaxdiff.workdir import Workdir

Scores = dict[str, np.ndarray]  # metric -> [N], nan where not defined
Measures = Callable[[Track, np.ndarray, WorldConfig], Scores]  # tracked clips and their prompts' words -> scores

GIVEN = "the sampled clips and the tracker; only prompts, each with its clip, are drawn anew"
SETS = {
    "true": "true clips",
    "autoencoder": "true clips, encoded and decoded",
    "shuffled": "true clips, frames shuffled",
    "impossible": "clips whose thing is swapped in hiding",
}
COLUMNS = ("set", "clip", "prompt", *METRICS)


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """See the flags of `experiments.measure`."""

    videos: Path
    captions: Path | None = None
    model: str = ""
    world_seed: int = 0
    scenes: int = 40
    seed: int = 0

    def __post_init__(self):
        if self.scenes < 1:
            raise ConfigError(f"--scenes={self.scenes}; the true clips beside the scores need at least 1")


def words_of(captions: Iterable[str]) -> np.ndarray:
    """Prompts in words as numbers, int [N, 3].

    Raises
    ------
    ConfigError : a prompt that is not colour, shape and motion of the generated world.
    """
    kinds = (prompts.COLOURS, prompts.SHAPES, prompts.MOTIONS)
    rows = []
    for number, text in enumerate(captions, 1):
        spoken = text.lower().split()
        if len(spoken) != 3 or any(word not in kind for word, kind in zip(spoken, kinds, strict=True)):
            raise ConfigError(
                f"prompt {number} is {text!r}; the tracker knows prompts of the generated world: a colour "
                f"({', '.join(kinds[0])}), a shape ({', '.join(kinds[1])}) and a motion ({', '.join(kinds[2])})"
            )
        rows.append([prompts.WORDS.index(word) for word in spoken])
    return np.array(rows, np.int32).reshape(-1, 3)


def generated_clips(folder: Path) -> list[tuple[str, Path, str]]:
    """(name, path, caption) of the clips of a finished `experiments.generate`.

    Raises
    ------
    MissingDataError : it is none, or clips of its table are not there.
    """
    table = folder / "prompts.csv"
    if not table.exists() or not (folder / "DONE").exists():
        raise MissingDataError(f"{folder} is no finished experiments.generate: it would hold prompts.csv and DONE")
    with open(table, newline="", encoding="utf-8") as file:
        clips = [(row["video"], folder / "videos" / row["video"], row["caption"]) for row in csv.DictReader(file)]
    if absent := [name for name, path, _ in clips if not path.exists()]:
        raise MissingDataError(f"{folder}: {len(absent)} clips of prompts.csv are not in videos/, {absent[0]} for one")
    return clips


def score(video: np.ndarray, words: np.ndarray, measures: Measures = measure) -> Scores:
    """Metrics of clips uint8 [N, T, S, S, 3] of prompts int [N, 3]."""
    found = track(video)
    return measures(found, words, WorldConfig(frames=video.shape[1], size=video.shape[2]))


def through_autoencoder(pipeline: Pipeline, video: np.ndarray, batch: int = 16) -> np.ndarray:
    """Clips uint8 [N, T, S, S, 3] encoded and decoded: what a perfect sampler of the latents could show."""
    from jaxdiff.report.video import to_uint8

    padded = np.concatenate([video, np.repeat(video[-1:], -len(video) % batch, 0)])
    parts = [padded[i : i + batch] for i in range(0, len(padded), batch)]
    decoded = [to_uint8(np.asarray(pipeline.decode(pipeline.encode(jnp.asarray(part))))) for part in parts]
    return np.concatenate(decoded)[: len(video)]


def reference_scores(
    true: Reference, impossible: Reference, pipeline: Pipeline | None, seed: int, measures: Measures = measure
) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Scores of the sets of `SETS` (the autoencoder's where there is a pipeline), and the tracker's errors on true clips."""
    config = WorldConfig(frames=true.video.shape[1], size=true.video.shape[2])
    found = track(true.video)
    scores = {"true": measures(found, true.words, config)}
    errors = {"true": truth_errors(found, true.truth)}
    if pipeline is not None:
        rebuilt = track(through_autoencoder(pipeline, true.video))
        scores["autoencoder"] = measures(rebuilt, true.words, config)
        errors["autoencoder"] = truth_errors(rebuilt, true.truth)
    scores["shuffled"] = measures(found.shuffled(seed), true.words, config)
    scores["impossible"] = score(impossible.video, impossible.words, measures)
    return scores, errors


def estimates(scores: Scores, groups: np.ndarray | None = None, seed: int = 0) -> dict[str, Estimate]:
    """Mean of every metric over the clips that have it, with its interval over `groups` (default: every clip its own)."""
    found = {}
    for name, values in scores.items():
        there = np.isfinite(values)
        if not there.any():
            found[name] = Estimate(math.nan)
            continue
        names = np.arange(len(values)) if groups is None else groups
        ends = statistics.cluster_bootstrap(values[there], names[there], seed=seed, conditional_on=GIVEN)
        found[name] = Estimate(float(values[there].mean()), max(ends.low, 0.0), ends.high)  # no number is below zero
    return found


def estimates_json(found: Mapping[str, Estimate]) -> dict[str, Any]:
    """As result.json holds them."""
    return {name: estimate_json(value) for name, value in found.items()}


def scores_table(title: str, sets: Mapping[str, Mapping[str, Estimate]], caption: str) -> Table:
    """Metrics down, sets across."""
    rows = tuple(
        (f"{metric.name}: {metric.title}", *(found[key] for found in sets.values())) for key, metric in METRICS.items()
    )
    return Table(title, ("mean over clips", *sets), rows, caption)


def errors_table(errors: Mapping[str, Mapping[str, float]], size: int) -> Table:
    """The tracker beside the truth."""
    told = {
        "missed": "frames that show all of the thing, and it is not found",
        "false": "frames that show nothing of it, and something is found",
        "position": f"rms error of the centre, of the frame's side (1 pixel is {100 / size:.1f} %)",
        "position_95": "its 95th percentile",
        "colour": "wholly seen things whose colour is told wrong",
        "shape": "wholly seen things whose shape is told wrong",
    }
    rows = tuple((text, *(Estimate(found[key]) for found in errors.values())) for key, text in told.items())
    return Table("The tracker on clips whose truth is known", ("", *(SETS[key] for key in errors)), rows)


def clip_rows(name: str, names: Sequence[str], captions: Sequence[str], scores: Scores) -> list[dict[str, Any]]:
    """One line a clip, for csv."""
    return [
        {"set": name, "clip": clip, "prompt": text, **{key: float(values[i]) for key, values in scores.items()}}
        for i, (clip, text) in enumerate(zip(names, captions, strict=True))
    ]


def run_measure(config: MeasureConfig, workdir: Path, pipeline: Pipeline | None) -> None:
    """Read, track, score, report."""
    listed = (
        generated_clips(config.videos) if config.captions is None else captioned_videos(config.videos, config.captions)
    )
    names, files, captions = zip(*listed, strict=True)
    words = words_of(captions)
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("measure", clips=len(files)), progress("read", len(files)) as task:
            clips = []
            for file in files:
                clips.append(read_video(file))
                task.advance()
            if len({clip.shape for clip in clips}) > 1:
                shapes = sorted({str(list(clip.shape)) for clip in clips})
                raise ConfigError(f"{config.videos}: the clips differ in shape: {', '.join(shapes)}")
            video = np.stack(clips)
            scores = {"generated": score(video, words)}
        with work.stage("reference"):
            world = WorldConfig(frames=video.shape[1], size=video.shape[2])
            true, impossible = references(world, config.world_seed, config.scenes)
            known, errors = reference_scores(true, impossible, pipeline, config.seed)
        scores |= known
        groups = {"generated": np.unique(captions, return_inverse=True)[1]}
        found = {key: estimates(values, groups.get(key), config.seed) for key, values in scores.items()}
        lines = clip_rows("generated", names, captions, scores["generated"])
        for key, values in known.items():
            told = impossible if key == "impossible" else true
            lines += clip_rows(key, [str(i) for i in range(len(told.words))], told.captions, values)
        probe_csv(workdir / "clips.csv", lines, COLUMNS)
        work.write_result(
            {
                "headline": estimates_json(found["generated"]),
                "reference": {key: estimates_json(found[key]) for key in known},
                "tracker": errors,
                "clips": len(files),
                "prompts": len(set(captions)),
            }
        )
        report_run(work, report_study(found, errors, scores, video.shape[2]))
        work.finish(("result.json", "clips.csv"))
    print(summary(found, errors["true"]) + f"\n-> {workdir / 'report.html'}")


def summary(found: Mapping[str, Mapping[str, Estimate]], tracker: Mapping[str, float]) -> str:
    """Scores as lines of a terminal: value, floor, ceiling."""
    head = f"{'':20s}" + "".join(f"{name:>14s}" for name in found)
    rows = [
        f"{metric.name:20s}" + "".join(f"{100 * part[key].value:12.2f} %" for part in found.values())
        for key, metric in METRICS.items()
    ]
    tail = f"tracker on true clips: {100 * tracker['missed']:.2f} % of frames missed, centre off by {100 * tracker['position']:.2f} %"
    return "\n".join([head, *rows, tail])


def report_study(
    found: Mapping[str, Mapping[str, Estimate]], errors: Mapping[str, Mapping[str, float]], scores: Mapping[str, Scores],
    size: int,
) -> Study:  # fmt: skip
    """The report of one folder of clips."""
    empty = found["generated"]["empty"].value
    clips = len(scores["generated"]["empty"])
    return Study(
        title="Physics of generated clips",
        summary=(
            f"{clips} clips; in {100 * empty:.1f} % of them no thing is ever wholly seen. On true clips the tracker misses "
            f"{100 * errors['true']['missed']:.2f} % of the frames that show the thing whole."
        ),
        facts={"clips": str(clips), "true clips beside them": str(len(scores["true"]["empty"]))},
        tables=(
            scores_table(
                "Scores",
                {"generated": found["generated"]} | {SETS[key]: found[key] for key in scores if key in SETS},
                "Lower is better, but for the speed, which is neither. True clips are the floor; what shuffling "
                "time or swapping the thing does is the ceiling of those numbers that see it.",
            ),
            errors_table(errors, size),
        ),
        conditional_on=(GIVEN,),
    )
