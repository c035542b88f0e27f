"""Scores of a benchmark's clips, in the files that its leaderboard or evaluator takes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data import inflevel, intphys, intphys2
from jaxdiff.data.clip import Clip
from jaxdiff.data.datasets import Dataset, open_dataset
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.probes.cross_validation import LinearProbeCV, nested_cross_validate
from jaxdiff.report import report_run
from jaxdiff.report.study import Estimate, Study, Table
from jaxdiff.store import ActivationStore
from jaxdiff.study.analysis import Labels, matched_pairs
from jaxdiff.study.clips import refuse_unreadable
from jaxdiff.study.config import NANO
from jaxdiff.study.features import Candidate, Features, stored_features
from jaxdiff.study.inputs import read_noised, surprise
from jaxdiff.study.inversion import text_note
from jaxdiff.study.models import ASSETS, conditioning
from jaxdiff.study.probing import CLIP_LABELS
from jaxdiff.study.reading import Reading, invert_clips
from jaxdiff.study.results import estimate_json
from jaxdiff.study.sources import blocks_and_input
from jaxdiff.taps import Tap
from jaxdiff.workdir import Workdir

SPLITS = {"intphys": "test", "intphys2": "HeldOut", "inflevel_lab": None, "inflevel_sim": None}
"""What can be submitted, and which split of it."""

CALIBRATION = "Main"  # of IntPhys 2: where the threshold between possible and impossible is found
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class SubmitConfig:
    """See the flags of `experiments.submit`."""

    model: str
    dataset: str
    data_dir: Path
    config: str = "real"
    split: str | None = None
    subset: bool = False
    levels: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    threshold: float | None = None
    store: Path | None = None
    frames: int = 81
    size: int | None = None
    sampling: str = "linspace"
    stride: int = 1
    prompt: str = ""
    text_embeddings: str | None = None
    clips_per_device: int = 1
    dtype: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.dataset not in SPLITS:
            raise ConfigError(f"--dataset={self.dataset} has no submission; choose one of {', '.join(SPLITS)}")
        if self.split not in (None, SPLITS[self.dataset]):
            raise ConfigError(f"--split={self.split} is not submitted; leave the flag out")
        if self.store is not None and self.dataset.startswith("inflevel"):
            raise ConfigError(f"--store: {inflevel.NO_TRAINING} Leave out --store.")
        if not self.levels or not all(0 < level < 1 for level in self.levels):
            raise ConfigError(f"--levels={self.levels}: give noise levels between 0 and 1, without these two")
        if self.threshold is not None and self.dataset != "intphys2":
            raise ConfigError("--threshold is for --dataset=intphys2 alone; the others take scores")


@dataclasses.dataclass(frozen=True)
class LossReading(Reading):
    """How clips are read for their denoising loss alone; a store holds at least one array, so this one is small."""

    def tap_objects(self) -> tuple[Tap, ...]:
        """What enters the first block, averaged."""
        return (Tap("block_in", "mean", blocks=(0,), name="input.mean"),)


@dataclasses.dataclass(frozen=True)
class Scored:
    """`plausibility` [n] of every clip, larger for what looks possible; the `threshold` above which it is called
    possible, where there is one; and what the result says of how it came about."""

    plausibility: np.ndarray
    threshold: float | None
    facts: dict[str, Any]


def run_submission(config: SubmitConfig, workdir: Path) -> None:
    """Score every clip and write the files; every stage continues where an interrupted run stopped."""
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        source = None if config.store is None else ActivationStore.open(config.store)
        reading = _loss_reading(config) if source is None else _reading_of(source, config)
        with work.stage("data"):
            data = open_dataset(
                config.dataset, config.data_dir, split=SPLITS[config.dataset], subset=config.subset, to_submit=True
            )
            calibrating = config.dataset == "intphys2" and config.threshold is None and source is None
            known = _calibration(config) if calibrating else None
            refuse_unreadable(work, [*data.clips, *(known.clips if known else ())], reading, config.data_dir)
        with work.stage("load"):
            dtype = None if config.dtype is None else jnp.dtype(config.dtype)
            pipeline = load(ASSETS / NANO if config.model == NANO else config.model, dtype=dtype)
            settings: Any = config  # what the model is told has the names that it has in a study
            cond = conditioning(pipeline, settings)
        with work.stage("score", clips=len(data)):
            if source is None:
                scored = _by_surprise(config, pipeline, cond, reading, data, known, workdir)
            else:
                scored = _by_probe(config, pipeline, cond, reading, source, data, workdir)
        files = write_submission(workdir, data, scored)
        names = [path.relative_to(workdir).as_posix() for path in files]
        found = _accuracies(data, scored.plausibility, config.seed)
        said: dict[str, Any] = {"text": text_note(config.prompt, config.text_embeddings), "notes": list(data.notes)}
        headline = {name: estimate_json(estimate) for name, estimate in found.items()}
        work.write_result(
            {"dataset": data.name, "split": data.split, "clips": len(data), "files": names, "headline": headline}
            | scored.facts
            | said
        )
        with work.stage("report"):
            told: tuple[tuple[Any, ...], ...] = tuple((key, str(value)) for key, value in scored.facts.items())
            tables = [Table("How clips were scored", ("", ""), told)]
            if found:
                rows: tuple[tuple[Any, ...], ...] = tuple(found.items())
                caption = "Share of (possible, impossible) pairs of a matched set ranked right, ties one half; 95 % over groups."
                tables.append(Table("Pairs ranked right", ("", "pairs"), rows, caption))
            report_run(
                work,
                Study(
                    title=f"Scores of {data.name} by {config.model}",
                    summary=f"{len(data)} clips scored; {', '.join(names)} written.",
                    tables=tuple(tables),
                    notes=(*data.notes, said["text"]),
                ),
            )
        work.finish(("result.json", *names))
    print("\n".join(str(path) for path in files))


def write_submission(folder: Path, data: Dataset, scored: Scored) -> list[Path]:
    """Write what the benchmark takes.

    IntPhys: answer.txt and answer.zip, whose scores are probabilities. IntPhys 2: answers.jsonl, yes or no by the
    threshold. InfLevel: a table of scores for each category.
    """
    names = [clip.name for clip in data.clips]
    if data.name == "intphys":
        scenes = len({clip.group for clip in data.clips if clip.category == intphys.BLOCKS[0]})
        chances = dict(zip(names, scored.plausibility.tolist(), strict=True))
        return [folder / "answer.txt", intphys.write_answers(folder, data.clips, chances, scenes)]
    if data.name == "intphys2":
        answers = dict(zip(names, (scored.plausibility > scored.threshold).tolist(), strict=True))
        return [intphys2.write_heldout(folder / "answers.jsonl", data.clips, answers, len(data))]
    scores = dict(zip(names, scored.plausibility.tolist(), strict=True))
    return inflevel.write_scores(folder, data.clips, scores)


def _accuracies(data: Dataset, plausibility: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Pairs ranked right, of all clips and by category, where labels are known."""
    if data.clips[0].possible is None:
        return {}
    categories = sorted({clip.category for clip in data.clips})
    found = {}
    for name in (*categories, "all") if len(categories) > 1 else categories:
        at = [i for i, clip in enumerate(data.clips) if name in (clip.category, "all")]
        part = data.only(at)
        value, interval = matched_pairs(plausibility[at], Labels.of(part.clips, part.matched), seed=seed)
        found[name] = Estimate(value, *interval)
    return found


