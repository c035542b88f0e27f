"""The nano model: a Wan VAE and Wan transformers in small configurations, trained on generated scenes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data import worlds
from jaxdiff.data.worlds import prompts
from jaxdiff.data.worlds.clips import STRUCTURES
from jaxdiff.models.network import Network
from jaxdiff.models.wan import WanTransformer, WanTransformerConfig, WanVAE, WanVAEConfig
from jaxdiff.train.loop import Recipe, TrainState, fit
from jaxdiff.train.losses import autoencoder_loss, flow_matching_loss

Report = Callable[[int, dict[str, float]], None]

# Streams of random numbers that must never meet: training clips, held-out clips, latents' clips.
_HELD_OUT, _LATENTS = 1_000_003, 2_000_003


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stretch of a VAE's training: pieces of `crop` x `crop` pixels and `frames` frames, `batch` a step."""

    recipe: Recipe
    batch: int
    crop: int
    frames: int


# Many small pieces first, because a scene's colours are the same all over it: what is scarce is scenes, not pixels.
# Then larger ones, which have fewer borders. Five frames hold both kinds of latent frame, of one and of four frames.
_STAGES = (
    Stage(Recipe(steps=3000, learning_rate=2.5e-3, decay=0.5, ema=0.99), batch=40, crop=8, frames=5),
    Stage(Recipe(steps=1500, learning_rate=1e-3, decay=0.7, ema=0.99), batch=12, crop=16, frames=5),
)


@dataclasses.dataclass(frozen=True)
class VAETraining:
    """How the nano VAE is trained: on plausible and independent clips half and half, so that it favours neither."""

    model: WanVAEConfig = dataclasses.field(default_factory=WanVAEConfig.nano)
    world: worlds.WorldConfig = dataclasses.field(default_factory=worlds.WorldConfig)
    stages: tuple[Stage, ...] = _STAGES
    seed: int = 0
    kl_weight: float = 1e-6
    held_out: int = 128

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.recipe.steps for stage in self.stages)


def train_vae(
    config: VAETraining, workdir: Path | None = None, report: Report = lambda step, metrics: None
) -> tuple[Network, dict[str, float]]:
    """Train the VAE; then measure the latents' mean and standard deviation per channel, which go into its config.

    Every latent frame describes its own video frames and no others: see `present_only`.

    Returns
    -------
    network : the averaged weights
    measured : "psnr" in dB (peak 2, mean over held-out clips of each structure) and "clips"
    """
    start = Network.init(WanVAE, config.model, config.seed)
    params, done = present_only(start.params), 0
    for number, stage in enumerate(config.stages):

        def loss(params, data, key, stage=stage):
            data_key, crop_key, key = jax.random.split(key, 3)
            video = _pieces(crop_key, _mixed(data_key, config.world, stage.batch), stage.frames, stage.crop)
            present = start.replace(present_only(with_past(params)))  # also keeps the zero taps of resampling at zero
            return autoencoder_loss(present, video, key, kl_weight=config.kl_weight)

        def counted(step, metrics, done=done):
            report(done + step, metrics)

        recipe = dataclasses.replace(stage.recipe, seed=1000 * config.seed + number)
        folder = None if workdir is None else workdir / f"stage{number}"
        params = fit(loss, params, recipe, (), workdir=folder, report=counted).ema
        done += recipe.steps
    return _measure(start.replace(with_past(params)), config)


def present_only(params: dict[str, Any]) -> dict[str, Any]:
    """The weights of a VAE without the taps that reach into the past: causal kernels [3, 3, 3, in, out] keep the last.

    A causal VAE may let a latent frame depend on all frames before it, and a trained one does: its latents then carry
    the *combination* of before and after, which the study asks the transformer for. With these weights nothing but the
    transformer can combine two latent frames. `with_past` puts zeros in the place of what was left out.
    """
    return _map_kernels(params, lambda kernel: kernel[-1:])


