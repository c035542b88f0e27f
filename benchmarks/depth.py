"""Compile time against depth: a mid-sized abstract pipeline of every family, as deep as one likes; nothing of it is run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import program, rows
from benchmarks.rows import Row, Settings
from benchmarks.subject import SCHEDULER
from benchmarks.timing import Bar, paired
from jaxdiff.conditioning import Conditioning
from jaxdiff.flow.schedule import Schedule
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformerConfig
from jaxdiff.models.cosmos.transformer import CosmosTransformerConfig
from jaxdiff.models.ltx.transformer import LTXTransformerConfig
from jaxdiff.models.ltx2.config import LTX2TransformerConfig
from jaxdiff.models.network import Network
from jaxdiff.models.wan.transformer import WanTransformerConfig
from jaxdiff.pipeline import Pipeline
from ports.families import FAMILIES

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
COGVIDEOX = {
    "_class_name": "CogVideoXDDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
}
# Pipeline class -> configuration of so many layers, latents [B, T', H', W', C], scheduler.
DEPTHS: dict[str, tuple[Callable[[int], Any], tuple[int, ...], dict[str, Any]]] = {
    "WanPipeline": (
        lambda layers: WanTransformerConfig(
            num_attention_heads=4, attention_head_dim=64, ffn_dim=1024, text_dim=128, num_layers=layers
        ),
        (1, 5, 16, 16, 16),
        SCHEDULER,
    ),
    "WanImageToVideoPipeline": (
        lambda layers: WanTransformerConfig(
            num_attention_heads=4,
            attention_head_dim=64,
            in_channels=36,
            ffn_dim=1024,
            text_dim=128,
            num_layers=layers,
            image_dim=128,
            added_kv_proj_dim=256,
        ),
        (1, 5, 16, 16, 16),
        SCHEDULER,
    ),
    "CogVideoXPipeline": (
        lambda layers: CogVideoXTransformerConfig(
            num_attention_heads=4, text_embed_dim=128, num_layers=layers, use_rotary_positional_embeddings=True
        ),
        (1, 5, 16, 16, 16),
        COGVIDEOX,
    ),
    "LTXPipeline": (
        lambda layers: LTXTransformerConfig(
            num_attention_heads=4, cross_attention_dim=256, caption_channels=128, num_layers=layers
        ),
        (1, 5, 8, 8, 128),
        FLOW,
    ),
    "Cosmos2VideoToWorldPipeline": (
        lambda layers: CosmosTransformerConfig(
            in_channels=17,
            num_attention_heads=4,
            attention_head_dim=64,
            text_embed_dim=128,
            num_layers=layers,
            extra_pos_embed_type=None,
        ),
        (1, 5, 16, 16, 16),
        FLOW | {"use_karras_sigmas": True},
    ),
    "LTX2Pipeline": (
        lambda layers: LTX2TransformerConfig(
            num_attention_heads=4,
            attention_head_dim=64,
            cross_attention_dim=256,
            audio_num_attention_heads=4,
            audio_attention_head_dim=32,
            audio_cross_attention_dim=128,
            caption_channels=128,
            num_layers=layers,
        ),
        (1, 5, 8, 8, 128),
        FLOW,
    ),
}


def uncovered() -> set[str]:
    """Transformers that can be loaded and that no pipeline here has."""

    def modules(names):
        return {port.module.__name__ for name in names for port in FAMILIES[name].ports["transformer"].values()}

    return modules(FAMILIES) - modules(DEPTHS)


def abstract(name: str, layers: int) -> tuple[Pipeline, jax.ShapeDtypeStruct, Conditioning]:
    """A pipeline of so many layers, latents and a conditioning, all of them shapes only."""
    make, shape, scheduler = DEPTHS[name]
    family = FAMILIES[name]
    (port, *_) = family.ports["transformer"].values()
    network = Network.abstract(port.module, make(layers))
    pipeline = Pipeline(network, family.drive, Schedule.from_config(scheduler | family.scheduler))
    return pipeline, jax.ShapeDtypeStruct(shape, jnp.float32), family.drive.example(network, shape)


def case(settings: Settings) -> list[Row]:
    """Trace, lower and compile an inversion with means of 40 layers, over the same of 2, for every family; no cache."""
    if uncovered():
        raise AssertionError(f"no pipeline here has {', '.join(sorted(uncovered()))}: add it to benchmarks/depth.py")
    return [_row(name, settings) for name in (list(DEPTHS)[:1] if settings.tiny else DEPTHS)]


def _row(name: str, settings: Settings) -> Row:
    from benchmarks.inversion import MEANS, compile_inversion

    subjects = {layers: abstract(name, layers) for layers in (2, 40)}

    def build(layers):
        jax.clear_caches()  # traces of the last call too
        return compile_inversion(*subjects[layers], MEANS)

    witness = {"hlo_instructions": [program.instructions(build(layers).as_text()) for layers in (2, 40)]}
    times = paired(functools.partial(build, 2), functools.partial(build, 40), settings.pairs, warmup=1)
    title = f"compile {name.removesuffix('Pipeline')}: 40 / 2 layers"
    shapes = {"latents": DEPTHS[name][1]}
    return rows.ratio(title, times, Bar(1.1, at_least=False), shapes=shapes, witness=witness)
