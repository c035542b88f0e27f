"""Transformer of Wan 2.1 and 2.2: names of `WanTransformer3DModel` in the diffusers layout -> leaves of
`WanTransformer`."""

from jaxdiff.models.wan.transformer import WanTransformerConfig
from ports.rules import BACK, INTO, layer
from ports.table import Ignore, Rule, Table
from ports.transforms import drop_first, linear, patch_matmul


def transformer_table(config: WanTransformerConfig) -> Table:
    """The rules for one configuration.

    Time embedding, modulation tables and block norms stay float32 in every dtype, as `_keep_in_fp32_modules`
    has it there.
    """
    embedder = "condition_embedder"
    patch = patch_matmul(config.in_channels, config.patch_size)
    return (
        Rule("patch_embedding.weight", "patch_embedding/kernel", patch, spec=(None, "fsdp")),
        Rule("patch_embedding.bias", "patch_embedding/bias"),
        *layer(f"{embedder}.time_embedder.linear_1", "time_embedding/into", linear, INTO, keep_float32=True),
        *layer(f"{embedder}.time_embedder.linear_2", "time_embedding/out", linear, BACK, keep_float32=True),
        *layer(f"{embedder}.time_proj", "time_projection", linear, INTO),
        *layer(f"{embedder}.text_embedder.linear_1", "text_embedding/into", linear, INTO),
        *layer(f"{embedder}.text_embedder.linear_2", "text_embedding/out", linear, BACK),
        *(_image_embedding(f"{embedder}.image_embedder", config) if config.image_dim is not None else ()),
        *_attention("blocks.{block}.attn1", "blocks/self_attention"),
        *_attention("blocks.{block}.attn2", "blocks/cross_attention"),
        *_norm("blocks.{block}.norm2", "blocks/cross_norm"),
        *layer("blocks.{block}.ffn.net.0.proj", "blocks/mlp/into", linear, INTO),
        *layer("blocks.{block}.ffn.net.2", "blocks/mlp/out", linear, BACK),
        Rule("blocks.{block}.scale_shift_table", "blocks/modulation", drop_first, keep_float32=True),
        Rule("scale_shift_table", "modulation", drop_first, keep_float32=True),
        *layer("proj_out", "out", linear, ("fsdp", None)),
    )


def _attention(source: str, leaf: str) -> Table:
    return (
        *layer(f"{source}.to_q", f"{leaf}/query", linear, INTO),
        *layer(f"{source}.to_k", f"{leaf}/key", linear, INTO),
        *layer(f"{source}.to_v", f"{leaf}/value", linear, INTO),
        *layer(f"{source}.to_out.0", f"{leaf}/out", linear, BACK),
        Rule(f"{source}.norm_q.weight", f"{leaf}/query_norm/scale"),
        Rule(f"{source}.norm_k.weight", f"{leaf}/key_norm/scale"),
    )


def _image_embedding(source: str, config: WanTransformerConfig) -> Table:
    """What image tokens go through, and their keys and values in every block."""
    attention, leaf = "blocks.{block}.attn2", "blocks/cross_attention"
    positions = Rule(f"{source}.pos_embed", "image_embedding/positions", drop_first)
    return (
        *((positions,) if config.pos_embed_seq_len is not None else ()),
        *_norm(f"{source}.norm1", "image_embedding/norm_in"),
        *layer(f"{source}.ff.net.0.proj", "image_embedding/mlp/into", linear, INTO),
        *layer(f"{source}.ff.net.2", "image_embedding/mlp/out", linear, BACK),
        *_norm(f"{source}.norm2", "image_embedding/norm_out"),
        *layer(f"{attention}.add_k_proj", f"{leaf}/image_key", linear, INTO),
        *layer(f"{attention}.add_v_proj", f"{leaf}/image_value", linear, INTO),
        Rule(f"{attention}.norm_added_k.weight", f"{leaf}/image_key_norm/scale"),
        Ignore(f"{attention}.norm_added_q.weight", "an image has no queries; the reference drops it too"),
    )


def _norm(source: str, leaf: str) -> Table:
    return (
        Rule(f"{source}.weight", f"{leaf}/scale", keep_float32=True),
        Rule(f"{source}.bias", f"{leaf}/bias", keep_float32=True),
    )
