"""Object rewards of PISA (arXiv 2503.09595): a generated clip beside the simulated one, as a frozen network sees both.

A reward is a pytree, its networks' weights are leaves, and ``reward(video, target)`` is differentiable in the video. It is
0 for a clip that looks to the network like the target and negative otherwise: minus PISA's losses. The networks are
pluggable; those here need no weights and know the generated world, and `RAFTFlow` takes a published checkpoint. PISA's own
are SAM 2.1-L, RAFT and Depth Anything V2; it optimises one reward a run, never their sum.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.kernels import lucas_kanade
from jaxdiff.models.network import Network

EPS = 1e-6  # of the published segmentation loss
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
STANDS_OUT = 0.3  # length of the chroma half way between the strongest tint of a wall (.1) and the palest thing (.5)
register = functools.partial(functools.partial, jax.tree_util.register_dataclass)


class Target(NamedTuple):
    """The true clip.

    video : [B, T, H, W, 3] float in [-1, 1]; masks : [B, T, H, W, O], share of the pixel that each thing covers.
    """

    video: jax.Array
    masks: jax.Array


class Reward(Protocol):
    """What is optimised."""

    def __call__(self, video: jax.Array, target: Target) -> jax.Array:
        """Of clips [B, T, H, W, 3] in [-1, 1]: [B] float32, at most 0."""


class Segmenter(Protocol):
    """A video segmentation network that is prompted with masks in the first frame."""

    def __call__(self, video: jax.Array, first: jax.Array, masks: jax.Array) -> jax.Array:
        """Logits [B, T, H, W, O] of where the things are that cover `masks` [B, H, W, O] of the frame `first` [B, H, W, 3]."""


class FlowNetwork(Protocol):
    """An optical flow network."""

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Flow [N, H, W, 2] in pixels (x, y) from pictures to pictures [N, H, W, 3] in [-1, 1]."""


class DepthNetwork(Protocol):
    """A monocular depth network."""

    def __call__(self, frames: jax.Array) -> jax.Array:
        """Depth or disparity [N, H, W] of pictures [N, H, W, 3] in [-1, 1], in any unit."""


# ------------------------------------------------------------------------------------------------------------ rewards


def mask_loss(p: jax.Array, q: jax.Array) -> jax.Array:
    """``mean_{t, o} 1 - sum p q / (sum p + sum q - sum p q + 1e-6)``, one minus the soft IoU, of [B, T, H, W, O]: [B]."""
    both, p, q = (x.sum((2, 3)) for x in (p * q, p, q))
    return jnp.mean(1.0 - both / (p + q - both + EPS), (1, 2))