def with_past(params: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `present_only`, with zero taps; resampling in time never sees the latent frame before."""
    return _map_kernels(params, lambda kernel: jnp.pad(kernel, ((2, 0), *[(0, 0)] * 4)))


def _map_kernels(params, f):
    """`f` on the kernels of causal convolutions, except those that resample in time: these lose only taps that cross
    the border between two latent frames (all but two of a downsampling, all but one of an upsampling)."""

    def one(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if "time_conv" in names and leaf.ndim == 5:
            return leaf.at[: -2 if "encoder" in names else -1].set(0.0)
        causal = leaf.ndim == 5 and leaf.shape[1:3] == (3, 3)
        return f(leaf) if causal else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def _mixed(key, world, batch):
    keys = jax.random.split(key)
    halves = [
        worlds.sample_batch(k, world, n, structure).video
        for k, n, structure in zip(keys, (batch - batch // 2, batch // 2), STRUCTURES, strict=True)
    ]
    return worlds.normalise(jnp.concatenate(halves))


def _pieces(key, video, frames, size):
    """Of every clip, `frames` consecutive frames and a square, both anywhere."""

    def one(clip, key):
        lengths = (frames, size, size)
        room = jnp.array([n - m + 1 for n, m in zip(clip.shape, lengths, strict=False)])
        start = jax.random.randint(key, (3,), 0, room)
        return jax.lax.dynamic_slice(clip, (*start, 0), (*lengths, 3))

    return jax.vmap(one)(video, jax.random.split(key, len(video)))


def _measure(network: Network, config: VAETraining, batch: int = 8):
    @jax.jit
    def one(network, key):
        video = _mixed(key, config.world, batch)
        module = network.bind()
        mean = jnp.split(module.encode(video), 2, axis=-1)[0]
        error = jnp.mean(jnp.square(module.decode(mean) - video), axis=(1, 2, 3, 4))
        axes = (0, 1, 2, 3)
        return mean.mean(axes), jnp.mean(jnp.square(mean), axes), 10.0 * jnp.log10(4.0 / error)

    batches = -(-config.held_out // batch)
    first = jax.random.key(_HELD_OUT + config.seed)
    means, squares, psnr = zip(*(one(network, jax.random.fold_in(first, i)) for i in range(batches)), strict=True)
    mean = np.mean(means, 0, dtype=np.float64)
    std = np.sqrt(np.mean(squares, 0, dtype=np.float64) - mean**2)
    model = dataclasses.replace(
        config.model,
        latents_mean=tuple(np.round(mean, 6).tolist()),
        latents_std=tuple(np.round(std, 6).tolist()),
    )
    measured = {"psnr": float(np.mean(psnr)), "clips": batches * batch}
    return Network(WanVAE, model, network.params), measured


@dataclasses.dataclass(frozen=True)
class BackboneTraining:
    """How a nano transformer is trained: rectified flow on the latents of `clips` generated clips.

    `structure` is "plausible" for the model and "independent" for the structure-less control; nothing else differs.
    """

    model: WanTransformerConfig = dataclasses.field(default_factory=WanTransformerConfig.nano)
    world: worlds.WorldConfig = dataclasses.field(default_factory=worlds.WorldConfig)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    structure: str = "plausible"
    batch: int = 32
    clips: int = 16384
    logit_mean: float = 0.5
    prompt_dropout: float = 0.5


DRAWN = 64  # clips a batch, in which the training clips are drawn


def clips_key(seed: int) -> jax.Array:
    """From where the training clips of a seed come: batch i, of `DRAWN`, is drawn with ``fold_in(clips_key(seed), i)``."""
    return jax.random.key(_LATENTS + seed)


def encode_world(
    vae: Network,
    config: BackboneTraining,
    progress: Callable[[int], None] = lambda n: None,
    batch: int = DRAWN,
) -> tuple[np.ndarray, np.ndarray]:
    """Latents and prompt words of the training clips, drawn from the training seed.

    Returns
    -------
    latents : float32 [clips, T', H', W', C], normalised
    words : int32 [clips, 3]
    """

    @jax.jit
    def one(vae, key):
        drawn = worlds.sample_batch(key, config.world, batch, config.structure)
        module = vae.bind()
        mean = jnp.split(module.encode(worlds.normalise(drawn.video)), 2, axis=-1)[0]
        return module.normalise(mean), drawn.words

    first = clips_key(config.recipe.seed)
    latents, words = [], []
    for i in range(-(-config.clips // batch)):
        z, w = one(vae, jax.random.fold_in(first, i))
        latents.append(np.asarray(z))
        words.append(np.asarray(w))
        progress(batch)
    return np.concatenate(latents)[: config.clips], np.concatenate(words)[: config.clips]


def train_backbone(
    config: BackboneTraining,
    latents: np.ndarray,
    words: np.ndarray,
    workdir: Path | None = None,
    report: Report = lambda step, metrics: None,
) -> tuple[Network, TrainState]:
    """Train a transformer on encoded clips; returns the network with averaged weights and the final state."""
    start = Network.init(WanTransformer, config.model, config.recipe.seed)

    def loss(params, data, key):
        pick, key = jax.random.split(key)
        rows = jax.random.randint(pick, (config.batch,), 0, data[0].shape[0])
        text = prompts.embed(data[1][rows], config.model.text_dim)
        value = flow_matching_loss(
            start.replace(params),
            data[0][rows],
            text,
            key,
            logit_mean=config.logit_mean,
            prompt_dropout=config.prompt_dropout,
            remat="all_but_attention",
        )
        return value, {}

    data = (jnp.asarray(latents), jnp.asarray(words))
    state = fit(loss, start.params, config.recipe, data, workdir=workdir, report=report)
    return start.replace(state.ema), state
