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
from jaxdiff.data.datasets import SPLITS, Dataset
from jaxdiff.data.worlds.prompts import encode
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.report import Fidelity, probe_csv, write_report
from jaxdiff.store import ActivationStore
from jaxdiff.study import predictions
from jaxdiff.study.analysis import BOTH, Answer, Labels, Protocol, analyse
from jaxdiff.study.budget import choose_scenes
from jaxdiff.study.clips import WORLD, checked_data, described, load_data, store_metadata, told
from jaxdiff.study.controls import untrained
from jaxdiff.study.features import Features, kept_features
from jaxdiff.study.inputs import read_inputs, read_noised, surprise
from jaxdiff.study.inversion import measure, noise_measures, summary, text_condition, text_note
from jaxdiff.study.levels import LEVELS
from jaxdiff.study.mistakes import clip_errors, rank_correlation
from jaxdiff.study.reading import Encoded, Reading, invert_clips
from jaxdiff.study.regression import finish_targets
from jaxdiff.study.results import csv_rows, report_study, result_json
from jaxdiff.study.sources import PROMPT, VARIANTS, chosen_controls, make_sources, pools
from jaxdiff.workdir import Workdir

ASSETS = Path(__file__).parents[1] / "assets"
NANO, REAL = "nano", "real"

# Where the surprise of control models is measured.
CONTROL_LEVELS = (0.3, 0.5, 0.7, 0.9)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """See the flags of `experiments.study`."""

    model: str
    config: str = REAL
    dataset: str = WORLD
    data_dir: Path | None = None
    split: str | None = None
    subset: bool = False
    labels: Path | None = None
    leaking_prompt: bool = False
    structureless: Path | None = None
    frames: int = 81
    size: int | None = None
    sampling: str = "linspace"
    stride: int = 1
    steps: int = 100
    solver: str = "ab2"
    taps: tuple[str, ...] = ("block_out.mean",)
    capture_sigmas: tuple[float, ...] | None = LEVELS
    capture_at: tuple[int, ...] | None = None
    prompt: str = ""
    text_embeddings: str | None = None
    clips_per_device: int = 4
    dtype: str | None = None
    stream: bool = False
    controls: tuple[str, ...] = ("untrained", "noised")
    prompt_ablation: str | None = None
    encoders: tuple[Path, ...] = ()
    fidelity_clips: int = 4
    error_steps: int = 10
    scenes: int = 60
    time_budget: float = 0.0
    seed: int = 0
    world_seed: int = 0
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    which: str = BOTH  # --protocol
    capacity: bool = True
    published_seeds: int = 5
    published_batch: int = 32
    published_test: float = 0.4
    published_by_category: bool = False
    skip_bad_clips: bool = False

    def __post_init__(self):
        if self.config not in (NANO, REAL):
            raise ConfigError(f"--config={self.config} is unknown; choose {NANO} or {REAL}")
        if self.dataset not in SPLITS:
            raise ConfigError(f"--dataset={self.dataset} is unknown; choose one of {', '.join(SPLITS)}")
        if self.dataset != WORLD and self.data_dir is None:
            raise ConfigError(f"--dataset={self.dataset} needs --data_dir=DIR, the folder that holds it")
        for name in ("split", "subset", "labels", "leaking_prompt"):
            if self.dataset == WORLD and getattr(self, name):
                raise ConfigError(f"--{name} is for a data set on disk; generated scenes have none")
        if self.leaking_prompt and (self.prompt or self.text_embeddings is not None):
            raise ConfigError(
                "--leaking_prompt gives every clip its own prompt; leave out --prompt and --text_embeddings"
            )
        if self.time_budget and (self.dataset != WORLD or self.data_dir is not None):
            raise ConfigError(
                "--time_budget chooses how many scenes are generated; it needs --dataset=world and its folder"
            )
        chosen_controls(self.controls)
        if len({folder.name for folder in self.encoders}) < len(self.encoders):
            raise ConfigError(f"--encoders={','.join(map(str, self.encoders))}: two folders have one name")
        if (self.capture_sigmas is None) == (self.capture_at is None):
            raise ConfigError(
                "a study reads at noise levels (--capture_sigmas) or at steps (--capture_at), one of them"
            )
        for name in ("capture_sigmas", "capture_at"):
            places = getattr(self, name)
            if places is None:
                continue
            if 0 not in places:
                raise ConfigError(f"--{name} must hold 0: the clean latent is where the evidence is cleanest")
            if list(places) != sorted(set(places)):
                # The trajectory meets them in this order, and so do the tables that are made of what it read.
                raise ConfigError(f"--{name}={places} must ascend, each value once")

    def reading(self) -> Reading:
        names = {f.name for f in dataclasses.fields(Reading)} - {"order", "order_seed"}
        return Reading(**{name: getattr(self, name) for name in names})

    @property
    def captures(self) -> int:
        """How many places of the trajectory are read."""
        return len(self.capture_at if self.capture_sigmas is None else self.capture_sigmas)  # type: ignore[arg-type]

    def variants(self) -> dict[str, Reading]:
        """The model's own further inversions, by name (see `sources.VARIANTS`): how their clips are read."""
        reading = dataclasses.replace(self.reading(), error_steps=0)
        controls = chosen_controls(self.controls)
        orders = {name: order for name, (order, *_) in VARIANTS.items() if name in controls}
        found = {
            name: dataclasses.replace(reading, order=order, order_seed=self.seed) for name, order in orders.items()
        }
        return found if self.prompt_ablation is None else {**found, PROMPT: reading}

    def protocol(self, middle: float = 0.5) -> Protocol:
        """How it is probed; `middle` is the noise level that half of the steps lead to."""
        same = {f.name for f in dataclasses.fields(Protocol)} & {f.name for f in dataclasses.fields(self)}
        return Protocol(middle=middle, **{name: getattr(self, name) for name in same})


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
        scenes, data = config.scenes, None
        if not config.time_budget:  # which chooses how many scenes there are, and needs the model for it
            data = checked_data(work, config)
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
        stores: dict[str, ActivationStore] = {}
        noised: dict[str, ActivationStore] = {}
        skipped: dict[str, str] = {}
        for name, pipeline in models.pipelines.items():
            with work.stage("invert", model=name):
                stores[name], bad = invert_clips(
                    pipeline, clips, cond, models.reading(name, reading), workdir / "store" / name,
                    skip_bad_clips=config.skip_bad_clips, metadata=store_metadata(data), encoded=encoded,
                    title=f"invert ({name})",
                )  # fmt: skip
            skipped |= bad
        others: dict[str, ActivationStore] = {}
        for name, read in config.variants().items():
            with work.stage("invert", model=name):
                others[name], bad = invert_clips(
                    models.main, clips, ablated(models.main, config) if name == PROMPT else cond, read,
                    workdir / "store" / name, skip_bad_clips=config.skip_bad_clips,
                    metadata=store_metadata(data), encoded=encoded if name == PROMPT else None,
                    title=f"invert ({name})",
                )  # fmt: skip
            skipped |= bad
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
                encoders[folder.name] = encoder_features(folder, good, reading, workdir / "encoders")
        sources = make_sources(
            stores, noised, table, kept, variants=others, encoders=encoders, controls=controls,
            told=text_note(*ablation(config)) if config.prompt_ablation is not None else "", seed=config.seed,
        )  # fmt: skip
        if data.measured:
            finish_targets(
                work, config, data, sources, models.main, stores[models.first].records(), kept, cond,
                {**about(config, data, scenes, work), "skipped": tuple(sorted(skipped.items()))},
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
                **about(config, data, scenes, work),
                fidelity=measured,
                attention=attention,
                clips=views,
                skipped=tuple(sorted(skipped.items())),
            )
            write_report(workdir / "report.html", study)
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
    if "untrained" in chosen_controls(config.controls):
        pipelines["untrained"] = untrained(main, config.seed)
    return Models(pipelines)


