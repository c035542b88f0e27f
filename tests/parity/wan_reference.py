"""diffusers' Wan pipelines on tiny configurations: image to video, per-frame timesteps, and two experts."""

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests import wan_variants as variants
from tests.parity.torch_models import TINY_VAE, randomise, run_wan, wan_transformer

CLIP = {
    "hidden_size": variants.IMAGE_DIM,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": variants.EDGE,
    "patch_size": 14,
    "hidden_act": "gelu",
    "projection_dim": 8,
}


def clip(seed: int = 5, **changes) -> CLIPVisionModel:
    return randomise(CLIPVisionModel(CLIPVisionConfig(**{**CLIP, **changes})), seed)


def pipeline(name: str, scheduler=None, vae=None):
    """The published pipeline of a variant, every tensor random; the two experts are of different seeds."""
    image_to_video, changes, settings = variants.PIPELINES[name]
    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": randomise(AutoencoderKLWan(**TINY_VAE), 1) if vae is None else vae,
        "transformer": wan_transformer(2, num_layers=2, **changes),
        "scheduler": scheduler or FlowMatchEulerDiscreteScheduler.from_config(variants.SCHEDULER),
        **settings,
    }
    if "boundary_ratio" in settings:
        parts["transformer_2"] = wan_transformer(3, num_layers=2, **changes)
    if "image_dim" in changes:
        parts["image_encoder"] = clip()
        numbers = {key: value for key, value in variants.PICTURES.items() if key != "image_processor_type"}
        parts["image_processor"] = CLIPImageProcessor(**numbers)
    made = (WanImageToVideoPipeline if image_to_video else WanPipeline)(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def run(model: WanTransformer3DModel, latents, timestep, text, image):
    """`run_wan` of inputs as ours are given."""
    if timestep.ndim == 2:  # the reference takes one timestep a token
        tokens = latents.shape[2] * latents.shape[3] // 4
        timestep = np.repeat(timestep, tokens * latents.shape[1] // timestep.shape[1], 1)
    if image is not None and model.config.pos_embed_seq_len:  # and the tokens of the two images in two rows
        image = image.reshape(2 * len(image), -1, image.shape[-1])
    return run_wan(model, latents, timestep, text, image)


@torch.no_grad()
def sample(
    made, noise, texts, picture, last=None, *, steps: int, scale: float, scale_2: float | None, output: str = "latent"
) -> np.ndarray:
    """Latents [B, T', H', W', C] that the published pipeline ends in; with `output` "pt" its video [B, T, H, W, 3] in [0, 1].

    noise : [B, T', H', W', C]; texts : prompt and negative prompt [2, B, N, D]; picture, last : PIL, or None.
    """
    stride = made.vae_scale_factor_spatial
    height, width = stride * noise.shape[2], stride * noise.shape[3]
    image = {} if picture is None else {"image": picture, **({} if last is None else {"last_image": last})}
    latents = made(
        prompt_embeds=torch.from_numpy(texts[0]),
        negative_prompt_embeds=torch.from_numpy(texts[1]),
        latents=torch.from_numpy(noise).permute(0, 4, 1, 2, 3),
        height=height,
        width=width,
        num_frames=1 + 4 * (noise.shape[1] - 1),
        num_inference_steps=steps,
        guidance_scale=scale,
        **({} if scale_2 is None else {"guidance_scale_2": scale_2}),
        output_type=output,
        **image,
    ).frames
    return latents.permute((0, 2, 3, 4, 1) if output == "latent" else (0, 1, 3, 4, 2)).numpy()


def transformer(name: str, seed: int = 0) -> WanTransformer3DModel:
    return wan_transformer(seed, num_layers=2, **variants.TRANSFORMERS[name][0])
