"""diffusers' Cosmos-Predict2 and 2.5 on tiny configurations: transformer, schedules, and whole pipelines."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.transformers import transformer_cosmos
from diffusers.pipelines.cosmos import pipeline_cosmos2_video2world

from tests.parity.torch_models import TINY_VAE, randomise
from tests.reference import COSMOS_EDM, COSMOS_UNIPC, CosmosInputs, cosmos_inputs

# diffusers resizes the padding mask by torchvision, which need not be installed for that.
transformer_cosmos.transforms = SimpleNamespace(
    functional=SimpleNamespace(
        resize=lambda x, size, interpolation: torch.nn.functional.interpolate(x, size, mode=interpolation)
    ),
    InterpolationMode=SimpleNamespace(NEAREST="nearest"),
)

TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 12,
    "adaln_lora_dim": 6,
    "max_size": (16, 40, 48),
    "patch_size": (1, 2, 2),
    "rope_scale": (1.0, 4.0, 4.0),
    "concat_padding_mask": True,
    "extra_pos_embed_type": None,
}
PROJECTED = {
    "in_channels": 5,
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 20,
    "encoder_hidden_states_channels": 12,
}
# Name -> changes, latent grid, pipeline class: one for each published kind, and one of the class's other options.
CASES = {
    "text2image": ({}, (1, 4, 6), "Cosmos2TextToImagePipeline"),
    "video2world": (
        {"in_channels": 5, "rope_scale": (20 / 24, 2.0, 2.0), "num_attention_heads": 3},
        (3, 4, 6),
        "Cosmos2VideoToWorldPipeline",
    ),
    "predict2.5": ({**PROJECTED, "rope_scale": (1.0, 3.0, 3.0)}, (3, 6, 4), "Cosmos2_5_PredictBasePipeline"),
    "learned_positions": (
        {
            "extra_pos_embed_type": "learnable",
            "concat_padding_mask": False,
            "attention_head_dim": 20,
            "num_layers": 3,
            "rope_scale": (2.0, 1.0, 1.0),
            "patch_size": (1, 2, 1),
        },
        (4, 4, 3),
        "Cosmos2TextToImagePipeline",
    ),
}
# Whole samples: name -> case, whether frames are given, steps, guidance scale.
SAMPLES = {
    "text2image": ("text2image", False, 4, 7.0),
    "video2world": ("video2world", True, 4, 7.0),
    "2.5_text2world": ("predict2.5", False, 5, 3.0),
    "2.5_video2world": ("predict2.5", True, 5, 3.0),
}
FPS = 12.0
PIPELINES = {
    cls.__name__: (cls, scheduler)
    for cls, scheduler in (
        (Cosmos2TextToImagePipeline, COSMOS_EDM),
        (Cosmos2VideoToWorldPipeline, COSMOS_EDM),
        (Cosmos2_5_PredictBasePipeline, COSMOS_UNIPC),
    )
}


class Guard:
    """Stands where the pipelines insist on a safety checker."""

    def to(self, device):
        pass

    def check_video_safety(self, video):
        return video


def first(x):
    """[B, T, H, W, C] -> torch (B, C, T, H, W)."""
    return torch.from_numpy(np.array(x)).permute(0, 4, 1, 2, 3).contiguous()


def last(x: torch.Tensor) -> np.ndarray:
    """torch (B, C, T, H, W) -> [B, T, H, W, C]."""
    return x.float().permute(0, 2, 3, 4, 1).numpy()


def transformer(name: str, seed: int = 0) -> CosmosTransformer3DModel:
    """A reference model with every tensor random."""
    return randomise(CosmosTransformer3DModel(**{**TINY, **CASES[name][0]}), seed)


def scheduler(config: dict):
    """The scheduler that a configuration names."""
    # diffusers adds the Karras ends in the constructors of the pipelines.
    kinds = (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)
    kind = {kind.__name__: kind for kind in kinds}[config["_class_name"]]
    if kind is FlowMatchEulerDiscreteScheduler:
        config = {key: config[key] for key in ("num_train_timesteps", "shift", "use_karras_sigmas")}
    return kind.from_config(config)


def pipeline(name: str, model: CosmosTransformer3DModel | None = None):
    """A whole reference pipeline with every tensor random, without its text encoder."""
    kind, config = PIPELINES[CASES[name][2]]
    made = kind(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer(name) if model is None else model,
        vae=randomise(AutoencoderKLWan(**TINY_VAE), 1),
        scheduler=scheduler(config),
        safety_checker=Guard(),
    )
    made.set_progress_bar_config(disable=True)
    return made


def save(folder: Path, name: str, model: CosmosTransformer3DModel | None = None) -> Path:
    """A whole pipeline's folder, written by diffusers alone."""
    made = pipeline(name, model)
    made.register_modules(safety_checker=None)
    made.save_pretrained(folder)
    return folder