# ------------------------------------------------------------------------------------------------ by surprise


def _loss_reading(config: SubmitConfig) -> Reading:
    return LossReading(
        frames=config.frames, size=config.size, sampling=config.sampling, stride=config.stride,
        clips_per_device=config.clips_per_device,
    )  # fmt: skip


def _calibration(config: SubmitConfig) -> Dataset:
    try:
        return open_dataset("intphys2", config.data_dir, split=CALIBRATION, subset=config.subset)
    except MissingDataError as error:
        raise MissingDataError(
            f"HeldOut is answered by yes or no, and the threshold between them is found on {CALIBRATION}: {error}\n"
            "Put it there, or give --threshold."
        ) from None


def _by_surprise(
    config: SubmitConfig,
    pipeline: Pipeline,
    cond: Conditioning,
    reading: Reading,
    data: Dataset,
    known: Dataset | None,
    workdir: Path,
) -> Scored:
    def losses(clips: Sequence[Clip], name: str) -> np.ndarray:
        store = read_noised(
            pipeline, clips, cond, reading, config.levels, workdir / "noised" / name, seed=config.seed, title=name
        )
        return surprise(store).losses.mean(1)

    loss = losses(data.clips, data.split or data.name)
    facts: dict[str, Any] = {"method": "surprise", "levels": list(config.levels)}
    if data.name == "intphys":  # the loss is that of a likelihood, and this is it up to scale; it needs no other clip
        return Scored(np.exp(-loss), None, {**facts, "score": "exp(-surprise)"})
    if known is None:
        threshold = None if config.threshold is None else -config.threshold
        chosen = {} if threshold is None else {"threshold": config.threshold, "threshold_from": "--threshold"}
        return Scored(-loss, threshold, {**facts, "score": "-surprise", **chosen})
    possible = np.array([clip.possible for clip in known.clips], bool)
    threshold, rate = best_threshold(losses(known.clips, known.split), possible)
    found = {"threshold": threshold, "threshold_from": known.split, "threshold_accuracy": rate}
    return Scored(-loss, -threshold, {**facts, "score": "-surprise", **found})


