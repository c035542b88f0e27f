"""The LTX-Video diffusion transformer (text to video) in Flax.

Reference: LTX-Video, arXiv 2501.00103, section 2.2; numerics follow `LTXVideoTransformer3DModel` of diffusers, which the
parity suite compares with, tensor by tensor.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.kernels import sequence
from jaxdiff.models import network
from jaxdiff.models.layers import (
    MLP,
    ConfigFromDict,
    LayerNorm,
    Linear,
    RMSNorm,
    gelu_tanh,
    timestep_embedding,
)
from jaxdiff.taps import SITES, BlockReader, Reader

TIME_FEATURES = 256  # sinusoidal features of the timestep; a constant of the reference
QK_EPS = 1e-5  # of the norms of queries and keys, likewise
# A position of 1 in the rotary embedding: seconds, pixels, pixels.
EXTENT = (20, 2048, 2048)
THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class LTXTransformerConfig(ConfigFromDict):
    """Architecture numbers, named as in the published transformer/config.json.

    Raises
    ------
    ConfigError : a value that no published checkpoint has and that changes the computation.
    """

    in_channels: int = 128
    out_channels: int | None = 128
    patch_size: int = 1
    patch_size_t: int = 1
    num_attention_heads: int = 32
    attention_head_dim: int = 64
    cross_attention_dim: int = 2048
    num_layers: int = 28
    activation_fn: str = "gelu-approximate"
    qk_norm: str = "rms_norm_across_heads"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    caption_channels: int = 4096
    attention_bias: bool = True
    attention_out_bias: bool = True

    def __post_init__(self):
        only = {
            "patch_size": 1,
            "patch_size_t": 1,
            "activation_fn": "gelu-approximate",
            "qk_norm": "rms_norm_across_heads",
            "norm_elementwise_affine": False,
            "cross_attention_dim": self.width,  # the text is projected to the width before it is attended to
        }
        for key, value in only.items():
            if getattr(self, key) != value:
                raise ConfigError(f"LTXTransformer: {key}={getattr(self, key)!r} is not supported, only {value!r}")
        if self.width % 2:
            raise ConfigError(f"LTXTransformer: the width {self.width} must be even to rotate pairs of channels")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_dim(self) -> int:
        """Channels of the text embeddings."""
        return self.caption_channels

    @classmethod
    def ltx_2b(cls) -> "LTXTransformerConfig":
        """Lightricks/LTX-Video 0.9.0, 0.9.1 and 0.9.5: 1,923,385,472 parameters."""
        return cls()

    @classmethod
    def ltx_13b(cls) -> "LTXTransformerConfig":
        """Lightricks/LTX-Video-0.9.7-dev: 13,042,569,344 parameters."""
        return cls(attention_head_dim=128, cross_attention_dim=4096, num_layers=48)


class Attention(nnx.Module):
    """Multi-head attention whose queries and keys are RMS-normalised and rotated before the split into heads."""

    def __init__(self, config: LTXTransformerConfig, *, rngs: nnx.Rngs):
        width, bias = config.width, config.attention_bias
        self.heads = config.num_attention_heads
        self.query = Linear(width, width, bias=bias, rngs=rngs)
        self.key = Linear(width, width, bias=bias, rngs=rngs)
        self.value = Linear(width, width, bias=bias, rngs=rngs)
        self.out = Linear(width, width, bias=config.attention_out_bias, rngs=rngs)
        self.query_norm = RMSNorm(width, QK_EPS)
        self.key_norm = RMSNorm(width, QK_EPS)

    def __call__(self, x, context, *, rope=None, bias=None, tap: BlockReader | None = None):
        """x [B, Sq, D], context [B, S, D], bias on the scores [B, 1, 1, S] -> [B, Sq, D]; self-attention has a `tap` and a
        `rope`, and no bias."""
        q, k = self.query_norm(self.query(x)), self.key_norm(self.key(context))
        if rope is not None:
            # The angles run on over the heads: to the rotation, all of them are one.
            q, k = (kernels.rotate_pairs(y[:, :, None], *rope)[:, :, 0] for y in (q, k))
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, self.value(context)))
        out = kernels.attention(q, k, v, bias=bias) if tap is None else tap.attend(q, k, v)
        return self.out(out.reshape(x.shape))


class Block(nnx.Module):
    """One transformer block: modulated self-attention, cross-attention to the text, modulated MLP."""

    def __init__(self, config: LTXTransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.self_attention = Attention(config, rngs=rngs)
        self.cross_attention = Attention(config, rngs=rngs)
        self.norm = RMSNorm(width, config.norm_eps, affine=False)
        self.mlp = MLP(width, 4 * width, width, gelu_tanh, rngs=rngs)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (6, width)) * width**-0.5)

    def __call__(self, x, text, text_bias, modulation, rope, tap: BlockReader):
        """x [B, S, D] in the compute dtype, text [B, N, D], modulation [B, 1 or S, 6, D] float32 -> x [B, S, D].

        Cross-attention sees the tokens as they are: neither normalised nor gated.
        """
        modulation = self.modulation[...].astype(jnp.float32) + modulation
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.moveaxis(modulation, 2, 0)
        x = tap("block_in", x)

        h = self._modulated(x, shift, scale)
        h = tap("self_attention_out", self.self_attention(h, h, rope=rope, tap=tap))
        x = (x + h * gate).astype(x.dtype)

        x = x + tap("cross_attention_out", self.cross_attention(x, text, bias=text_bias))

        h = tap("mlp_out", self.mlp(self._modulated(x, mlp_shift, mlp_scale)))
        x = (x + h * mlp_gate).astype(x.dtype)
        return tap("block_out", x)

    def _modulated(self, x, shift, scale):
        return (self.norm(x.astype(jnp.float32)) * (1 + scale) + shift).astype(x.dtype)


class LTXTransformer(nnx.Module):
    """Velocity of LTX-Video's flow, from latents, timestep and text embeddings; see `__call__`."""

    sites = SITES

    def __init__(self, config: LTXTransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.config = config
        self.patch_embedding = Linear(config.in_channels, width, rngs=rngs)
        self.time_embedding = MLP(TIME_FEATURES, width, width, jax.nn.silu, rngs=rngs)
        self.time_projection = Linear(width, 6 * width, rngs=rngs)
        self.text_embedding = MLP(config.caption_channels, width, width, gelu_tanh, rngs=rngs)
        self.blocks = network.stack(lambda r: Block(config, rngs=r), config.num_layers, rngs)
        self.norm = LayerNorm(width, 1e-6, affine=False)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, width)) * width**-0.5)
        self.out = Linear(width, config.out_channels or config.in_channels, rngs=rngs)

    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        text_mask: jax.Array | None = None,
        *,
        positions: tuple,
        taps=(),
        edits=(),
        sigma=None,
        key=None,
        remat: network.Remat = "none",
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One evaluation of the network.

        Parameters
        ----------
        latents : [B, T', H', W', C]
        timestep : [B], or [B, T' H' W'] for one of every token's own; 0 (clean) to 1000 (noise)
        text : [B, N, caption_channels]
        text_mask : [B, N] bool, True at real tokens; None: all are.
        positions : where the latents are: frames in seconds, [T'] or [B, T'], rows and columns in pixels, [H'] and [W'].
        taps, edits : see `jaxdiff.taps`; `sigma` and `key` are handed to the edits.
        remat : what the backward pass recomputes, see `jaxdiff.models.network.scan`.

        Returns
        -------
        output : [B, T', H', W', out_channels] in the compute dtype
        captured : tap name -> [rows, B, ...]
        """
        config = self.config
        grid = (latents.shape[1], latents.shape[2], latents.shape[3])
        x = self.patch_embedding(sequence.own(latents.reshape(latents.shape[0], -1, latents.shape[-1])))
        timestep = sequence.own(timestep) if timestep.ndim == 2 else timestep[:, None]
        time = self.time_embedding(timestep_embedding(timestep, TIME_FEATURES))
        modulation = self.time_projection(jax.nn.silu(time)).astype(jnp.float32)
        modulation = modulation.reshape(*time.shape[:2], 6, config.width)
        text = self.text_embedding(text)
        text_bias = None if text_mask is None else jnp.where(text_mask, 0.0, -10000.0)[:, None, None]
        rope = tuple(sequence.own(table, -2) for table in rotary(positions, config.width))

        def run(block, x, tap):
            return block(x, text, text_bias, modulation, rope, tap)

        reader = Reader(taps, edits, layers=config.num_layers, grid=grid, sigma=sigma, key=key)
        x, captured = network.scan(run, self.blocks, x, reader, remat=remat)

        modulation = self.modulation[...].astype(jnp.float32) + time.astype(jnp.float32)[:, :, None]
        shift, scale = jnp.moveaxis(modulation, 2, 0)
        x = self.out((self.norm(x) * (1 + scale) + shift).astype(x.dtype))
        return sequence.whole(x, math.prod(grid)).reshape(*latents.shape[:-1], -1), captured


def rotary(
    positions: tuple, width: int, extents: tuple[float, ...] = EXTENT, frequencies: np.ndarray | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of LTX's rotary embedding, over the whole width instead of a head's.

    The angle of frequency f at position p of an axis is ``f (2 p / extent - 1)``, with p in seconds or pixels, f from
    pi/2 to 10000 pi/2 in equal ratios, and channels ordered (frequency, axis). Channels that twice the number of axes
    does not divide come first and do not turn.

    Angles reach 15,000, where float32 resolves 1e-3. Their rounding therefore shows in the result, and every operation
    is the reference's, in its order and precision.

    Parameters
    ----------
    positions : float32 [T'] or [B, T'] seconds, [H'] pixels, [W'] pixels; or any other number of axes
    width : D, even
    extents : a position of 1 along each axis
    frequencies : float32 [D // (2 axes)]; None: LTX-Video's, which are rounded on the way

    Returns
    -------
    cos, sin : float32 [T' H' W', D / 2], or [B, T' H' W', D / 2] where the clips have times of their own.
    """
    axes = len(positions)
    count = width // (2 * axes)
    frequencies = _frequencies(count) if frequencies is None else frequencies
    grid = tuple(p.shape[-1] for p in positions)
    tables = []
    for axis, (position, extent) in enumerate(zip(positions, extents, strict=True)):
        # XLA makes a product of a division by a constant, unless it cannot see that it is one.
        position = position / jax.lax.optimization_barrier(jnp.full_like(position, extent))
        angle = (position * 2 - 1)[..., None] * frequencies  # [size, count], or [B, size, count]
        shape = [1] * axes + [count]
        shape[axis] = grid[axis]
        tables.append(angle.reshape(*angle.shape[:-2], *shape))
    lead = tables[0].shape[: -axes - 1]
    still = (width - 2 * axes * count) // 2

    def over_the_grid(function, fill):
        turned = [jnp.broadcast_to(function(table), (*lead, *grid, count)) for table in tables]
        x = jnp.stack(turned, -1).reshape(*lead, -1, axes * count)
        return jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (still, 0)], constant_values=fill)

    return over_the_grid(jnp.cos, 1.0), over_the_grid(jnp.sin, 0.0)


def _frequencies(count: int) -> np.ndarray:
    """``10000 ** linspace(0, 1, count) * pi / 2``, float32 [count], rounded as torch does: its linspace runs from both
    ends to the middle in fused multiply-adds of a float32 step, which float64 products reproduce."""
    step = np.float64(np.float32(1) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    exponents = np.where(index < count // 2, step * index, 1 - step * (count - 1 - index))
    exponents = exponents.astype(np.float32).astype(np.float64)
    return (THETA**exponents).astype(np.float32) * np.float32(np.pi) / np.float32(2)
