"""Wan under its original names: the folders of Wan-AI/Wan2.1-*, Wan2.2-*, and single files of their transformers.

The transformer is published as safetensors. The VAE and the text encoder are published as pickles, which
`ports.unpickle` rewrites beside them; they are recognised by their tensors, whatever their files are called.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.models.text.t5 import UMT5Config
from jaxdiff.models.wan.transformer import WanTransformerConfig
from jaxdiff.models.wan.vae import WanVAEConfig
from ports.renaming import Original, Part, count, expanded, renamed, size
from ports.safetensors_reader import PICKLES, Checkpoint, find_weights, refuse_pickles
from ports.table import Table

HEAD_DIM = 128  # of every published Wan transformer, for files without a config.json
TOKENIZER = "google/umt5-xxl"
EXPERTS = ("high_noise_model", "low_noise_model")  # Wan 2.2 A14B
MARKS = {  # tensors that say what a file is
    "transformer": "blocks.0.self_attn.q.weight",
    "vae": "decoder.middle.0.residual.0.gamma",
    "text_encoder": "blocks.0.attn.q.weight",
}

TRANSFORMER = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "blocks.{block}.norm2": "blocks.{block}.norm3",  # the reference numbers its norms in another order
    "blocks.{block}.ffn.net.0.proj": "blocks.{block}.ffn.0",
    "blocks.{block}.ffn.net.2": "blocks.{block}.ffn.2",
    "blocks.{block}.scale_shift_table": "blocks.{block}.modulation",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
} | {
    f"blocks.{{block}}.{attention}.{module}": f"blocks.{{block}}.{original}.{name}"
    for attention, original in (("attn1", "self_attn"), ("attn2", "cross_attn"))
    for module, name in {
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "o",
        "norm_q": "norm_q",
        "norm_k": "norm_k",
        "add_k_proj": "k_img",
        "add_v_proj": "v_img",
        "norm_added_k": "norm_k_img",
    }.items()
}
TEXT = {
    "shared": "token_embedding",
    "encoder.final_layer_norm": "norm",
    "encoder.block.{block}.layer.0.layer_norm": "blocks.{block}.norm1",
    "encoder.block.{block}.layer.0.SelfAttention": "blocks.{block}.attn",
    "encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias": "blocks.{block}.pos_embedding.embedding",
    "encoder.block.{block}.layer.1.layer_norm": "blocks.{block}.norm2",
    "encoder.block.{block}.layer.1.DenseReluDense.wi_0": "blocks.{block}.ffn.gate.0",
    "encoder.block.{block}.layer.1.DenseReluDense.wi_1": "blocks.{block}.ffn.fc1",
    "encoder.block.{block}.layer.1.DenseReluDense.wo": "blocks.{block}.ffn.fc2",
}
RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def transformer_table(table: Table, config: WanTransformerConfig) -> Table:
    """The transformer's table with original names."""
    return renamed(table, TRANSFORMER)


def text_table(table: Table, config: UMT5Config) -> Table:
    """The UMT5 encoder's table with original names."""
    return renamed(table, TEXT)


def vae_table(table: Table, config: WanVAEConfig) -> Table:
    """The VAE's table with original names: 2.1 counts the layers of all blocks through, 2.2 those of each block."""
    blocks, layers = len(config.dim_mult), config.num_res_blocks
    down_blocks = blocks if config.is_residual else blocks * (layers + 1) - 1
    table = expanded(table, "i", range(down_blocks), "encoder.down_blocks.{i}")
    table = expanded(table, "i", range(blocks), "decoder.up_blocks.{i}")
    table = expanded(table, "j", range(layers + 1), "decoder.up_blocks.")
    names = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    for half in ("encoder", "decoder"):
        table = expanded(table, "i", range(2), f"{half}.mid_block.resnets.{{i}}")
        names |= {
            f"{half}.conv_in": f"{half}.conv1",
            f"{half}.mid_block.resnets.0": f"{half}.middle.0",
            f"{half}.mid_block.attentions.0": f"{half}.middle.1",
            f"{half}.mid_block.resnets.1": f"{half}.middle.2",
            f"{half}.norm_out": f"{half}.head.0",
            f"{half}.conv_out": f"{half}.head.2",
        }
    for i in range(blocks):
        down, up = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{i}"
        if config.is_residual:
            nested = f"encoder.downsamples.{i}.downsamples", f"decoder.upsamples.{i}.upsamples"
            names |= {f"{down}.resnets.{{j}}": f"{nested[0]}.{{j}}", f"{down}.downsampler": f"{nested[0]}.{layers}"}
            names |= {f"{up}.resnets.{j}": f"{nested[1]}.{j}" for j in range(layers + 1)}
            names[f"{up}.upsampler"] = f"{nested[1]}.{layers + 1}"
        else:
            first = i * (layers + 2)
            names |= {f"{up}.resnets.{j}": f"decoder.upsamples.{first + j}" for j in range(layers + 1)}
            names[f"{up}.upsamplers.0"] = f"decoder.upsamples.{first + layers + 1}"
    if not config.is_residual:
        names |= {f"encoder.down_blocks.{i}": f"encoder.downsamples.{i}" for i in range(down_blocks)}
    return renamed(table, names, RESIDUAL | {"conv_shortcut": "shortcut"})


