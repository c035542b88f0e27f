"""diffusers' CogVideoX VAE on tiny configurations, and what it computes."""

import dataclasses

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX

from tests.parity import cogvideox_reference

HEIGHT, WIDTH = 16, 24
UNEVEN = {"block_out_channels": [4, 8, 8, 12], "norm_num_groups": 4, "norm_eps": 1e-3}
# Name -> configuration and frames. 13 frames are one chunk, and 4 latent frames decode to 16; 17 and 21 are two.
CASES = {
    "one_frame": ({}, 1),
    "9": ({"layers_per_block": 2}, 9),
    "13": ({}, 13),
    "17": (UNEVEN, 17),
    "21": ({"block_out_channels": [8] * 3, "down_block_types": ["CogVideoXDownBlock3D"] * 3,
            "up_block_types": ["CogVideoXUpBlock3D"] * 3}, 21),
}  # fmt: skip
# One module of each kind, by its name there and here.
LAYERS = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.down_blocks.0.resnets.0": "encoder.down_blocks.0.resnets.0",
    "encoder.down_blocks.1.resnets.0": "encoder.down_blocks.1.resnets.0",  # changes the width
    "encoder.down_blocks.0.downsamplers.0": "encoder.down_blocks.0.resample",  # halves the frames too
    "encoder.down_blocks.2.downsamplers.0": "encoder.down_blocks.2.resample",
    "encoder.mid_block.resnets.0": "encoder.mid_block.0",
    "decoder.mid_block.resnets.0.norm1": "decoder.mid_block.0.norm1",
    "decoder.up_blocks.0.resnets.0": "decoder.up_blocks.0.resnets.0",
    "decoder.up_blocks.0.upsamplers.0": "decoder.up_blocks.0.resample",  # doubles the frames too
    "decoder.up_blocks.2.upsamplers.0": "decoder.up_blocks.2.resample",
    "decoder.up_blocks.3.resnets.0": "decoder.up_blocks.3.resnets.0",  # changes the width
    "decoder.norm_out": "decoder.norm_out",
    "decoder.conv_out": "decoder.conv_out",
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the reference computes from a clip, channels last; `decoded` is the video of `latents`."""

    moments: np.ndarray
    latents: np.ndarray
    decoded: np.ndarray


def model(changes: dict, seed: int) -> AutoencoderKLCogVideoX:
    """A reference model with every tensor random."""
    return cogvideox_reference.vae(changes, seed)


def video(frames: int, batch: int = 1) -> np.ndarray:
    """float32 [B, T, H, W, 3] within [-1, 1]."""
    return np.random.default_rng(frames).uniform(-1, 1, (batch, frames, HEIGHT, WIDTH, 3)).astype(np.float32)


@torch.no_grad()
def run(vae: AutoencoderKLCogVideoX, clip: np.ndarray) -> Reference:
    """Moments of the clip, and the decoding of their mean."""
    moments = vae.encode(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)).latent_dist.parameters
    latents = moments.chunk(2, dim=1)[0]
    return Reference(*(channels_last(x) for x in (moments, latents, vae.decode(latents).sample)))


@torch.no_grad()
def run_layers(vae: AutoencoderKLCogVideoX, clip: np.ndarray) -> dict[str, list[tuple[list[np.ndarray], np.ndarray]]]:
    """Inputs (x, and the latents where there are any) and output of each of `LAYERS`, one pair a chunk."""
    seen: dict[str, list] = {name: [] for name in LAYERS}

    def hook(name):
        def record(module, args, kwargs, output):
            given = [*args, *(value for key, value in kwargs.items() if key == "zq")]
            tensors = [channels_last(x) for x in given if isinstance(x, torch.Tensor)]
            seen[name].append((tensors, channels_last(output[0] if isinstance(output, tuple) else output)))

        return record

    hooks = [vae.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in LAYERS]
    run(vae, clip)
    for handle in hooks:
        handle.remove()
    return seen


def channels_last(x: torch.Tensor) -> np.ndarray:
    """(B, C, T, H, W) -> [B, T, H, W, C]."""
    return x.permute(0, 2, 3, 4, 1).numpy().copy()
