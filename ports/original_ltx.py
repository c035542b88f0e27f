"""LTX-Video under its original names: one file holds the transformer and the VAE, such as ltx-video-2b-v0.9.safetensors.

Versions are told apart as diffusers does it, by the layout of the VAE.
"""

import dataclasses
import functools
from typing import Any

from jaxdiff.errors import CheckpointError
from jaxdiff.models.ltx.transformer import LTXTransformerConfig
from jaxdiff.models.ltx.vae_config import PLAIN, LTXVAEConfig
from ports.renaming import Original, Part, count, expanded, renamed, size
from ports.safetensors_reader import Checkpoint
from ports.table import Ignore, Table

TRANSFORMER, VAE = "model.diffusion_model.", "vae."
HEADS = 32  # of every published transformer
STATISTICS = "per_channel_statistics"

NAMES = {
    "proj_in": "patchify_proj",
    "time_embed": "adaln_single",
    "caption_projection": "caption_projection",
    "transformer_blocks": "transformer_blocks",
    "scale_shift_table": "scale_shift_table",
    "proj_out": "proj_out",
}
INNER = {"norm_q": "q_norm", "norm_k": "k_norm"}
VAE_INNER = {"resnets": "res_blocks", "norm3": "norm3.norm", "conv_shortcut.conv": "conv_shortcut"}
# What `LTXPipeline` folders (0.9.0, 0.9.1) and `LTXConditionPipeline` folders (0.9.5 and later) have.
SHIFTED: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
    "time_shift_type": "exponential",
}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def open_file(weights: Checkpoint) -> Original | None:
    """A single file of Lightricks/LTX-Video; None if it is none.

    Raises
    ------
    CheckpointError
        It has no VAE, or tensors from which sizes follow are missing.
    """
    prefix = TRANSFORMER if any(name.startswith(TRANSFORMER) for name in weights.names()) else ""
    if f"{prefix}patchify_proj.weight" not in weights:
        return None
    first = f"{VAE}encoder.conv_in.conv.weight"
    if first not in weights:
        raise CheckpointError(
            f"{weights.path}: an LTX-Video transformer without its VAE ({first}), by which the versions are told apart; "
            "give the file that holds both, or the folder in the diffusers layout"
        )
    later, vae = _vae_config(weights, size(weights, first))
    width = size(weights, f"{prefix}patchify_proj.weight")
    transformer = LTXTransformerConfig(
        in_channels=size(weights, f"{prefix}patchify_proj.weight", 1),
        out_channels=size(weights, f"{prefix}proj_out.weight"),
        num_attention_heads=HEADS,
        attention_head_dim=width // HEADS,
        cross_attention_dim=width,
        num_layers=count(weights, prefix + "transformer_blocks.{}.scale_shift_table"),
        caption_channels=size(weights, f"{prefix}caption_projection.linear_1.weight", 1),
    )
    parts = {
        "transformer": Part(
            "LTXVideoTransformer3DModel",
            transformer,
            weights.subset(lambda name: not name.startswith(VAE)),
            functools.partial(transformer_table, prefix=prefix),
        ),
        "vae": Part("AutoencoderKLLTXVideo", vae, weights.subset(lambda name: name.startswith(VAE)), vae_table),
    }
    index = {"_class_name": "LTXConditionPipeline" if later else "LTXPipeline"}
    entries = {name: ["diffusers", part.class_name] for name, part in parts.items()}
    return Original(weights.path, index | entries, SCHEDULER if later else SCHEDULER | SHIFTED, parts)


def _vae_config(weights: Checkpoint, base: int) -> tuple[bool, LTXVAEConfig]:
    """Whether it is 0.9.5 or later, and the VAE's configuration: the published one, as wide as the file's."""
    told = f"{VAE}decoder.last_time_embedder.timestep_embedder.linear_1.weight" in weights
    published = LTXVAEConfig.v0_9_1() if told else LTXVAEConfig.v0_9_0()
    last = LTXVAEConfig.v0_9_5()
    later = size(weights, f"{VAE}encoder.conv_out.conv.weight", 1) == base * last.block_out_channels[-1] // 128
    published = last if later else published
    changes: dict[str, Any] = {
        key: tuple(width * base // 128 for width in getattr(published, key))
        for key in ("block_out_channels", "decoder_block_out_channels")
    }
    changes["latent_channels"] = size(weights, f"{VAE}decoder.conv_in.conv.weight", 1)
    return later, dataclasses.replace(published, **changes)


def transformer_table(table: Table, config: LTXTransformerConfig, prefix: str = "") -> Table:
    """The transformer's table with original names."""
    return renamed(table, NAMES, INNER, prefix)


def vae_table(table: Table, config: LTXVAEConfig) -> Table:
    """The VAE's table with original names: each half is one list of modules, in the order in which they run."""
    names = {
        "latents_mean": f"{STATISTICS}.mean-of-means",
        "latents_std": f"{STATISTICS}.std-of-means",
        "decoder": "decoder",
        "encoder": "encoder",
        "decoder.time_embedder": "decoder.last_time_embedder",
        "decoder.scale_shift_table": "decoder.last_scale_shift_table",
        "decoder.mid_block": "decoder.up_blocks.0",
    }
    number = 0
    for i, (before, after) in enumerate(config.down_widths):
        block = f"encoder.down_blocks.{i}"
        modules = [block]
        if config.downsampling[i]:
            modules.append(f"{block}.downsamplers.0")
        if config.down_block_types[i] == PLAIN and before != after:
            modules.append(f"{block}.conv_out")
        for module in modules:
            names[module] = f"encoder.down_blocks.{number}"
            number += 1
    names["encoder.mid_block"] = f"encoder.down_blocks.{number}"
    number = 1
    for i, (before, after) in enumerate(config.up_widths):
        block = f"decoder.up_blocks.{i}"
        modules = [f"{block}.conv_in"] if before != after else []
        if config.decoder_spatio_temporal_scaling[-1 - i]:
            modules.append(f"{block}.upsamplers.0")
        for module in (*modules, block):
            names[module] = f"decoder.up_blocks.{number}"
            number += 1
    table = expanded(table, "i", range(len(config.down_widths)), "encoder.down_blocks.{i}")
    table = expanded(table, "i", range(len(config.up_widths)), "decoder.up_blocks.{i}")
    unused = ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")
    ignored = (Ignore(f"{VAE}{STATISTICS}.{name}", "statistics that are not used") for name in unused)
    return (*renamed(table, names, VAE_INNER, VAE), *ignored)
