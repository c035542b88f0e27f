"""f_phi: a small network that sees one latent frame and a prompt and says where the latents will move. LaMo, arXiv 2605.23878.

Neither the paper's body nor its code is public. What is here follows third-party notes on it (a residual CNN per latent
frame with FiLM and squeeze-excitation, an output that starts at zero, a learned null condition, about 10 million
parameters); widths and depth are ours.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.lamo.motion import LAG, differences
from jaxdiff.models.convolutions import Conv2d
from jaxdiff.models.layers import ConfigFromDict, GroupNorm, Linear
from jaxdiff.models.network import Network

SAME = (1, 1)
EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class MotionFieldConfig(ConfigFromDict):
    """Sizes of a `MotionField`.

    Parameters
    ----------
    channels : of the latents.
    text_dim : of the prompt's embeddings.
    lag : latent frames ahead that the field describes.
    width, blocks : channels and residual blocks of the CNN.
    groups : of the group norms.
    condition_width : of the pooled prompt.
    squeeze : factor by which squeeze-excitation narrows.
    """

    channels: int = 16
    text_dim: int = 4096
    lag: int = LAG
    width: int = 256
    blocks: int = 8
    groups: int = 32
    condition_width: int = 256
    squeeze: int = 8

    def __post_init__(self):
        if self.width % self.groups or self.width % self.squeeze:
            raise ConfigError(
                f"width={self.width} must be a multiple of groups={self.groups} and squeeze={self.squeeze}"
            )

    @classmethod
    def nano(cls, channels: int = 16, text_dim: int = 32) -> "MotionFieldConfig":
        """For the nano model's latents."""
        return cls(channels, text_dim, width=48, blocks=3, groups=8, condition_width=48, squeeze=4)


