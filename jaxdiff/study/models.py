"""The model of a study, its control models and encoders, and what they are told."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.worlds.prompts import encode
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.study.config import NANO, StudyConfig
from jaxdiff.study.controls import untrained
from jaxdiff.study.features import Features, kept_features
from jaxdiff.study.inversion import text_condition
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
