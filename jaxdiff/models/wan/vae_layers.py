"""Layers of the Wan VAE: causal in time, so that a clip can be coded a few frames at a time.

Every layer takes a chunk of frames ``x`` [B, T, H, W, C] and a `Memory`. A causal layer asks the memory for the frames
that came before the chunk and leaves its own last frames there for the next chunk; run chunk after chunk, the layers
then compute exactly what they would compute on the whole sequence. Reference: Wan, arXiv 2503.20314, section 4.1.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.kernels import conv2d
from jaxdiff.models.layers import Linear

# Up to this many input channels the time taps of a causal convolution are laid side by side as channels; wider ones
# are added up tap by tap, which needs no copy of the input and is as fast there.
_NARROW = 32
# Lengths below 1e-12 count as 1e-12, as in the reference: a zero vector stays zero, with a finite gradient.
_TINY = 1e-24


class Memory:
    """What the causal layers of one network remember between two chunks, in the order in which they are called.

    ``Memory(None)`` is the memory before the first frame; afterwards `state` is the tuple to start the next chunk
    with. The tuple has the same shapes after every chunk, so it is a `jax.lax.scan` carry.
    """

    def __init__(self, state: tuple[jax.Array, ...] | None):
        self.empty = state is None  # the first chunk, which always has one frame
        self._past = iter(state or ())
        self._kept: list[jax.Array] = []

    @property
    def state(self) -> tuple[jax.Array, ...]:
        """The frames to carry to the next chunk."""
        return tuple(self._kept)

    def recall(self, like: jax.Array, frames: int) -> jax.Array:
        """The calling layer's last `frames` frames [B, frames, H, W, C]; zeros before the first chunk."""
        if self.empty:
            return jnp.zeros((like.shape[0], frames, *like.shape[2:]), like.dtype)
        return next(self._past)

    def keep(self, frames: jax.Array) -> None:
        """Remember these frames for the calling layer's next chunk."""
        self._kept.append(frames)


