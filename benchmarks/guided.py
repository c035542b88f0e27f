"""LaMo's guidance: what it adds to a sampling step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import rows
from benchmarks.depth import COGVIDEOX
from benchmarks.rows import Row, Settings
from benchmarks.timing import Bar, paired
from jaxdiff.conditioning import Conditioning
from jaxdiff.flow import Schedule, sample
from jaxdiff.generation.run import ASSETS
from jaxdiff.lamo import MotionField, MotionFieldConfig, MotionGuidance
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.network import Network
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.scaling.operations import products
from ports.families import FAMILIES

SHAPE = (1, 13, 60, 90, 16)  # 49 frames of 480 x 720
STEPS = 4


def operations() -> tuple[int, int]:
    """Of the matrix products and convolutions of one step of CogVideoX-5B with classifier-free guidance: plain, and guided by a
    motion field of full size. Shapes only: no weight is made and nothing is compiled."""
    family = FAMILIES["CogVideoXPipeline"].drive
    network = Network.abstract(CogVideoXTransformer, CogVideoXTransformerConfig.cogvideox_5b())
    pipeline = Pipeline(network, family, Schedule.from_config(COGVIDEOX))
    text = family.example(network, SHAPE).text
    field = Network.abstract(MotionField, MotionFieldConfig(SHAPE[-1], text.shape[-1]))
    latents = jax.ShapeDtypeStruct(SHAPE, jnp.float32)

    def step(pipeline, field, latents, text):
        guide = None if field is None else MotionGuidance(field)
        run = sample(pipeline, latents, text, guidance_scale=6.0, negative=0 * text, steps=1, guide=guide)
        return run.latents

    return tuple(products(step, pipeline, f, latents, text) for f in (None, field))  # type: ignore[return-value]


def nano(batch: int = 8) -> tuple[Callable, Callable]:
    """A plain and a guided sample of the nano model, `STEPS` steps; each returns when it is done."""
    pipeline = load(ASSETS / "nano")
    width = pipeline.transformer.config.text_dim
    noise = jax.random.normal(jax.random.key(0), (batch, 5, 8, 8, 16))
    cond = Conditioning(text=jax.random.normal(jax.random.key(1), (batch, 3, width)))
    guide = MotionGuidance(Network.init(MotionField, MotionFieldConfig.nano(16, width)), 1e-3)

    def run(guide):
        return lambda: jax.block_until_ready(sample(pipeline, noise, cond, steps=STEPS, guide=guide).latents)

    return run(None), run(guide)


def case(settings: Settings) -> list[Row]:
    """A sampling step with LaMo's guidance over one without: operations at CogVideoX-5B's size, time at the nano model's."""
    plain, led = operations()
    return [
        rows.number("guidance: operations of a step of CogVideoX-5B", led / plain, Bar(1.03, at_least=False),
                    shapes={"latents": SHAPE}, witness={"operations": [plain, led]}),
        rows.ratio("guidance: time of nano samples", paired(*nano(), settings.pairs)),
    ]  # fmt: skip
