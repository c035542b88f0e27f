"""Nano video encoders, trained on the clips that the nano transformer sees: V-JEPA's and VideoMAE's objectives.

Both hide tubes, places of the tubelet grid in all frames, and ask for what is hidden from what is left (tube masking:
VideoMAE, arXiv 2203.12602, section 3.2). V-JEPA predicts what a teacher, the moving average of the encoder, makes of the
hidden tokens; VideoMAE predicts their pixels. As many places are hidden in every clip, so that shapes are fixed.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiff.data import worlds
from jaxdiff.data.sampling import frame_indices
from jaxdiff.models import network
from jaxdiff.models.layers import LayerNorm, Linear, patchify
from jaxdiff.models.network import Network
from jaxdiff.models.vision import VJEPA2, PictureConfig, VideoMAE, VideoMAEConfig, VJEPA2Config
from jaxdiff.models.vision.pictures import IMAGENET_MEAN, IMAGENET_STD
from jaxdiff.models.vision.videomae import sinusoids
from jaxdiff.models.vision.vit import Block
from jaxdiff.models.vision.vjepa2 import turn, turns
from jaxdiff.taps import Reader
from jaxdiff.train.loop import Recipe, TrainState, fit
from jaxdiff.train.nano import DRAWN, Report, clips_key

METHODS = ("vjepa", "videomae")
MODULES = {"vjepa": VJEPA2, "videomae": VideoMAE}
CONFIGS = {"vjepa": VJEPA2Config.nano, "videomae": VideoMAEConfig.nano}
EPS = 1e-6  # of the guesser's norms


@dataclasses.dataclass(frozen=True)
class EncoderTraining:
    """How a nano encoder is trained. The budget is the nano transformer's: as many steps, clips a step and clips.

    Parameters
    ----------
    method : "vjepa" or "videomae".
    model : default: the nano configuration of the method.
    structure : "plausible", or "independent" for clips without structure, see `jaxdiff.data.worlds`.
    masked : share of places that is hidden, rounded down to whole places; at least one place is seen and one hidden.
    width, layers, heads : of the predictor or decoder, which is thrown away afterwards.
    """

    method: str
    model: VJEPA2Config | VideoMAEConfig | None = None
    world: worlds.WorldConfig = dataclasses.field(default_factory=worlds.WorldConfig)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    structure: str = "plausible"
    batch: int = 32
    clips: int = 16384
    masked: float = 0.75
    width: int = 64
    layers: int = 2
    heads: int = 2

    @property
    def config(self) -> Any:
        """Architecture of the encoder."""
        return CONFIGS[self.method]() if self.model is None else self.model

    @property
    def frames(self) -> int:
        """Frames of a clip as the encoder takes it."""
        config = self.config
        return config.frames_per_clip if self.method == "vjepa" else config.num_frames

    @property
    def pictures(self) -> PictureConfig:
        """How frames are made ready for the encoder; see `normalise`."""
        size = self.config.shape.size
        return PictureConfig(size, 2, (size, size), image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)


def draw_clips(config: EncoderTraining, progress: Callable[[int], None] = lambda n: None) -> np.ndarray:
    """The training clips, uint8 [clips, T, H, W, 3]: those of the nano transformer of the same seed and world."""
    first = clips_key(config.recipe.seed)

    @jax.jit
    def one(key):
        return worlds.sample_batch(key, config.world, DRAWN, config.structure).video

    shape = (config.world.frames, config.world.size, config.world.size, 3)
    drawn = np.empty((config.clips, *shape), np.uint8)
    for i, start in enumerate(range(0, config.clips, DRAWN)):
        rows = min(DRAWN, config.clips - start)
        drawn[start : start + rows] = np.asarray(one(jax.random.fold_in(first, i)))[:rows]
        progress(rows)
    return drawn


def train_encoder(
    config: EncoderTraining, clips: np.ndarray, workdir: Path | None = None, report: Report = lambda step, metrics: None
) -> tuple[Network, TrainState]:
    """Train an encoder on clips uint8 [n, T, H, W, 3]; returns it with averaged weights, and the final state."""
    encoder = Network.init(MODULES[config.method], config.config, config.recipe.seed)
    head = Network.init(Guesser, _guesser(config), config.recipe.seed + 1)
    frames = frame_indices(clips.shape[1], config.frames)

    def loss(params, data, key, average):
        pick, mask = jax.random.split(key)
        rows = jax.random.randint(pick, (config.batch,), 0, data.shape[0])
        pixels = normalise(data[rows][:, frames])
        seen, hidden = tubes(mask, config.batch, encoder.bind().grid(pixels), config.masked)
        student, guess = encoder.replace(params["encoder"]), head.replace(params["head"])
        if config.method == "vjepa":
            return vjepa_loss(student, guess, encoder.replace(average["encoder"]), pixels, seen, hidden)
        return videomae_loss(student, guess, pixels, seen, hidden)

    params = {"encoder": encoder.params, "head": head.params}
    state = fit(loss, params, config.recipe, jnp.asarray(clips), workdir=workdir, report=report, average=True)
    return encoder.replace(state.ema["encoder"]), state


def normalise(video: jax.Array) -> jax.Array:
    """uint8 [..., 3] -> float32, as `jaxdiff.models.vision.to_pixels` does with ImageNet's numbers."""
    mean, std = np.asarray(IMAGENET_MEAN, np.float32), np.asarray(IMAGENET_STD, np.float32)
    return (video.astype(jnp.float32) / 255.0 - mean) / std