class Block(nnx.Module):
    """norm, FiLM, convolution, ReLU, norm, convolution, ReLU, squeeze-excitation, added to what came in."""

    def __init__(self, config: MotionFieldConfig, *, rngs: nnx.Rngs):
        width, narrow = config.width, config.width // config.squeeze
        self.norm_in, self.norm_mid = GroupNorm(width, config.groups, EPS), GroupNorm(width, config.groups, EPS)
        self.conv_in = Conv2d(width, width, 3, padding=SAME, rngs=rngs)
        self.conv_out = Conv2d(width, width, 3, padding=SAME, rngs=rngs)
        self.film = _zero(Linear(config.condition_width, 2 * width, rngs=rngs))
        self.squeeze, self.excite = Linear(width, narrow, rngs=rngs), Linear(narrow, width, rngs=rngs)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Frames [N, 1, H, W, width], each with its condition [N, 1, 1, 1, condition_width]."""
        scale, shift = jnp.split(self.film(condition), 2, -1)
        y = self.norm_in(x) * (1.0 + scale) + shift
        y = jax.nn.relu(self.conv_in(y))
        y = jax.nn.relu(self.conv_out(self.norm_mid(y)))
        return x + y * jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(y.mean((2, 3), keepdims=True)))))


class MotionField(nnx.Module):
    """Predicted differences `lag` frames ahead, frame by frame: zero before it is trained."""

    def __init__(self, config: MotionFieldConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = Linear(config.text_dim, config.condition_width, rngs=rngs)
        self.null = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.condition_width,)))
        self.conv_in = Conv2d(config.channels, config.width, 3, padding=SAME, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.blocks)])
        self.norm_out = GroupNorm(config.width, config.groups, EPS)
        self.conv_out = _zero(Conv2d(config.width, config.channels, 3, padding=SAME, rngs=rngs))

    def __call__(
        self,
        frames: jax.Array,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        told: jax.Array | None = None,
    ) -> jax.Array:
        """The field that starts at every frame.

        Parameters
        ----------
        frames : [B, T', H', W', C], clean latent frames; each is seen alone.
        text : [B or 1, N, text_dim], embeddings of the prompt, averaged over tokens; None: the null condition.
        text_mask : bool [B or 1, N], the tokens that count.
        told : bool [B], where False the null condition stands in for the prompt (dropout in training).

        Returns
        -------
        float32 [B, T', H', W', C]
        """
        batch, count = frames.shape[:2]
        condition = jnp.broadcast_to(self.null[...], (batch, self.config.condition_width))
        if text is not None:
            weights = jnp.ones(text.shape[:2]) if text_mask is None else text_mask.astype(jnp.float32)
            pooled = jnp.einsum("bn,bnd->bd", weights, text.astype(jnp.float32), precision="highest")
            pooled = jax.nn.silu(self.embed(pooled / jnp.maximum(weights.sum(1, keepdims=True), 1.0)))
            condition = pooled if told is None else jnp.where(told[:, None], pooled, condition)
        condition = jnp.broadcast_to(condition, (batch, condition.shape[-1]))  # one prompt may serve all clips
        condition = jnp.repeat(condition, count, 0)[:, None, None, None]
        x = self.conv_in(frames.reshape(-1, 1, *frames.shape[2:]).astype(jnp.float32))
        for block in self.blocks:
            x = block(x, condition)
        return self.conv_out(jax.nn.relu(self.norm_out(x))).reshape(frames.shape)


def save_motion_field(network: Network, folder: str | Path) -> Path:
    """Write a motion field as a folder, config.json and safetensors; returns the folder."""
    from ports.motion_field import PORTS  # against the grain, as in `jaxdiff.load`
    from ports.writer import save_network

    save_network(network, folder, ports=PORTS)
    return Path(folder)


def load_motion_field(folder: str | Path) -> Network:
    """A motion field from the folder that `save_motion_field` or `experiments.train_motion_field` wrote, in float32.

    Raises
    ------
    CheckpointError : no such folder, or its tensors do not fit.
    ConfigError : a configuration key that this version does not know.
    """
    from ports.folder import load_network
    from ports.motion_field import PORTS

    return load_network(folder, dtype=jnp.float32, ports=PORTS)


def _zero(layer):
    for name in ("kernel", "bias"):
        param = getattr(layer, name)
        param[...] = jnp.zeros_like(param[...])
    return layer


@dataclasses.dataclass(frozen=True)
class FieldLoss:
    """``MSE(f(z_i), D_i) + direction (1 - cos)``, on frames that are noised at random (third-party notes; sigma is ours).

    Parameters
    ----------
    direction : factor of the term in the cosine between predicted and true differences, over channels.
    noise, noise_share : standard deviation of the noise on the input frames, and the share of clips that get it: at
        sampling time the network sees predictions of clean latents, not clean latents.
    prompt_dropout : share of clips that are told the null condition.
    """

    direction: float = 0.5
    noise: float = 0.1
    noise_share: float = 0.5
    prompt_dropout: float = 0.2

    def __call__(
        self, network: Network, latents: jax.Array, text: jax.Array | None, text_mask: jax.Array | None, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss of a batch of clean latents [B, T', H', W', C]: a scalar, and its parts."""
        lag = network.config.lag
        true = differences(latents, lag)
        spread, chosen, told = jax.random.split(key, 3)
        batch = latents.shape[0]
        noisy = jax.random.bernoulli(chosen, self.noise_share, (batch, 1, 1, 1, 1))
        frames = latents[:, :-lag].astype(jnp.float32)
        frames = frames + self.noise * noisy * jax.random.normal(spread, frames.shape)
        told = jax.random.bernoulli(told, 1.0 - self.prompt_dropout, (batch,))
        found = network(frames, text, text_mask, told)
        error = jnp.mean(jnp.square(found - true))
        cosine = jnp.mean(optax.losses.cosine_similarity(found, true, epsilon=EPS))
        return error + self.direction * (1.0 - cosine), {"mse": error, "cosine": cosine}