def conditioning(pipeline: Pipeline, config: StudyConfig) -> Conditioning:
    """The prompt of the flags."""
    return _told(pipeline, config, config.prompt, config.text_embeddings)


def ablation(config: StudyConfig) -> tuple[str, str | None]:
    """Prompt and text embeddings of --prompt_ablation, which names a prompt, a file of embeddings, or zeros."""
    other = config.prompt_ablation or ""
    return ("", other) if other == "zeros" or other.endswith(".npy") else (other, None)


def ablated(pipeline: Pipeline, config: StudyConfig) -> Conditioning:
    """What the model is told instead, with --prompt_ablation."""
    return _told(pipeline, config, *ablation(config))


def _told(pipeline: Pipeline, config: StudyConfig, prompt: str, embeddings: str | None) -> Conditioning:
    """The conditioning; a nano model has no text encoder, but a vector for each word of the generated world."""
    if config.config == NANO and embeddings is None and pipeline.text_encoder is None:
        return Conditioning(text=jnp.asarray(encode(prompt, pipeline.transformer.config.text_dim))[None])
    return text_condition(pipeline, prompt, embeddings)


def encoder_features(folder: Path, clips: Sequence[Clip], reading: Reading, cache: Path) -> Features:
    """What a video encoder makes of the clips; made once, and then kept in the folder `cache`."""
    from jaxdiff.encoder import load_encoder
    from jaxdiff.study.encoders import read_encoder

    key = f"{folder} {reading} {[clip.name for clip in clips]}"
    return kept_features(
        cache / f"{folder.name}.npz",
        key,
        lambda: read_encoder(load_encoder(folder), clips, reading, title=f"encode ({folder.name})"),
    )


def load_clips(config: StudyConfig, workdir: Path, scenes: int) -> list[Clip]:
    """The clips of the data set."""
    return list(load_data(config, workdir, scenes).clips)


def whole_groups(clips: Sequence[Clip], finished: set[int]) -> list[int]:
    """Indices of the clips of every scene none of whose clips is missing: matched clips lose their match otherwise."""
    broken = {clip.group for i, clip in enumerate(clips) if i not in finished}
    kept = [i for i, clip in enumerate(clips) if clip.group not in broken]
    if not kept:
        raise MissingDataError("no scene has all of its clips; see the skipped clips above")
    return kept


def about(config: StudyConfig, data: Dataset, scenes: int, work: Workdir) -> dict[str, Any]:
    """What every report says of its clips and of its run."""
    session = work.sessions()[-1]
    return {
        "facts": facts(config, data),
        "notes": notes(described(config, data), scenes, data),
        "config": work.config,
        "seeds": {"study": config.seed, "world": config.world_seed},
        "environment": session,
        "command": " ".join(map(str, session["command"])),
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