def tubes(key: jax.Array, batch: int, grid: tuple[int, int, int], masked: float) -> tuple[jax.Array, jax.Array]:
    """Tokens that are seen and tokens that are hidden, int32 [B, n] and [B, S - n], each in ascending order.

    Of every clip, a random choice of places (rows and columns of the grid) is hidden in all frames.
    """
    frames, places = grid[0], grid[1] * grid[2]
    hidden = min(max(int(masked * places), 1), places - 1)
    order = jax.vmap(lambda key: jax.random.permutation(key, places))(jax.random.split(key, batch))

    def tokens(chosen):
        return (jnp.arange(frames)[:, None] * places + jnp.sort(chosen)[:, None, :]).reshape(batch, -1)

    return tokens(order[:, hidden:]), tokens(order[:, :hidden])


# ---------------------------------------------------------------------------------------------------- objectives


@dataclasses.dataclass(frozen=True)
class GuesserConfig:
    """A small transformer that guesses what is hidden: `inputs` of the encoder to `outputs` a token.

    `rotary`: positions turn queries and keys, as in V-JEPA 2; otherwise they are added, as in VideoMAE.
    """

    inputs: int
    outputs: int
    width: int
    layers: int
    heads: int
    rotary: bool


class Guesser(nnx.Module):
    """V-JEPA's predictor and VideoMAE's decoder: seen tokens, and one learned token wherever something is hidden."""

    def __init__(self, config: GuesserConfig, *, rngs: nnx.Rngs):
        self.config, width = config, config.width
        self.into = Linear(config.inputs, width, rngs=rngs)
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        numbers = width, config.heads, 4 * width, "gelu_pytorch_tanh", EPS
        self.blocks = network.stack(lambda r: Block(*numbers, rngs=r), config.layers, rngs)
        self.norm = LayerNorm(width, EPS)
        self.out = Linear(width, config.outputs, rngs=rngs)

    def __call__(self, x: jax.Array, seen: jax.Array, hidden: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
        """x [B, n, inputs] of the tokens `seen` -> [B, S - n, outputs] for the tokens `hidden`."""
        order = jnp.concatenate([seen, hidden], 1)
        blank = jnp.broadcast_to(self.mask_token[...], (*hidden.shape, self.mask_token.shape[-1]))
        x = jnp.concatenate([self.into(x), blank], 1)
        if self.config.rotary:
            cos, sin = (table[order] for table in turns(grid, self.config.width // self.config.heads))
        else:
            x = x + sinusoids(order.shape[1], self.config.width)[order]

        def run(block, x, tap):
            return block(x, tap, (lambda h: turn(h, cos, sin)) if self.config.rotary else None)

        x, _ = network.scan(run, self.blocks, x, Reader((), (), layers=self.config.layers, grid=grid))
        return self.out(self.norm(x[:, seen.shape[1] :]))


def vjepa_loss(
    student: Network, predictor: Network, teacher: Network, pixels: jax.Array, seen: jax.Array, hidden: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean absolute error of predicted features (V-JEPA, arXiv 2404.08471, eq. 1).

    ``|| P(E(seen), hidden) - sg(norm(teacher(all)))[hidden] ||_1``: the targets are normed per token without a gain, as in
    its code, and no gradient reaches the teacher.

    Parameters
    ----------
    pixels : [B, T, H, W, C], normalised
    seen, hidden : tokens, as `tubes` gives them

    Returns
    -------
    loss : scalar float32
    metrics : "spread", see `spread`
    """
    grid = student.bind().grid(pixels)
    features, _ = teacher(pixels)
    targets = jnp.take_along_axis(_unit_norm(features), hidden[..., None], 1)
    context, _ = student(pixels, keep=seen)
    guess = predictor(context, seen, hidden, grid)
    error = guess.astype(jnp.float32) - jax.lax.stop_gradient(targets)
    return jnp.mean(jnp.abs(error)), {"spread": spread(context)}


def videomae_loss(
    student: Network, decoder: Network, pixels: jax.Array, seen: jax.Array, hidden: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared error of the hidden tubelets' pixels, each normalised by its own mean and deviation per channel
    (VideoMAE, arXiv 2203.12602, section 3, and its `norm_pix_loss`).

    Parameters
    ----------
    As `vjepa_loss`, and so is what is returned.
    """
    module = student.bind()
    shape, grid = module.config.shape, module.grid(pixels)
    patches = patchify(pixels, shape.patch)
    patches = patches.reshape(*patches.shape[:2], -1, shape.channels)
    mean, std = patches.mean(2, keepdims=True), patches.std(2, ddof=1, keepdims=True)
    targets = ((patches - mean) / (std + 1e-6)).reshape(*patches.shape[:2], -1)
    context, _ = student(pixels, keep=seen)
    guess = decoder(context, seen, hidden, grid)
    error = guess.astype(jnp.float32) - jnp.take_along_axis(targets, hidden[..., None], 1)
    return jnp.mean(jnp.square(error)), {"spread": spread(context)}


def spread(features: jax.Array) -> jax.Array:
    """Standard deviation over clips of features [B, n, D], averaged over tokens and channels, with tokens normed to
    deviation 1: near 0 where a network calls every clip the same, which a teacher that follows its student may end in."""
    return _unit_norm(features).std(0).mean()


def _unit_norm(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32) - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)


def _guesser(config: EncoderTraining) -> GuesserConfig:
    shape = config.config.shape
    rotary = config.method == "vjepa"
    pixels = math.prod(shape.patch) * shape.channels
    return GuesserConfig(
        shape.width, shape.width if rotary else pixels, config.width, config.layers, config.heads, rotary
    )
