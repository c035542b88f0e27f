"""Cosmos transformers: names of `CosmosTransformer3DModel` in the diffusers layout -> leaves of `CosmosTransformer`."""

from jaxdiff.models.cosmos.transformer import CosmosTransformerConfig
from ports.rules import BACK, INTO, layer
from ports.table import Rule, Table
from ports.transforms import linear, patch_linear


def transformer_table(config: CosmosTransformerConfig) -> Table:
    """The rules for one configuration.

    Time embedding and learned positions stay float32 in every dtype; the blocks' modulations, a tenth of all
    parameters, do not. Rows of the output are ordered (row, column, frame, channel) in a patch, which is one frame long.
    """
    into = patch_linear(config.channels, config.patch_size)
    return (
        Rule("patch_embed.proj.weight", "patch_embedding/kernel", into, (None, "fsdp")),
        *layer("time_embed.t_embedder.linear_1", "time_embedding/into", linear, INTO, keep_float32=True),
        *layer("time_embed.t_embedder.linear_2", "time_embedding/out", linear, BACK, keep_float32=True),
        Rule("time_embed.norm.weight", "time_norm/scale", keep_float32=True),
        *layer("crossattn_proj.0", "text_embedding", linear, INTO),
        Rule("learnable_pos_embed.pos_emb_t", "positions/frames", keep_float32=True),
        Rule("learnable_pos_embed.pos_emb_h", "positions/rows", keep_float32=True),
        Rule("learnable_pos_embed.pos_emb_w", "positions/columns", keep_float32=True),
        *_modulation("transformer_blocks.{block}.norm1", "blocks/attention_modulation"),
        *_attention("transformer_blocks.{block}.attn1", "blocks/self_attention"),
        *_modulation("transformer_blocks.{block}.norm2", "blocks/cross_modulation"),
        *_attention("transformer_blocks.{block}.attn2", "blocks/cross_attention"),
        *_modulation("transformer_blocks.{block}.norm3", "blocks/mlp_modulation"),
        *layer("transformer_blocks.{block}.ff.net.0.proj", "blocks/mlp/into", linear, INTO),
        *layer("transformer_blocks.{block}.ff.net.2", "blocks/mlp/out", linear, BACK),
        *_modulation("norm_out", "modulation"),
        *layer("proj_out", "out", linear, ("fsdp", None)),
    )


def _modulation(source: str, leaf: str) -> Table:
    return (
        *layer(f"{source}.linear_1", f"{leaf}/into", linear, ("fsdp", None)),
        *layer(f"{source}.linear_2", f"{leaf}/out", linear, (None, "tensor")),
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
