"""Convolutions of frames, and causal ones of clips, as the video VAEs use them. Arrays are channels-last.

Three-dimensional convolutions are evaluated as two-dimensional ones of the frames: three-dimensional ones and their
gradients are 3 to 25 times slower on CPUs. One path serves every backend.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.kernels import conv2d
from jaxdiff.models.streaming import Memory

# Up to this many input channels the time taps of a causal convolution are laid side by side as channels; wider ones
# are added up tap by tap, which needs no copy of the input and is as fast there.
NARROW = 32

Strides = tuple[int, int, int]


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


def upsampled_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling by two and a 3x3 convolution in one: [N, H, W, in] -> [N, 2H, 2W, out].

    On an upsampled image a row of output meets only two rows of input: an even one ``k[0] x[i-1] + (k[1] + k[2]) x[i]``,
    an odd one ``(k[0] + k[1]) x[i] + k[2] x[i+1]``. So one 2x2 convolution with four sets of outputs does it, with 16
    multiplications where 36 were. It is done in the kernel's dtype.
    """
    sums = jnp.asarray([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], kernel.dtype)  # [parity, tap of 2, tap of 3]
    kernel = jnp.einsum("pra,qsb,abio->rsipqo", sums, sums, kernel, precision=jax.lax.Precision.HIGHEST)
    return doubled_conv2d(x, kernel)


def doubled_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Images of twice the height and width, each parity of row and column with its own 2x2 kernel: a transposed convolution.

    Kernel [2, 2, in, 2, 2, out]: taps, input, parities, output. An even row i meets the rows ``i/2 - 1`` and ``i/2`` of the
    input, an odd one ``(i - 1)/2`` and ``(i + 1)/2``, columns likewise; [N, H, W, in] -> [N, 2H, 2W, out].
    """
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
    if inputs <= NARROW:
        kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(height, width, taps * inputs, outputs)
        return _frames(conv2d, jnp.concatenate(shifted, axis=-1), kernel, spatial_stride, padding)
    parts = [_frames(conv2d, part, kernel[i], spatial_stride, padding) for i, part in enumerate(shifted)]
    return functools.reduce(jnp.add, parts)


def fold(x: jax.Array, strides: Strides, *, columns_first: bool = False) -> jax.Array:
    """[B, T, H, W, C] -> [B, T/t, H/h, W/w, C t h w], the new channels ordered (C, t, h, w); (C, t, w, h) with
    `columns_first`."""
    (t, h, w), (batch, frames, height, width, channels) = strides, x.shape
    x = x.reshape(batch, frames // t, t, height // h, h, width // w, w, channels)
    inner = (2, 6, 4) if columns_first else (2, 4, 6)
    return x.transpose(0, 1, 3, 5, 7, *inner).reshape(batch, frames // t, height // h, width // w, -1)


def unfold(x: jax.Array, strides: Strides, *, columns_first: bool = False) -> jax.Array:
    """The inverse of `fold`."""
    (t, h, w), (batch, frames, height, width, _) = strides, x.shape
    inner = (t, w, h) if columns_first else (t, h, w)
    x = x.reshape(batch, frames, height, width, -1, *inner)
    order = (0, 1, 5, 2, 7, 3, 6, 4) if columns_first else (0, 1, 5, 2, 6, 3, 7, 4)
    return x.transpose(order).reshape(batch, frames * t, height * h, width * w, -1)


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
