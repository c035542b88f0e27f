"""A tiny random pipeline of every family, its latents and what it is told."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning
from jaxdiff.flow import Schedule
from jaxdiff.models.cogvideox import CogVideoX, CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.cosmos import Cosmos, CosmosTransformer, CosmosTransformerConfig
from jaxdiff.models.ltx import LTX, LTXTransformer, LTXTransformerConfig
from jaxdiff.models.ltx2 import LTX2, LTX2Transformer, LTX2TransformerConfig
from jaxdiff.models.network import Network
from jaxdiff.models.wan import Wan
from jaxdiff.pipeline import Pipeline
from tests.flow.pipelines import tiny_wan
from tests.reference import COGVIDEOX_SCHEDULER, COSMOS_EDM, LTX_SHIFTED

LAYERS, FRAMES, TEXT = 2, 3, 8


def _made(module, config, family, scheduler) -> Pipeline:
    return Pipeline(Network.init(module, config, 0), family, Schedule.from_config(scheduler))


def cogvideox() -> Pipeline:
    config = CogVideoXTransformerConfig(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=TEXT,
        num_layers=LAYERS, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=3,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    return _made(CogVideoXTransformer, config, CogVideoX(), COGVIDEOX_SCHEDULER)


def ltx() -> Pipeline:
    config = LTXTransformerConfig(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        num_layers=LAYERS, caption_channels=TEXT,
    )  # fmt: skip
    return _made(LTXTransformer, config, LTX(), LTX_SHIFTED)


def ltx2() -> Pipeline:
    config = LTX2TransformerConfig(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=8,
        audio_cross_attention_dim=16, num_layers=LAYERS, caption_channels=TEXT, rope_type="split",
    )  # fmt: skip
    return _made(LTX2Transformer, config, LTX2(), LTX_SHIFTED)


def cosmos() -> Pipeline:
    config = CosmosTransformerConfig(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=LAYERS, mlp_ratio=2.0,
        text_embed_dim=TEXT, adaln_lora_dim=4, max_size=(4, 8, 8), extra_pos_embed_type=None,
    )  # fmt: skip
    return _made(CosmosTransformer, config, Cosmos(), COSMOS_EDM)


def experts() -> Pipeline:
    one = tiny_wan(LAYERS)
    second = Network.init(one.transformer.module, one.transformer.config, 1)
    return dataclasses.replace(one, transformer_2=second, family=Wan(boundary_ratio=0.5))


FAMILIES: dict[str, Callable[[], Pipeline]] = {
    "wan": lambda: tiny_wan(LAYERS),
    "wan_experts": experts,
    "cogvideox": cogvideox,
    "ltx": ltx,
    "ltx2": ltx2,
    "cosmos": cosmos,
}


def inputs(seed: int = 0) -> tuple[jax.Array, Conditioning]:
    """Latents [1, 3, 4, 4, 4] and a text of 3 tokens, for any of the pipelines."""
    keys = jax.random.split(jax.random.key(seed), 2)
    text = Conditioning(text=jax.random.normal(keys[1], (1, 3, TEXT)))
    return jax.random.normal(keys[0], (1, FRAMES, 4, 4, 4), jnp.float32), text
