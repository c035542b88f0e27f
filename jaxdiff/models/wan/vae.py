"""The causal video VAEs of Wan 2.1 and 2.2 in Flax, evaluated a few frames at a time.

Reference: Wan, arXiv 2503.20314, section 4.1; numerics follow `AutoencoderKLWan` of diffusers, which the parity suite
compares with, tensor by tensor.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.models.convolutions import CausalConv3d, Strides, fold, unfold
from jaxdiff.models.layers import ConfigFromDict, Linear
from jaxdiff.models.streaming import Memory, check_video, stream
from jaxdiff.models.wan.vae_layers import (
    ChannelNorm,
    Downsample,
    MiddleBlock,
    ResidualBlock,
    Upsample,
    fold_mean,
    repeat_unfold,
)

# Statistics of the latents of Wan 2.1 and of Wan 2.2, from the published configurations.
_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
_MEAN_2_2 = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
_STD_2_2 = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)


@dataclasses.dataclass(frozen=True)
class WanVAEConfig(ConfigFromDict):
    """Architecture numbers, named (and spelled) as in the published vae/config.json.

    The strides follow from `dim_mult`, `temperal_downsample` and `patch_size`; `scale_factor_temporal` and
    `scale_factor_spatial` are carried along for other readers of the file. `dropout` acts in training only and is not
    applied here. `in_channels` and `out_channels` are those of a patch.

    Raises
    ------
    ConfigError : attention outside the middle block (`attn_scales`), lists whose lengths do not agree, or widths that
        the patches or the residual resampling cannot divide.
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
        if self.attn_scales:
            raise ConfigError(f"WanVAE: attn_scales={self.attn_scales!r} is not supported, only () as published")
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
        for key in ("in_channels", "out_channels"):
            if getattr(self, key) % self.patch**2:
                raise ConfigError(
                    f"WanVAE: {key}={getattr(self, key)} must be a multiple of patch_size**2={self.patch**2}: a patch "
                    "holds that many pixels"
                )
        if self.is_residual:
            bad = [(a, b) for a, b, temporal in self.encoder_levels if a * math.prod(strides(temporal)) % b]
            # The last level of the decoder has no shortcut.
            bad += [(a, b) for a, b, temporal in self.decoder_levels[:-1] if b * math.prod(strides(temporal)) % a]
            if bad:
                raise ConfigError(
                    f"WanVAE: is_residual cannot resample from {bad[0][0]} to {bad[0][1]} channels: one must divide the "
                    "other times the strides"
                )

    @property
    def temporal_stride(self) -> int:
        """Video frames per latent frame, after the first."""
        return 2 ** sum(self.temperal_downsample)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent pixel, along each axis."""
        return self.patch * 2 ** (len(self.dim_mult) - 1)

    @property
    def patch(self) -> int:
        """Pixels along each side of the squares that the network takes for one pixel."""
        return self.patch_size or 1

    @property
    def encoder_levels(self) -> tuple[tuple[int, int, bool | None], ...]:
        """For each level its input's width, its output's width, and whether it halves the frames as well as height and
        width (None: neither)."""
        widths = [self.base_dim * m for m in (1, *self.dim_mult)]
        return tuple(zip(widths, widths[1:], (*self.temperal_downsample, None), strict=False))

    @property
    def decoder_levels(self) -> tuple[tuple[int, int, bool | None], ...]:
        """The same, with doubling for halving. Where upsampling is not residual it has halved the next input's width."""
        base = self.decoder_base_dim or self.base_dim
        outputs = [base * m for m in self.dim_mult[::-1]]
        shrink = 1 if self.is_residual else 2
        inputs = [outputs[0], *(width // shrink for width in outputs)]
        return tuple(zip(inputs, outputs, (*self.temperal_downsample[::-1], None), strict=False))

    @classmethod
    def wan2_1(cls) -> "WanVAEConfig":
        """The VAE of every Wan 2.1 checkpoint (and of Wan 2.2 A14B): 126,892,531 parameters, strides 4, 8, 8."""
        return cls()

    @classmethod
    def wan2_2(cls) -> "WanVAEConfig":
        """The VAE of Wan 2.2 TI2V-5B: 704,688,668 parameters, strides 4, 16, 16."""
        return cls(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            latents_mean=_MEAN_2_2,
            latents_std=_STD_2_2,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        )

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


def strides(temporal: bool | None) -> Strides:
    """Of a level in time, height and width; None: it does not resample."""
    return (1, 1, 1) if temporal is None else (1 + temporal, 2, 2)


class DownBlock(nnx.Module):
    """Residual blocks, a downsampling (None: there is none), and a shortcut around them that has no parameters."""

    def __init__(self, inputs: int, outputs: int, depth: int, temporal: bool | None, *, rngs: nnx.Rngs):
        self.outputs, self.strides = outputs, strides(temporal)
        self.resnets = nnx.List([ResidualBlock(outputs if j else inputs, outputs, rngs=rngs) for j in range(depth)])
        self.downsample = None if temporal is None else Downsample(outputs, temporal, rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        shortcut = fold_mean(x, self.outputs, self.strides)
        for block in self.resnets:
            x = block(x, memory)
        return shortcut + (x if self.downsample is None else self.downsample(x, memory))


class Encoder(nnx.Module):
    """Video chunk [B, t, H, W, 3] -> moments [B, t', H', W', 2 z_dim], before the last 1x1x1 layer.

    The blocks of a level are one `DownBlock` if the configuration is residual, else they stand in one list with those
    of the other levels, as in the checkpoint.
    """

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        self.patch = config.patch
        self.conv_in = CausalConv3d(config.in_channels, config.base_dim, (3, 3, 3), rngs=rngs)
        depth, last = config.num_res_blocks, config.encoder_levels[-1][1]
        blocks: list[DownBlock | ResidualBlock | Downsample] = []
        for inputs, outputs, temporal in config.encoder_levels:
            if config.is_residual:
                blocks.append(DownBlock(inputs, outputs, depth, temporal, rngs=rngs))
                continue
            blocks += [ResidualBlock(outputs if j else inputs, outputs, rngs=rngs) for j in range(depth)]
            if temporal is not None:
                blocks.append(Downsample(outputs, temporal, rngs=rngs))
        self.down_blocks = nnx.List(blocks)
        self.mid_block = MiddleBlock(last, rngs=rngs)
        self.norm_out = ChannelNorm(last)
        self.conv_out = CausalConv3d(last, 2 * config.z_dim, (3, 3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        if self.patch > 1:
            x = fold(x, (1, self.patch, self.patch), columns_first=True)
        x = self.conv_in(x, memory)
        for block in self.down_blocks:
            x = block(x, memory)
        x = self.mid_block(x, memory)
        return self.conv_out(x, memory, before=self.norm_out.silu)


class UpBlock(nnx.Module):
    """Residual blocks, then an upsampling (None: the last block has none).

    The upsampling halves the width; with `residual` it keeps it, and a shortcut without parameters leads around all.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, temporal: bool | None, residual: bool, *, rngs: nnx.Rngs):
        self.outputs, self.strides, self.residual = outputs, strides(temporal), residual
        self.resnets = nnx.List([ResidualBlock(outputs if j else inputs, outputs, rngs=rngs) for j in range(depth)])
        width = outputs if residual else outputs // 2
        self.upsample = None if temporal is None else Upsample(outputs, width, temporal, rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        before = x
        for block in self.resnets:
            x = block(x, memory)
        if self.upsample is None:
            return x
        x = self.upsample(x, memory)
        if not self.residual:
            return x
        shortcut = repeat_unfold(before, self.outputs, self.strides)
        return x + (shortcut[:, self.strides[0] - 1 :] if memory.empty else shortcut)  # the first frame is not doubled


class Decoder(nnx.Module):
    """Latent chunk [B, t', H', W', z_dim] -> video chunk [B, t, H, W, 3], not clamped."""

    def __init__(self, config: WanVAEConfig, *, rngs: nnx.Rngs):
        self.patch = config.patch
        first, last = config.decoder_levels[0][0], config.decoder_levels[-1][1]
        self.conv_in = CausalConv3d(config.z_dim, first, (3, 3, 3), rngs=rngs)
        self.mid_block = MiddleBlock(first, rngs=rngs)
        depth, residual = config.num_res_blocks + 1, config.is_residual
        self.up_blocks = nnx.List(
            [
                UpBlock(inputs, outputs, depth, temporal, residual, rngs=rngs)
                for inputs, outputs, temporal in config.decoder_levels
            ]
        )
        self.norm_out = ChannelNorm(last)
        self.conv_out = CausalConv3d(last, config.out_channels, (3, 3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        x = self.mid_block(self.conv_in(x, memory), memory)
        for block in self.up_blocks:
            x = block(x, memory)
        x = self.conv_out(x, memory, before=self.norm_out.silu)
        return unfold(x, (1, self.patch, self.patch), columns_first=True) if self.patch > 1 else x


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
        video : [B, T, H, W, 3] float in [-1, 1]; ``T = 1 + k * temporal_stride``, H and W multiples of
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
        check_video("WanVAE", video.shape, config.in_channels // config.patch**2, config)
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
        [B, 1 + (T' - 1) * temporal_stride, H, W, 3] in the weights' dtype

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
