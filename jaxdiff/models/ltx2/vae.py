"""The video VAE of LTX-2 in Flax: that of LTX-Video in another layout, whose decoder mirrors what is beyond the edges of a
frame.

Reference: LTX-2, arXiv 2601.03233; numerics follow `AutoencoderKLLTX2Video` of diffusers, which the parity suite compares
with, tensor by tensor.
"""

import dataclasses

import jax
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.models.layers import ConfigFromDict
from jaxdiff.models.ltx.vae import LTXVAE
from jaxdiff.models.ltx.vae_config import RESIDUAL, LTXVAEConfig
from jaxdiff.models.ltx.vae_layers import Conv3d

BLOCK, EVERYWHERE = "LTX2VideoDownBlock3D", "spatiotemporal"


@dataclasses.dataclass(frozen=True)
class LTX2VAEConfig(ConfigFromDict):
    """Architecture numbers, named as in the published vae/config.json.

    The strides follow from the blocks; `spatial_compression_ratio` and `temporal_compression_ratio` are carried along
    for other readers of the file.

    Raises
    ------
    ConfigError : as `LTXVAEConfig`, and for a value that no checkpoint of 2.0 has and that changes the computation.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 128
    block_out_channels: tuple[int, ...] = (256, 512, 1024, 2048)
    down_block_types: tuple[str, ...] = (BLOCK,) * 4
    decoder_block_out_channels: tuple[int, ...] = (256, 512, 1024)
    layers_per_block: tuple[int, ...] = (4, 6, 6, 2, 2)
    decoder_layers_per_block: tuple[int, ...] = (5, 5, 5, 5)
    spatio_temporal_scaling: bool | tuple[bool, ...] = (True,) * 4
    decoder_spatio_temporal_scaling: bool | tuple[bool, ...] = (True,) * 3
    decoder_inject_noise: bool | tuple[bool, ...] = (False,) * 4
    downsample_type: tuple[str, ...] = ("spatial", "temporal", "spatiotemporal", "spatiotemporal")
    upsample_type: tuple[str, ...] = (EVERYWHERE,) * 3
    upsample_residual: bool | tuple[bool, ...] = (True,) * 3
    upsample_factor: tuple[int, ...] = (2, 2, 2)
    timestep_conditioning: bool = False
    patch_size: int = 4
    patch_size_t: int = 1
    resnet_norm_eps: float = 1e-6
    scaling_factor: float = 1.0
    encoder_causal: bool = True
    decoder_causal: bool = True
    encoder_spatial_padding_mode: str = "zeros"
    decoder_spatial_padding_mode: str = "reflect"
    spatial_compression_ratio: int | None = None
    temporal_compression_ratio: int | None = None

    def __post_init__(self):
        levels = len(self.decoder_block_out_channels)
        supported = {
            "down_block_types": ((BLOCK,) * len(self.block_out_channels),),
            "upsample_type": ((EVERYWHERE,) * levels,),
            "timestep_conditioning": (False,),
            "decoder_inject_noise": (False, (False,) * (levels + 1)),
            "encoder_spatial_padding_mode": ("zeros",),
            "decoder_spatial_padding_mode": ("reflect", "zeros"),
        }
        for key, values in supported.items():
            if getattr(self, key) not in values:
                raise ConfigError(
                    f"LTX2VAE: {key}={getattr(self, key)!r} is not supported, only {' or '.join(map(repr, values))}"
                )
        if any(a != b for a, b in self.layout.up_widths):
            raise ConfigError(
                "LTX2VAE: a decoder that changes its width other than by upsample_factor is not supported, got "
                f"{self.decoder_block_out_channels} and {self.upsample_factor}"
            )

    @property
    def layout(self) -> LTXVAEConfig:
        """The same layers, as LTX-Video's VAE names them: there the first width is that of the latents."""
        own = {field.name for field in dataclasses.fields(LTXVAEConfig)}
        values = {key: value for key, value in dataclasses.asdict(self).items() if key in own}
        down, up = len(self.layers_per_block) - 1, len(self.decoder_layers_per_block) - 1
        counts = {"spatio_temporal_scaling": down, "decoder_spatio_temporal_scaling": up, "upsample_residual": up}
        counts["decoder_inject_noise"] = up + 1
        for key, count in counts.items():
            if isinstance(values[key], bool):  # one for all
                values[key] = (values[key],) * count
        values["block_out_channels"] = (self.latent_channels, *self.block_out_channels)
        values["down_block_types"] = (RESIDUAL,) * len(self.block_out_channels)
        return LTXVAEConfig(**values)

    @property
    def temporal_stride(self) -> int:
        """Video frames per latent frame, after the first."""
        return self.layout.temporal_stride

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent pixel, along each axis."""
        return self.layout.spatial_stride

    @classmethod
    def ltx_2_0(cls) -> "LTX2VAEConfig":
        """Lightricks/LTX-2: 1,222,479,601 parameters and 256 statistics."""
        return cls(decoder_causal=False, spatial_compression_ratio=32, temporal_compression_ratio=8)


class LTX2VAE(LTXVAE):
    """LTX-2's autoencoder of videos; the methods are those of `LTXVAE`."""

    def __init__(self, config: LTX2VAEConfig, *, rngs: nnx.Rngs):
        super().__init__(config.layout, rngs=rngs)
        self.mirrors = config.decoder_spatial_padding_mode == "reflect"
        if self.mirrors:
            for _, module in nnx.iter_modules(self.decoder):
                if isinstance(module, Conv3d):
                    module.reflect = True

    def decode(self, latents: jax.Array, **noise) -> jax.Array:
        """As `LTXVAE.decode`; frames of one row or column of latents have nothing to mirror, and are refused."""
        if self.mirrors and latents.ndim == 5 and min(latents.shape[2:4]) < 2:
            raise ConfigError(
                f"LTX2VAE.decode: latents must have at least 2 rows and columns (64 pixels), got {latents.shape}"
            )
        return super().decode(latents, **noise)
