"""Layers that the transformer and the text connectors of LTX-2 share.

Reference: LTX-2, arXiv 2601.03233; numerics follow `LTX2VideoTransformer3DModel` and `LTX2TextConnectors` of diffusers.
"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxdiff import kernels
from jaxdiff.models.layers import Linear, RMSNorm
from jaxdiff.models.ltx.transformer import rotary
from jaxdiff.taps import BlockReader

EPS = 1e-6  # of the norms of queries and keys, and of the connectors' own; a constant of the reference


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Turns queries or keys before they are split into heads.

    Parameters
    ----------
    cos, sin : float32 [S, G, D / 2G] or [B, S, G, D / 2G], for G groups of neighbouring channels.
    split : channel i of a group turns with channel i + half of it; else neighbours turn with each other.
    """

    cos: jax.Array
    sin: jax.Array
    split: bool

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, S, D] -> [B, S, D] in the dtype of `x`."""
        rotate = kernels.rotate_halves if self.split else kernels.rotate_pairs

        def group(x, cos, sin):
            return rotate(x[:, :, None], cos, sin)[:, :, 0]

        groups = x.reshape(*x.shape[:2], self.cos.shape[-2], -1)
        return jax.vmap(group, (2, -2, -2), 2)(groups, self.cos, self.sin).reshape(x.shape)


class RotaryKind(NamedTuple):
    """How a checkpoint rotates: `rope_type` and `rope_theta` of its configuration."""

    rope_type: str
    theta: float

    def rotation(self, positions: tuple, extents: tuple[float, ...], width: int, heads: int) -> Rotation:
        """The rotation of tokens at these positions; arguments as those of `jaxdiff.models.ltx.transformer.rotary`.

        Split pairs stay within a head, so that each head has the angles of its own part of the frequencies.
        """
        cos, sin = rotary(positions, width, extents, self._frequencies(width // (2 * len(positions))))
        split = self.rope_type == "split"
        groups = heads if split else 1
        cos, sin = (x.reshape(*x.shape[:-1], groups, -1) for x in (cos, sin))
        return Rotation(cos, sin, split)

    def _frequencies(self, count: int) -> np.ndarray:
        """``theta ** linspace(0, 1, count) * pi / 2`` in float64, then float32 [count]."""
        return (self.theta ** np.linspace(0, 1, count) * np.pi / 2).astype(np.float32)


class Attention(nnx.Module):
    """Multi-head attention whose queries and keys are RMS-normalised and rotated before the split into heads.

    Queries are made of `width` channels, keys and values of `context` channels; `heads` times `head_dim` need be neither.
    """

    def __init__(
        self,
        width: int,
        context: int,
        heads: int,
        head_dim: int,
        *,
        bias: bool = True,
        out_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        inner = heads * head_dim
        self.heads = heads
        self.query = Linear(width, inner, bias=bias, rngs=rngs)
        self.key = Linear(context, inner, bias=bias, rngs=rngs)
        self.value = Linear(context, inner, bias=bias, rngs=rngs)
        self.out = Linear(inner, width, bias=out_bias, rngs=rngs)
        self.query_norm = RMSNorm(inner, EPS)
        self.key_norm = RMSNorm(inner, EPS)

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        *,
        rotation: Rotation | None = None,
        context_rotation: Rotation | None = None,
        bias: jax.Array | None = None,
        tap: BlockReader | None = None,
    ) -> jax.Array:
        """x [B, Sq, width], context [B, S, context], bias on the scores [B, 1, 1, S] -> [B, Sq, width]. Keys are rotated by
        `context_rotation`, or as the queries are. Self-attention of the video has a `tap`, and no bias."""
        q, k = self.query_norm(self.query(x)), self.key_norm(self.key(context))
        if rotation is not None:
            q, k = rotation(q), (context_rotation or rotation)(k)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, self.value(context)))
        out = kernels.attention(q, k, v, bias=bias) if tap is None else tap.attend(q, k, v)
        return self.out(out.reshape(*x.shape[:2], -1))
