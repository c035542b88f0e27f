"""The study: one model and its controls read on a data set of matched possible and impossible clips, and probed."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.datasets import Dataset
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.pipeline import Pipeline
from jaxdiff.report import Fidelity, probe_csv, report_run
from jaxdiff.store import ActivationStore
from jaxdiff.study import predictions
from jaxdiff.study.analysis import Answer, Labels, analyse
from jaxdiff.study.batches import Encoded, Prompts
from jaxdiff.study.budget import choose_scenes
from jaxdiff.study.clips import WORLD, checked_data, described, load_data, store_metadata, told
from jaxdiff.study.config import NANO, StudyConfig, encoder_name
from jaxdiff.study.inputs import read_inputs, read_noised, surprise
from jaxdiff.study.inversion import measure, noise_measures, summary, text_note
from jaxdiff.study.mistakes import clip_errors, rank_correlation
from jaxdiff.study.models import (
    Models,
    ablated,
    ablation,
    conditioning,
    encoder_features,
    load_models,
    refuse_large_study,
    refuse_missing_encoders,
)
from jaxdiff.study.reading import ORDERS, invert_clips
from jaxdiff.study.regression import finish_targets
from jaxdiff.study.results import csv_rows, report_study, result_json
from jaxdiff.study.sources import PROMPT, chosen_controls, make_sources, pools
from jaxdiff.workdir import Workdir

# Where the surprise of control models is measured.
CONTROL_LEVELS = (0.3, 0.7)


def invert_all(
    work: Workdir,
    config: StudyConfig,
    models: Models,
    data: Dataset,
    cond: Conditioning | Prompts,
    encoded: Encoded,
    shard: tuple[int, int] | None = None,
) -> tuple[dict[str, ActivationStore], dict[str, ActivationStore], dict[str, str]]:
    """All inversions of a study, by every model and on every variant of the input: their stores, and skipped clips."""
    stores: dict[str, ActivationStore] = {}
    others: dict[str, ActivationStore] = {}
    skipped: dict[str, str] = {}
    plan = [
        *(
            (stores, name, model, cond, models.reading(name, config.reading()))
            for name, model in models.pipelines.items()
        ),
        *((others, name, models.main, cond, reading) for name, reading in config.variants().items()),
    ]
    for found, name, pipeline, usual, reading in plan:
        said = ablated(pipeline, config) if name == PROMPT else usual
        with work.stage("invert", model=name):
            found[name], bad = invert_clips(
                pipeline, data.clips, said, reading, work.path / "store" / name, skip_bad_clips=config.skip_bad_clips,
                metadata=store_metadata(data), encoded=encoded if reading.order == ORDERS[0] else None,
                title=f"invert ({name})", shard=shard,
            )  # fmt: skip
        skipped |= bad
    return stores, others, skipped


def run_shard(config: StudyConfig, workdir: Path, shard: tuple[int, int]) -> None:
    """The inversions of a study for every n-th clip from the k-th on, of `shard` (k, n), into the study's own stores.

    Any number of processes do this at the same time, wherever they see the folders; `run_study` then finds the clips done.

    Raises
    ------
    ConfigError : scenes are generated, which one process must do.
    """
    if config.dataset == WORLD:
        raise ConfigError(
            "--shard: generated scenes are written by one process. Write them with experiments.make_world, and give "
            "--dataset=intphys --subset --data_dir=DIR"
        )
    with Workdir(workdir, config, primary=False) as work:
        if work.done:
            return
        data = checked_data(work, config, shard)
        refuse_large_study(config, data)
        models = load_models(config)
        cond = told(models.main, data, conditioning(models.main, described(config, data)))
        invert_all(work, config, models, data, cond, Encoded(), shard)
    print(f"shard {shard[0]} of {shard[1]} inverted; once all are, the same command without --shard does the rest")


def run_study(config: StudyConfig, workdir: Path) -> None:
    """Invert, probe, report; every stage continues where an interrupted run stopped."""
    start = time.monotonic()
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        refuse_missing_encoders(config)
        scenes, data = config.scenes, None
        if not config.time_budget:  # which chooses how many scenes there are, and needs the model for it
            data = checked_data(work, config)
        refuse_large_study(config, data)
        with work.stage("load"):
            models = load_models(config)
            cond = conditioning(models.main, described(config, data))
        if data is None:
            with work.stage("budget"):
                effort = evaluations(config, len(models.pipelines))
                scenes = choose_scenes(work, config, models.main, cond, effort, time.monotonic() - start)
                data = load_data(config, workdir, scenes)
        clips, cond = data.clips, told(models.main, data, cond)
        reading, encoded = config.reading(), Encoded()
        noised: dict[str, ActivationStore] = {}
        stores, others, skipped = invert_all(work, config, models, data, cond, encoded)
        finished = [store.finished() for store in (*stores.values(), *others.values())]
        kept = whole_groups(clips, set.intersection(*finished))
        data = data.only(kept)
        good = data.clips
        sigmas = config.capture_sigmas or tuple(stores[models.first].metadata["sigmas"])
        controls = chosen_controls(config.controls)
        if "noised" in controls:
            for name, pipeline in models.pipelines.items():
                levels = sigmas if name == models.first else control_levels(sigmas)
                with work.stage("noised", model=name):
                    noised[name] = read_noised(
                        pipeline, good, cond, reading, levels, workdir / "noised" / name,
                        seed=config.seed, encoded=encoded, title=f"noised latents ({name})",
                    )  # fmt: skip
        with work.stage("inputs"):
            table = read_inputs(models.main, good, reading, pools=pools(controls))
        encoders = {}
        for folder in config.encoders:
            with work.stage("encoder", folder=str(folder)):
                encoders[encoder_name(folder)] = encoder_features(folder, good, reading, workdir / "encoders")
        sources = make_sources(
            stores, noised, table, kept, variants=others, encoders=encoders, controls=controls,
            told=text_note(*ablation(config)) if config.prompt_ablation is not None else "", seed=config.seed,
        )  # fmt: skip
        if data.measured:
            finish_targets(
                work, config, data, sources, models.main, stores[models.first].records(), kept, cond,
                {**about(config, data, scenes), "skipped": tuple(sorted(skipped.items()))},
            )  # fmt: skip
            return
        labels = Labels.of(good, data.matched)
        with work.stage("probe", clips=len(good)):
            answers = analyse(sources, labels, config.protocol(halfway(models.main, config, sigmas)))
        surprises = {name: surprise(store) for name, store in noised.items()}
        with work.stage("fidelity"):
            chosen = good[:: max(1, len(good) // max(1, config.fidelity_clips))][: config.fidelity_clips]
            measured, views, attention = measure(models.main, chosen, cond, reading)
            records = stores[models.first].records()
            errors = clip_errors(records, kept)
            measured = dataclasses.replace(measured, noise=noise_measures({i: records[i] for i in kept}))
            measured = with_mistakes(measured, answers["states"], errors, labels, config)
        work.write(predictions.FILE, predictions.pack(answers, labels, surprises, sigmas, good, errors))
        probe_csv(workdir / "probe.csv", csv_rows(answers, labels, surprises, config.seed))
        result = result_json(answers, labels, surprises, config.seed)
        work.write_result(
            {
                **result,
                "clips": len(good),
                "scenes": len(set(labels.groups.tolist())),
                "skipped": sorted(skipped),
                "fidelity": summary(measured),
                "text": text_note(described(config, data).prompt, config.text_embeddings),
                "notes": list(data.notes),
            }
        )
        with work.stage("report"):
            study = report_study(answers, labels, surprises, sigmas, config.seed)
            study = dataclasses.replace(
                study,
                title=f"Is plausibility linearly decodable from the states of {config.model}?",
                **about(config, data, scenes),
                fidelity=measured,
                attention=attention,
                clips=views,
                skipped=tuple(sorted(skipped.items())),
            )
            report_run(work, study)
        work.finish(("result.json", "probe.csv", predictions.FILE))
    print(headline(result["headline"], workdir))


def evaluations(config: StudyConfig, models: int) -> float:
    """Forward passes of the whole study for a clip, in units of one inversion."""
    passes = (models + len(config.variants())) * config.steps + config.error_steps
    if "noised" in chosen_controls(config.controls):
        passes += config.captures + (models - 1) * len(CONTROL_LEVELS)
    return passes / config.steps


def halfway(pipeline: Pipeline, config: StudyConfig, sigmas: Sequence[float]) -> float:
    """The noise level after half of the steps, t = 0.5 of the paper, whose axis is the step.

    Where the grid depends on the size of the video and steps were not read by number, 0.5.
    """
    half = config.steps // 2
    if config.capture_at is not None:
        return float(sigmas[int(np.argmin(np.abs(np.array(config.capture_at) - half)))])
    try:
        return float(pipeline.schedule.grid(config.steps)[-1 - half])
    except ConfigError:
        return 0.5


def control_levels(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Noise levels at which control models are read on noised latents, which only serves their surprise."""
    values = np.asarray(sigmas)
    return tuple(sorted({float(values[np.argmin(np.abs(values - level))]) for level in CONTROL_LEVELS}))