def open_folder(path: Path) -> Original | None:
    """A folder of Wan-AI; None if it is none.

    Raises
    ------
    CheckpointError
        Its VAE is there only as a pickle, or a file is broken.
    ConfigError
        A key of config.json is not known.
    """
    experts = [path / name for name in EXPERTS if (path / name / "config.json").is_file()]
    folders = experts if len(experts) == len(EXPERTS) else [path]
    found = [_config(folder / "config.json") for folder in folders]
    values = [value for value in found if value is not None]
    if len(values) < len(folders):
        return None
    names = ("transformer", "transformer_2")[: len(folders)]
    parts = {
        name: _transformer(_transformer_weights(folder), value, folder / "config.json")
        for name, folder, value in zip(names, folders, values, strict=True)
    }
    for file in _others(path):
        weights = Checkpoint(file)
        if MARKS["vae"] in weights:
            parts["vae"] = _vae(weights)
    pickles = [file for file in sorted(path.iterdir()) if file.suffix in PICKLES]
    if "vae" not in parts and (vaes := [file for file in pickles if "vae" in file.name.lower()]):
        raise CheckpointError(f"{vaes[0]}: {refuse_pickles(vaes[0])}")
    return _whole(path, parts, str(values[0].get("model_type", "")), _text(path, pickles))


def open_file(weights: Checkpoint) -> Original | None:
    """A transformer in one file, without a config.json: its sizes are those of its tensors."""
    if not (MARKS["transformer"] in weights and "head.modulation" in weights):
        return None
    return _whole(weights.path, {"transformer": _transformer(weights, {}, weights.path)}, "", None)


def text_part(file: Path) -> Part:
    """The text encoder in a file.

    Raises
    ------
    CheckpointError
        It is a pickle, or no encoder.
    """
    weights = Checkpoint(file)
    heads = size(weights, "blocks.0.pos_embedding.embedding.weight", 1)
    config = UMT5Config(
        vocab_size=size(weights, "token_embedding.weight"),
        d_model=size(weights, "token_embedding.weight", 1),
        d_kv=size(weights, MARKS["text_encoder"]) // heads,
        d_ff=size(weights, "blocks.0.ffn.fc1.weight"),
        num_layers=count(weights, "blocks.{}.norm1.weight"),
        num_heads=heads,
        relative_attention_num_buckets=size(weights, "blocks.0.pos_embedding.embedding.weight"),
        feed_forward_proj="gated-gelu",
    )
    return Part("UMT5EncoderModel", config, weights, text_table)


def _whole(path: Path, parts: dict[str, Part], model_type: str, text: tuple[str, str] | None) -> Original:
    config = parts["transformer"].config
    image = model_type == "i2v" or (config.in_channels, config.out_channels) == (36, 16)
    five = config.in_channels == 48
    index: dict[str, Any] = {"_class_name": "WanImageToVideoPipeline" if image else "WanPipeline"}
    index |= {name: ["diffusers", part.class_name] for name, part in parts.items()}
    if "transformer_2" in parts:
        index["boundary_ratio"] = 0.9 if image else 0.875
    if five:
        index["expand_timesteps"] = True
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "num_train_timesteps": 1000,
        # As the same checkpoints in the diffusers layout have it. Image to video at 720p has 5 there, with tensors
        # and configuration that are those of 480p.
        "flow_shift": 5.0 if five else 3.0,
        "solver_order": 2,
    }
    return Original(path, index, scheduler, parts, text)


