"""The text connectors of LTX-2 in Flax: from all layers of a language model to what the two streams attend to.

Reference: LTX-2, arXiv 2601.03233; numerics follow `LTX2TextConnectors` of diffusers, which the parity suite compares
with.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.models import network
from jaxdiff.models.layers import MLP, Linear, RMSNorm, gelu_tanh
from jaxdiff.models.ltx2.config import LTX2ConnectorsConfig
from jaxdiff.models.ltx2.layers import EPS, Attention, RotaryKind, Rotation
from jaxdiff.taps import Reader

SCALE = 8  # of the normalised states; a constant of the reference


class Block(nnx.Module):
    """Self-attention and MLP, each on the RMS norm of the residual stream and added to it."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, EPS, affine=False)
        self.attention = Attention(width, width, heads, width // heads, rngs=rngs)
        self.mlp = MLP(width, 4 * width, width, gelu_tanh, rngs=rngs)

    def __call__(self, x: jax.Array, rotation: Rotation) -> jax.Array:
        """[B, N, D] -> [B, N, D]"""
        h = self.norm(x)
        x = x + self.attention(h, h, rotation=rotation)
        return x + self.mlp(self.norm(x))


class Connector(nnx.Module):
    """A transformer over the tokens of the text, in which learned registers take the place of padding."""

    def __init__(self, width: int, heads: int, layers: int, registers: int, *, rngs: nnx.Rngs):
        self.heads, self.layers = heads, layers
        self.registers = nnx.Param(jax.random.uniform(rngs.params(), (registers, width), minval=-1.0))
        self.blocks = network.stack(lambda r: Block(width, heads, rngs=r), layers, rngs)
        self.norm = RMSNorm(width, EPS, affine=False)

    def __call__(self, x: jax.Array, mask: jax.Array, kind: RotaryKind, extent: int) -> jax.Array:
        """x [B, N, D], mask [B, N] bool -> [B, N, D]: real tokens first, in their order, then registers."""
        count, registers = x.shape[1], self.registers[...].astype(x.dtype)
        order = jnp.argsort(~mask, axis=1, stable=True)
        fronted = jnp.take_along_axis(x, order[:, :, None], axis=1)
        filled = jnp.arange(count) < mask.sum(1, keepdims=True)
        x = jnp.where(filled[:, :, None], fronted, jnp.tile(registers, (count // len(registers), 1)))
        positions = (jnp.arange(count, dtype=jnp.float32),)
        rotation = kind.rotation(positions, (extent,), x.shape[-1], self.heads)
        reader = Reader((), (), layers=self.layers, grid=(1, 1, count))
        x, _ = network.scan(lambda block, x, tap: block(x, rotation), self.blocks, x, reader)
        return self.norm(x)


class LTX2Connectors(nnx.Module):
    """Text for the video stream and for the audio stream, from the states of every layer; see `__call__`."""

    def __init__(self, config: LTX2ConnectorsConfig, *, rngs: nnx.Rngs):
        width = config.caption_channels
        self.config = config
        self.projection = Linear(width * config.text_proj_in_factor, width, bias=config.proj_bias, rngs=rngs)
        self.video = Connector(
            width,
            config.video_connector_num_attention_heads,
            config.video_connector_num_layers,
            config.video_connector_num_learnable_registers,
            rngs=rngs,
        )
        self.audio = Connector(
            width,
            config.audio_connector_num_attention_heads,
            config.audio_connector_num_layers,
            config.audio_connector_num_learnable_registers,
            rngs=rngs,
        )

    def __call__(self, states: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Embed a text.

        Parameters
        ----------
        states : [B, N, D, layers], the hidden states of the language model, its embeddings first; or the same as
            [B, N, D layers]. N is a multiple of the numbers of registers.
        mask : [B, N] bool, True at real tokens, which are neighbours; None: all are.

        Returns
        -------
        video, audio : [B, N, D] each. Nothing in them is padding: what was is registers.

        Raises
        ------
        ConfigError : the shapes do not fit.
        """
        config = self.config
        width, layers = config.caption_channels, config.text_proj_in_factor
        shape = states.shape
        if len(shape) not in (3, 4) or shape[2:] not in ((width * layers,), (width, layers)):
            raise ConfigError(
                f"the text of the connectors must be [B, N, {width}, {layers}] or [B, N, {width * layers}], the states of "
                f"all {layers} layers, got {shape}"
            )
        mask = jnp.ones(shape[:2], bool) if mask is None else mask.astype(bool)
        if mask.shape != shape[:2]:
            raise ConfigError(f"text_mask must be {list(shape[:2])}, as the text has it, got {mask.shape}")
        registers = (config.video_connector_num_learnable_registers, config.audio_connector_num_learnable_registers)
        if any(shape[1] % number for number in registers):
            raise ConfigError(
                f"the text of the connectors has {shape[1]} tokens; pad it to a multiple of {max(registers)}, the number "
                "of learned registers"
            )
        x = _normalised(states.reshape(*shape[:2], width, layers), mask)
        x = self.projection(x.reshape(*shape[:2], -1))
        kind, extent = RotaryKind(config.rope_type, config.rope_theta), config.connector_rope_base_seq_len
        return self.video(x, mask, kind, extent), self.audio(x, mask, kind, extent)


def _normalised(states: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, N, D, layers]: less the mean over real tokens and channels, over their range, per clip and layer; padding 0."""
    real = mask[:, :, None, None]
    x = states.astype(jnp.float32)
    count = mask.sum(1)[:, None, None, None] * x.shape[2]
    mean = jnp.where(real, x, 0).sum((1, 2), keepdims=True) / (count + EPS)
    low = jnp.where(real, x, jnp.inf).min((1, 2), keepdims=True)
    high = jnp.where(real, x, -jnp.inf).max((1, 2), keepdims=True)
    return jnp.where(real, (x - mean) / (high - low + EPS) * SCALE, 0)
