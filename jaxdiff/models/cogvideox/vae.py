"""The causal video VAE of CogVideoX in Flax, evaluated eight video frames at a time.

Reference: CogVideoX, arXiv 2408.06072, section 2.1; numerics follow `AutoencoderKLCogVideoX` of diffusers, which the
parity suite compares with, tensor by tensor.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.models.cogvideox.vae_layers import ConditionedNorm, Downsample, Memory, ResidualBlock, Upsample
from jaxdiff.models.convolutions import CausalConv3d
from jaxdiff.models.layers import ConfigFromDict, GroupNorm
from jaxdiff.models.streaming import check_video, stream

# Video frames, and latent frames, that the network was trained to see at once; constants of the reference.
VIDEO_CHUNK = 8
LATENT_CHUNK = 2
OUT_EPS = 1e-6  # of the encoder's last norm, likewise


@dataclasses.dataclass(frozen=True)
class CogVideoXVAEConfig(ConfigFromDict):
    """Architecture numbers, named as in the published vae/config.json.

    `sample_height`, `sample_width` (the size of tiles, which are not used here) and `force_upcast` are carried along
    for other readers of the file.

    Raises
    ------
    ConfigError : a value that no published checkpoint has and that changes the computation, or lists that do not agree.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("CogVideoXDownBlock3D",) * 4
    up_block_types: tuple[str, ...] = ("CogVideoXUpBlock3D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    act_fn: str = "silu"
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    sample_height: int = 480
    sample_width: int = 720
    scaling_factor: float = 1.15258426
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    invert_scale_latents: bool = False

    def __post_init__(self):
        blocks = len(self.block_out_channels)
        only = {
            "down_block_types": ("CogVideoXDownBlock3D",) * blocks,
            "up_block_types": ("CogVideoXUpBlock3D",) * blocks,
            "act_fn": "silu",
            "temporal_compression_ratio": 4,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
        for key, value in only.items():
            if getattr(self, key) != value:
                raise ConfigError(f"CogVideoXVAE: {key}={getattr(self, key)!r} is not supported, only {value!r}")
        if blocks < 3:
            raise ConfigError(f"CogVideoXVAE: block_out_channels={self.block_out_channels} needs 3 blocks or more")
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ConfigError(
                f"CogVideoXVAE: block_out_channels={self.block_out_channels} must be multiples of norm_num_groups="
                f"{self.norm_num_groups}"
            )

    @property
    def temporal_stride(self) -> int:
        """Video frames per latent frame, after the first."""
        return self.temporal_compression_ratio

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent pixel, along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def cogvideox_2b(cls) -> "CogVideoXVAEConfig":
        """The VAE of THUDM/CogVideoX-2b: 215,583,907 parameters, strides 4, 8, 8."""
        return cls()

    @classmethod
    def cogvideox_5b(cls) -> "CogVideoXVAEConfig":
        """That of THUDM/CogVideoX-5b and 5b-I2V: the same, with latents on another scale."""
        return cls(scaling_factor=0.7)

    @classmethod
    def cogvideox1_5_5b(cls) -> "CogVideoXVAEConfig":
        """That of THUDM/CogVideoX1.5-5B and 5B-I2V: the latents of an image are on yet another scale."""
        return cls(scaling_factor=0.7, invert_scale_latents=True)


class Level(nnx.Module):
    """Residual blocks of one width, then a resampling, in time too if `temporal` (None: there is none)."""

    def __init__(self, inputs: int, outputs: int, depth: int, resample, temporal: bool | None, *, rngs, **block):
        self.resnets = nnx.List(
            [ResidualBlock(outputs if j else inputs, outputs, rngs=rngs, **block) for j in range(depth)]
        )
        self.resample = None if temporal is None else resample(outputs, temporal, rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory, z: jax.Array | None = None) -> jax.Array:
        for block in self.resnets:
            x = block(x, memory, z)
        return x if self.resample is None else self.resample(x)


def _levels(widths: tuple[int, ...], depth: int, resample: type[Downsample] | type[Upsample], **block) -> nnx.List:
    """All levels of one half. In time the first two are resampled, in space all but the last."""
    last = len(widths) - 1
    return nnx.List(
        [
            Level(widths[max(i - 1, 0)], width, depth, resample, None if i == last else i < 2, **block)
            for i, width in enumerate(widths)
        ]
    )


class Encoder(nnx.Module):
    """Video chunk [B, t, H, W, in_channels] -> moments [B, t', H', W', 2 latent_channels]."""

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        widths = config.block_out_channels
        block: dict[str, Any] = {"groups": config.norm_num_groups, "eps": config.norm_eps, "latents": None}
        self.conv_in = CausalConv3d(config.in_channels, widths[0], (3, 3, 3), rngs=rngs)
        self.down_blocks = _levels(widths, config.layers_per_block, Downsample, rngs=rngs, **block)
        self.mid_block = nnx.List([ResidualBlock(widths[-1], widths[-1], rngs=rngs, **block) for _ in range(2)])
        self.norm_out = GroupNorm(widths[-1], config.norm_num_groups, OUT_EPS)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels, (3, 3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        x = self.conv_in(x, memory)
        for block in (*self.down_blocks, *self.mid_block):
            x = block(x, memory)
        return self.conv_out(jax.nn.silu(self.norm_out(x)), memory)


class Decoder(nnx.Module):
    """Latent chunk [B, t', H', W', latent_channels] -> video chunk [B, t, H, W, out_channels]."""

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        widths, latents = config.block_out_channels[::-1], config.latent_channels
        block: dict[str, Any] = {"groups": config.norm_num_groups, "eps": config.norm_eps, "latents": latents}
        self.conv_in = CausalConv3d(latents, widths[0], (3, 3, 3), rngs=rngs)
        self.mid_block = nnx.List([ResidualBlock(widths[0], widths[0], rngs=rngs, **block) for _ in range(2)])
        self.up_blocks = _levels(widths, config.layers_per_block + 1, Upsample, rngs=rngs, **block)
        self.norm_out = ConditionedNorm(widths[-1], latents, config.norm_num_groups, rngs=rngs)
        self.conv_out = CausalConv3d(widths[-1], config.out_channels, (3, 3, 3), rngs=rngs)

    def __call__(self, z: jax.Array, memory: Memory) -> jax.Array:
        x = self.conv_in(z, memory)
        for block in (*self.mid_block, *self.up_blocks):
            x = block(x, memory, z)
        return self.conv_out(jax.nn.silu(self.norm_out(x, z)), memory)


class CogVideoXVAE(nnx.Module):
    """CogVideoX's causal video autoencoder.

    Both directions run over chunks of frames, the first chunk longer by what is left over: a `jax.lax.scan` that
    carries the convolutions' last frames. The chunks are part of the definition, because norms are taken over each.
    Differentiable.

    Methods
    -------
    encode(video [B, T, H, W, 3] in [-1, 1]) -> moments [B, T', H', W', 2C]: posterior mean, then log variance
    decode(latents [B, T', H', W', C]) -> video [B, T, H, W, 3]; ``clamp=False`` leaves values outside [-1, 1]
    normalise(latents), denormalise(latents): to and from the scale that the transformer was trained on
    normalise_image(latents): the same for the latents of an image to be continued
    config.temporal_stride, config.spatial_stride : T = 1 + temporal_stride * (T' - 1), H = spatial_stride * H'

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxdiff.models.network import Network
    >>> config = CogVideoXVAEConfig(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2)
    >>> vae = Network.init(CogVideoXVAE, config, seed=0).bind()
    >>> vae.encode(jnp.zeros((1, 5, 16, 8, 3))).shape
    (1, 2, 2, 1, 32)
    """

    def __init__(self, config: CogVideoXVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def encode(self, video: jax.Array) -> jax.Array:
        """Posterior moments of a video.

        Parameters
        ----------
        video : [B, T, H, W, in_channels] float in [-1, 1]; T = 4k + 1, H and W multiples of `spatial_stride`.

        Returns
        -------
        [B, 1 + k, H', W', 2 latent_channels] in the weights' dtype: the posterior mean (which is its mode), then the
        logarithm of its variance.

        Raises
        ------
        ConfigError : the video's shape does not fit the strides.
        """
        check_video("CogVideoXVAE", video.shape, self.config.in_channels, self.config)
        return stream(self.encoder, video, VIDEO_CHUNK, first=_first(video.shape[1], VIDEO_CHUNK), memory=Memory)

    def decode(self, latents: jax.Array, *, clamp: bool = True) -> jax.Array:
        """Video of denormalised latents.

        Parameters
        ----------
        latents : [B, T', H', W', latent_channels] on the scale of `encode` (see `denormalise`).
        clamp : limit the video to [-1, 1], as the published pipeline does.

        Returns
        -------
        [B, T, H, W, out_channels] in the weights' dtype. T = 4 T' - 3 for an odd number of latent frames. For an even
        one the network, as published, has no frame of its own for the first: T = 4 T'.

        Raises
        ------
        ConfigError : the latents' rank or channels do not fit.
        """
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[-1] != channels or not latents.shape[1]:
            raise ConfigError(f"CogVideoXVAE.decode: latents must be [B, T', H', W', {channels}], got {latents.shape}")
        first = _first(latents.shape[1], LATENT_CHUNK)
        video = stream(self.decoder, latents, LATENT_CHUNK, first=first, memory=Memory)
        return jnp.clip(video, -1.0, 1.0) if clamp else video

    def normalise(self, latents: jax.Array) -> jax.Array:
        """``latents * scaling_factor``, float32."""
        return latents.astype(jnp.float32) * self.config.scaling_factor

    def denormalise(self, latents: jax.Array) -> jax.Array:
        """``latents / scaling_factor``, float32: the inverse of `normalise`."""
        return latents.astype(jnp.float32) / self.config.scaling_factor

    def normalise_image(self, latents: jax.Array) -> jax.Array:
        """As `normalise`, for the image that a video continues; CogVideoX 1.5 was trained with the inverse factor there
        (`invert_scale_latents`)."""
        return self.denormalise(latents) if self.config.invert_scale_latents else self.normalise(latents)


def _first(frames: int, chunk: int) -> int:
    """Length of the first chunk: a whole one and what is left over, or all of a clip shorter than a chunk."""
    return frames if frames < chunk else chunk + frames % chunk
