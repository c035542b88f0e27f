"""Pipelines that the tests of the flow walk: a toy that traces in milliseconds, and a real tiny Wan; and what these tests
share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdiff.conditioning import Conditioning, as_conditioning
from jaxdiff.flow import SOLVERS, Schedule, VariancePreserving
from jaxdiff.mesh import FSDP
from jaxdiff.models.cogvideox.family import CogVideoX
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.ltx.family import LTX
from jaxdiff.models.ltx.transformer import LTXTransformer, LTXTransformerConfig
from jaxdiff.models.network import Network
from jaxdiff.models.wan.family import Wan
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from jaxdiff.pipeline import Pipeline
from jaxdiff.taps import Reader, Tap
from tests.reference import WAN_SCHEDULER

WAN = Schedule.from_config(WAN_SCHEDULER)
LAYERS = 3
TAPS = (Tap("block_out"), Tap("block_in", "frame_mean", blocks=(0, -1)))
INVERTERS = [name for name, solver in SOLVERS.items() if not solver.stochastic]
# A program's fusions differ between calls of different shape, and float32 sums with them.
ROUNDING = {"rtol": 2e-5, "atol": 2e-5}


class Log:
    """What the toys saw: `traces` counts how often one was traced, `timesteps` what those that listen were
    told.
    """

    def __init__(self):
        self.traces, self.timesteps = 0, []

    def told(self, timestep):
        self.timesteps.append(float(timestep))


LOG = Log()


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["schedule", "listens"])
@dataclasses.dataclass(frozen=True)
class Toy:
    """Three residual layers over the channels: a smooth field of state, sigma's timestep and text."""

    weights: jax.Array  # [LAYERS, C, C]
    schedule: Schedule = WAN
    listens: bool = False

    def evaluate(self, latents, sigma, cond, *, label=None, taps=(), edits=(), key=None):
        LOG.traces += 1
        timestep = self.schedule.timestep(sigma if label is None else label)
        if self.listens:
            jax.debug.callback(LOG.told, timestep, ordered=True)
        text = as_conditioning(cond).text.mean(1)[:, None]
        grid = latents.shape[1:4]
        reader = Reader(taps, edits, layers=LAYERS, grid=grid, sigma=sigma, key=key)

        def run(h, weight, per_block):
            tap = reader.block(per_block)
            h = tap("block_in", h)
            h = h + 0.3 * jnp.tanh(h @ weight + text + 2 * jnp.cos(timestep / 300))
            return tap("block_out", h), tap.readings

        def body(carry, scanned):
            h, buffers = carry
            h, readings = run(h, *scanned)
            return (h, reader.write(buffers, readings, scanned[1])), None

        h = latents.reshape(latents.shape[0], -1, latents.shape[-1])
        first = jax.tree.map(lambda leaf: leaf[0], (self.weights, reader.per_block))
        buffers = reader.buffers(lambda *args: run(*args)[1], h, *first)
        (h, buffers), _ = jax.lax.scan(body, (h, buffers), (self.weights, reader.per_block))
        return (h - 0.5 * h.mean(1, keepdims=True)).reshape(latents.shape), buffers

    def tap_shapes(self, taps, latents_shape, cond=None):
        def captured(latents):
            text = jnp.zeros((1, 1, latents.shape[-1]))
            return self.evaluate(latents, 0.5, Conditioning(text=text), taps=taps)[1]

        return jax.eval_shape(captured, jax.ShapeDtypeStruct(tuple(latents_shape), jnp.float32))


def toy(seed: int = 0) -> Toy:
    return Toy(jax.random.normal(jax.random.key(seed), (LAYERS, 4, 4)) * 0.5)


def inputs(batch: int = 2, channels: int = 4, text_dim: int = 4):
    """Latents [B, 2, 4, 4, C] and text [B, 3, text_dim]."""
    keys = jax.random.split(jax.random.key(7), 2)
    latents = jax.random.normal(keys[0], (batch, 2, 4, 4, channels))
    return latents, jax.random.normal(keys[1], (batch, 3, text_dim))


def tiny_wan(layers: int = 3, heads: int = 2, head_dim: int = 16) -> Pipeline:
    config = WanTransformerConfig(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=48,
        num_layers=layers,
        rope_max_seq_len=32,
    )
    return Pipeline(Network.init(WanTransformer, config, 0), Wan(), WAN)


def tiny_ltx() -> Pipeline:
    config = LTXTransformerConfig(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=8,
    )
    return Pipeline(Network.init(LTXTransformer, config, 0), LTX(), WAN)


def tiny_cogvideox() -> Pipeline:
    config = CogVideoXTransformerConfig(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=8,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=3,
        use_rotary_positional_embeddings=True,
    )
    return Pipeline(Network.init(CogVideoXTransformer, config, 0), CogVideoX(), VariancePreserving())


def spread_weights(pipeline: Pipeline, mesh: Mesh) -> Pipeline:
    """Matrices of the blocks and of the embeddings split over ``fsdp`` where it divides them, as `jaxdiff.load` splits them."""
    size = mesh.shape.get(FSDP, 1)

    def put(path, leaf):
        matrix = leaf.ndim == (3 if "blocks" in jax.tree_util.keystr(path) else 2) and leaf.shape[-2] % size == 0
        spec = PartitionSpec(*[None] * (leaf.ndim - 2), FSDP if matrix and size > 1 else None)
        return jax.device_put(leaf, NamedSharding(mesh, spec if matrix else PartitionSpec()))

    return jax.tree_util.tree_map_with_path(put, pipeline)


def close(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], err_msg=name, **ROUNDING)


SUNK = []


@functools.partial(jax.tree_util.register_dataclass, data_fields=["ids"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Sink:
    """Takes captures to the host, the way a store does."""

    ids: jax.Array

    def emit(self, captured, slot):
        def take(ids, slot, captured):
            SUNK.append((np.asarray(ids).copy(), int(slot), jax.tree.map(np.array, captured)))

        io_callback(take, None, self.ids, slot, captured, ordered=False)
