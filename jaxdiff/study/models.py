"""The model of a study, its control models and encoders, and what they are told."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.datasets import Dataset
from jaxdiff.data.worlds.prompts import encode
from jaxdiff.errors import MissingDataError
from jaxdiff.mesh import weights_mesh
from jaxdiff.pipeline import Pipeline, load, outline
from jaxdiff.study.batches import first_readable
from jaxdiff.study.budget import MOST
from jaxdiff.study.config import NANO, StudyConfig, encoder_name
from jaxdiff.study.controls import untrained
from jaxdiff.study.features import Features, kept_features
from jaxdiff.study.inversion import text_condition
from jaxdiff.study.memory import READ_LESS, reading_bytes, refuse_too_large
from jaxdiff.study.reading import Reading
from jaxdiff.study.sources import chosen_controls

ASSETS = Path(__file__).parents[1] / "assets"


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


def folders(config: StudyConfig) -> dict[str, Path]:
    """Where the model and, if there is one, its structure-less control lie, by name; the first is the model itself."""
    nano = config.model == NANO
    found = {"trained": ASSETS / NANO if nano else Path(config.model)}
    if config.structureless is not None:
        found["structureless"] = config.structureless
    elif nano:
        found["structureless"] = ASSETS / f"{NANO}-structureless"
    return found


def refuse_large_study(config: StudyConfig, data: Dataset | None) -> None:
    """Raise a ConfigError where a study's features do not fit into memory; the checkpoint is looked at, and not loaded.

    `data` is None where a time budget is still to choose how many scenes there are; the most are then counted.
    """
    models, reading, controls = folders(config), config.reading(), chosen_controls(config.controls)
    if data is None:
        clips, video = 12 * max(config.scenes, MOST), (config.frames, *[config.size or 32] * 2, 3)
    else:
        clips, video = len(data), first_readable(data.clips, reading).shape
    arrays = reading_bytes(outline(next(iter(models.values()))), reading, video, clips, config.captures)
    found = dict.fromkeys([*models, *(n for n in ("untrained", "noised") if n in controls), *config.variants()], arrays)
    if "gaussian" in controls:  # noise in the shapes of the states
        found["gaussian"] = arrays
    refuse_too_large(found, clips, READ_LESS)


def load_models(config: StudyConfig) -> Models:
    """The model, the structure-less control if there is one, and the untrained control."""
    dtype = None if config.dtype is None else jnp.dtype(config.dtype)
    pipelines = {name: load(folder, dtype=dtype, mesh=weights_mesh()) for name, folder in folders(config).items()}
    main = pipelines["trained"]
    if "structureless" in pipelines:
        pipelines["structureless"] = dataclasses.replace(pipelines["structureless"], vae=main.vae)
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


def refuse_missing_encoders(config: StudyConfig) -> None:
    """Raise a MissingDataError for an encoder that is not there, before anything is computed."""
    for folder in config.encoders:
        if not (folder / "config.json").is_file():
            raise MissingDataError(
                f"--encoders: {folder} holds no config.json; give folders of V-JEPA 2, VideoMAE or ResNet as published, or the "
                "encoder/ that experiments.train_encoder wrote"
            )


def encoder_features(folder: Path, clips: Sequence[Clip], reading: Reading, cache: Path) -> Features:
    """What a video encoder makes of the clips; made once, and then kept in the folder `cache`."""
    from jaxdiff.encoder import load_encoder
    from jaxdiff.study.encoders import read_encoder

    key = f"{folder} {reading} {[clip.name for clip in clips]}"
    return kept_features(
        cache / f"{encoder_name(folder)}.npz",
        key,
        lambda: read_encoder(load_encoder(folder), clips, reading, title=f"encode ({encoder_name(folder)})"),
    )
