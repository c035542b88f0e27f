"""Training a control branch: the backbone's own denoising loss, of which only the branch sees a gradient."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.models.network import Remat, cast, check_remat
from jaxdiff.physics.control import ControlBranch, controlled, fold, takes_image, told
from jaxdiff.pipeline import Pipeline
from jaxdiff.train.finetune import Clips, denoising_losses, draw_sigmas, rows
from jaxdiff.train.loop import Loss, Recipe, fit


@dataclasses.dataclass(frozen=True)
class ControlTraining:
    """How a branch is trained.

    Parameters
    ----------
    recipe : optimiser, length, average, seed.
    batch : clips a step, over all devices.
    prompt_dropout : share of clips that are told the empty prompt.
    control_dropout : share of clips that are told an empty mask, so that the branch knows what it is to have no driver; ours,
        where the published training leaves out the image of 5 % of the clips.
    logit_mean, logit_std : of the noise levels of flow models, as in `jaxdiff.train.finetune.draw_sigmas`.
    remat : what the backward pass recomputes of every block, see `jaxdiff.models.network.scan`.
    """

    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(steps=1000, learning_rate=1e-4, warmup=100))
    batch: int = 4
    prompt_dropout: float = 0.1
    control_dropout: float = 0.05
    logit_mean: float = 0.0
    logit_std: float = 1.0
    remat: Remat = "all_but_attention"

    def __post_init__(self):
        check_remat(self.remat)
        shares = 0 <= self.prompt_dropout <= 1 and 0 <= self.control_dropout <= 1
        if self.batch < 1 or not shares or not self.logit_std > 0:
            raise ConfigError(
                f"batch={self.batch} and logit_std={self.logit_std} must be positive, prompt_dropout={self.prompt_dropout} and "
                f"control_dropout={self.control_dropout} shares"
            )


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks of N clips as bits, in memory or on the disk; see `pack`.

    Parameters
    ----------
    bits : uint8 [N, bytes].
    shape : (T, H, W) of each.
    """

    bits: np.ndarray
    shape: tuple[int, int, int]

    @classmethod
    def pack(cls, masks: np.ndarray) -> "Masks":
        """Of bool [N, T, H, W]."""
        return cls(np.packbits(masks.reshape(len(masks), -1), axis=1), masks.shape[1:])

    def __len__(self) -> int:
        return len(self.bits)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """bool [B, T, H, W]"""
        found = np.unpackbits(np.asarray(self.bits[np.asarray(indices)]), axis=1, count=math.prod(self.shape))
        return found.reshape(-1, *self.shape).astype(bool)


