"""CogVideoX transformers: names of `CogVideoXTransformer3DModel` in the diffusers layout -> leaves of
`CogVideoXTransformer`."""

from jaxdiff.models.cogvideox.transformer import CogVideoXTransformerConfig
from ports.rules import BACK, INTO, layer
from ports.table import Ignore, Rule, Table
from ports.transforms import as_is, drop_first, linear, patch_linear, patch_matmul, patch_rows


def transformer_table(config: CogVideoXTransformerConfig) -> Table:
    """The rules for one configuration.

    Norms, the time embedding and the table of positions stay float32 in every dtype. The blocks' modulations do not:
    they hold a seventh of all parameters.
    """
    # CogVideoX 1.0 has a convolution, 1.5 a linear layer over patches whose channels come first.
    into = patch_linear if config.patch_size_t else patch_matmul
    volume = config.patch[0] * config.patch[1] * config.patch[2]
    table: Table = (
        Rule(
            "patch_embed.proj.weight",
            "patch_embedding/kernel",
            into(config.in_channels, config.patch if config.patch_size_t else config.patch[1:]),
            (None, "fsdp"),
        ),
        Rule("patch_embed.proj.bias", "patch_embedding/bias"),
        *layer("patch_embed.text_proj", "text_embedding", linear, (None, "fsdp")),
        *layer("time_embedding.linear_1", "time_embedding/into", linear, INTO, keep_float32=True),
        *layer("time_embedding.linear_2", "time_embedding/out", linear, BACK, keep_float32=True),
        *layer("ofs_embedding.linear_1", "ofs_embedding/into", linear, INTO, keep_float32=True),
        *layer("ofs_embedding.linear_2", "ofs_embedding/out", linear, BACK, keep_float32=True),
        *_modulation("transformer_blocks.{block}.norm1", "blocks/attention_modulation"),
        *_modulation("transformer_blocks.{block}.norm2", "blocks/mlp_modulation"),
        *_attention("transformer_blocks.{block}.attn1", "blocks/attention"),
        *layer("transformer_blocks.{block}.ff.net.0.proj", "blocks/mlp/into", linear, INTO),
        *layer("transformer_blocks.{block}.ff.net.2", "blocks/mlp/out", linear, BACK),
        *_norm("norm_final", "video_norm"),
        *layer("norm_out.linear", "modulation", linear, INTO),
        *_norm("norm_out.norm", "norm"),
        Rule("proj_out.weight", "out/kernel", patch_rows(volume, linear), ("fsdp", None)),
        Rule("proj_out.bias", "out/bias", patch_rows(volume, as_is)),
    )
    if config.use_learned_positional_embeddings:
        return (*table, Rule("patch_embed.pos_embedding", "positions", drop_first, keep_float32=True))
    return (*table, Ignore("patch_embed.pos_embedding", "sines and cosines that are computed here"))


def _norm(source: str, leaf: str) -> Table:
    return (
        Rule(f"{source}.weight", f"{leaf}/scale", keep_float32=True),
        Rule(f"{source}.bias", f"{leaf}/bias", keep_float32=True),
    )


def _modulation(source: str, leaf: str) -> Table:
    return (*layer(f"{source}.linear", f"{leaf}/table", linear, INTO), *_norm(f"{source}.norm", f"{leaf}/norm"))


def _attention(source: str, leaf: str) -> Table:
    return (
        *layer(f"{source}.to_q", f"{leaf}/query", linear, INTO),
        *layer(f"{source}.to_k", f"{leaf}/key", linear, INTO),
        *layer(f"{source}.to_v", f"{leaf}/value", linear, INTO),
        *layer(f"{source}.to_out.0", f"{leaf}/out", linear, BACK),
        *_norm(f"{source}.norm_q", f"{leaf}/query_norm"),
        *_norm(f"{source}.norm_k", f"{leaf}/key_norm"),
    )
