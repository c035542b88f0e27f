"""Layers of the Wan VAE: causal in time, so that a clip can be coded a few frames at a time.

Every layer takes a chunk of frames ``x`` [B, T, H, W, C] and a `Memory`. A causal layer asks the memory for the frames
that came before the chunk and leaves its own last frames there for the next chunk; run chunk after chunk, the layers
then compute exactly what they would compute on the whole sequence. Reference: Wan, arXiv 2503.20314, section 4.1.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.kernels import conv2d
from jaxdiff.models.layers import Linear

# Up to this many input channels the time taps of a causal convolution are laid side by side as channels; wider ones
# are added up tap by tap, which needs no copy of the input and is as fast there.
_NARROW = 32
# Half of the smallest square that float32 holds comfortably: a zero vector stays zero, with a zero gradient.
_TINY = 1e-24


class Memory:
    """What the causal layers of one network remember between two chunks, in the order in which they are called.

    ``Memory(None)`` is the memory before the first frame; afterwards `state` is the tuple to start the next chunk
    with. The tuple has the same shapes after every chunk, so it is a `jax.lax.scan` carry.
    """

    def __init__(self, state: Iterable[jax.Array] | None):
        self._past = None if state is None else list(state)[::-1]
        self._next: list[jax.Array] = []

    @property
    def empty(self) -> bool:
        """Whether this is the first chunk (which always has one frame)."""
        return self._past is None

    @property
    def state(self) -> tuple[jax.Array, ...]:
        """The frames to carry to the next chunk."""
        return tuple(self._next)

    def recall(self, x: jax.Array, frames: int) -> jax.Array:
        """`x` with the `frames` frames before it in front, zeros before the first; keeps the last `frames`."""
        past = self._zeros(x, frames) if self._past is None else self._past.pop()
        x = jnp.concatenate([past, x], axis=1)
        self._next.append(x[:, x.shape[1] - frames :])
        return x

    def start(self, x: jax.Array, frames: int) -> None:
        """Keep the last `frames` frames of `x`, with zeros before it, for a layer that sits out the first chunk."""
        x = jnp.concatenate([self._zeros(x, frames), x], axis=1)
        self._next.append(x[:, x.shape[1] - frames :])

    @staticmethod
    def _zeros(x: jax.Array, frames: int) -> jax.Array:
        return jnp.zeros((x.shape[0], frames, *x.shape[2:]), x.dtype)


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
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = _frames(conv2d, x, self.kernel[...], self.stride, (self.padding, self.padding))
        return y + self.bias[...].astype(y.dtype)


class CausalConv3d(nnx.Module):
    """Convolution that looks at ``kt - 1`` earlier frames and never at later ones.

    Kernel [kt, kh, kw, in, out], bias [out]; zeros before the first frame and around each frame ("same" in space).
    It is evaluated as two-dimensional convolutions of the frames: three-dimensional ones and their gradients are 3 to
    25 times slower on CPUs.

    Parameters
    ----------
    stride : frames from one output to the next. A layer of stride 2 passes the first frame through; its outputs are
        at frames 2, 4, ... and see ``kt - 1`` earlier frames.
    """

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int, int], *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_init(rngs.params(), (*size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        kernel = self.kernel[...]
        return self.valid(memory.recall(x.astype(kernel.dtype), kernel.shape[0] - 1))

    def valid(self, x: jax.Array, stride: int = 1) -> jax.Array:
        """Without padding in time: [B, T, H, W, in] -> [B, (T - kt) // stride + 1, H, W, out]."""
        kernel = self.kernel[...]
        y = conv3d(x.astype(kernel.dtype), kernel, stride)
        return y + self.bias[...].astype(y.dtype)


class ChannelNorm(nnx.Module):
    """``scale * sqrt(C) * x / |x|`` over the channels: RMS norm without an epsilon; normalised in float32."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(y), -1, keepdims=True), _TINY))
        return y.astype(x.dtype) * (x.shape[-1] ** 0.5 * self.scale[...]).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``; the shortcut is linear where the width changes."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv3d(inputs, outputs, (3, 3, 3), rngs=rngs)
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv3d(outputs, outputs, (3, 3, 3), rngs=rngs)
        self.shortcut = Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array, memory: Memory) -> jax.Array:
        h = self.conv1(jax.nn.silu(self.norm1(x)), memory)
        h = self.conv2(jax.nn.silu(self.norm2(h)), memory)
        return h + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nnx.Module):
    """Attention among the pixels of each frame, one head as wide as the channels, with a residual connection."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = ChannelNorm(width)
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)

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
            memory.start(x, 1)
            return x
        return self.time_conv.valid(memory.recall(x, 1), stride=2)


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
                memory.start(jnp.zeros_like(x), 2)
            else:
                batch, frames, height, width, channels = x.shape
                x = self.time_conv(x, memory).reshape(batch, frames, height, width, 2, channels)
                x = x.transpose(0, 1, 4, 2, 3, 5).reshape(batch, 2 * frames, height, width, channels)
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3))


def conv3d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """[B, T, H, W, in] with kernel [kt, kh, kw, in, out]: "valid" in time with a stride, "same" in space.

    ``y[t] = sum_i conv2d(x[stride t + i], kernel[i])``, either as that sum or as one convolution of the frames
    ``x[stride t + i]`` laid side by side as channels.
    """
    taps, height, width, inputs, outputs = kernel.shape
    frames = (x.shape[1] - taps) // stride + 1
    padding = tuple(((n - 1) // 2, n // 2) for n in (height, width))
    shifted = [x[:, i : i + stride * (frames - 1) + 1 : stride] for i in range(taps)]
    if inputs <= _NARROW:
        kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, taps * inputs, outputs)
        return _frames(conv2d, jnp.concatenate(shifted, axis=-1), kernel, 1, padding)
    return sum(_frames(conv2d, part, kernel[i], 1, padding) for i, part in enumerate(shifted))


def _frames(convolve, x: jax.Array, *args) -> jax.Array:
    """Apply a function of images to every frame of [B, T, H, W, C]."""
    y = convolve(x.reshape(-1, *x.shape[2:]), *args)
    return y.reshape(*x.shape[:2], *y.shape[1:])


# Unit variance in, unit variance out.
_init = jax.nn.initializers.lecun_normal()
