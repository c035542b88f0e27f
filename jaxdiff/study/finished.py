"""A finished study, reopened: its model, its clips and what was read of them, for the experiments that go on from it."""

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.datasets import Dataset
from jaxdiff.data.video import read_video
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.mesh import weights_mesh
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.store import ActivationStore
from jaxdiff.study import budget, predictions
from jaxdiff.study.analysis import Labels
from jaxdiff.study.batches import Prompts
from jaxdiff.study.clips import described, load_data, told
from jaxdiff.study.config import NANO, StudyConfig
from jaxdiff.study.features import Candidate, stored_features
from jaxdiff.study.models import ASSETS, conditioning
from jaxdiff.study.reading import Reading

MAIN = "trained"  # the model itself, among the stores of a study
READ = "block_out.mean"  # what the paper probes


@dataclasses.dataclass(frozen=True)
class Finished:
    """A study that is done.

    Attributes
    ----------
    config : what it was run with.
    store : states along the inversion of the model itself.
    data : the clips that were probed, whole scenes.
    ids : their numbers in the store.
    """

    folder: Path
    config: StudyConfig
    store: ActivationStore
    data: Dataset
    ids: tuple[int, ...]

    @property
    def clips(self) -> tuple[Clip, ...]:
        return self.data.clips

    @property
    def labels(self) -> Labels:
        return Labels.of(self.clips, self.data.matched)

    @property
    def sigmas(self) -> np.ndarray:
        """Noise levels of the store's slots."""
        return np.asarray(self.store.metadata["sigmas"], float)

    @property
    def places(self) -> dict[str, list[float]]:
        """Sigmas and labels of the slots, for a store that is read likewise."""
        return {name: list(self.store.metadata[name]) for name in ("sigmas", "labels")}

    def latents_shape(self, pipeline: Pipeline) -> tuple[int, ...]:
        """Of one clip: (1, T', H', W', C)."""
        c = self.config
        video = read_video(self.clips[0].path, frames=c.frames, size=c.size, sampling=c.sampling, stride=c.stride)
        return jax.eval_shape(pipeline.encode, jax.ShapeDtypeStruct((1, *video.shape), jnp.uint8)).shape

    def reading(self) -> Reading:
        """How the study read its clips, without an error per clip."""
        return dataclasses.replace(self.config.reading(), error_steps=0, stream=False)

    def scenes(self, count: int | None) -> "Finished":
        """The first `count` scenes of every category; None: all."""
        if count is None:
            return self
        seen: dict[str, list[str]] = {}
        for clip in self.clips:
            groups = seen.setdefault(clip.category, [])
            if clip.group not in groups:
                groups.append(clip.group)
        kept = {group for groups in seen.values() for group in groups[:count]}
        at = [i for i, clip in enumerate(self.clips) if clip.group in kept]
        return dataclasses.replace(self, data=self.data.only(at), ids=tuple(self.ids[i] for i in at))

    def token_means(self, slots: Sequence[int]) -> tuple[np.ndarray, tuple[Candidate, ...]]:
        """Means over tokens of block outputs at some noise levels: float32 [candidates, n, D], and what each row is.

        Raises
        ------
        ConfigError : the study did not read them.
        """
        features = stored_features(self.store, self.ids)
        if READ not in features.arrays:
            raise ConfigError(f"{self.folder} did not read {READ}, but {', '.join(features.arrays)}; add it to --taps")
        candidates = features.candidates[READ]
        at = [i for i, c in enumerate(candidates) if c.slot in slots]
        return features.arrays[READ][at], tuple(candidates[i] for i in at)

    def model(self, folder: str | None = None) -> tuple[Pipeline, Conditioning | Prompts]:
        """The study's model, or the same one in another `folder`, and what it is told."""
        config = described(self.config, self.data)
        config = config if folder is None else dataclasses.replace(config, model=folder)
        where = ASSETS / NANO if config.model == NANO else config.model
        pipeline = load(where, dtype=None if config.dtype is None else jnp.dtype(config.dtype), mesh=weights_mesh())
        return pipeline, told(pipeline, self.data, conditioning(pipeline, config))


def reopen(folder: Path) -> Finished:
    """The study in the workdir `folder`.

    Raises
    ------
    MissingDataError : it is no finished study, or its clips are not where they were.
    ConfigError : its configuration is not one of this version, or its clips have numbers instead of labels.
    """
    needed = ("DONE", "config.json", predictions.FILE, f"store/{MAIN}")
    absent = [name for name in needed if not (folder / name).exists()]
    if absent:
        raise MissingDataError(f"{folder} is no finished study: {', '.join(absent)} missing; run experiments.study")
    config = _config(json.loads((folder / "config.json").read_bytes()), folder)
    chosen = folder / budget.FILE
    scenes = int(json.loads(chosen.read_bytes())["scenes"]) if chosen.exists() else config.scenes
    opened, data = ActivationStore.open(folder / "store" / MAIN), load_data(config, folder, scenes)
    if data.measured:
        raise ConfigError(f"{folder} is a study of measured numbers; this needs clips that are possible or impossible")
    places = {clip.name: i for i, clip in enumerate(data.clips)}
    numbers = {name: i for i, name in enumerate(opened.names)}
    names = predictions.unpack(folder / predictions.FILE)["names"].tolist()
    lost = [name for name in names if name not in places or name not in numbers]
    if lost:
        raise MissingDataError(
            f"{len(lost)} of the {len(names)} clips of {folder} are gone, the first {lost[0]!r}; put the data set back"
        )
    data = data.only([places[name] for name in names])
    return Finished(folder, config, opened, data, tuple(numbers[name] for name in names))


def _config(values: dict[str, Any], folder: Path) -> StudyConfig:
    hints = typing.get_type_hints(StudyConfig)
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise ConfigError(f"{folder}/config.json has {', '.join(unknown)}, which this version does not know")
    made: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and Path in (hints[name], *typing.get_args(hints[name])):
            value = Path(value)
        made[name] = value
    return StudyConfig(**made)
