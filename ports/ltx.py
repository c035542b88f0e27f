"""LTX-Video transformer: names of `LTXVideoTransformer3DModel` in the diffusers layout -> leaves of
`LTXTransformer`."""

from jaxdiff.models.ltx.transformer import LTXTransformerConfig
from ports.rules import BACK, INTO, layer
from ports.table import Rule, Table
from ports.transforms import linear


def transformer_table(config: LTXTransformerConfig) -> Table:
    """The rules, which are the same for every configuration.

    Time embedding and modulation tables stay float32 in every dtype, as they do for the other families.
    """
    embedder = "time_embed.emb.timestep_embedder"
    return (
        *layer("proj_in", "patch_embedding", linear, (None, "fsdp")),
        *layer(f"{embedder}.linear_1", "time_embedding/into", linear, INTO, keep_float32=True),
        *layer(f"{embedder}.linear_2", "time_embedding/out", linear, BACK, keep_float32=True),
        *layer("time_embed.linear", "time_projection", linear, INTO),
        *layer("caption_projection.linear_1", "text_embedding/into", linear, INTO),
        *layer("caption_projection.linear_2", "text_embedding/out", linear, BACK),
        *_attention("transformer_blocks.{block}.attn1", "blocks/self_attention"),
        *_attention("transformer_blocks.{block}.attn2", "blocks/cross_attention"),
        *layer("transformer_blocks.{block}.ff.net.0.proj", "blocks/mlp/into", linear, INTO),
        *layer("transformer_blocks.{block}.ff.net.2", "blocks/mlp/out", linear, BACK),
        Rule("transformer_blocks.{block}.scale_shift_table", "blocks/modulation", keep_float32=True),
        Rule("scale_shift_table", "modulation", keep_float32=True),
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
