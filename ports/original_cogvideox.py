"""CogVideoX 1.0 under its original names: the folders of the sat repositories, after `ports.unpickle`.

::

    transformer/1000/mp_rank_00_model_states.safetensors      query, key and value in one tensor, and both norms' tables
    vae/3d-vae.safetensors
    t5-v1_1-xxl/                                              text encoder and tokenizer, as transformers saves them
"""

import dataclasses
from pathlib import Path
from typing import Any

from jaxdiff.errors import CheckpointError
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformerConfig
from jaxdiff.models.cogvideox.vae import CogVideoXVAEConfig
from ports.renaming import Original, Part, count, expanded, renamed, size
from ports.safetensors_reader import PICKLES, Checkpoint, Split, refuse_pickles
from ports.table import Ignore, Table

PREFIX = "model.diffusion_model."
MARK = f"{PREFIX}mixins.adaln_layer.adaLN_modulations.0.1.weight"
TEXT = "t5-v1_1-xxl"
QKV = ("query", "key", "value")
# Of the twelve parts of a block's modulation: video's and text's shift, scale and gate of the first norm, of the second.
PARTS, NORMS = 12, {"first": ((0, 3), (6, 9)), "second": ((3, 6), (9, 12))}
LAYER = "transformer.layers.{block}"
NAMES = {
    "patch_embed.proj": "mixins.patch_embed.proj",
    "patch_embed.text_proj": "mixins.patch_embed.text_proj",
    "patch_embed.pos_embedding": "mixins.pos_embed.pos_embedding",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "transformer_blocks.{block}.norm1.linear": "mixins.adaln_layer.adaLN_modulations.{block}.1.first",
    "transformer_blocks.{block}.norm2.linear": "mixins.adaln_layer.adaLN_modulations.{block}.1.second",
    "transformer_blocks.{block}.norm1.norm": f"{LAYER}.input_layernorm",
    "transformer_blocks.{block}.norm2.norm": f"{LAYER}.post_attention_layernorm",
    "transformer_blocks.{block}.attn1.to_q": f"{LAYER}.attention.query_key_value.query",
    "transformer_blocks.{block}.attn1.to_k": f"{LAYER}.attention.query_key_value.key",
    "transformer_blocks.{block}.attn1.to_v": f"{LAYER}.attention.query_key_value.value",
    "transformer_blocks.{block}.attn1.to_out.0": f"{LAYER}.attention.dense",
    "transformer_blocks.{block}.attn1.norm_q": "mixins.adaln_layer.query_layernorm_list.{block}",
    "transformer_blocks.{block}.attn1.norm_k": "mixins.adaln_layer.key_layernorm_list.{block}",
    "transformer_blocks.{block}.ff.net.0.proj": f"{LAYER}.mlp.dense_h_to_4h",
    "transformer_blocks.{block}.ff.net.2": f"{LAYER}.mlp.dense_4h_to_h",
    "norm_final": "transformer.final_layernorm",
    "norm_out.linear": "mixins.final_layer.adaLN_modulation.1",
    "norm_out.norm": "mixins.final_layer.norm_final",
    "proj_out": "mixins.final_layer.linear",
}
UNUSED = {
    "transformer.word_embeddings.weight": "the transformer has no vocabulary",
    "transformer.position_embeddings.weight": "its positions are others",
    "mixins.pos_embed.freqs_sin": "angles that are computed here",
    "mixins.pos_embed.freqs_cos": "angles that are computed here",
}
SCHEDULER = {
    "_class_name": "CogVideoXDDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}


def transformer_table(table: Table, config: CogVideoXTransformerConfig) -> Table:
    """The transformer's table with original names."""
    unused = (Ignore(PREFIX + name, reason) for name, reason in UNUSED.items())
    return (*renamed(table, NAMES, prefix=PREFIX), *unused)


def vae_table(table: Table, config: CogVideoXVAEConfig) -> Table:
    """The VAE's table with original names; its decoder counts levels from the video."""
    levels = len(config.block_out_channels)
    names: dict[str, str] = {}
    for half in ("encoder", "decoder"):
        table = expanded(table, "i", range(2), f"{half}.mid_block.resnets.{{i}}")
        names |= {f"{half}.{end}": f"{half}.{end}" for end in ("conv_in", "conv_out", "norm_out")}
        names |= {f"{half}.mid_block.resnets.{i}": f"{half}.mid.block_{i + 1}" for i in range(2)}
    table = expanded(table, "i", range(levels), "encoder.down_blocks.{i}")
    table = expanded(table, "i", range(levels), "decoder.up_blocks.{i}")
    for i in range(levels):
        down, up = f"encoder.down.{i}", f"decoder.up.{levels - 1 - i}"
        names |= {f"encoder.down_blocks.{i}": down, f"encoder.down_blocks.{i}.downsamplers.0": f"{down}.downsample"}
        names |= {f"decoder.up_blocks.{i}": up, f"decoder.up_blocks.{i}.upsamplers.0": f"{up}.upsample"}
    return renamed(table, names, {"resnets": "block", "conv_shortcut": "nin_shortcut"})


def open_folder(path: Path) -> Original | None:
    """A folder of a sat repository; None if it is none.

    Raises
    ------
    CheckpointError
        Its files are still pickles, are of CogVideoX 1.5, or sizes do not follow from them.
    """
    pickles = [file for file in path.glob("transformer/*/mp_rank_*") if file.suffix in PICKLES]
    files = sorted(path.glob("transformer/*/mp_rank_*.safetensors"))
    if not files:
        if pickles:
            raise CheckpointError(f"{pickles[0]}: {refuse_pickles(path)}")
        return None
    weights = Checkpoint(files[-1])
    if MARK not in weights:
        return None
    config = _transformer_config(weights)
    parts = {"transformer": Part("CogVideoXTransformer3DModel", config, split(weights), transformer_table)}
    vaes = sorted(path.glob("vae/*.safetensors"))
    if not vaes and (left := [file for file in path.glob("vae/*") if file.suffix in PICKLES]):
        raise CheckpointError(f"{left[0]}: {refuse_pickles(path)}")
    wide = config.use_rotary_positional_embeddings  # 5B
    if vaes:
        # The training's losses lie in the same file.
        vae = Checkpoint(vaes[0]).subset(lambda name: not name.startswith("loss."))
        parts["vae"] = Part("AutoencoderKLCogVideoX", _vae_config(vae, wide), vae, vae_table)
    image = config.in_channels > config.out_channels
    index: dict[str, Any] = {"_class_name": "CogVideoXImageToVideoPipeline" if image else "CogVideoXPipeline"}
    index |= {name: ["diffusers", part.class_name] for name, part in parts.items()}
    text = (TEXT, TEXT) if (path / TEXT / "config.json").is_file() else None
    return Original(path, index, SCHEDULER | {"snr_shift_scale": 1.0 if wide else 3.0}, parts, text)


def split(weights: Checkpoint) -> Checkpoint:
    """The same tensors, with those of query, key and value and of the two norms apart."""
    pieces: dict[str, tuple[str, list[slice]]] = {}
    for name in weights.names():
        head, _, kind = name.rpartition(".")
        length = weights.shape(name)[0] if weights.shape(name) else 0
        if head.endswith(".attention.query_key_value"):
            step = length // 3
            for i, part in enumerate(QKV):
                pieces[f"{head}.{part}.{kind}"] = (name, [slice(i * step, (i + 1) * step)])
        elif ".adaLN_modulations." in head:
            step = length // PARTS
            for norm, stretches in NORMS.items():
                pieces[f"{head}.{norm}.{kind}"] = (name, [slice(a * step, b * step) for a, b in stretches])
    return Split(weights, pieces)


def _transformer_config(weights: Checkpoint) -> CogVideoXTransformerConfig:
    patch = f"{PREFIX}mixins.patch_embed.proj.weight"
    width = size(weights, patch)
    if len(weights.shape(patch)) != 4:
        raise CheckpointError(
            f"{weights.path}: {patch} is {weights.shape(patch)}, as CogVideoX 1.5 has it; of that, only folders in the "
            "diffusers layout are read"
        )
    table = f"{PREFIX}mixins.pos_embed.pos_embedding"
    rotary = f"{PREFIX}mixins.pos_embed.freqs_sin" in weights or table not in weights
    heads = size(weights, f"{PREFIX}mixins.adaln_layer.query_layernorm_list.0.weight")
    side = weights.shape(patch)[2]
    return dataclasses.replace(
        CogVideoXTransformerConfig.cogvideox_5b() if rotary else CogVideoXTransformerConfig.cogvideox_2b(),
        num_attention_heads=width // heads,
        attention_head_dim=heads,
        in_channels=size(weights, patch, 1),
        out_channels=size(weights, f"{PREFIX}mixins.final_layer.linear.weight") // side**2,
        time_embed_dim=size(weights, f"{PREFIX}time_embed.0.weight"),
        text_embed_dim=size(weights, f"{PREFIX}mixins.patch_embed.text_proj.weight", 1),
        num_layers=count(weights, PREFIX + "transformer.layers.{}.input_layernorm.weight"),
        patch_size=side,
        use_learned_positional_embeddings=rotary and table in weights,
    )


def _vae_config(weights: Checkpoint, wide: bool) -> CogVideoXVAEConfig:
    """The published VAE, as wide as the file's."""
    published = CogVideoXVAEConfig.cogvideox_5b() if wide else CogVideoXVAEConfig.cogvideox_2b()
    base = size(weights, "encoder.conv_in.conv.weight")
    widths = tuple(channels * base // published.block_out_channels[0] for channels in published.block_out_channels)
    return dataclasses.replace(
        published,
        block_out_channels=widths,
        latent_channels=size(weights, "decoder.conv_in.conv.weight", 1),
        norm_num_groups=min(published.norm_num_groups, base),
    )
