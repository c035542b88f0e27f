"""diffusers' LTX-2 on tiny configurations: transformer, text connectors, video VAE, and a whole pipeline."""

from typing import NamedTuple

import numpy as np
import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from tests.parity.torch_models import randomise
from tests.parity.wan_vae_reference import channels_last
from tests.reference import LTX_SHIFTED, Ltx2Inputs, ltx2_inputs

TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "audio_in_channels": 16,
    "audio_out_channels": 16,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": 12,
    "rope_type": "split",
}
# Name -> changes, grid. Like the published width, 32 leaves two channels unturned; 40 leaves four.
CASES = {
    "split": ({}, (3, 2, 2)),
    "interleaved": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 20,
            "cross_attention_dim": 40,
            "audio_num_attention_heads": 3,
            "audio_attention_head_dim": 4,
            "audio_cross_attention_dim": 12,
            "audio_out_channels": 6,
            "out_channels": None,
            "num_layers": 3,
            "rope_type": "interleaved",
            "attention_bias": False,
            "attention_out_bias": False,
            "norm_eps": 1e-3,
            "pos_embed_max_pos": 10,
            "audio_pos_embed_max_pos": 16,
            "base_height": 1000,
            "vae_scale_factors": (4, 16, 16),
            "cross_attn_timestep_scale_multiplier": 10,
            "causal_offset": 2,
        },
        (2, 3, 2),
    ),
}
CONNECTORS = {
    "caption_channels": 12,
    "text_proj_in_factor": 3,
    "video_connector_num_attention_heads": 3,
    "video_connector_attention_head_dim": 4,
    "video_connector_num_layers": 2,
    "video_connector_num_learnable_registers": 4,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 6,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": 2,
    "connector_rope_base_seq_len": 30,
    "rope_type": "split",
}
# The published layout at a width of 8 and with one residual block a stage.
VAE = {
    "latent_channels": 4,
    "block_out_channels": (8, 8, 16, 16),
    "decoder_block_out_channels": (8, 16, 32),
    "layers_per_block": (1, 1, 1, 1, 2),
    "decoder_layers_per_block": (1, 2, 1, 1),
    "decoder_causal": False,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
CLASSES = {
    "transformer": LTX2VideoTransformer3DModel,
    "connectors": LTX2TextConnectors,
    "vae": AutoencoderKLLTX2Video,
}
AUDIO_VAE = {"base_channels": 16, "ch_mult": (1,), "num_res_blocks": 1, "latent_channels": 8, "mel_bins": 8}


class Said(NamedTuple):
    """Outputs, channels last, and what leaves each site of each video block, [L, B, S, D]."""

    video: np.ndarray
    audio: np.ndarray
    sites: dict[str, np.ndarray]


def transformer(name: str = "split") -> LTX2VideoTransformer3DModel:
    """A reference model with every tensor random."""
    return randomise(LTX2VideoTransformer3DModel(**{**TINY, **CASES[name][0]}), seed=len(name))


def connectors(**changes) -> LTX2TextConnectors:
    """Likewise."""
    return randomise(LTX2TextConnectors(**{**CONNECTORS, **changes}), seed=3)


def vae(**changes) -> AutoencoderKLLTX2Video:
    """Likewise."""
    return randomise(AutoencoderKLLTX2Video(**{**VAE, **changes}), seed=4)


def inputs(name: str) -> Ltx2Inputs:
    """Those of a case."""
    changes, grid = CASES[name]
    return ltx2_inputs({**TINY, **changes}, grid)


@torch.no_grad()
def run(model, given: Ltx2Inputs, *, fps: float = 24.0, audio_timestep=None, alone: bool = False, mask: bool = True):
    """What the reference makes of the inputs; `alone`: with isolated modalities."""
    sites: dict[str, list[np.ndarray]] = {}

    def record(site):
        def hook(module, args, output):
            output = output[0] if isinstance(output, tuple) else output
            sites.setdefault(site, []).append(output.float().numpy().copy())

        return hook

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
    latents = given.latents
    told = torch.from_numpy(given.mask.astype(np.int64)) if mask else None
    video, audio = model(
        hidden_states=torch.from_numpy(latents.reshape(len(latents), -1, latents.shape[-1])).to(dtype),
        audio_hidden_states=torch.from_numpy(given.audio).to(dtype),
        encoder_hidden_states=torch.from_numpy(given.text).to(dtype),
        audio_encoder_hidden_states=torch.from_numpy(given.audio_text).to(dtype),
        timestep=torch.from_numpy(given.timestep),
        audio_timestep=None if audio_timestep is None else torch.from_numpy(audio_timestep),
        encoder_attention_mask=told,
        audio_encoder_attention_mask=told,
        **dict(zip(("num_frames", "height", "width"), latents.shape[1:4], strict=True)),
        fps=fps,
        audio_num_frames=given.audio.shape[1],
        isolate_modalities=alone,
        return_dict=False,
    )
    for hook in hooks:
        hook.remove()
    video = video.float().numpy().reshape(*latents.shape[:-1], -1)
    return Said(video, audio.float().numpy(), {site: np.stack(rows) for site, rows in sites.items()})


@torch.no_grad()
def connect(model, states: np.ndarray, mask: np.ndarray, side: str = "left") -> tuple[np.ndarray, np.ndarray]:
    """The texts of the video and of the audio."""
    video, audio, kept = model(torch.from_numpy(states), torch.from_numpy(mask.astype(np.int64)), padding_side=side)
    assert bool(kept.all())
    return video.numpy(), audio.numpy()


@torch.no_grad()
def encode_and_decode(model, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moments of a clip [B, T, H, W, 3], and the decoding of their mean."""
    moments = model.encode(torch.from_numpy(clip).permute(0, 4, 1, 2, 3)).latent_dist.parameters
    return channels_last(moments), channels_last(model.decode(moments.chunk(2, dim=1)[0]).sample)


def rotations(rope_type: str, grid, patches: int, fps: float) -> list[np.ndarray]:
    """Cosines and sines [S, G, d] of the published widths: of the video, of its attention to and from audio, and of the
    audio likewise."""
    with torch.device("meta"):
        model = LTX2VideoTransformer3DModel(rope_type=rope_type, num_layers=1)
    video = model.rope.prepare_video_coords(1, *grid, "cpu", fps=fps)
    audio = model.audio_rope.prepare_audio_coords(1, patches, "cpu")
    tables = (
        *model.rope(video),
        *model.cross_attn_rope(video[:, :1]),
        *model.audio_rope(audio),
        *model.cross_attn_audio_rope(audio[:, :1]),
    )
    # Split: [1, G, S, d]. Interleaved: [1, S, 2 d], every angle twice.
    return [(x[0].swapaxes(0, 1) if x.ndim == 4 else x[0, :, None, ::2]).numpy() for x in tables]


def parameters(**kinds) -> dict[str, int]:
    """How many a class has in a configuration, without making them."""
    counts = {}
    for kind, config in kinds.items():
        with torch.device("meta"):
            counts[kind] = sum(p.numel() for p in CLASSES[kind](**config).parameters())
    return counts


def pipeline() -> LTX2Pipeline:
    """A whole reference pipeline with every tensor random but those of the audio's ends."""
    made = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(LTX_SHIFTED),
        vae=vae(),
        audio_vae=AutoencoderKLLTX2Audio(**AUDIO_VAE),
        text_encoder=None,
        tokenizer=None,
        connectors=connectors(),
        transformer=transformer(),
        vocoder=LTX2Vocoder(in_channels=16, hidden_channels=32),
    )
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def sample(made: LTX2Pipeline, states: np.ndarray, mask: np.ndarray, grid, *, steps: int, fps: float) -> list:
    """Of every step of a sample without guidance, what the transformer is given and says, channels last: latents, audio,
    timestep, velocity."""
    calls: list[tuple] = []

    def record(module, args, told, output):
        shaped = (told["hidden_states"].shape[0], *grid, -1)
        video = told["hidden_states"].numpy().reshape(shaped).copy()
        audio = told["audio_hidden_states"].numpy().copy()
        calls.append((video, audio, float(told["timestep"][0]), output[0].numpy().reshape(shaped).copy()))

    hook = made.transformer.register_forward_hook(record, with_kwargs=True)
    made(
        height=32 * grid[1],
        width=32 * grid[2],
        num_frames=8 * (grid[0] - 1) + 1,
        frame_rate=fps,
        num_inference_steps=steps,
        **dict.fromkeys(("guidance_scale", "modality_scale", "audio_guidance_scale", "audio_modality_scale"), 1.0),
        **dict.fromkeys(("stg_scale", "audio_stg_scale", "guidance_rescale", "audio_guidance_rescale"), 0.0),
        prompt_embeds=torch.from_numpy(states.reshape(*states.shape[:2], -1)),
        prompt_attention_mask=torch.from_numpy(mask.astype(np.int64)),
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    hook.remove()
    return calls