def sigmas(config: dict, steps: int) -> np.ndarray:
    """The flow's sigmas that the pipelines tell the network and, at the end, 0: float32 [steps + 1]."""
    made = scheduler(config)
    if isinstance(made, UniPCMultistepScheduler):
        made.set_timesteps(steps)
        return made.sigmas.numpy()
    made.register_to_config(**{key: config[key] for key in ("sigma_max", "sigma_min", "sigma_data")})
    made.set_timesteps(sigmas=torch.linspace(0, 1, steps, dtype=torch.float64))
    rho = made.sigmas[:-1]
    return torch.cat([rho / (rho + 1), torch.zeros(1)]).numpy()


def inputs(name: str, **how) -> CosmosInputs:
    """Random inputs of a case."""
    changes, grid, _ = CASES[name]
    return cosmos_inputs({**TINY, **changes}, grid, **how)


def run_case(name: str, model):
    """What the transformer of a case says to its inputs: in those that continue a video with two frames given."""
    given = inputs(name)
    latents, timestep, mask, fps = given.latents, given.timestep, None, None
    if "in_channels" in CASES[name][0]:
        mask = np.array([1, 1, 0], np.float32)
        latents = np.concatenate([given.given, latents[:, 2:]], 1)
        level = 1e-4 if name == "predict2.5" else np.float32(1e-4) / np.float32(1 + 1e-4)
        timestep = np.where(mask, np.float32(level), timestep[:, None]).astype(np.float32)
        fps = FPS
    return run(model, latents, timestep, given.text, fps=fps, mask=mask)


@torch.no_grad()
def run(model, latents, timestep, text, *, fps=None, mask=None, padding=None):
    """The reference's output, channels last, and what leaves each site of each block, [L, B, S, D].

    Latents [B, T', H', W', C] without the mask of given frames [T'], which is a channel of its own; timestep [B], or
    [B, T'] for one of every frame's own.
    """
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
    dtype = model.proj_out.weight.dtype
    x = first(latents).to(dtype)
    if padding is None:
        padding = np.zeros((1, *latents.shape[2:4]), np.float32)
    t = torch.from_numpy(timestep)
    output = model(
        hidden_states=x,
        timestep=t if t.ndim == 1 else t[:, None, :, None, None],
        encoder_hidden_states=torch.from_numpy(text).to(dtype),
        fps=fps,
        condition_mask=None
        if mask is None
        else torch.from_numpy(mask).to(dtype)[None, None, :, None, None].expand(len(x), 1, *x.shape[2:]),
        padding_mask=torch.from_numpy(padding)[:, None].to(dtype),
        return_dict=False,
    )[0]
    for hook in hooks:
        hook.remove()
    return last(output), {site: np.stack(rows) for site, rows in sites.items()}


def sample_case(name: str, made=None):
    """What `sample` gives for one of `SAMPLES`: one clip, and the negative prompt's text from another seed."""
    case, given, steps, guidance = SAMPLES[name]
    ours, negative = inputs(case, batch=1), inputs(case, batch=1, seed=8).text
    return sample(
        pipeline(case) if made is None else made, ours.latents, ours.text, negative,
        steps=steps, guidance=guidance, video=ours.video if given else None,
    )  # fmt: skip


def sample(made, noise, text, negative, *, steps, guidance, video=None):
    """A whole run: latents after every step [steps, B, T', H', W', C], what the scheduler was handed as the network's
    answer at every step, and the video in [0, 1], channels last.

    `video` [B, T, H, W, 3] in [-1, 1] holds the frames that are given.
    """
    frames, height, width = noise.shape[1:4]
    states, answers = [], []
    step = made.scheduler.step

    def keep(answer, t, state, **how):
        answers.append(last(answer).copy())
        stepped = step(answer, t, state, **how)
        states.append(last(stepped[0]).copy())
        return stepped

    made.scheduler.step = keep
    given = {} if video is None else {"video": torch.from_numpy(video / 2 + 0.5).permute(0, 1, 4, 2, 3)}
    if isinstance(made, Cosmos2TextToImagePipeline):
        size = {}
    else:
        size = {"num_frames": 4 * (frames - 1) + 1}
        if isinstance(made, Cosmos2VideoToWorldPipeline):
            size["fps"] = FPS
    draw = pipeline_cosmos2_video2world.retrieve_latents
    # The published pipeline draws from the posterior; its mode is what can be compared.
    pipeline_cosmos2_video2world.retrieve_latents = lambda output, *_: draw(output, sample_mode="argmax")
    try:
        with torch.no_grad():
            result = made(
                **given,
                **size,
                height=8 * height,
                width=8 * width,
                num_inference_steps=steps,
                guidance_scale=guidance,
                latents=first(noise),
                prompt_embeds=torch.from_numpy(text),
                negative_prompt_embeds=torch.from_numpy(negative),
                output_type="pt",
                return_dict=False,
            )[0]
    finally:
        pipeline_cosmos2_video2world.retrieve_latents = draw
        del made.scheduler.step
    result = result[:, None] if result.ndim == 4 else result
    return np.stack(states), np.stack(answers), result.permute(0, 1, 3, 4, 2).numpy()
