"""The video VAE of LTX-Video in Flax: a causal encoder, and a decoder that may be told a timestep.

Reference: LTX-Video, arXiv 2501.00103, section 2.1; numerics follow `AutoencoderKLLTXVideo` of diffusers, which the
parity suite compares with, tensor by tensor.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.models.convolutions import fold, unfold
from jaxdiff.models.layers import RMSNorm
from jaxdiff.models.ltx.vae_config import PLAIN, LTXVAEConfig
from jaxdiff.models.ltx.vae_layers import (
    NORM_EPS,
    Conv3d,
    Downsample,
    Noise,
    ResidualBlock,
    Stage,
    TimeEmbedding,
    Upsample,
    modulated,
)
from jaxdiff.models.streaming import check_video


class DownBlock(nnx.Module):
    """Residual blocks, a downsampling, and in the plain kind a residual block that changes the width."""

    def __init__(self, config: LTXVAEConfig, index: int, *, rngs: nnx.Rngs):
        (inputs, outputs), strides = config.down_widths[index], config.downsampling[index]
        kind = "conv" if config.down_block_types[index] == PLAIN else config.downsample_type[index]
        causal, eps = config.encoder_causal, config.resnet_norm_eps
        self.stage = Stage(inputs, config.layers_per_block[index], causal=causal, eps=eps, rngs=rngs)
        self.downsample: Conv3d | Downsample | None
        if strides is None:
            self.downsample = None
        elif kind == "conv":
            self.downsample = Conv3d(inputs, inputs, causal=causal, stride=2, rngs=rngs)
        else:
            self.downsample = Downsample(inputs, outputs, strides, causal=causal, rngs=rngs)
        widens = config.down_block_types[index] == PLAIN and inputs != outputs
        self.widen = ResidualBlock(inputs, outputs, causal=causal, eps=eps, rngs=rngs) if widens else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stage(x)
        x = x if self.downsample is None else self.downsample(x)
        return x if self.widen is None else self.widen(x)


class Encoder(nnx.Module):
    """Video [B, T, H, W, in_channels] -> posterior mean and one log variance a position, [B, T', H', W', C + 1]."""

    def __init__(self, config: LTXVAEConfig, *, rngs: nnx.Rngs):
        causal, widths = config.encoder_causal, config.block_out_channels
        self.patch = (1, config.patch_size, config.patch_size)
        self.conv_in = Conv3d(config.in_channels * config.patch_size**2, widths[0], causal=causal, rngs=rngs)
        self.down_blocks = nnx.List([DownBlock(config, i, rngs=rngs) for i in range(len(config.down_widths))])
        last = config.down_widths[-1][1]
        self.mid_block = Stage(last, config.layers_per_block[-1], causal=causal, eps=config.resnet_norm_eps, rngs=rngs)
        self.norm_out = RMSNorm(last, NORM_EPS, affine=False)
        self.conv_out = Conv3d(last, config.latent_channels + 1, causal=causal, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv_in(fold(x, self.patch, columns_first=True))
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid_block(x))))


class UpBlock(nnx.Module):
    """Where the width changes a residual block that changes it, an upsampling, residual blocks."""

    def __init__(self, config: LTXVAEConfig, index: int, *, rngs: nnx.Rngs):
        """Blocks count from the latents; the lists of the configuration, from the video."""
        (inputs, outputs), back = config.up_widths[index], -1 - index
        factor, residual = config.upsample_factor[back], config.upsample_residual[back]
        causal, eps = config.decoder_causal, config.resnet_norm_eps
        self.widen = ResidualBlock(inputs, outputs, causal=causal, eps=eps, rngs=rngs) if inputs != outputs else None
        self.upsample = (
            Upsample(outputs * factor, factor=factor, residual=residual, causal=causal, rngs=rngs)
            if config.decoder_spatio_temporal_scaling[back]
            else None
        )
        self.stage = Stage(
            outputs,
            config.decoder_layers_per_block[back - 1],
            causal=causal,
            eps=eps,
            noisy=config.decoder_inject_noise[back - 1],
            conditioned=config.timestep_conditioning,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, timestep: jax.Array | None, noise: Noise) -> jax.Array:
        x = x if self.widen is None else self.widen(x)
        x = x if self.upsample is None else self.upsample(x)
        return self.stage(x, timestep, noise)


