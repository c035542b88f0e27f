"""The causal video VAE of Wan 2.1 in Flax, evaluated a few frames at a time.

Reference: Wan, arXiv 2503.20314, section 4.1; numerics follow `AutoencoderKLWan` of diffusers, which the parity suite
compares with, tensor by tensor.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.models.layers import ConfigFromDict, Linear
from jaxdiff.models.wan.vae_layers import (
    CausalConv3d,
    ChannelNorm,
    Downsample,
    Memory,
    MiddleBlock,
    ResidualBlock,
    Upsample,
)

# Statistics of the latents of Wan 2.1, from its published configuration.
_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclasses.dataclass(frozen=True)
class WanVAEConfig(ConfigFromDict):
    """Architecture numbers, named (and spelled) as in the published vae/config.json.

    The strides follow from `dim_mult` and `temperal_downsample`; `scale_factor_temporal` and `scale_factor_spatial`
    are carried along for other readers of the file. `dropout` acts in training only and is not applied here.

    Raises
    ------
    ConfigError : a Wan 2.2 architecture (`is_residual`, `patch_size`), attention outside the middle block
        (`attn_scales`), or lists whose lengths do not agree.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    scale_factor_temporal: int | None = 4
    scale_factor_spatial: int | None = 8

    def __post_init__(self):
        for key, plain in (("is_residual", (False,)), ("patch_size", (None, 1)), ("attn_scales", ((),))):
            if getattr(self, key) not in plain:
                raise ConfigError(
                    f"WanVAE: {key}={getattr(self, key)!r} is not supported (Wan 2.1 has {plain[0]!r}; is_residual and "
                    "patch_size belong to the VAE of Wan 2.2)"
                )
        expected = {
            "temperal_downsample": len(self.dim_mult) - 1,
            "latents_mean": self.z_dim,
            "latents_std": self.z_dim,
        }
        for key, length in expected.items():
            if len(getattr(self, key)) != length:
                raise ConfigError(
                    f"WanVAE: {key} has {len(getattr(self, key))} entries and needs {length} "
                    f"(dim_mult={self.dim_mult}, z_dim={self.z_dim})"
                )

    @property
    def temporal_stride(self) -> int:
        """Video frames per latent frame, after the first."""
        return 2 ** sum(self.temperal_downsample)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent pixel, along each axis."""
        return 2 ** (len(self.dim_mult) - 1)

    @classmethod
    def wan2_1(cls) -> "WanVAEConfig":
        """The VAE of every Wan 2.1 checkpoint (and of Wan 2.2 A14B): 126,892,531 parameters, strides 4, 8, 8."""
        return cls()

    @classmethod
    def nano(cls) -> "WanVAEConfig":
        """The demo's VAE, trained on generated scenes: strides 4, 4, 4. Its statistics are measured after training."""
        return cls(
            base_dim=16,
            dim_mult=(1, 1, 1),
            num_res_blocks=0,
            temperal_downsample=(True, True),
            latents_mean=(0.0,) * 16,
            latents_std=(1.0,) * 16,
            scale_factor_spatial=4,
        )


