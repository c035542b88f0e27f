"""diffusers' CogVideoX on tiny configurations, and what it computes."""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)

from tests.parity.torch_models import randomise
from tests.reference import COGVIDEOX_SCHEDULER, CogVideoXInputs

TINY_VAE = {"block_out_channels": [8] * 4, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 2,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 6,
}
ROTARY = {"use_rotary_positional_embeddings": True}
LATER = {**ROTARY, "patch_size_t": 2, "patch_bias": False}
# Name -> configuration, and latent frames, rows and columns: one case for each published checkpoint, with an odd number
# of heads, of frames or of rows where it can be, and sizes other than the trained one where positions then change.
CASES = {
    "2b": ({"num_attention_heads": 3}, (3, 8, 12)),
    "2b_another_size": ({"temporal_interpolation_scale": 2.0, "norm_eps": 1e-3}, (4, 6, 10)),
    "5b": (ROTARY, (3, 8, 12)),
    "5b_tall": ({**ROTARY, "attention_bias": False}, (2, 10, 4)),
    "5b_i2v": ({**ROTARY, "in_channels": 7, "use_learned_positional_embeddings": True}, (3, 8, 12)),
    "1.5_5b": ({**LATER, "attention_head_dim": 32}, (4, 6, 10)),
    "1.5_5b_i2v": ({**LATER, "in_channels": 8, "ofs_embed_dim": 8}, (2, 8, 4)),
}


def transformer(changes: dict, seed: int = 0) -> CogVideoXTransformer3DModel:
    """A reference model with every tensor random."""
    return randomise(CogVideoXTransformer3DModel(**{**TINY, **changes}), seed)


def vae(changes: dict | None = None, seed: int = 1) -> AutoencoderKLCogVideoX:
    """A reference VAE with every tensor random."""
    return randomise(AutoencoderKLCogVideoX(**{**TINY_VAE, **(changes or {})}), seed)


def pipeline(
    model: CogVideoXTransformer3DModel, autoencoder: AutoencoderKLCogVideoX | None = None
) -> CogVideoXPipeline | CogVideoXImageToVideoPipeline:
    """The published pipeline without its text encoder."""
    cls = CogVideoXPipeline if model.config.in_channels == model.config.out_channels else CogVideoXImageToVideoPipeline
    return cls(
        tokenizer=None,
        text_encoder=None,
        vae=vae() if autoencoder is None else autoencoder,
        transformer=model,
        scheduler=CogVideoXDDIMScheduler.from_config(COGVIDEOX_SCHEDULER),
    )


def rope(model: CogVideoXTransformer3DModel, grid: tuple[int, int, int]):
    """The cosines and sines that the published pipeline hands the model."""
    if not model.config.use_rotary_positional_embeddings:
        return None
    pipe = pipeline(model)
    height, width = (n * pipe.vae_scale_factor_spatial for n in grid[1:])
    return pipe._prepare_rotary_positional_embeddings(height, width, grid[0], torch.device("cpu"))


@torch.no_grad()
def run(model: CogVideoXTransformer3DModel, given: CogVideoXInputs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The reference's output, channels last, and what leaves each site of each block for video tokens, [L, B, S, D]."""
    sites: dict[str, list[np.ndarray]] = {}

    def record(site):
        def hook(module, args, output):
            tokens = output[0] if isinstance(output, tuple) else output[:, given.text.shape[1] :]
            sites.setdefault(site, []).append(tokens.float().numpy().copy())

        return hook

    hooks = []
    for block in model.transformer_blocks:
        for site, module in {"self_attention_out": block.attn1, "mlp_out": block.ff, "block_out": block}.items():
            hooks.append(module.register_forward_hook(record(site)))
    dtype = model.patch_embed.proj.weight.dtype
    output = model(
        torch.from_numpy(given.latents).permute(0, 1, 4, 2, 3).to(dtype),
        torch.from_numpy(given.text).to(dtype),
        torch.from_numpy(given.timestep),
        ofs=torch.from_numpy(given.ofs) if model.config.ofs_embed_dim else None,
        image_rotary_emb=rope(model, given.latents.shape[1:4]),
        return_dict=False,
    )[0]
    for hook in hooks:
        hook.remove()
    return output.float().permute(0, 1, 3, 4, 2).numpy(), {site: np.stack(rows) for site, rows in sites.items()}


def save(folder: Path, model: CogVideoXTransformer3DModel, autoencoder: AutoencoderKLCogVideoX | None = None) -> Path:
    """A whole pipeline folder, written by diffusers alone."""
    pipeline(model, autoencoder).save_pretrained(folder)
    return folder
