"""Wan 2.1 text-to-video transformer: names of `WanTransformer3DModel` in the diffusers layout -> leaves of
`WanTransformer`."""

from jaxdiff.models.wan.transformer import WanTransformerConfig
from ports.table import Rule, Table
from ports.transforms import as_is, drop_first, linear, patch_matmul

# Into a wide layer the output is split over `tensor`, out of it the input is; the other side is split over
# `fsdp`.
INTO = ("fsdp", "tensor")
BACK = ("tensor", "fsdp")


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
        *_linear(f"{embedder}.time_embedder.linear_1", "time_embedding/into", INTO, keep_float32=True),
        *_linear(f"{embedder}.time_embedder.linear_2", "time_embedding/out", BACK, keep_float32=True),
        *_linear(f"{embedder}.time_proj", "time_projection", INTO),
        *_linear(f"{embedder}.text_embedder.linear_1", "text_embedding/into", INTO),
        *_linear(f"{embedder}.text_embedder.linear_2", "text_embedding/out", BACK),
        *_attention("blocks.{block}.attn1", "blocks/self_attention"),
        *_attention("blocks.{block}.attn2", "blocks/cross_attention"),
        Rule("blocks.{block}.norm2.weight", "blocks/cross_norm/scale", keep_float32=True),
        Rule("blocks.{block}.norm2.bias", "blocks/cross_norm/bias", keep_float32=True),
        *_linear("blocks.{block}.ffn.net.0.proj", "blocks/mlp/into", INTO),
        *_linear("blocks.{block}.ffn.net.2", "blocks/mlp/out", BACK),
        Rule("blocks.{block}.scale_shift_table", "blocks/modulation", drop_first, keep_float32=True),
        Rule("scale_shift_table", "modulation", drop_first, keep_float32=True),
        *_linear("proj_out", "out", ("fsdp", None)),
    )


def _linear(source: str, leaf: str, spec: tuple, *, keep_float32: bool = False) -> Table:
    return (
        Rule(f"{source}.weight", f"{leaf}/kernel", linear, spec, keep_float32),
        Rule(f"{source}.bias", f"{leaf}/bias", as_is, spec[1:], keep_float32),
    )


def _attention(source: str, leaf: str) -> Table:
    return (
        *_linear(f"{source}.to_q", f"{leaf}/query", INTO),
        *_linear(f"{source}.to_k", f"{leaf}/key", INTO),
        *_linear(f"{source}.to_v", f"{leaf}/value", INTO),
        *_linear(f"{source}.to_out.0", f"{leaf}/out", BACK),
        Rule(f"{source}.norm_q.weight", f"{leaf}/query_norm/scale"),
        Rule(f"{source}.norm_k.weight", f"{leaf}/key_norm/scale"),
    )