def best_threshold(loss: np.ndarray, possible: np.ndarray) -> tuple[float, float]:
    """The loss below which calling clips possible is right most often, midway between two clips, and how often it is.

    Of equally good ones the middle one.
    """
    values = np.unique(loss)
    between = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    right = np.mean((loss < between[:, None]) == possible, axis=1)
    best = np.flatnonzero(right == right.max())
    at = best[len(best) // 2]
    return float(between[at]), float(right[at])


# --------------------------------------------------------------------------------------------------- by probe


def _reading_of(store: ActivationStore, config: SubmitConfig) -> Reading:
    """How the study read its clips, so that these are read alike."""
    try:
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in store.metadata["reading"].items()
        }
        return dataclasses.replace(Reading(**values), error_steps=0, clips_per_device=config.clips_per_device)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"--store={config.store} was not written by a study of this version ({error!r})") from None


def _by_probe(
    config: SubmitConfig,
    pipeline: Pipeline,
    cond: Conditioning,
    reading: Reading,
    source: ActivationStore,
    data: Dataset,
    workdir: Path,
) -> Scored:
    name, place, probe, facts = fit_on(source, config.seed, f"--store={config.store}")
    folder = workdir / "store"
    if "seed" in source.metadata:  # one pass a level, no inversion
        levels, seed = source.metadata["sigmas"], source.metadata["seed"]
        store = read_noised(pipeline, data.clips, cond, reading, levels, folder, seed=seed, title=data.split)
    else:
        store, _ = invert_clips(pipeline, data.clips, cond, reading, folder, title=data.split)
    found = _blocks(store, range(len(data)))
    if place not in found.candidates.get(name, ()):
        raise ConfigError(f"--store={config.store} was read from another model than --model={config.model}")
    margins = probe.decision_function(found.arrays[name][found.candidates[name].index(place)])
    facts = {"method": "probe", "store": str(config.store), **facts}
    if data.name == "intphys":
        return Scored(1 / (1 + np.exp(-margins)), None, {**facts, "score": "the probe's probability"})
    threshold = 0.0 if config.threshold is None else config.threshold
    return Scored(margins, threshold, {**facts, "score": "the probe's margin", "threshold": threshold})


def fit_on(store: ActivationStore, seed: int, where: str) -> tuple[str, Candidate, LinearProbeCV, dict[str, Any]]:
    """A probe for new clips from a labelled store: array, cell and penalty that do best in grouped cross-validation,
    refitted on all of its clips; and how well that does on clips it has not seen, chosen inside the folds.
    """
    table: Mapping[str, Any] = {row[0]: row[1:] for row in store.metadata.get(CLIP_LABELS, ())}
    kept = [i for i in sorted(store.finished()) if store.names[i] in table]
    if not kept:
        raise ConfigError(f"{where} holds no labels; give the store of a study of the labelled split")
    possible, groups, categories = (np.array([table[store.names[i]][k] for i in kept]) for k in range(3))
    features = _blocks(store, kept)
    scenes = len(set(groups.tolist()))
    outer = min(FOLDS, scenes)
    inner = min(FOLDS, scenes - -(-scenes // outer))
    nested = nested_cross_validate(
        features.arrays, possible, groups, outer=outer, inner=inner, seed=seed, strata=categories
    )
    name = max(nested.grid, key=lambda key: float(nested.grid[key].max()))
    cell = int(nested.grid[name].argmax())
    probe = LinearProbeCV(folds=outer, seed=seed).fit(features.arrays[name][cell], possible, groups, categories)
    place = features.candidates[name][cell]
    honest = Estimate(nested.accuracy, *nested.interval)
    chosen = {"array": name, "block": place.block, "sigma": place.sigma, "penalty": probe.penalty}
    return name, place, probe, {"chosen": chosen, "nested_accuracy": estimate_json(honest)}


def _blocks(store: ActivationStore, clips: Sequence[int]) -> Features:
    return blocks_and_input(stored_features(store, clips))[0]
