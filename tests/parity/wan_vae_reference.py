"""diffusers' Wan VAE on tiny configurations, and what it computes."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from tests.parity.torch_models import TINY_VAE, randomise

# What makes the architecture that of Wan 2.2; the decoder's width differs from the encoder's, as published.
RESIDUAL = {
    "decoder_base_dim": 12,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
# Name -> configuration and frames: the published strides, the nano model's, and others that the class allows.
CASES = {
    "published": ({}, 9),
    "one_frame": ({}, 1),
    "two_blocks": ({"num_res_blocks": 2, "decoder_base_dim": 12}, 5),
    "nano_like": ({"dim_mult": [1, 1, 1], "num_res_blocks": 0, "temperal_downsample": [True, True]}, 9),
    "wide": ({"base_dim": 36, "dim_mult": [1, 2], "temperal_downsample": [True]}, 5),
    "space_only": ({"dim_mult": [1, 2], "temperal_downsample": [False]}, 5),
    "residual": (RESIDUAL, 9),
    "residual_deep": ({**RESIDUAL, "num_res_blocks": 2, "dim_mult": [1, 1, 4, 4]}, 5),
    "residual_no_patch": ({"is_residual": True, "dim_mult": [2, 1, 1], "temperal_downsample": [True, True]}, 5),
}
# Those whose outputs the torch-free tests compare with; all others are compared live only, since each costs a compilation.
RECORDED = ("published", "one_frame", "nano_like", "space_only", "residual")
HEIGHT, WIDTH = 16, 24  # latents of 2 x 3
# One module of each kind, by its name there and here; of Wan 2.1 and of 2.2.
ENDS = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.mid_block": "encoder.mid_block",
    "encoder.mid_block.attentions.0": "encoder.mid_block.attention",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.mid_block": "decoder.mid_block",
    "decoder.up_blocks.0": "decoder.up_blocks.0",
    "decoder.up_blocks.3": "decoder.up_blocks.3",
}
PLAIN_LAYERS = {
    **ENDS,
    "encoder.down_blocks.0": "encoder.down_blocks.0",  # residual block
    "encoder.down_blocks.1": "encoder.down_blocks.1",  # halves height and width
    "encoder.down_blocks.2": "encoder.down_blocks.2",  # residual block that changes the width
    "encoder.down_blocks.3": "encoder.down_blocks.3",  # halves the frames too
    "encoder.down_blocks.5": "encoder.down_blocks.5",
    "decoder.up_blocks.0.upsamplers.0": "decoder.up_blocks.0.upsample",  # doubles frames, height and width
    "decoder.up_blocks.1.upsamplers.0": "decoder.up_blocks.1.upsample",
    "decoder.up_blocks.2.upsamplers.0": "decoder.up_blocks.2.upsample",  # doubles height and width
}
RESIDUAL_LAYERS = {
    **ENDS,
    "encoder.down_blocks.0": "encoder.down_blocks.0",  # halves height and width
    "encoder.down_blocks.1": "encoder.down_blocks.1",  # halves the frames too
    "encoder.down_blocks.2": "encoder.down_blocks.2",
    "encoder.down_blocks.3": "encoder.down_blocks.3",  # halves nothing
    "encoder.down_blocks.1.downsampler": "encoder.down_blocks.1.downsample",
    "decoder.up_blocks.1": "decoder.up_blocks.1",  # doubles frames, height and width
    "decoder.up_blocks.2": "decoder.up_blocks.2",  # doubles height and width
    "decoder.up_blocks.0.upsampler": "decoder.up_blocks.0.upsample",
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the reference computes from a clip, channels last; `decoded` and `clamped` are the video of `latents`."""

    moments: np.ndarray
    latents: np.ndarray
    decoded: np.ndarray
    clamped: np.ndarray


def model(changes: dict, seed: int) -> AutoencoderKLWan:
    """A reference model with every tensor random."""
    return randomise(AutoencoderKLWan(**{**TINY_VAE, **changes}), seed)


def video(vae: AutoencoderKLWan, frames: int, batch: int = 1) -> np.ndarray:
    """float32 [B, T, H, W, 3] within [-1, 1]; with patches, as many of them as there else are pixels."""
    patch = vae.config.patch_size or 1
    shape = (batch, frames, HEIGHT * patch, WIDTH * patch, 3)
    return np.random.default_rng(frames).uniform(-1, 1, shape).astype(np.float32)


@torch.no_grad()
def run(vae: AutoencoderKLWan, clip: np.ndarray) -> Reference:
    """Moments of the clip, and the decoding of their mean, before and after the clamp (under which errors hide)."""
    chunks = []
    hook = vae.decoder.conv_out.register_forward_hook(lambda module, args, output: chunks.append(output))
    moments = vae.encode(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)).latent_dist.parameters
    latents = moments.chunk(2, dim=1)[0]
    clamped = vae.decode(latents).sample
    hook.remove()
    decoded = unpatchify(torch.cat(chunks, dim=2), vae.config.patch_size or 1)
    arrays = (moments, latents, decoded, clamped)
    return Reference(*(channels_last(x) for x in arrays))


@torch.no_grad()
def run_layers(
    vae: AutoencoderKLWan, names: Iterable[str], clip: np.ndarray
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Input and output of each named layer, one pair a chunk, of encoding and decoding a clip."""
    seen: dict[str, list] = {name: [] for name in names}
    hooks = [
        vae.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen[name].append((channels_last(args[0]), channels_last(output)))
        )
        for name in seen
    ]
    run(vae, clip)
    for hook in hooks:
        hook.remove()
    return seen


def channels_last(x: torch.Tensor) -> np.ndarray:
    """(B, C, T, H, W) -> [B, T, H, W, C]."""
    return x.permute(0, 2, 3, 4, 1).numpy().copy()