class Decoder(nnx.Module):
    """Latents [B, T', H', W', C] -> video [B, T, H, W, out_channels], not clamped."""

    def __init__(self, config: LTXVAEConfig, *, rngs: nnx.Rngs):
        causal, widths = config.decoder_causal, config.decoder_block_out_channels
        last = config.up_widths[-1][1]
        self.patch = (1, config.patch_size, config.patch_size)
        self.conv_in = Conv3d(config.latent_channels, widths[-1], causal=causal, rngs=rngs)
        self.mid_block = Stage(
            widths[-1],
            config.decoder_layers_per_block[-1],
            causal=causal,
            eps=config.resnet_norm_eps,
            noisy=config.decoder_inject_noise[-1],
            conditioned=config.timestep_conditioning,
            rngs=rngs,
        )
        self.up_blocks = nnx.List([UpBlock(config, i, rngs=rngs) for i in range(len(widths))])
        self.norm_out = RMSNorm(last, NORM_EPS, affine=False)
        self.conv_out = Conv3d(last, config.out_channels * config.patch_size**2, causal=causal, rngs=rngs)
        told = config.timestep_conditioning
        self.time = TimeEmbedding(2 * last, rngs=rngs) if told else None
        self.time_scale = nnx.Param(jnp.float32(1000.0)) if told else None
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, last)) * last**-0.5) if told else None

    def __call__(self, x: jax.Array, timestep: jax.Array, noise: Noise) -> jax.Array:
        table = None
        if self.time is not None:
            assert self.time_scale is not None and self.modulation is not None  # there are all or none
            timestep = timestep * self.time_scale[...]
            table = self.time(timestep).reshape(x.shape[0], 2, -1) + self.modulation[...]
        x = self.mid_block(self.conv_in(x), timestep, noise)
        for block in self.up_blocks:
            x = block(x, timestep, noise)
        x = self.conv_out(jax.nn.silu(modulated(self.norm_out(x), table)))
        return unfold(x, self.patch, columns_first=True)


class LTXVAE(nnx.Module):
    """LTX-Video's autoencoder.

    Methods
    -------
    encode(video [B, T, H, W, 3] in [-1, 1]) -> moments [B, T', H', W', 2C]: posterior mean, then log variance
    decode(latents [B, T', H', W', C]) -> video [B, T, H, W, 3], not clamped
    normalise(latents), denormalise(latents): to and from zero mean and unit deviation per channel; the statistics are
        tensors of the checkpoint
    config.temporal_stride, config.spatial_stride : T = 1 + temporal_stride * (T' - 1), H = spatial_stride * H'
    """

    def __init__(self, config: LTXVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.latents_mean = nnx.Param(jnp.zeros((config.latent_channels,), jnp.float32))
        self.latents_std = nnx.Param(jnp.ones((config.latent_channels,), jnp.float32))

    def encode(self, video: jax.Array) -> jax.Array:
        """Posterior moments of a video.

        Parameters
        ----------
        video : [B, T, H, W, in_channels] float in [-1, 1]; ``T = 1 + k * temporal_stride``, H and W multiples of
            `spatial_stride`.

        Returns
        -------
        [B, 1 + k, H', W', 2 latent_channels] in the weights' dtype: the posterior mean (which is its mode), then the
        logarithm of its variance, one for all channels.

        Raises
        ------
        ConfigError : the video's shape does not fit the strides.
        """
        check_video("LTXVAE", video.shape, self.config.in_channels, self.config)
        x = self.encoder(video)
        channels = self.config.latent_channels
        return jnp.concatenate([x[..., :channels], jnp.broadcast_to(x[..., channels:], (*x.shape[:-1], channels))], -1)

    def decode(
        self,
        latents: jax.Array,
        *,
        timestep: jax.Array | float = 0.0,
        noise_scale: jax.Array | float | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Video of denormalised latents.

        Parameters
        ----------
        latents : [B, T', H', W', latent_channels] on the scale of `encode` (see `denormalise`).
        timestep : the noise level that a timestep-conditioned decoder is told, in [0, 1], a number or [B]. 0 is the
            published pipelines' default; their authors recommend 0.05 with a `noise_scale` of 0.025. Without meaning
            for 0.9.0.
        noise_scale : with a key, a timestep-conditioned decoder gets ``(1 - n) latents + n noise``, a number or [B];
            None: `timestep`.
        key : `jax.random` key of all noise, also of that which the decoder of 0.9.1 injects. None: no noise at all, so
            that decoding is a function of the latents.

        Returns
        -------
        [B, 1 + (T' - 1) * temporal_stride, H, W, out_channels] in the weights' dtype

        Raises
        ------
        ConfigError : the latents' rank or channels do not fit.
        """
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[-1] != channels or not latents.shape[1]:
            raise ConfigError(f"LTXVAE.decode: latents must be [B, T', H', W', {channels}], got {latents.shape}")
        timestep = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), latents.shape[:1])
        injected = None
        if key is not None and self.config.timestep_conditioning:
            key, injected = jax.random.split(key)
            scale = timestep if noise_scale is None else jnp.broadcast_to(noise_scale, latents.shape[:1])
            scale = scale[:, None, None, None, None]
            latents = (1 - scale) * latents + scale * jax.random.normal(key, latents.shape)
        return self.decoder(latents, timestep, Noise(injected))

    def normalise(self, latents: jax.Array) -> jax.Array:
        """``(latents - mean) * scaling_factor / std`` per channel, float32."""
        mean, std = self._statistics()
        return (latents.astype(jnp.float32) - mean) * self.config.scaling_factor / std

    def denormalise(self, latents: jax.Array) -> jax.Array:
        """``latents * std / scaling_factor + mean`` per channel, float32: the inverse of `normalise`."""
        mean, std = self._statistics()
        return latents.astype(jnp.float32) * std / self.config.scaling_factor + mean

    def _statistics(self):
        return self.latents_mean[...].astype(jnp.float32), self.latents_std[...].astype(jnp.float32)
