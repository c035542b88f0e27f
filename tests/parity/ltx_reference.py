"""diffusers' LTX-Video on tiny configurations: transformer, schedules, and whole pipelines."""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

from tests.parity import ltx_vae_reference
from tests.parity.torch_models import randomise
from tests.reference import LTX_PLAIN, LTX_SHIFTED, ltx_inputs

TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "num_layers": 2,
    "caption_channels": 16,
}
# Name -> changes, grid. The widths of 2B and 13B leave 2 and 4 channels unturned: so do 32 and 40.
CASES = {
    "2b": ({}, (3, 4, 5)),
    "13b": (
        {"num_attention_heads": 2, "attention_head_dim": 20, "cross_attention_dim": 40, "num_layers": 3},
        (5, 2, 3),
    ),
    "no_bias": (
        {
            "num_attention_heads": 3,
            "attention_head_dim": 6,
            "cross_attention_dim": 18,
            "norm_eps": 1e-3,
            "attention_bias": False,
            "attention_out_bias": False,
            "out_channels": 6,
        },
        (1, 3, 2),
    ),
}
# Published pipeline class -> the scheduler of its folders, and the version of the VAE.
PIPELINES = {
    "LTXPipeline": (LTXPipeline, LTX_SHIFTED, "0.9.0"),
    "LTXConditionPipeline": (LTXConditionPipeline, LTX_PLAIN, "0.9.5"),
}


def transformer(name: str = "2b") -> LTXVideoTransformer3DModel:
    """A reference model with every tensor random."""
    return randomise(LTXVideoTransformer3DModel(**{**TINY, **CASES[name][0]}), seed=len(name))


def coordinates(grid: tuple[int, int, int], fps: float) -> torch.Tensor:
    """The positions [1, 3, S] that LTXConditionPipeline hands its transformer, by its own functions."""
    ids = LTXConditionPipeline._prepare_video_ids(1, *grid)
    ids = LTXConditionPipeline._scale_video_ids(ids, scale_factor=32, scale_factor_t=8).float()
    ids[:, 0] = ids[:, 0] * (1.0 / fps)
    return ids


@torch.no_grad()
def run(model, latents, timestep, text, mask=None, *, fps: float = 25.0, causal: bool = False):
    """The reference's output, channels last, and what leaves each site of each block, [L, B, S, D]."""
    sites: dict[str, list[np.ndarray]] = {}

    def record(site):
        return lambda module, args, output: sites.setdefault(site, []).append(output.float().numpy().copy())

    hooks = []
    for block in model.transformer_blocks:
        modules = {
            "self_attention_out": block.attn1,
            "cross_attention_out": block.attn2,
            "mlp_out": block.ff,
            "block_out": block,
        }
        hooks += [module.register_forward_hook(record(site)) for site, module in modules.items()]
    dtype = model.proj_in.weight.dtype
    grid = latents.shape[1:4]
    if causal:
        where = {"video_coords": coordinates(grid, fps).repeat(len(latents), 1, 1)}
    else:
        names = ("num_frames", "height", "width")
        where = {**dict(zip(names, grid, strict=True)), "rope_interpolation_scale": (8 / fps, 32, 32)}
    output = model(
        hidden_states=torch.from_numpy(latents.reshape(len(latents), -1, latents.shape[-1])).to(dtype),
        encoder_hidden_states=torch.from_numpy(text).to(dtype),
        timestep=torch.from_numpy(timestep),
        encoder_attention_mask=None if mask is None else torch.from_numpy(mask.astype(np.int64)),
        return_dict=False,
        **where,
    )[0]
    for hook in hooks:
        hook.remove()
    output = output.float().numpy().reshape(*latents.shape[:-1], -1)
    return output, {site: np.stack(rows) for site, rows in sites.items()}


def grid_and_timesteps(config: dict, spacing: str, steps: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """sigmas [steps + 1] and timesteps [steps], as the pipelines have their scheduler make them."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    if spacing == "linear_quadratic":
        scheduler.set_timesteps(timesteps=linear_quadratic_schedule(steps) * 1000)
    else:
        sizes = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(tokens, *(scheduler.config[key] for key in sizes))
        asked = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if spacing == "even" else {"num_inference_steps": steps}
        scheduler.set_timesteps(mu=mu, **asked)
    return scheduler.sigmas.numpy(), scheduler.timesteps.numpy()


def pipeline(name: str):
    """A whole reference pipeline with every tensor random."""
    kind, scheduler, version = PIPELINES[name]
    made = kind(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(scheduler),
        vae=ltx_vae_reference.model(version),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer(),
    )
    made.set_progress_bar_config(disable=True)
    return made


def save(folder: Path, model=None, name: str = "LTXPipeline") -> Path:
    """A whole pipeline's folder, written by diffusers alone."""
    made = pipeline(name)
    if model is not None:
        made.register_modules(transformer=model)
    made.save_pretrained(folder)
    return folder


def sample(made, noise, text, mask, negative, negative_mask, *, steps, guidance, fps) -> tuple[np.ndarray, np.ndarray]:
    """Latents and video (in [0, 1]) of a whole run, channels last."""
    batch, frames, height, width, _ = noise.shape
    latents = torch.from_numpy(noise).permute(0, 4, 1, 2, 3).contiguous()
    conditions = isinstance(made, LTXConditionPipeline)
    # LTXConditionPipeline draws its noise whatever it is given.
    module = __import__(type(made).__module__, fromlist=["randn_tensor"])
    before = module.randn_tensor
    module.randn_tensor = lambda shape, **_: latents if tuple(shape) == tuple(latents.shape) else torch.zeros(shape)
    kept = {}

    def keep(pipe, i, t, values):
        kept["latents"] = values["latents"]
        return {}

    try:
        with torch.no_grad():
            video = made(
                height=32 * height,
                width=32 * width,
                num_frames=8 * (frames - 1) + 1,
                frame_rate=fps,
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=None if conditions else LTXPipeline._pack_latents(latents),
                prompt_embeds=torch.from_numpy(text),
                prompt_attention_mask=torch.from_numpy(mask.astype(np.int64)),
                negative_prompt_embeds=torch.from_numpy(negative),
                negative_prompt_attention_mask=torch.from_numpy(negative_mask.astype(np.int64)),
                callback_on_step_end=keep,
                output_type="pt",
            ).frames
    finally:
        module.randn_tensor = before
    end = kept["latents"].numpy().reshape(batch, frames, height, width, -1)
    return end, video.permute(0, 1, 3, 4, 2).numpy()


def run_case(name: str):
    """What the transformer of a case says to its inputs, with a text mask."""
    changes, grid = CASES[name]
    batch = ltx_inputs({**TINY, **changes}, grid)
    model = transformer(name)
    return model, batch, run(model, *batch)