def with_mistakes(
    measured: Fidelity, states: Answer, errors: np.ndarray, labels: Labels, config: StudyConfig
) -> Fidelity:
    """Each clip's error beside whether the probe told it wrong on the fold that held it out."""
    known = np.isfinite(errors)
    if not known.any() or states.nested is None:
        return measured
    wrong = 1.0 - states.result.hits[known]
    return dataclasses.replace(
        measured,
        mistakes=wrong > 0.5,
        clip_error=errors[known],
        clip_error_name=f"relative distance between the ends of {config.error_steps} and of {config.steps} steps (by rank)",
        mistake_correlation=rank_correlation(errors[known], wrong, labels.groups[known], seed=config.seed),
    )


def whole_groups(clips: Sequence[Clip], finished: set[int]) -> list[int]:
    """Indices of the clips of every scene none of whose clips is missing: matched clips lose their match otherwise."""
    broken = {clip.group for i, clip in enumerate(clips) if i not in finished}
    kept = [i for i, clip in enumerate(clips) if clip.group not in broken]
    if not kept:
        raise MissingDataError("no scene has all of its clips; see the skipped clips above")
    return kept


def about(config: StudyConfig, data: Dataset, scenes: int) -> dict[str, Any]:
    """What every report says of its clips."""
    return {
        "facts": facts(config, data),
        "notes": notes(described(config, data), scenes, data),
        "seeds": {"study": config.seed, "world": config.world_seed},
    }


