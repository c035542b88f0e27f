"""LaMo's drift loss: what it adds to a training step."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import rows
from benchmarks.depth import COGVIDEOX
from benchmarks.rows import Row, Settings
from benchmarks.timing import Bar
from jaxdiff.flow import Schedule
from jaxdiff.lamo import DriftLoss
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.lora import LoRA
from jaxdiff.models.network import Network
from jaxdiff.pipeline import Pipeline
from jaxdiff.scaling.operations import products
from jaxdiff.train.finetune import FineTuning, trainable, training_loss
from ports.families import FAMILIES

SHAPE = (1, 13, 60, 90, 16)  # 49 frames of 480 x 720


def operations(shape: tuple[int, ...] = SHAPE, config: Any = None) -> tuple[int, int]:
    """Of the products of a training step of CogVideoX-5B (a LoRA, all but attention recomputed), and of the drift loss with its
    gradient, by XLA's cost analysis: it has no loops. Shapes only."""
    family = FAMILIES["CogVideoXPipeline"].drive
    network = Network.abstract(CogVideoXTransformer, config or CogVideoXTransformerConfig.cogvideox_5b(), jnp.bfloat16)
    tuning, drift = FineTuning(batch=shape[0], lora=LoRA(128, 64.0), prompt_dropout=0.0), DriftLoss()
    pipeline = Pipeline(network, family, Schedule.from_config(COGVIDEOX))
    text = family.example(network, shape).text
    latents = jax.ShapeDtypeStruct(shape, jnp.float32)

    def step(network, latents, text):
        key = jax.random.key(0)
        params, frozen = trainable(network, tuning.lora, key)
        return jax.grad(training_loss(pipeline, tuning), has_aux=True)(
            params, ((frozen, None), (latents, text, None)), key
        )

    alone = jax.jit(jax.value_and_grad(drift)).lower(latents, latents, jax.ShapeDtypeStruct(shape[:1], jnp.float32))
    cost = alone.cost_analysis() or {}
    return products(step, network, latents, text), int(cost["flops"])


def case(settings: Settings) -> list[Row]:
    """LaMo's drift loss over a training step, in operations, at CogVideoX-5B's size; nothing is timed."""
    step, loss = operations()
    name = "drift loss / training step of CogVideoX-5B, operations"
    witness = {"operations": [step, loss]}
    return [rows.number(name, loss / step, Bar(0.01, at_least=False), shapes={"latents": SHAPE}, witness=witness)]