class Conv2d(nnx.Module):
    """Convolution of every frame: kernel [kh, kw, in, out], bias [out]; zero padding ``(low, high)`` on both axes."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        padding: tuple[int, int],
        rngs: nnx.Rngs,
    ):
        self.stride, self.padding = stride, padding
        self.kernel = nnx.Param(_init(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(_bias(rngs.params(), outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _frames(conv2d, x, self.kernel[...], self.stride, (self.padding, self.padding))
        return y + self.bias[...].astype(y.dtype)

    def doubled(self, x: jax.Array) -> jax.Array:
        """Of the frames at twice their height and width (every pixel four times), without making them."""
        y = _frames(upsampled_conv2d, x, self.kernel[...])
        return y + self.bias[...].astype(y.dtype)


class CausalConv3d(nnx.Module):
    """Convolution that looks at ``kt - 1`` earlier frames and never at later ones.

    Kernel [kt, kh, kw, in, out], bias [out]; zeros before the first frame and around each frame ("same" in space).
    It is evaluated as two-dimensional convolutions of the frames: three-dimensional ones and their gradients are 3 to
    25 times slower on CPUs.
    """

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int, int], *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_init(rngs.params(), (*size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(_bias(rngs.params(), outputs))

    def __call__(
        self,
        x: jax.Array,
        memory: Memory,
        *,
        before: Callable[[jax.Array], jax.Array] = lambda x: x,
        past: int | None = None,
        stride: int = 1,
    ) -> jax.Array:
        """Convolve ``before(x)``.

        Parameters
        ----------
        before : applied to each frame first. The backward pass computes it again, and the shifted copies of its
            result too, instead of keeping them: less memory, and faster where memory is what limits.
        past : earlier frames that the first output sees; default ``kt - 1``.
        stride : frames from one output to the next.

        Returns
        -------
        [B, (past + T - kt) // stride + 1, H, W, out]
        """
        kernel, bias = self.kernel[...], self.bias[...]
        past = kernel.shape[0] - 1 if past is None else past

        @jax.checkpoint
        def run(x, earlier):
            x = jnp.concatenate([earlier, before(x)], axis=1)
            y = conv3d(x, kernel, stride)
            return y + bias.astype(y.dtype), x[:, x.shape[1] - past :]

        x = x.astype(kernel.dtype)
        y, kept = run(x, memory.recall(x, past))
        memory.keep(kept)
        return y


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
    """Twice the height and width at half the channels, and with `temporal` twice the frames after the first.

    In time: the first frame passes; the others are a sequence of their own (zeros before it), and each becomes the two
    halves of the channels of its convolution.
    """

    def __init__(self, width: int, temporal: bool, *, rngs: nnx.Rngs):
        self.time_conv = CausalConv3d(width, 2 * width, (3, 1, 1), rngs=rngs) if temporal else None
        self.conv = Conv2d(width, width // 2, 3, padding=(1, 1), rngs=rngs)

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        if self.time_conv is not None:
            if memory.empty:
                memory.keep(memory.recall(x, 2))
            else:
                batch, frames, height, width, channels = x.shape
                x = self.time_conv(x, memory).reshape(batch, frames, height, width, 2, channels)
                x = x.transpose(0, 1, 4, 2, 3, 5).reshape(batch, 2 * frames, height, width, channels)
        return self.conv.doubled(x)


def upsampled_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling by two and a 3x3 convolution in one: [N, H, W, in] -> [N, 2H, 2W, out].

    On an upsampled image a row of output meets only two rows of input: an even one ``k[0] x[i-1] + (k[1] + k[2]) x[i]``,
    an odd one ``(k[0] + k[1]) x[i] + k[2] x[i+1]``. So one 2x2 convolution with four sets of outputs does it, with 16
    multiplications where 36 were. It is done in the kernel's dtype.
    """
    sums = jnp.asarray([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], kernel.dtype)  # [parity, tap of 2, tap of 3]
    kernel = jnp.einsum("pra,qsb,abio->rsipqo", sums, sums, kernel, precision=jax.lax.Precision.HIGHEST)
    batch, height, width, inputs = x.shape
    y = conv2d(x, kernel.reshape(2, 2, inputs, -1), 1, ((1, 1), (1, 1)))  # [N, H + 1, W + 1, 4 out]
    y = y.reshape(batch, height + 1, width + 1, 2, 2, -1)
    rows = [
        jnp.stack([y[:, p : p + height, q : q + width, p, q] for q in (0, 1)], axis=3) for p in (0, 1)
    ]  # [N, H, W, 2, out] each
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def conv3d(x: jax.Array, kernel: jax.Array, stride: int = 1, spatial_stride: int = 1) -> jax.Array:
    """[B, T, H, W, in] with kernel [kt, kh, kw, in, out]: "valid" in time, "same" in space, each with its stride.

    ``y[t] = sum_i conv2d(x[stride t + i], kernel[i])``, either as that sum or as one convolution of the frames
    ``x[stride t + i]`` laid side by side as channels.
    """
    taps, height, width, inputs, outputs = kernel.shape
    frames = (x.shape[1] - taps) // stride + 1
    padding = tuple(((n - 1) // 2, n // 2) for n in (height, width))
    shifted = [x[:, i : i + stride * (frames - 1) + 1 : stride] for i in range(taps)]
    if inputs <= _NARROW:
        kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, taps * inputs, outputs)
        return _frames(conv2d, jnp.concatenate(shifted, axis=-1), kernel, spatial_stride, padding)
    parts = [_frames(conv2d, part, kernel[i], spatial_stride, padding) for i, part in enumerate(shifted)]
    return functools.reduce(jnp.add, parts)


def _frames(convolve, x: jax.Array, *args) -> jax.Array:
    """Apply a function of images to every frame of [B, T, H, W, C]."""
    y = convolve(x.reshape(-1, *x.shape[2:]), *args)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Kernels that start near the identity, for any [..., in, out]: the newest frame's central tap copies channel i to
    the outputs i, i + in, ..., and noise breaks the symmetry.

    A chain of random convolutions passes on what is strongest, brightness, and drowns the rest; a deep network then
    learns hue thousands of steps later than shape.
    """
    *size, inputs, outputs = shape
    centre = (*(n - 1 if axis == 0 and len(size) == 3 else n // 2 for axis, n in enumerate(size)),)
    copy = jnp.tile(jnp.eye(inputs, dtype=dtype), -(-outputs // inputs))[:, :outputs]
    return (0.3 * jax.nn.initializers.lecun_normal()(key, shape, dtype)).at[centre].add(copy)


def _bias(key: jax.Array, outputs: int) -> jax.Array:
    """Not zero: the norms divide by the length of a pixel's channels, and only next to a constant has a flat grey
    patch a length that can be told from another's."""
    return 0.1 * jax.random.normal(key, (outputs,), jnp.float32)