@register(data_fields=["segmenter"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class SegmentationReward:
    """Minus `mask_loss` of the generated clip's soft masks and the true ones, whole pixels as in PISA."""

    segmenter: Any

    def __call__(self, video: jax.Array, target: Target) -> jax.Array:
        """See `Reward`."""
        _check(video, target)
        logits = self.segmenter(video, target.video[:, 0], target.masks[:, 0])
        return -mask_loss(jax.nn.sigmoid(logits), (target.masks > 0.5).astype(jnp.float32))


@register(data_fields=["network"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class FlowReward:
    """Minus the mean absolute difference of the flows of both clips, in pixels, over pairs of neighbouring frames."""

    network: Any

    def __call__(self, video: jax.Array, target: Target) -> jax.Array:
        """See `Reward`."""
        _check(video, target)
        return -jnp.mean(jnp.abs(self._flow(video) - self._flow(target.video)), (1, 2, 3, 4))

    def _flow(self, video: jax.Array) -> jax.Array:
        pairs = (frames.reshape(-1, *video.shape[2:]) for frames in (video[:, :-1], video[:, 1:]))
        flow = self.network(*pairs)
        return flow.reshape(video.shape[0], -1, *flow.shape[1:])


@register(data_fields=["network"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class DepthReward:
    """Minus the mean square difference of the depths of both clips, each frame stretched to 0..255."""

    network: Any

    def __call__(self, video: jax.Array, target: Target) -> jax.Array:
        """See `Reward`."""
        _check(video, target)
        return -jnp.mean(jnp.square(self._depth(video) - self._depth(target.video)), (1, 2, 3))

    def _depth(self, video: jax.Array) -> jax.Array:
        depth = self.network(video.reshape(-1, *video.shape[2:]))
        low, high = depth.min((1, 2), keepdims=True), depth.max((1, 2), keepdims=True)
        # A frame without any depth has no stretch; the published code divides by zero there.
        span = jnp.where(high > low, high - low, 1.0)
        return (255.0 * (depth - low) / span).reshape(*video.shape[:2], *depth.shape[1:])


def _check(video: jax.Array, target: Target) -> None:
    if video.shape != target.video.shape or target.masks.shape[:4] != video.shape[:4] or target.masks.ndim != 5:
        raise ConfigError(
            f"a clip {video.shape} is compared with one of the same length and size, got a target of {target.video.shape} "
            f"with masks {target.masks.shape}, expected [B, T, H, W, O]"
        )


def check_masks(masks: np.ndarray, names: Any = None) -> None:
    """Raise a `ConfigError` where a thing covers no whole pixel of the first frame: nothing to prompt a segmenter with.

    masks : [B, T, H, W, O]; names : of the clips, for the message.
    """
    empty = np.argwhere(~(np.asarray(masks)[:, 0] > 0.5).any((1, 2)))
    if len(empty):
        clip, thing = empty[0]
        raise ConfigError(
            f"the mask of thing {thing} is empty in the first frame of clip {clip if names is None else names[clip]} "
            f"({len(empty)} such in all): rewards follow what the first frame shows"
        )


# ----------------------------------------------------------------------------------- networks for the generated world


@register(data_fields=[], meta_fields=["sharpness"])
@dataclasses.dataclass(frozen=True)
class ColourKey:
    """A segmenter by hue: a pixel that shows share a of a thing's colour has a of its chroma (the colour less its mean).

    logit = sharpness (a - 1/2), ``a = <chroma, k> / |k|^2``, k being the mean chroma under the prompt. A large sharpness makes
    masks crisp and lets no gradient through but at their edges.
    """

    sharpness: float = 8.0

    def __call__(self, video: jax.Array, first: jax.Array, masks: jax.Array) -> jax.Array:
        """See `Segmenter`."""
        weight = jnp.where(masks > 0.5, masks, 0.0)
        key = jnp.einsum("bhwo,bhwc->boc", weight, _chroma(first)) / jnp.maximum(weight.sum((1, 2)), EPS)[..., None]
        along = jnp.einsum("bthwc,boc->bthwo", _chroma(video), key, precision="highest")
        return self.sharpness * (along / jnp.maximum(jnp.square(key).sum(-1), EPS)[:, None, None, None] - 0.5)


@register(data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class LucasKanade:
    """Flow of the brightness by least squares, `jaxdiff.kernels.lucas_kanade`."""

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """See `FlowNetwork`."""
        luma = jnp.asarray(LUMA, first.dtype) / 2
        return lucas_kanade(first @ luma + 0.5, second @ luma + 0.5)


@register(data_fields=[], meta_fields=["sharpness"])
@dataclasses.dataclass(frozen=True)
class NearThings:
    """Depth of the generated world: what stands out in colour is a thing and near, all else is grey and far. 0 far, 1 near."""

    sharpness: float = 16.0

    def __call__(self, frames: jax.Array) -> jax.Array:
        """See `DepthNetwork`."""
        length = jnp.sqrt(jnp.square(_chroma(frames)).sum(-1) + EPS)
        return jax.nn.sigmoid(self.sharpness * (length - STANDS_OUT))


def _chroma(frames: jax.Array) -> jax.Array:
    """Colours in [0, 1] without their mean."""
    return (frames - frames.mean(-1, keepdims=True)) / 2


# ------------------------------------------------------------------------------------------------ published networks


@register(data_fields=["network"], meta_fields=["updates", "scale"])
@dataclasses.dataclass(frozen=True)
class RAFTFlow:
    """RAFT (`jaxdiff.models.vision.raft`) as PISA uses it: 20 updates, flow at full resolution.

    Parameters
    ----------
    network : from `jaxdiff.models.vision.raft.load_raft`.
    scale : pictures are enlarged so many times first; RAFT takes at least 128 pixels a side.
    """

    network: Network
    updates: int = 20
    scale: int = 1

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """See `FlowNetwork`."""
        height, width = (self.scale * n for n in first.shape[1:3])
        large = (jax.image.resize(x, (x.shape[0], height, width, 3), "bilinear") for x in (first, second))
        flow = self.network(*large, updates=self.updates) / self.scale
        return flow.reshape(first.shape[0], height // self.scale, self.scale, -1, self.scale, 2).mean((2, 4))
