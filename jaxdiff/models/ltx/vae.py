"""The video VAE of LTX-Video in Flax: a causal encoder, and a decoder that may be told a timestep.

Reference: LTX-Video, arXiv 2501.00103, section 2.1; numerics follow `AutoencoderKLLTXVideo` of diffusers, which the
parity suite compares with, tensor by tensor.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.models.layers import ConfigFromDict, RMSNorm
from jaxdiff.models.ltx.vae_layers import (
    NORM_EPS,
    Conv3d,
    Downsample,
    Noise,
    ResidualBlock,
    Stage,
    Strides,
    TimeEmbedding,
    Upsample,
    fold,
    modulated,
    unfold,
)
from jaxdiff.models.wan.vae import check_video

PLAIN, RESIDUAL = "LTXVideoDownBlock3D", "LTXVideo095DownBlock3D"
# Frames and pixels per latent, in every version. The transformers, to which positions are seconds and pixels, count
# on it.
STRIDES = (8, 32)
DOWNSAMPLING: dict[str, Strides] = {
    "conv": (2, 2, 2),
    "spatial": (1, 2, 2),
    "temporal": (2, 1, 1),
    "spatiotemporal": (2, 2, 2),
}


@dataclasses.dataclass(frozen=True)
class LTXVAEConfig(ConfigFromDict):
    """Architecture numbers, named as in the published vae/config.json.

    The strides follow from the blocks; `spatial_compression_ratio` and `temporal_compression_ratio` are carried along
    for other readers of the file.

    Raises
    ------
    ConfigError : lists whose lengths do not agree, or blocks that the reference could not run either.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 128
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    down_block_types: tuple[str, ...] = (PLAIN,) * 4
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4)
    decoder_layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4)
    spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_inject_noise: tuple[bool, ...] = (False,) * 5
    downsample_type: tuple[str, ...] = ("conv",) * 4
    upsample_residual: tuple[bool, ...] = (False,) * 4
    upsample_factor: tuple[int, ...] = (1,) * 4
    timestep_conditioning: bool = False
    patch_size: int = 4
    patch_size_t: int = 1
    resnet_norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    encoder_causal: bool = True
    decoder_causal: bool = False
    spatial_compression_ratio: int | None = None
    temporal_compression_ratio: int | None = None

    def __post_init__(self):
        down, up = len(self.down_widths), len(self.decoder_block_out_channels)
        lengths = {
            "down_block_types": down,
            "layers_per_block": down + 1,
            "spatio_temporal_scaling": down,
            "downsample_type": down,
            "decoder_layers_per_block": up + 1,
            "decoder_spatio_temporal_scaling": up,
            "decoder_inject_noise": up + 1,
            "upsample_residual": up,
            "upsample_factor": up,
        }
        for key, length in lengths.items():
            if len(getattr(self, key)) != length:
                raise ConfigError(f"LTXVAE: {key} has {len(getattr(self, key))} entries and needs {length}")
        if self.patch_size_t != 1:
            raise ConfigError(f"LTXVAE: patch_size_t={self.patch_size_t} is not supported, only 1")
        for key, known in (("down_block_types", (PLAIN, RESIDUAL)), ("downsample_type", (*DOWNSAMPLING,))):
            for value in getattr(self, key):
                if value not in known:
                    raise ConfigError(f"LTXVAE: {key} holds {value!r}; known: {', '.join(known)}")
        told = self.timestep_conditioning or any(self.decoder_inject_noise)
        if told and any(a != b for a, b in self.up_widths):
            raise ConfigError(
                "LTXVAE: a decoder with timestep_conditioning or decoder_inject_noise cannot change its width other "
                f"than by upsample_factor, got {self.decoder_block_out_channels} and {self.upsample_factor}"
            )
        for (a, b), strides, block, kind in zip(
            self.down_widths, self.downsampling, self.down_block_types, self.downsample_type, strict=True
        ):
            folds = math.prod(strides) if strides and kind != "conv" else 1
            if block == RESIDUAL and (a != b if folds == 1 else a * folds % b or b % folds):
                raise ConfigError(
                    f"LTXVAE: a {RESIDUAL} with downsample_type {kind!r} cannot go from {a} to {b} channels"
                )
        doubled = 2 ** sum(self.decoder_spatio_temporal_scaling)
        encoder = (self.temporal_stride, self.spatial_stride)
        if encoder != STRIDES or (doubled, self.patch_size * doubled) != STRIDES:
            raise ConfigError(
                f"LTXVAE: the strides (time, space) of the encoder are {encoder}, those of the decoder "
                f"{(doubled, self.patch_size * doubled)}; both must be {STRIDES}, on which the transformers rely"
            )

    @property
    def down_widths(self) -> tuple[tuple[int, int], ...]:
        """Width before and after each down block: the last plain block keeps its width, residual ones never end."""
        widths = self.block_out_channels
        after = widths[1:] if self.down_block_types[-1:] == (RESIDUAL,) else (*widths[1:], widths[-1])
        return tuple(zip(widths, after, strict=False))

    @property
    def up_widths(self) -> tuple[tuple[int, int], ...]:
        """Width of each up block's input after its upsampling, and of its output."""
        pairs, width = [], self.decoder_block_out_channels[-1]
        outputs = self.decoder_block_out_channels[::-1]
        for output, factor in zip(outputs, self.upsample_factor[::-1], strict=False):
            pairs.append((width // factor, output // factor))
            width = output // factor
        return tuple(pairs)

    @property
    def downsampling(self) -> tuple[Strides | None, ...]:
        """(time, height, width) by which each down block downsamples; None: it does not."""
        scaled = zip(self.spatio_temporal_scaling, self.down_block_types, self.downsample_type, strict=False)
        return tuple(
            (DOWNSAMPLING["conv" if block == PLAIN else kind] if scale else None) for scale, block, kind in scaled
        )

    @property
    def temporal_stride(self) -> int:
        """Video frames per latent frame, after the first."""
        return math.prod(strides[0] for strides in self.downsampling if strides)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent pixel, along each axis."""
        return self.patch_size * math.prod(strides[1] for strides in self.downsampling if strides)

    @classmethod
    def v0_9_0(cls) -> "LTXVAEConfig":
        """Lightricks/LTX-Video 0.9.0: 419,193,649 parameters and 256 statistics."""
        return cls()

    @classmethod
    def v0_9_1(cls) -> "LTXVAEConfig":
        """LTX-Video 0.9.1: 934,976,434 parameters and 256 statistics; the decoder is told a timestep and injects
        noise."""
        return cls(
            decoder_block_out_channels=(256, 512, 1024),
            decoder_layers_per_block=(5, 6, 7, 8),
            decoder_spatio_temporal_scaling=(True, True, True),
            decoder_inject_noise=(True, True, True, False),
            upsample_residual=(True, True, True),
            upsample_factor=(2, 2, 2),
            timestep_conditioning=True,
        )

    @classmethod
    def v0_9_5(cls) -> "LTXVAEConfig":
        """LTX-Video 0.9.5 and 0.9.7: 1,246,913,522 parameters and 256 statistics; the decoder is told a timestep."""
        return cls(
            block_out_channels=(128, 256, 512, 1024, 2048),
            down_block_types=(RESIDUAL,) * 4,
            decoder_block_out_channels=(256, 512, 1024),
            layers_per_block=(4, 6, 6, 2, 2),
            decoder_layers_per_block=(5, 5, 5, 5),
            spatio_temporal_scaling=(True, True, True, True),
            decoder_spatio_temporal_scaling=(True, True, True),
            decoder_inject_noise=(False, False, False, False),
            downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            upsample_residual=(True, True, True),
            upsample_factor=(2, 2, 2),
            timestep_conditioning=True,
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        )


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
        check_video("LTXVAE", video.shape, self.config)
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
