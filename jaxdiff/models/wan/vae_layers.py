"""Layers of the Wan VAE, causal in time: each takes a chunk of frames ``x`` [B, T, H, W, C] and a `Memory`.

The first chunk has one frame, which resampling in time treats on its own. Reference: Wan, arXiv 2503.20314, section 4.1.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.models.convolutions import CausalConv3d, Conv2d, Strides, fold, unfold
from jaxdiff.models.layers import Linear
from jaxdiff.models.streaming import Memory

# Lengths below 1e-12 count as 1e-12, as in the reference: a zero vector stays zero, with a finite gradient.
_TINY = 1e-24


class ChannelNorm(nnx.Module):
    """``scale * sqrt(C) * x / |x|`` over the channels: RMS norm without an epsilon; normalised in float32."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(y), -1, keepdims=True), _TINY))
        return y.astype(x.dtype) * (x.shape[-1] ** 0.5 * self.scale[...]).astype(x.dtype)

    def silu(self, x: jax.Array) -> jax.Array:
        """The norm followed by SiLU, the order of every pre-activation layer here."""
        return jax.nn.silu(self(x))


class ResidualBlock(nnx.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``; the shortcut is linear where the width changes."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv3d(inputs, outputs, (3, 3, 3), rngs=rngs)
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv3d(outputs, outputs, (3, 3, 3), rngs=rngs)
        # A residual branch starts at zero: a new network is nearly linear, and learns what a linear one can at once.
        self.conv2.kernel[...] = jnp.zeros_like(self.conv2.kernel[...])
        self.shortcut = Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        h = self.conv1(x, memory, before=self.norm1.silu)
        h = self.conv2(h, memory, before=self.norm2.silu)
        return h + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nnx.Module):
    """Attention among the pixels of each frame, one head as wide as the channels, with a residual connection."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = ChannelNorm(width)
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs, init=jax.nn.initializers.zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, frames, height, width, channels = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch * frames, height * width, 1, 3 * channels)
        mixed = kernels.attention(*jnp.split(qkv, 3, axis=-1))
        return x + self.out(mixed.reshape(x.shape))


class MiddleBlock(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.resnets = nnx.List([ResidualBlock(width, width, rngs=rngs) for _ in range(2)])
        self.attention = FrameAttention(width, rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        x = self.attention(self.resnets[0](x, memory))
        return self.resnets[1](x, memory)


class Downsample(nnx.Module):
    """Half the height and width, and with `temporal` half the frames after the first.

    In time: the first frame passes, then frames (0, 1, 2), (2, 3, 4), ... make one frame each.
    """

    def __init__(self, width: int, temporal: bool, *, rngs: nnx.Rngs):
        self.conv = Conv2d(width, width, 3, stride=2, padding=(0, 1), rngs=rngs)
        self.time_conv = CausalConv3d(width, width, (3, 1, 1), rngs=rngs) if temporal else None

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        x = self.conv(x)
        if self.time_conv is None:
            return x
        if memory.empty:
            memory.keep(x)
            return x
        return self.time_conv(x, memory, past=1, stride=2)


class Upsample(nnx.Module):
    """Twice the height and width, and with `temporal` twice the frames after the first.

    In time: the first frame passes; the others are a sequence of their own (zeros before it), and each becomes the two
    halves of the channels of its convolution.
    """

    def __init__(self, inputs: int, outputs: int, temporal: bool, *, rngs: nnx.Rngs):
        self.time_conv = CausalConv3d(inputs, 2 * inputs, (3, 1, 1), rngs=rngs) if temporal else None
        self.conv = Conv2d(inputs, outputs, 3, padding=(1, 1), rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        if self.time_conv is not None:
            if memory.empty:
                memory.keep(memory.recall(x, 2))
            else:
                batch, frames, height, width, channels = x.shape
                x = self.time_conv(x, memory).reshape(batch, frames, height, width, 2, channels)
                x = x.transpose(0, 1, 4, 2, 3, 5).reshape(batch, 2 * frames, height, width, channels)
        return self.conv.doubled(x)


def fold_mean(x: jax.Array, outputs: int, strides: Strides) -> jax.Array:
    """`fold`, then the mean of groups of neighbouring channels: [B, T, H, W, C] -> [B, T/t, H/h, W/w, outputs].

    In time, zeros before the first frame fill its fold.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % strides[0], 0), (0, 0), (0, 0), (0, 0)))
    x = fold(x, strides)
    return x.reshape(*x.shape[:-1], outputs, -1).mean(-1)


def repeat_unfold(x: jax.Array, outputs: int, strides: Strides) -> jax.Array:
    """Every channel repeated, then `unfold`: [B, T, H, W, C] -> [B, T t, H h, W w, outputs]."""
    return unfold(jnp.repeat(x, outputs * math.prod(strides) // x.shape[-1], axis=-1), strides)