def facts(config: StudyConfig, data: Dataset) -> dict[str, str]:
    """The small facts under the report's heading."""
    scenes = len({clip.group for clip in data.clips})
    return {
        "clips": f"{len(data)} of {scenes} scenes",
        "frames": f"{config.frames} at {config.size or 'their own'} px",
        "inversion": f"{config.solver}, {config.steps} steps",
        "noise levels": f"{config.captures}",
    }


def notes(config: StudyConfig, scenes: int, data: Dataset) -> tuple[str, ...]:
    """What a reader must know before believing a number; what the data set demands to be said comes first."""
    told = [text_note(config.prompt, config.text_embeddings)] if data.prompts is None else []
    if config.config == NANO and config.text_embeddings is None and not config.prompt and data.prompts is None:
        told = ["prompt: empty, which the nano model was trained to see as one zero token"]
    if config.dataset == WORLD:
        chosen = (
            f" (as many as a budget of {config.time_budget:g} s held here, {config.scenes} at least)"
            if config.time_budget
            else ""
        )
        told.append(
            f"generated scenes, {scenes} for each of the three categories{chosen}; world seed {config.world_seed}"
        )
    return (*data.notes, *told)


def headline(entries: dict[str, Any], workdir: Path) -> str:
    """The lines that the binary prints."""
    lines = []
    for key, entry in entries.items():
        if entry["value"] is None:
            continue
        band = "" if entry["low"] is None else f"  ({100 * entry['low']:.1f}-{100 * entry['high']:.1f})"
        lines.append(f"{key:>14}  {100 * entry['value']:5.1f} %{band}")
    return "\n".join([*lines, f"-> {workdir / 'report.html'}"])