class Encoder(nnx.Module):
    """Video chunk [B, t, H, W, in_channels] -> moments [B, t', H', W', 2 z_dim], before the last 1x1x1 layer."""

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        widths = [config.base_dim * m for m in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(config.in_channels, widths[0], (3, 3, 3), rngs=rngs)
        blocks: list[ResidualBlock | Downsample] = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            for j in range(config.num_res_blocks):
                blocks.append(ResidualBlock(outputs if j else inputs, outputs, rngs=rngs))
            if i < len(config.temperal_downsample):
                blocks.append(Downsample(outputs, config.temperal_downsample[i], rngs=rngs))
        self.down_blocks = nnx.List(blocks)
        self.mid_block = MiddleBlock(widths[-1], rngs=rngs)
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim, (3, 3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        x = self.conv_in(x, memory)
        for block in self.down_blocks:
            x = block(x, memory)
        x = self.mid_block(x, memory)
        return self.conv_out(x, memory, before=self.norm_out.silu)


class UpBlock(nnx.Module):
    """`num_res_blocks + 1` residual blocks, then an upsampling (None: the last block has none)."""

    def __init__(self, inputs: int, outputs: int, depth: int, temporal: bool | None, *, rngs: nnx.Rngs):
        self.resnets = nnx.List([ResidualBlock(outputs if j else inputs, outputs, rngs=rngs) for j in range(depth)])
        self.upsample = None if temporal is None else Upsample(outputs, temporal, rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        for block in self.resnets:
            x = block(x, memory)
        return x if self.upsample is None else self.upsample(x, memory)


class Decoder(nnx.Module):
    """Latent chunk [B, t', H', W', z_dim] -> video chunk [B, t, H, W, out_channels], not clamped."""

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        base = config.decoder_base_dim or config.base_dim
        widths = [base * m for m in (config.dim_mult[-1], *config.dim_mult[::-1])]
        temporal = (*config.temperal_downsample[::-1], None)
        self.conv_in = CausalConv3d(config.z_dim, widths[0], (3, 3, 3), rngs=rngs)
        self.mid_block = MiddleBlock(widths[0], rngs=rngs)
        self.up_blocks = nnx.List(
            [
                # An upsampling halves the width, so every block but the first starts from half of it.
                UpBlock(
                    widths[i] // 2 if i else widths[i],
                    widths[i + 1],
                    config.num_res_blocks + 1,
                    temporal[i],
                    rngs=rngs,
                )
                for i in range(len(temporal))
            ]
        )
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.out_channels, (3, 3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        x = self.mid_block(self.conv_in(x, memory), memory)
        for block in self.up_blocks:
            x = block(x, memory)
        return self.conv_out(x, memory, before=self.norm_out.silu)


class WanVAE(nnx.Module):
    """Wan's causal video autoencoder.

    The first frame is coded alone, every further latent frame stands for `config.temporal_stride` video frames. Both
    directions run as one `jax.lax.scan` over latent frames that carries the causal layers' last frames, so memory for
    intermediate values does not grow with the length of the clip. Differentiable.

    Methods
    -------
    encode(video [B, T, H, W, 3] in [-1, 1]) -> moments [B, T', H', W', 2C]: posterior mean, then log variance
    decode(latents [B, T', H', W', C]) -> video [B, T, H, W, 3]; ``clamp=False`` leaves values outside [-1, 1]
    normalise(latents), denormalise(latents): to and from zero mean and unit deviation per channel
    config.temporal_stride, config.spatial_stride : T = 1 + temporal_stride * (T' - 1), H = spatial_stride * H'

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxdiff.models.network import Network
    >>> vae = Network.init(WanVAE, WanVAEConfig.nano(), seed=0).bind()
    >>> vae.encode(jnp.zeros((1, 5, 8, 8, 3))).shape
    (1, 2, 2, 2, 32)
    """

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.to_moments = Linear(2 * config.z_dim, 2 * config.z_dim, rngs=rngs, init=_identity)
        # The posterior starts narrow (standard deviation 0.05): weak signals would drown in a wide one.
        assert self.to_moments.bias is not None
        self.to_moments.bias[...] = jnp.repeat(jnp.array([0.0, -6.0]), config.z_dim)
        self.from_latents = Linear(config.z_dim, config.z_dim, rngs=rngs, init=_identity)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, video: jax.Array, *, chunk: int = 1) -> jax.Array:
        """Posterior moments of a video.

        Parameters
        ----------
        video : [B, T, H, W, in_channels] float in [-1, 1]; ``T = 1 + k * temporal_stride``, H and W multiples of
            `spatial_stride`.
        chunk : latent frames computed at a time. More need more memory and give the same result up to rounding.

        Returns
        -------
        [B, 1 + k, H', W', 2 z_dim] in the weights' dtype: the posterior mean (which is its mode), then the logarithm of
        its variance.

        Raises
        ------
        ConfigError : the video's shape does not fit the strides.
        """
        config = self.config
        check_video("WanVAE", video.shape, config)
        return self.to_moments(stream(self.encoder, video, chunk * config.temporal_stride))

    def decode(self, latents: jax.Array, *, clamp: bool = True, chunk: int = 1) -> jax.Array:
        """Video of denormalised latents.

        Parameters
        ----------
        latents : [B, T', H', W', z_dim] on the scale of `encode` (see `denormalise`).
        clamp : limit the video to [-1, 1], as the published model does; training needs the gradient and does not.
        chunk : latent frames computed at a time.

        Returns
        -------
        [B, 1 + (T' - 1) * temporal_stride, H, W, out_channels] in the weights' dtype

        Raises
        ------
        ConfigError : the latents' rank or channels do not fit.
        """
        if latents.ndim != 5 or latents.shape[-1] != self.config.z_dim or not latents.shape[1]:
            raise ConfigError(
                f"WanVAE.decode: latents must be [B, T', H', W', {self.config.z_dim}], got {latents.shape}"
            )
        video = stream(self.decoder, self.from_latents(latents), chunk)
        return jnp.clip(video, -1.0, 1.0) if clamp else video

    def normalise(self, latents: jax.Array) -> jax.Array:
        """``(latents - mean) / std`` per channel, float32, with the configuration's statistics."""
        mean, std = self._statistics()
        return (latents.astype(jnp.float32) - mean) / std

    def denormalise(self, latents: jax.Array) -> jax.Array:
        """``latents * std + mean`` per channel, float32: the inverse of `normalise`."""
        mean, std = self._statistics()
        return latents.astype(jnp.float32) * std + mean

    def _statistics(self):
        return jnp.asarray(self.config.latents_mean, jnp.float32), jnp.asarray(self.config.latents_std, jnp.float32)


def _identity(_: jax.Array, shape: tuple[int, int], dtype) -> jax.Array:
    return jnp.eye(*shape, dtype=dtype)


def stream(
    network: Callable[[jax.Array, Any], jax.Array],
    x: jax.Array,
    chunk: int,
    *,
    first: int = 1,
    memory: type[Memory] = Memory,
) -> jax.Array:
    """Run a causal network over [B, T, ...]: the `first` frames, then `chunk` frames at a time, then what is left.

    The network is called as ``network(frames, memory)``; an instance of `memory` hands each chunk what its layers kept
    of the one before.
    """

    def step(state, frames):
        past = memory(state)
        y = network(frames, past)
        return past.state, y  # a state is complete only after the network has run

    state, y = step(None, x[:, :first])
    parts = [y]
    count, rest = divmod(x.shape[1] - first, chunk)
    if count:
        chunks = x[:, first : first + count * chunk].reshape(x.shape[0], count, chunk, *x.shape[2:])
        state, y = jax.lax.scan(step, state, jnp.moveaxis(chunks, 1, 0))
        y = jnp.moveaxis(y, 0, 1)
        parts.append(y.reshape(y.shape[0], count * y.shape[2], *y.shape[3:]))
    if rest:
        parts.append(step(state, x[:, -rest:])[1])
    return jnp.concatenate(parts, axis=1)


def check_video(name: str, shape: tuple[int, ...], config: Any) -> None:
    """Raise a `ConfigError` for a video [B, T, H, W, in_channels] that does not fit the configuration's strides."""
    if len(shape) != 5 or shape[-1] != config.in_channels:
        raise ConfigError(f"{name}.encode: video must be [B, T, H, W, {config.in_channels}], got {shape}")
    frames, stride = shape[1], config.temporal_stride
    if frames < 1 or (frames - 1) % stride:
        fits = 1 + (max(frames, 1) - 1) // stride * stride
        raise ConfigError(
            f"{name}.encode: {frames} frames do not fit {stride}k+1; the nearest lengths that do are {fits} and "
            f"{fits + stride}"
        )
    if any(n < 1 or n % config.spatial_stride for n in shape[2:4]):
        raise ConfigError(
            f"{name}.encode: frames of {shape[2]}x{shape[3]} pixels do not fit: height and width must be multiples of "
            f"{config.spatial_stride}"
        )
