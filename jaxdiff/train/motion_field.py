"""Training LaMo's motion field on a latent store."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxdiff.errors import ConfigError
from jaxdiff.lamo.motion_field import FieldLoss, MotionField, MotionFieldConfig
from jaxdiff.lamo.skill import Skill, skills
from jaxdiff.mesh import data_mesh
from jaxdiff.models.network import Network
from jaxdiff.store import LatentBatch, LatentStore
from jaxdiff.train.loop import Recipe, fit

Report = Callable[[int, dict[str, float]], None]

# --config -> family, latent channels, width of a caption's embedding.
CONFIGS = {
    "nano": ("wan", 16, 16),
    "cogvideox-2b": ("cogvideox", 16, 4096),
    "cogvideox-5b": ("cogvideox", 16, 4096),
    "wan2.1-t2v-1.3b": ("wan", 16, 4096),
}


@dataclasses.dataclass(frozen=True)
class MotionFieldTraining:
    """How a motion field is trained.

    Parameters
    ----------
    config : of `CONFIGS`: whose latents, and by that how large the field is.
    held_out : share of the clips that are not trained on, drawn by clip from the recipe's seed.
    in_memory : bytes of latents that are kept in memory; more of them are read from the disk batch by batch.
    """

    config: str = "nano"
    recipe: Recipe = dataclasses.field(
        default_factory=lambda: Recipe(2000, 1e-3, warmup=50, ema=0.999, weight_decay=1e-4)
    )
    loss: FieldLoss = dataclasses.field(default_factory=FieldLoss)
    batch: int = 32
    held_out: float = 0.125
    in_memory: int = 8 << 30

    def __post_init__(self):
        if self.config not in CONFIGS:
            raise ConfigError(f"config={self.config!r} is unknown; choose from {', '.join(CONFIGS)}")
        if self.batch < 1 or not 0 < self.held_out < 1:
            raise ConfigError(f"batch={self.batch} must be at least 1 and held_out={self.held_out} between 0 and 1")

    def model(self, store: LatentStore) -> MotionFieldConfig:
        """The field's sizes for these latents.

        Raises
        ------
        ConfigError : the latents are not of the configuration's model, or have too few frames.
        """
        header = store.header
        family, channels, width = CONFIGS[self.config]
        found = header.family, header.latent_shape[-1], header.text_shape[1]
        if found != (family, channels, width):
            raise ConfigError(
                f"{store.path} holds latents of {found[0]} with {found[1]} channels and text of width {found[2]}; "
                f"config={self.config} is for {family}, {channels} and {width}"
            )
        if self.config == "nano":
            return MotionFieldConfig.nano(channels, width)
        return MotionFieldConfig(channels, width)


class Corpus:
    """Clips of a store for training: in memory if they fit, and every prompt pooled as the field pools it."""

    def __init__(self, store: LatentStore, limit: int):
        self._store = store
        self._kept = self._pooled(np.arange(len(store))) if store.nbytes <= limit else None

    def read(self, rows: np.ndarray) -> LatentBatch:
        """Clips by their place in the store; text [B, 1, D] is the mean of the real tokens."""
        if self._kept is None:
            return self._pooled(rows)
        return LatentBatch(self._kept.latents[rows], self._kept.text[rows], None)

    def batches(self, rows: np.ndarray, size: int) -> Iterator[LatentBatch]:
        """All of these clips, in order, `size` at once; the last batch may be shorter."""
        return (self.read(rows[start : start + size]) for start in range(0, len(rows), size))

    def _pooled(self, rows: np.ndarray) -> LatentBatch:
        latents, text, mask = self._store.read(rows)
        weight = np.ones(text.shape[:2], np.float32) if mask is None else mask.astype(np.float32)
        weight /= np.maximum(weight.sum(1, keepdims=True), 1.0)
        return LatentBatch(latents, np.einsum("bn,bnd->bd", weight, text)[:, None], None)


def split(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the training and of the held-out clips, each ascending.

    Raises
    ------
    ConfigError : there are not enough clips for one of each.
    """
    aside = max(1, round(held_out * count))
    if aside >= count:
        raise ConfigError(f"{count} clips cannot be split into clips to train on and a share of {held_out:g} held out")
    order = np.random.default_rng([seed, 0x4E1D]).permutation(count)
    return np.sort(order[aside:]), np.sort(order[:aside])


def train_motion_field(
    training: MotionFieldTraining,
    store: LatentStore,
    clips: Corpus,
    rows: np.ndarray,
    mesh: Mesh | None = None,
    workdir: Path | None = None,
    report: Report = lambda step, metrics: None,
) -> Network:
    """Train on the clips `rows`; returns the field with averaged weights, in the host's memory. A batch is split over all devices
    of `mesh`, whatever its axes: the field is small.

    Raises
    ------
    ConfigError : the store does not fit the configuration.
    NonFiniteError : the loss is not finite; the state before is kept.
    """
    recipe = training.recipe
    start = Network.init(MotionField, training.model(store), recipe.seed)

    def loss(params, data, key):
        latents, text, _ = data[1]
        return training.loss(start.replace(params), latents, text, None, key)

    def batches(step: int) -> LatentBatch:
        drawn = np.random.default_rng([recipe.seed, step]).integers(len(rows), size=training.batch)
        return clips.read(rows[drawn])

    mesh = None if mesh is None else data_mesh(list(mesh.devices.flat))
    state = fit(loss, start.params, recipe, (), batches=batches, mesh=mesh, workdir=workdir, report=report)
    return start.replace(jax.device_get(state.ema))


def measure(
    training: MotionFieldTraining, network: Network, clips: Corpus, rows: np.ndarray, aside: np.ndarray
) -> dict[str, Skill]:
    """`jaxdiff.lamo.skill.skills` of a field on the held-out clips `aside`, beside what its training clips `rows` give."""
    return skills(network, clips.batches(rows, training.batch), clips.batches(aside, training.batch))