def _config(file: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and values.get("_class_name") == "WanModel" else None


def _transformer_weights(folder: Path) -> Checkpoint:
    """Other networks may lie in the same folder: the transformer is what has a transformer's tensors."""
    others = set(_others(folder))
    files = [file for file in others if MARKS["transformer"] in Checkpoint(file)]
    return Checkpoint(files[0] if len(files) == 1 else _index(folder))


def _index(folder: Path) -> Path:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    return indices[0] if len(indices) == 1 else find_weights(folder)


def _others(folder: Path) -> list[Path]:
    """The safetensors files of a folder that are no shards."""
    shards: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        shards |= {file.name for file in Checkpoint(index).files}
    return sorted(file for file in folder.glob("*.safetensors") if file.name not in shards)


def _text(path: Path, pickles: list[Path]) -> tuple[str, str] | None:
    found = [file for file in _others(path) if MARKS["text_encoder"] in Checkpoint(file)]
    # A pickle is named too: the first prompt then says what to do with it.
    found += [file for file in pickles if "t5" in file.name.lower()]
    return (found[0].name, TOKENIZER) if found and (path / TOKENIZER).is_dir() else None


def _transformer(weights: Checkpoint, values: dict[str, Any], file: Path) -> Part:
    known = {
        "model_type", "dim", "ffn_dim", "freq_dim", "in_dim", "out_dim", "num_heads", "num_layers", "eps", "text_len",
        "text_dim", "patch_size", "window_size", "qk_norm", "cross_attn_norm",
    }  # fmt: skip
    unknown = [key for key in values if not key.startswith("_") and key not in known]
    fixed = {"window_size": [-1, -1], "qk_norm": True, "cross_attn_norm": True}
    wrong = [f"{key}={values[key]!r}" for key, value in fixed.items() if values.get(key, value) != value]
    if unknown or wrong:
        raise ConfigError(
            f"{file}: {', '.join(f'unknown key {key!r}' for key in unknown) or ', '.join(wrong) + ' is not supported'}; "
            f"known: {', '.join(sorted(known))}"
        )
    shape = weights.shape("patch_embedding.weight") if "patch_embedding.weight" in weights else ()
    if len(shape) != 5:
        raise CheckpointError(f"{weights.path}: has no patch_embedding.weight of five axes, from which sizes follow")
    patch = shape[2:]
    width = int(values.get("dim", shape[0]))
    image = "img_emb.proj.0.weight" in weights
    derived = {
        "patch_size": list(values.get("patch_size", patch)),
        "num_attention_heads": values.get("num_heads", width // HEAD_DIM),
        "attention_head_dim": width // int(values.get("num_heads", width // HEAD_DIM)),
        "in_channels": values.get("in_dim", shape[1]),
        "out_channels": values.get("out_dim", size(weights, "head.head.weight") // (patch[0] * patch[1] * patch[2])),
        "text_dim": values.get("text_dim", size(weights, "text_embedding.0.weight", 1)),
        "freq_dim": values.get("freq_dim", size(weights, "time_embedding.0.weight", 1)),
        "ffn_dim": values.get("ffn_dim", size(weights, "blocks.0.ffn.0.weight")),
        "num_layers": values.get("num_layers", count(weights, "blocks.{}.modulation")),
        "eps": values.get("eps", 1e-6),
        "image_dim": size(weights, "img_emb.proj.0.weight") if image else None,
        "added_kv_proj_dim": width if image else None,
        "pos_embed_seq_len": size(weights, "img_emb.emb_pos", 1) if "img_emb.emb_pos" in weights else None,
    }
    try:
        return Part("WanTransformer3DModel", WanTransformerConfig.from_dict(derived), weights, transformer_table)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _vae(weights: Checkpoint) -> Part:
    """The two published VAEs, by their layout; the first convolution says how wide."""
    base = size(weights, "encoder.conv1.weight")
    if any(name.startswith("encoder.downsamples.0.downsamples.") for name in weights.names()):
        if not hasattr(WanVAEConfig, "wan2_2"):
            raise CheckpointError(f"{weights.path}: the VAE of Wan 2.2 is not supported")
        published = WanVAEConfig.wan2_2()
    else:
        published = WanVAEConfig.wan2_1()
    wide: dict[str, Any] = {"base_dim": base}
    if published.decoder_base_dim is not None:
        wide["decoder_base_dim"] = published.decoder_base_dim * base // published.base_dim
    return Part("AutoencoderKLWan", dataclasses.replace(published, **wide), weights, vae_table)
