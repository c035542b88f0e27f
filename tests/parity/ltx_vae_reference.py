"""diffusers' LTX-Video VAE on tiny configurations of every published version, and what it computes."""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo

from tests.parity.torch_models import randomise
from tests.parity.wan_vae_reference import channels_last

# The published layouts at a width of 8 and with one residual block a stage; strides 8, 32, 32.
TINY: dict[str, dict] = {
    "0.9.0": {
        "block_out_channels": (8, 12, 12, 12),
        "decoder_block_out_channels": (8, 12, 12, 12),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
    "0.9.1": {
        "block_out_channels": (8, 12, 12, 12),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 2, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (True, True, True, False),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
    },
    "0.9.5": {
        "block_out_channels": (8, 16, 16, 32, 32),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
        "layers_per_block": (1, 1, 1, 1, 2),
        "spatio_temporal_scaling": (True, True, True, True),
        "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 2, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True),
        "decoder_inject_noise": (False, False, False, False),
        "upsample_residual": (True, True, True),
        "upsample_factor": (2, 2, 2),
        "timestep_conditioning": True,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    },
}
# And what no published version has, but the class allows.
OTHER: dict[str, dict] = {
    "causal_decoder": {
        **TINY["0.9.0"],
        "decoder_block_out_channels": (8, 16, 16, 16),
        "encoder_causal": False,
        "decoder_causal": True,
        "scaling_factor": 0.7,
        "upsample_residual": (True, True, False, True),
    },
    "mixed_blocks": {
        **TINY["0.9.0"],
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": (
            "LTXVideo095DownBlock3D",
            "LTXVideo095DownBlock3D",
            "LTXVideoDownBlock3D",
            "LTXVideoDownBlock3D",
        ),
        "downsample_type": ("conv", "spatiotemporal", "conv", "conv"),
    },
}
CASES = {**TINY, **OTHER}
LATENT_CHANNELS = 4
# The recipe makes `timestep_scale_multiplier` about 0.1 instead of 1000: larger timesteps make up for it.
TIMESTEPS = (500.0, 3000.0)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the reference computes from a clip, channels last; `decoded` is the video of `latents`, without noise."""

    moments: np.ndarray
    latents: np.ndarray
    decoded: np.ndarray


def model(name: str) -> AutoencoderKLLTXVideo:
    """A reference model with every tensor random."""
    return randomise(AutoencoderKLLTXVideo(**{"latent_channels": LATENT_CHANNELS, **CASES[name]}), seed=len(name))


def video(frames: int = 9, height: int = 32, width: int = 64, batch: int = 2) -> np.ndarray:
    """float32 [B, T, H, W, 3] within [-1, 1]."""
    return np.random.default_rng(frames).uniform(-1, 1, (batch, frames, height, width, 3)).astype(np.float32)


def run(vae: AutoencoderKLLTXVideo, clip: np.ndarray) -> Reference:
    """Moments of the clip, and the decoding of their mean."""
    with torch.no_grad():
        moments = vae.encode(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)).latent_dist.parameters
    latents = channels_last(moments.chunk(2, dim=1)[0])
    return Reference(channels_last(moments), latents, decode(vae, latents))


def decode(
    vae: AutoencoderKLLTXVideo,
    latents: np.ndarray,
    timestep: tuple[float, ...] = TIMESTEPS,
    noise: Callable[[int, int], np.ndarray] | None = None,
) -> np.ndarray:
    """The video of denormalised latents; `noise(height, width)` [H, W] stands in for torch's generator (None: zeros)."""
    told = torch.tensor(timestep[: len(latents)]) if vae.config.timestep_conditioning else None
    before = torch.randn
    torch.randn = lambda size, **_: torch.zeros(size) if noise is None else torch.from_numpy(np.array(noise(*size)))
    try:
        with torch.no_grad():
            return channels_last(vae.decode(torch.from_numpy(latents).permute(0, 4, 1, 2, 3), told).sample)
    finally:
        torch.randn = before
