"""LTX-2: names of `LTX2VideoTransformer3DModel`, `LTX2TextConnectors` and `AutoencoderKLLTX2Video` in the diffusers layout
-> leaves of `LTX2Transformer`, `LTX2Connectors` and `LTX2VAE`."""

from jaxdiff.models.ltx2.config import LTX2ConnectorsConfig, LTX2TransformerConfig
from jaxdiff.models.ltx2.vae import LTX2VAEConfig
from ports import ltx_vae
from ports.rules import BACK, INTO, layer
from ports.table import Rule, Table
from ports.transforms import linear

# What the modulations of the attention between the streams are called for a stream: the gate is of what it hears.
BETWEEN = {
    "video": ("av_cross_attn_video_scale_shift", "av_cross_attn_video_a2v_gate", "audio_to_video_attn"),
    "audio": ("av_cross_attn_audio_scale_shift", "av_cross_attn_audio_v2a_gate", "video_to_audio_attn"),
}


def transformer_table(config: LTX2TransformerConfig) -> Table:
    """The rules, which are the same for every configuration.

    Time embeddings and modulation tables stay float32 in every dtype, as they do for the other families.
    """
    return (*_stream("video", ""), *_stream("audio", "audio_"))


def _stream(stream: str, prefix: str) -> Table:
    block, leaf = "transformer_blocks.{block}.", f"blocks/{stream}"
    scale_shift, gate, attention = BETWEEN[stream]
    return (
        *layer(f"{prefix}proj_in", f"{stream}/patch_embedding", linear, (None, "fsdp")),
        *layer(f"{prefix}caption_projection.linear_1", f"{stream}/text_embedding/into", linear, INTO),
        *layer(f"{prefix}caption_projection.linear_2", f"{stream}/text_embedding/out", linear, BACK),
        *_time(f"{prefix}time_embed", f"{stream}/time"),
        *_time(scale_shift, f"{stream}/between"),
        *_time(gate, f"{stream}/between_gate"),
        *_attention(f"{block}{prefix}attn1", f"{leaf}/self_attention"),
        *_attention(f"{block}{prefix}attn2", f"{leaf}/cross_attention"),
        *_attention(f"{block}{attention}", f"{leaf}/other_attention"),
        *_mlp(f"{block}{prefix}ff", f"{leaf}/mlp"),
        Rule(f"{block}{prefix}scale_shift_table", f"{leaf}/modulation", keep_float32=True),
        Rule(f"{block}{stream}_a2v_cross_attn_scale_shift_table", f"{leaf}/between", keep_float32=True),
        Rule(f"{prefix}scale_shift_table", f"{stream}/modulation", keep_float32=True),
        *layer(f"{prefix}proj_out", f"{stream}/out", linear, ("fsdp", None)),
    )


def connectors_table(config: LTX2ConnectorsConfig) -> Table:
    """The rules, which are the same for every configuration."""
    return (
        *layer("text_proj_in", "projection", linear, INTO),
        *_connector("video"),
        *_connector("audio"),
    )


def vae_table(config: LTX2VAEConfig) -> Table:
    """The rules of LTX-Video's VAE in the same layout."""
    return ltx_vae.vae_table(config.layout)


def _connector(stream: str) -> Table:
    source, leaf = f"{stream}_connector", f"{stream}/blocks"
    return (
        Rule(f"{source}.learnable_registers", f"{stream}/registers"),
        *_attention(f"{source}.transformer_blocks.{{block}}.attn1", f"{leaf}/attention"),
        *_mlp(f"{source}.transformer_blocks.{{block}}.ff", f"{leaf}/mlp"),
    )


def _time(source: str, leaf: str) -> Table:
    embedder = f"{source}.emb.timestep_embedder"
    return (
        *layer(f"{embedder}.linear_1", f"{leaf}/embedding/into", linear, INTO, keep_float32=True),
        *layer(f"{embedder}.linear_2", f"{leaf}/embedding/out", linear, BACK, keep_float32=True),
        *layer(f"{source}.linear", f"{leaf}/projection", linear, INTO),
    )


def _mlp(source: str, leaf: str) -> Table:
    return (
        *layer(f"{source}.net.0.proj", f"{leaf}/into", linear, INTO),
        *layer(f"{source}.net.2", f"{leaf}/out", linear, BACK),
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
