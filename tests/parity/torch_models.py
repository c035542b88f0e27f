"""What the comparisons with torch share: small reference models with random tensors, and their folders."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

from tests.reference import WAN_SCHEDULER, random_state

TINY_VAE = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1, -0.2, 0.3, -0.4],
    "latents_std": [1.5, 0.5, 2.0, 1.0],
}
TINY_WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 3,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill every tensor by `tests.reference.random_state`: default initialisations hide wrong ports."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = random_state(shapes, seed)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return model.eval()


def wan_transformer(seed: int = 0, **config) -> WanTransformer3DModel:
    return randomise(WanTransformer3DModel(**{**TINY_WAN, **config}), seed)


def save_wan(folder: Path, transformer: WanTransformer3DModel, vae: AutoencoderKLWan | None = None) -> Path:
    """A whole pipeline folder, written by diffusers alone."""
    vae = randomise(AutoencoderKLWan(**TINY_VAE), 1) if vae is None else vae
    scheduler = UniPCMultistepScheduler.from_config(WAN_SCHEDULER)
    WanPipeline(
        tokenizer=None, text_encoder=None, transformer=transformer, vae=vae, scheduler=scheduler
    ).save_pretrained(folder)
    return folder


@torch.no_grad()
def run_wan(
    model: WanTransformer3DModel, latents, timestep, text, image=None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The reference's output, channels last, and what leaves each site of each block, [L, B, S, D]."""
    sites: dict[str, list[np.ndarray]] = {}

    def record(site):
        def hook(module, args, output):
            sites.setdefault(site, []).append(output.float().numpy().copy())

        return hook

    hooks = []
    for block in model.blocks:
        for site, module in {
            "self_attention_out": block.attn1,
            "cross_attention_out": block.attn2,
            "mlp_out": block.ffn,
            "block_out": block,
        }.items():
            hooks.append(module.register_forward_hook(record(site)))
    dtype = model.patch_embedding.weight.dtype
    output = model(
        torch.from_numpy(latents).permute(0, 4, 1, 2, 3).to(dtype),
        torch.from_numpy(timestep),
        torch.from_numpy(text).to(dtype),
        None if image is None else torch.from_numpy(image).to(dtype),
        return_dict=False,
    )[0]
    for hook in hooks:
        hook.remove()
    return output.float().permute(0, 2, 3, 4, 1).numpy(), {site: np.stack(rows) for site, rows in sites.items()}
