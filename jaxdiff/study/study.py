"""The study: one model and its controls read on a data set of matched possible and impossible clips, and probed."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.intphys import load_intphys
from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.flow.schedule import UniPCFlow
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.report import Fidelity, probe_csv, write_report
from jaxdiff.store import ActivationStore
from jaxdiff.study import predictions
from jaxdiff.study.analysis import Answer, Labels, Protocol, analyse
from jaxdiff.study.budget import choose_scenes
from jaxdiff.study.controls import untrained
from jaxdiff.study.inputs import read_inputs, read_noised, surprise
from jaxdiff.study.inversion import measure, noise_measures, summary, text_condition, text_note
from jaxdiff.study.mistakes import clip_errors, rank_correlation
from jaxdiff.study.probing import CLIP_LABELS, label_table
from jaxdiff.study.reading import Encoded, Reading, invert_clips
from jaxdiff.study.results import csv_rows, report_study, result_json
from jaxdiff.study.sources import make_sources
from jaxdiff.workdir import Workdir

ASSETS = Path(__file__).parents[1] / "assets"
NANO, REAL = "nano", "real"
WORLD = "world"

# Where the surprise of control models is measured.
CONTROL_LEVELS = (0.3, 0.5, 0.7, 0.9)

# Noise levels that are common to all models; 0 is the clean latent, before any step is taken.
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def nano_levels(steps: int) -> tuple[float, ...]:
    """The points of the nano model's own grid nearest to `LEVELS`, so that reading there adds no steps."""
    grid = UniPCFlow(shift=1.0).grid(steps)
    return tuple(sorted({round(float(grid[np.argmin(np.abs(grid - level))]), 6) for level in LEVELS}))


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """See the flags of `experiments.study`."""

    model: str
    config: str = REAL
    dataset: str = WORLD
    data_dir: Path | None = None
    structureless: Path | None = None
    frames: int = 81
    size: int | None = None
    sampling: str = "linspace"
    stride: int = 1
    steps: int = 100
    solver: str = "euler"
    taps: tuple[str, ...] = ("block_out.mean",)
    capture_sigmas: tuple[float, ...] = LEVELS
    prompt: str = ""
    text_embeddings: str | None = None
    clips_per_device: int = 4
    dtype: str | None = None
    stream: bool = False
    untrained: bool = True
    noised: bool = True
    fidelity_clips: int = 4
    error_steps: int = 10
    scenes: int = 60
    time_budget: float = 0.0
    seed: int = 0
    world_seed: int = 0
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    published_seeds: int = 5
    skip_bad_clips: bool = False

    def __post_init__(self):
        if self.config not in (NANO, REAL):
            raise ConfigError(f"--config={self.config} is unknown; choose {NANO} or {REAL}")
        if self.dataset not in (WORLD, "intphys"):
            raise ConfigError(f"--dataset={self.dataset} is unknown; choose world (generated scenes) or intphys")
        if self.dataset == "intphys" and self.data_dir is None:
            raise ConfigError("--dataset=intphys needs --data_dir=DIR, the folder that holds dev/")
        if self.time_budget and (self.dataset != WORLD or self.data_dir is not None):
            raise ConfigError(
                "--time_budget chooses how many scenes are generated; it needs --dataset=world and its folder"
            )
        if 0.0 not in self.capture_sigmas:
            raise ConfigError("--capture_sigmas must hold 0: the clean latent is where the evidence is cleanest")
        if list(self.capture_sigmas) != sorted(set(self.capture_sigmas)):
            # The trajectory meets them in this order, and so do the tables that are made of what it read.
            raise ConfigError(f"--capture_sigmas={self.capture_sigmas} must ascend, each value once")

    def reading(self) -> Reading:
        names = {f.name for f in dataclasses.fields(Reading)} - {"capture_at"}
        return Reading(**{name: getattr(self, name) for name in names})

    def protocol(self) -> Protocol:
        return Protocol(
            outer=self.outer, inner=self.inner, repeats=self.repeats, seed=self.seed,
            published_seeds=self.published_seeds,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Models:
    """The model and its control models, by name; the first is the model itself."""

    pipelines: dict[str, Pipeline]

    @property
    def first(self) -> str:
        """Name of the model itself."""
        return next(iter(self.pipelines))

    @property
    def main(self) -> Pipeline:
        return self.pipelines[self.first]

    def reading(self, name: str, reading: Reading) -> Reading:
        """How a model's clips are read: only the model itself pays for an error per clip."""
        return reading if name == self.first else dataclasses.replace(reading, error_steps=0)


def run_study(config: StudyConfig, workdir: Path) -> None:
    """Invert, probe, report; every stage continues where an interrupted run stopped."""
    start = time.monotonic()
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("load"):
            models = load_models(config)
            cond = conditioning(models.main, config)
        with work.stage("budget"):
            effort = evaluations(config, len(models.pipelines))
            scenes = choose_scenes(work, config, models.main, cond, effort, time.monotonic() - start)
        with work.stage("data"):
            clips = load_clips(config, workdir, scenes)
        reading, encoded = config.reading(), Encoded()
        stores: dict[str, ActivationStore] = {}
        noised: dict[str, ActivationStore] = {}
        skipped: dict[str, str] = {}
        for name, pipeline in models.pipelines.items():
            with work.stage("invert", model=name):
                stores[name], bad = invert_clips(
                    pipeline, clips, cond, models.reading(name, reading), workdir / "store" / name,
                    skip_bad_clips=config.skip_bad_clips, metadata={CLIP_LABELS: label_table(clips)}, encoded=encoded,
                    title=f"invert ({name})",
                )  # fmt: skip
            skipped |= bad
        kept = whole_groups(clips, set.intersection(*(store.finished() for store in stores.values())))
        good = [clips[i] for i in kept]
        if config.noised:
            for name, pipeline in models.pipelines.items():
                levels = config.capture_sigmas if name == models.first else control_levels(config.capture_sigmas)
                with work.stage("noised", model=name):
                    noised[name] = read_noised(
                        pipeline, good, cond, reading, levels, workdir / "noised" / name,
                        seed=config.seed, encoded=encoded, title=f"noised latents ({name})",
                    )  # fmt: skip
        with work.stage("inputs"):
            table = read_inputs(models.main, good, reading)
        labels = Labels.of(good)
        sources = make_sources(stores, noised, table, kept)
        with work.stage("probe", clips=len(good)):
            answers = analyse(sources, labels, config.protocol())
        surprises = {name: surprise(store) for name, store in noised.items()}
        with work.stage("fidelity"):
            chosen = good[:: max(1, len(good) // max(1, config.fidelity_clips))][: config.fidelity_clips]
            measured, views, attention = measure(models.main, chosen, cond, reading)
            records = stores[models.first].records()
            errors = clip_errors(records, kept)
            measured = dataclasses.replace(measured, noise=noise_measures({i: records[i] for i in kept}))
            measured = with_mistakes(measured, answers["states"], errors, labels, config)
        work.write(predictions.FILE, predictions.pack(answers, labels, surprises, config.capture_sigmas, good, errors))
        probe_csv(workdir / "probe.csv", csv_rows(answers, labels, surprises, config.seed))
        result = result_json(answers, labels, surprises, config.seed)
        work.write_result(
            {
                **result,
                "clips": len(good),
                "scenes": len(set(labels.groups.tolist())),
                "skipped": sorted(skipped),
                "fidelity": summary(measured),
                "text": text_note(config.prompt, config.text_embeddings),
            }
        )
        with work.stage("report"):
            study = report_study(answers, labels, surprises, config.capture_sigmas, config.seed)
            study = dataclasses.replace(
                study,
                title=f"Is plausibility linearly decodable from the states of {config.model}?",
                facts=facts(config, good, labels),
                fidelity=measured,
                attention=attention,
                clips=views,
                skipped=tuple(sorted(skipped.items())),
                notes=notes(config, scenes),
                config=work.config,
                seeds={"study": config.seed, "world": config.world_seed},
                environment=work.sessions()[-1],
                command=" ".join(map(str, work.sessions()[-1]["command"])),
            )
            write_report(workdir / "report.html", study)
        work.finish(("result.json", "probe.csv", predictions.FILE))
    print(headline(result["headline"], workdir))


def evaluations(config: StudyConfig, models: int) -> float:
    """Forward passes of the whole study for a clip, in units of one inversion."""
    passes = models * config.steps + config.error_steps
    if config.noised:
        passes += len(config.capture_sigmas) + (models - 1) * len(control_levels(config.capture_sigmas))
    return passes / config.steps


def control_levels(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Noise levels at which control models are read on noised latents, which only serves their surprise."""
    values = np.asarray(sigmas)
    return tuple(sorted({float(values[np.argmin(np.abs(values - level))]) for level in CONTROL_LEVELS}))


def with_mistakes(
    measured: Fidelity, states: Answer, errors: np.ndarray, labels: Labels, config: StudyConfig
) -> Fidelity:
    """Each clip's error beside whether the probe told it wrong on the fold that held it out."""
    known = np.isfinite(errors)
    if not known.any():
        return measured
    wrong = 1.0 - states.result.hits[known]
    return dataclasses.replace(
        measured,
        mistakes=wrong > 0.5,
        clip_error=errors[known],
        clip_error_name=f"relative distance between the ends of {config.error_steps} and of {config.steps} steps (by rank)",
        mistake_correlation=rank_correlation(errors[known], wrong, labels.groups[known], seed=config.seed),
    )


def load_models(config: StudyConfig) -> Models:
    """The model, the structure-less control if there is one, and the untrained control."""
    dtype = None if config.dtype is None else jnp.dtype(config.dtype)
    nano = config.model == NANO
    main = load(ASSETS / NANO if nano else config.model, dtype=dtype)
    pipelines = {"trained": main}
    other = ASSETS / f"{NANO}-structureless" if nano and config.structureless is None else config.structureless
    if other is not None:
        control = load(other, dtype=dtype)
        pipelines["structureless"] = dataclasses.replace(control, vae=main.vae)
    if config.untrained:
        pipelines["untrained"] = untrained(main, config.seed)
    return Models(pipelines)


def conditioning(pipeline: Pipeline, config: StudyConfig) -> Conditioning:
    """The prompt of the flags; a nano model's empty prompt is one zero token by construction."""
    if config.config == NANO and not config.prompt and config.text_embeddings is None:
        return text_condition(pipeline, "", "zeros")
    return text_condition(pipeline, config.prompt, config.text_embeddings)


def load_clips(config: StudyConfig, workdir: Path, scenes: int) -> list[Clip]:
    """The data set's labelled clips; generated scenes are written in IntPhys's layout and read back by its loader."""
    if config.dataset == WORLD:
        from jaxdiff.data.worlds.layout import write_intphys

        folder = config.data_dir or workdir / "world"
        world = WorldConfig(frames=config.frames, size=config.size or 32)
        write_intphys(world, config.world_seed, scenes, folder, depth=False, masks=False)
        return load_intphys(folder, scenes=scenes)
    assert config.data_dir is not None  # checked by the config
    return load_intphys(config.data_dir)


def whole_groups(clips: Sequence[Clip], finished: set[int]) -> list[int]:
    """Indices of the clips of every scene none of whose clips is missing: matched clips lose their match otherwise."""
    broken = {clip.group for i, clip in enumerate(clips) if i not in finished}
    kept = [i for i, clip in enumerate(clips) if clip.group not in broken]
    if not kept:
        raise MissingDataError("no scene has all of its clips; see the skipped clips above")
    return kept


def facts(config: StudyConfig, clips: Sequence[Clip], labels: Labels) -> dict[str, str]:
    """The small facts under the report's heading."""
    scenes = len(set(labels.groups.tolist()))
    return {
        "clips": f"{len(clips)} of {scenes} scenes",
        "frames": f"{config.frames} at {config.size or 'their own'} px",
        "inversion": f"{config.solver}, {config.steps} steps",
        "noise levels": f"{len(config.capture_sigmas)}",
    }


def notes(config: StudyConfig, scenes: int) -> tuple[str, ...]:
    """What a reader must know before believing a number."""
    told = [text_note(config.prompt, config.text_embeddings)]
    if config.config == NANO and config.text_embeddings is None and not config.prompt:
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
    return tuple(told)


def headline(entries: dict[str, Any], workdir: Path) -> str:
    """The lines that the binary prints."""
    lines = []
    for key, entry in entries.items():
        if entry["value"] is None:
            continue
        band = "" if entry["low"] is None else f"  ({100 * entry['low']:.1f}-{100 * entry['high']:.1f})"
        lines.append(f"{key:>14}  {100 * entry['value']:5.1f} %{band}")
    return "\n".join([*lines, f"-> {workdir / 'report.html'}"])
