"""The study: one model and its controls read on a data set of matched possible and impossible clips, and probed."""

import dataclasses
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
from jaxdiff.report import probe_csv, write_report
from jaxdiff.store import ActivationStore
from jaxdiff.study.analysis import Labels, Protocol, Source, analyse
from jaxdiff.study.controls import untrained
from jaxdiff.study.features import Features, input_features, stored_features
from jaxdiff.study.inputs import read_inputs, read_noised, surprise
from jaxdiff.study.inversion import measure, noise_measures, summary, text_condition, text_note
from jaxdiff.study.probing import label_table
from jaxdiff.study.reading import INPUT, Reading, invert_clips
from jaxdiff.study.results import csv_rows, report_study, result_json
from jaxdiff.workdir import Workdir

ASSETS = Path(__file__).parents[1] / "assets"
NANO = "nano"
WORLD = "world"

# Noise levels that are common to all models; 0 is the clean latent, before any step is taken.
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def nano_levels(steps: int) -> tuple[float, ...]:
    """The points of the nano model's own grid nearest to `LEVELS`, so that reading there adds no steps."""
    grid = UniPCFlow(shift=1.0).grid(steps)
    return tuple(sorted({float(grid[np.argmin(np.abs(grid - level))]) for level in LEVELS}))


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """See the flags of `experiments.study`."""

    model: str
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
    scenes: int = 60
    seed: int = 0
    world_seed: int = 0
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    skip_bad_clips: bool = False

    def __post_init__(self):
        if self.dataset not in (WORLD, "intphys"):
            raise ConfigError(f"--dataset={self.dataset} is unknown; choose world (generated scenes) or intphys")
        if self.dataset == "intphys" and self.data_dir is None:
            raise ConfigError("--dataset=intphys needs --data_dir=DIR, the folder that holds dev/")
        if 0.0 not in self.capture_sigmas:
            raise ConfigError("--capture_sigmas must hold 0: the clean latent is where the evidence is cleanest")
        if list(self.capture_sigmas) != sorted(set(self.capture_sigmas)):
            # The trajectory meets them in this order, and so do the tables that are made of what it read.
            raise ConfigError(f"--capture_sigmas={self.capture_sigmas} must ascend, each value once")

    def reading(self) -> Reading:
        names = {f.name for f in dataclasses.fields(Reading)} - {"capture_at"}
        return Reading(**{name: getattr(self, name) for name in names})

    def protocol(self) -> Protocol:
        return Protocol(outer=self.outer, inner=self.inner, repeats=self.repeats, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Models:
    """The model and its control models, by name; the first is the model itself."""

    pipelines: dict[str, Pipeline]

    @property
    def main(self) -> Pipeline:
        return next(iter(self.pipelines.values()))


def run_study(config: StudyConfig, workdir: Path) -> None:
    """Invert, probe, report; every stage continues where an interrupted run stopped."""
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("load"):
            models = load_models(config)
            cond = conditioning(models.main, config)
        with work.stage("data"):
            clips = load_clips(config, workdir)
        reading = config.reading()
        stores: dict[str, ActivationStore] = {}
        noised: dict[str, ActivationStore] = {}
        skipped: dict[str, str] = {}
        for name, pipeline in models.pipelines.items():
            folder = workdir / "store" / name
            with work.stage("invert", model=name):
                stores[name], bad = invert_clips(
                    pipeline, clips, cond, reading, folder, skip_bad_clips=config.skip_bad_clips,
                    metadata={"labels": label_table(clips)}, title=f"invert ({name})",
                )  # fmt: skip
            skipped |= bad
        kept = whole_groups(clips, set.intersection(*(store.finished() for store in stores.values())))
        good = [clips[i] for i in kept]
        if config.noised:
            for name, pipeline in models.pipelines.items():
                with work.stage("noised", model=name):
                    noised[name] = read_noised(
                        pipeline, good, cond, reading, config.capture_sigmas, workdir / "noised" / name,
                        seed=config.seed, title=f"noised latents ({name})",
                    )  # fmt: skip
        with work.stage("inputs"):
            table = read_inputs(models.main, good, reading)
        labels = Labels.of(good)
        sources = make_sources(stores, noised, table, kept)
        with work.stage("probe", clips=len(good)):
            answers = analyse(sources, labels, config.protocol())
        losses = {name: surprise(store) for name, store in noised.items()}
        with work.stage("fidelity"):
            chosen = good[:: max(1, len(good) // max(1, config.fidelity_clips))][: config.fidelity_clips]
            measured, views, attention = measure(models.main, chosen, cond, reading)
            records = {i: stores[first_name(models)].records()[i] for i in kept}
            measured = dataclasses.replace(measured, noise=(*measured.noise, *noise_measures(records)))
        probe_csv(workdir / "probe.csv", csv_rows(answers, labels, losses, config.capture_sigmas, config.seed))
        result = result_json(answers, labels, losses, config.capture_sigmas, config.seed)
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
            study = report_study(answers, labels, losses, config.capture_sigmas, config.seed)
            study = dataclasses.replace(
                study,
                title=f"Is plausibility linearly decodable from {Path(config.model).name}'s states?",
                facts=facts(config, good, labels),
                fidelity=measured,
                attention=attention,
                clips=views,
                skipped=tuple(sorted(skipped.items())),
                notes=notes(config),
                config=work.config,
                seeds={"study": config.seed, "world": config.world_seed},
                environment=work.sessions()[-1],
                command=" ".join(map(str, work.sessions()[-1]["command"])),
            )
            write_report(workdir / "report.html", study)
        work.finish(("result.json", "probe.csv"))
    print(headline(result["headline"], workdir))


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


def first_name(models: Models) -> str:
    """The model itself, not a control."""
    return next(iter(models.pipelines))


def conditioning(pipeline: Pipeline, config: StudyConfig) -> Conditioning:
    """The prompt of the flags; the nano model's empty prompt is one zero token by construction."""
    if config.model == NANO and not config.prompt and config.text_embeddings is None:
        return text_condition(pipeline, "", "zeros")
    return text_condition(pipeline, config.prompt, config.text_embeddings)


def load_clips(config: StudyConfig, workdir: Path) -> list[Clip]:
    """The data set's labelled clips; generated scenes are written in IntPhys's layout and read back by its loader."""
    if config.dataset == WORLD:
        from jaxdiff.data.worlds.layout import write_intphys

        folder = config.data_dir or workdir / "world"
        world = WorldConfig(frames=config.frames, size=config.size or 32)
        write_intphys(world, config.world_seed, config.scenes, folder, depth=False, masks=False)
        return load_intphys(folder, scenes=config.scenes)
    assert config.data_dir is not None  # checked by the config
    return load_intphys(config.data_dir)


def whole_groups(clips: Sequence[Clip], finished: set[int]) -> list[int]:
    """Indices of the clips of every scene none of whose clips is missing: matched clips lose their match otherwise."""
    broken = {clip.group for i, clip in enumerate(clips) if i not in finished}
    kept = [i for i, clip in enumerate(clips) if clip.group not in broken]
    if not kept:
        raise MissingDataError("no scene has all of its clips; see the skipped clips above")
    return kept


def make_sources(
    stores: dict[str, ActivationStore],
    noised: dict[str, ActivationStore],
    table: dict[str, np.ndarray],
    kept: Sequence[int],
) -> list[Source]:
    """Everything that is probed: the states, the null controls, the comparisons."""

    def states(features: Features) -> Features:
        return features.only([name for name in features.arrays if not name.startswith(f"{INPUT}.")])

    def entering(features: Features) -> Features:
        return features.only([name for name in features.arrays if name.startswith(f"{INPUT}.")])

    read = {name: stored_features(store, kept) for name, store in stores.items()}
    main = next(iter(read))
    sources = [
        Source("states", "inverted states", "states", main, states(read[main]), "all blocks and noise levels"),
        Source(
            "shuffled",
            "shuffled labels",
            "null",
            main,
            states(read[main]),
            "labels permuted inside scenes",
            True,
        ),
    ]
    names = {"structureless": "structure-less model", "untrained": "untrained model, gates open"}
    for name in read:
        if name != main:
            sources.append(Source(name, names[name], "null", name, states(read[name]), "same inversion and probes"))
    linear = [name for name in table if name != "latents.frame_products"]
    sources += [
        Source("pixels", "pixels", "null", "", input_features(table, "pixels"), "4 x 4 colours of every frame"),
        Source(
            "latents", "VAE latents", "null", "",
            input_features({n: table[n] for n in linear}, "latents"),
            "mean, frame mean, 4 x 4 grid, moments",
        ),
        Source(
            "products", "latents, products between frames", "comparison", "",
            input_features({n: table[n] for n in table if n not in linear}, "latents"),
            "quadratic: sees the combination of before and after",
        ),
        Source("input", "what enters block 0", "comparison", main, entering(read[main]), "the inverted x_sigma, embedded"),
    ]  # fmt: skip
    if main in noised:
        features = states(stored_features(noised[main], range(len(kept))))
        sources.append(
            Source(
                "noised",
                "noised latents, no inversion",
                "comparison",
                main,
                features,
                "one forward pass per level",
            )
        )
    return sources


def facts(config: StudyConfig, clips: Sequence[Clip], labels: Labels) -> dict[str, str]:
    """The small facts under the report's heading."""
    scenes = len(set(labels.groups.tolist()))
    return {
        "clips": f"{len(clips)} of {scenes} scenes",
        "frames": f"{config.frames} at {config.size or 'their own'} px",
        "inversion": f"{config.solver}, {config.steps} steps",
        "noise levels": f"{len(config.capture_sigmas)}",
    }


def notes(config: StudyConfig) -> tuple[str, ...]:
    """What a reader must know before believing a number."""
    told = [text_note(config.prompt, config.text_embeddings)]
    if config.model == NANO and config.text_embeddings is None and not config.prompt:
        told = ["prompt: empty, which the nano model was trained to see as one zero token"]
    if config.dataset == WORLD:
        told.append(
            f"generated scenes, {config.scenes} for each of the three categories, world seed {config.world_seed}"
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