class MaskedClips:
    """Encoded clips with the masks of their drivers, and their first frames where the backbone continues an image.

    Parameters
    ----------
    clips : N clips' latents and captions.
    masks : as many.
    firsts : uint8 [N, H, W, 3].
    rows : int [n], which of them are trained on; None: all.

    Raises
    ------
    MissingDataError : another number of masks or first frames than of clips, or masks that are empty in every frame.
    """

    def __init__(self, clips: Clips, masks: Masks, firsts: np.ndarray | None = None, rows: np.ndarray | None = None):
        if len(masks) != len(clips) or (firsts is not None and len(firsts) != len(clips)):
            given = f"{len(masks)} masks" + ("" if firsts is None else f" and {len(firsts)} first frames")
            raise MissingDataError(f"there are {len(clips)} clips and {given}; every clip needs one")
        self.clips, self.masks, self.firsts = clips, masks, firsts
        self.rows = np.arange(len(clips)) if rows is None else rows
        empty = [int(i) for i in self.rows if not masks.bits[i].any()]
        if empty:
            raise MissingDataError(
                f"{len(empty)} masks are empty in every frame, those of the clips {empty[:8]} among them"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Of some of `rows`: what `Clips.read` gives, masks bool [B, T, H, W], first frames."""
        rows = self.rows[indices]
        return self.clips.read(rows), self.masks.read(rows), None if self.firsts is None else self.firsts[rows]


def conditioned(pipeline: Pipeline, cond: Conditioning, frames: int, firsts: Any, latents: Any) -> Conditioning:
    """`cond` for videos that begin with given pictures: in the backbone's own way, or as a branch is told.

    Parameters
    ----------
    frames : T of the videos.
    firsts : [B, H, W, 3], the pictures, for backbones that continue an image.
    latents : [B, 1, H', W', C], their latents, for those that do not.
    """
    if takes_image(pipeline):
        return pipeline.with_image(cond, firsts, frames=frames)
    return told(cond, first=latents)


def training_loss(pipeline: Pipeline, branch: ControlBranch, config: ControlTraining, fps: float | None = None) -> Loss:
    """What `fit` minimises: ``loss(branch.params, ((pipeline, empty prompt or None), (latents, signal, cond)), key)``.

    The first latent frame is left out where it is held at what was told. Of `branch` only its kind is kept.
    """
    kinds = jax.tree.map(lambda leaf: jnp.dtype(leaf.dtype), branch.params)
    bare = branch.replace({"trunk": {}, "links": {}})
    held = not takes_image(pipeline) or getattr(pipeline.family, "expand_timesteps", False)

    def loss(params, given, key):
        (pipeline, empty), (latents, signal, cond) = given
        level, spread, dropped, blinded = jax.random.split(key, 4)
        batch, frames = latents.shape[:2]
        sigma = draw_sigmas(
            pipeline.schedule, level, batch, math.prod(latents.shape[1:4]), config.logit_mean, config.logit_std
        )
        if empty is not None:
            keep = jax.random.bernoulli(dropped, 1.0 - config.prompt_dropout, (batch, 1))
            mask = None if cond.text_mask is None else jnp.where(keep, cond.text_mask, empty.text_mask)
            cond = dataclasses.replace(cond, text=jnp.where(keep[..., None], cond.text, empty.text), text_mask=mask)
        sees = jax.random.bernoulli(blinded, 1.0 - config.control_dropout, (batch, 1, 1, 1, 1))
        cond = told(dataclasses.replace(cond, fps=fps), jnp.where(sees, signal, -1.0))
        weight = jnp.full((1, frames), frames / max(frames - 1, 1)).at[:, 0].set(0.0) if held and frames > 1 else None
        losses = denoising_losses(
            controlled(pipeline, bare.replace(jax.tree.map(lambda leaf, kind: leaf.astype(kind), params, kinds))),
            latents,
            jax.random.normal(spread, latents.shape),
            sigma,
            cond,
            weight=weight,
            remat=config.remat,
        )
        return sum(losses.values()), losses

    return loss


def train_control(
    pipeline: Pipeline,
    branch: ControlBranch,
    data: MaskedClips,
    config: ControlTraining,
    workdir: Path | None = None,
    *,
    empty: Conditioning | None = None,
    fps: float | None = None,
    mesh: Mesh | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    **options: Any,
) -> ControlBranch:
    """Train a branch beside a frozen pipeline; continue from `workdir` if it holds a checkpoint.

    Parameters
    ----------
    empty : the empty prompt, of batch 1; needed for prompt dropout only.
    fps : frames per second of the clips, for families that are told it.
    options : of `fit`, as `checkpoint_every`.

    Returns
    -------
    The branch with averaged weights.

    Raises
    ------
    ConfigError : clips or masks do not fit the network; before anything slow.
    NonFiniteError : as `fit`; the newest checkpoint is the state before.
    """
    if config.prompt_dropout and empty is None:
        empty = pipeline.condition("")
    backbone = dataclasses.replace(pipeline, vae=None, image_encoder=None)
    given = backbone, empty if config.prompt_dropout else None

    def batch(step: int):
        return _read(pipeline, data, rows(step, config.batch, len(data), config.recipe.seed))

    loss, start = training_loss(pipeline, branch, config, fps), cast(branch.params, jnp.float32)
    jax.eval_shape(loss, start, (given, _read(pipeline, data, np.arange(1))), jax.random.key(0))
    state = fit(loss, start, config.recipe, given, batches=batch, mesh=mesh, workdir=workdir, report=report, **options)
    return branch.replace(jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), state.ema, branch.params))


def _read(pipeline: Pipeline, data: MaskedClips, indices: np.ndarray):
    """Latents, control signal and what else the network is told, of some clips."""
    found, masks, firsts = data.read(indices)
    cond = Conditioning(text=found.text, text_mask=found.text_mask)
    cond = conditioned(pipeline, cond, masks.shape[1], firsts, found.latents[:, :1])
    return found.latents, fold(masks, found.latents.shape[1:]), cond
