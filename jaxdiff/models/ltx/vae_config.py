"""Architecture numbers of the LTX-Video VAE, of every version."""

import dataclasses
import math

from jaxdiff.errors import ConfigError
from jaxdiff.models.convolutions import Strides
from jaxdiff.models.layers import ConfigFromDict

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
