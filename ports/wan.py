"""Wan 2.1 text-to-video transformer: names of `WanTransformer3DModel` in the diffusers layout -> leaves of
`WanTransformer`."""

from jaxdiff.models.wan.transformer import WanTransformerConfig
from ports.rules import BACK, INTO, layer
from ports.table import Rule, Table
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
        *_attention("blocks.{block}.attn1", "blocks/self_attention"),
        *_attention("blocks.{block}.attn2", "blocks/cross_attention"),
        Rule("blocks.{block}.norm2.weight", "blocks/cross_norm/scale", keep_float32=True),
        Rule("blocks.{block}.norm2.bias", "blocks/cross_norm/bias", keep_float32=True),
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
