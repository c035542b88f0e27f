"""Layers of the LTX-Video VAE. Arrays are [B, T, H, W, C]; time is padded by repeating frames, space by zeros.

Reference: LTX-Video, arXiv 2501.00103, section 2.1; numerics follow `AutoencoderKLLTXVideo` of diffusers.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.models.convolutions import Strides, conv3d, fold, unfold
from jaxdiff.models.layers import MLP, LayerNorm, Linear, RMSNorm, timestep_embedding

TIME_FEATURES = 256  # sinusoidal features of the timestep; a constant of the reference
NORM_EPS = 1e-8  # of the norms without a gain, likewise


class Noise:
    """The noise that a decoder injects: one standard normal image for each time it is asked, or none without a key."""

    def __init__(self, key: jax.Array | None):
        self.key, self.count = key, 0

    def __call__(self, height: int, width: int) -> jax.Array | None:
        """[H, W, 1] float32, the same for all clips, frames and (before they are scaled) channels."""
        self.count += 1
        if self.key is None:
            return None
        return jax.random.normal(jax.random.fold_in(self.key, self.count - 1), (height, width))[..., None]


class Conv3d(nnx.Module):
    """3x3x3 convolution: kernel [3, 3, 3, in, out], bias [out]; `stride` along all three axes.

    In time it sees two earlier frames if `causal`, else one on each side; missing ones are copies of the nearest.
    With `reflect` (LTX-2's decoder, which has no strides) frames are mirrored at their edges instead of padded by zeros.
    """

    reflect = False

    def __init__(self, inputs: int, outputs: int, *, causal: bool, stride: int = 1, rngs: nnx.Rngs):
        self.causal, self.stride = causal, stride
        init = jax.nn.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (3, 3, 3, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        first, last = x[:, :1], x[:, -1:]
        x = jnp.concatenate([first, first, x] if self.causal else [first, x, last], axis=1)
        if self.reflect:
            x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        y = conv3d(x.astype(kernel.dtype), kernel, self.stride, self.stride)
        y = y[:, :, 1:-1, 1:-1] if self.reflect else y
        return y + self.bias[...].astype(y.dtype)


class ResidualBlock(nnx.Module):
    """``shortcut(x) + conv2(act(norm2(conv1(act(norm1(x))))))``, the shortcut normalised and linear where the width
    changes.

    With `conditioned`, timestep features shift and scale what the norms return; with `noisy`, noise scaled per channel
    is added to what the convolutions return.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        causal: bool,
        eps: float,
        conditioned: bool = False,
        noisy: bool = False,
        rngs: nnx.Rngs,
    ):
        self.norm = RMSNorm(inputs, NORM_EPS, affine=False)  # without a gain it serves every width
        self.conv1 = Conv3d(inputs, outputs, causal=causal, rngs=rngs)
        self.conv2 = Conv3d(outputs, outputs, causal=causal, rngs=rngs)
        self.shortcut_norm = LayerNorm(inputs, eps) if inputs != outputs else None
        self.shortcut = Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None
        self.noise_scale1 = nnx.Param(jnp.zeros((inputs,), jnp.float32)) if noisy else None
        self.noise_scale2 = nnx.Param(jnp.zeros((inputs,), jnp.float32)) if noisy else None
        self.modulation = (
            nnx.Param(jax.random.normal(rngs.params(), (4, inputs)) * inputs**-0.5) if conditioned else None
        )

    def __call__(self, x: jax.Array, time: jax.Array | None = None, noise: Noise | None = None) -> jax.Array:
        """x [B, T, H, W, in], time [B, 4 in] -> [B, T, H, W, out]."""
        first = second = None
        if self.modulation is not None:
            assert time is not None
            table = time.reshape(time.shape[0], 4, -1) + self.modulation[...]
            first, second = table[:, :2], table[:, 2:]
        h = self.conv1(jax.nn.silu(modulated(self.norm(x), first)))
        h = _add_noise(h, self.noise_scale1, noise)
        h = self.conv2(jax.nn.silu(modulated(self.norm(h), second)))
        h = _add_noise(h, self.noise_scale2, noise)
        if self.shortcut is not None:
            assert self.shortcut_norm is not None  # there are both or neither
            x = self.shortcut(self.shortcut_norm(x).astype(x.dtype))
        return h + x


def modulated(x: jax.Array, table: jax.Array | None) -> jax.Array:
    """``x * (1 + scale) + shift`` with (shift, scale) from a table [B, 2, C]; x itself without one."""
    if table is None:
        return x
    shift, scale = (table[:, i, None, None, None].astype(x.dtype) for i in (0, 1))
    return x * (1 + scale) + shift


def _add_noise(x: jax.Array, scale: nnx.Param | None, noise: Noise | None) -> jax.Array:
    if scale is None or noise is None:
        return x
    image = noise(*x.shape[2:4])
    return x if image is None else x + (image * scale[...]).astype(x.dtype)


class TimeEmbedding(nnx.Module):
    """Features of a timestep: [B] -> [B, width]."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.mlp = MLP(TIME_FEATURES, width, width, jax.nn.silu, rngs=rngs)

    def __call__(self, timestep: jax.Array) -> jax.Array:
        return self.mlp(timestep_embedding(timestep, TIME_FEATURES))


class Stage(nnx.Module):
    """Residual blocks of one width, which share the features of one timestep embedding."""

    def __init__(self, width: int, depth: int, *, conditioned: bool = False, rngs: nnx.Rngs, **block):
        self.time = TimeEmbedding(4 * width, rngs=rngs) if conditioned else None
        self.resnets = nnx.List(
            [ResidualBlock(width, width, conditioned=conditioned, rngs=rngs, **block) for _ in range(depth)]
        )

    def __call__(self, x: jax.Array, timestep: jax.Array | None = None, noise: Noise | None = None) -> jax.Array:
        time = None
        if self.time is not None:
            assert timestep is not None
            time = self.time(timestep)
        for block in self.resnets:
            x = block(x, time, noise)
        return x


class Downsample(nnx.Module):
    """A convolution whose output is folded, ``[B, T, H, W, c] -> [B, T/t, H/h, W/w, c t h w]``, plus the folded input
    averaged over groups of channels. In time the first frame is repeated to fill the first fold."""

    def __init__(self, inputs: int, outputs: int, strides: Strides, *, causal: bool, rngs: nnx.Rngs):
        self.strides = strides
        self.conv = Conv3d(inputs, outputs // _volume(strides), causal=causal, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.concatenate([x[:, : self.strides[0] - 1], x], axis=1)
        y = fold(self.conv(x), self.strides)
        mean = fold(x, self.strides)
        return y + mean.reshape(*y.shape, -1).mean(-1)


class Upsample(nnx.Module):
    """A convolution whose output is unfolded by two along every axis, ``[B, T, H, W, 8 c] -> [B, 2T - 1, 2H, 2W, c]``;
    with `residual` plus the unfolded input, its channels tiled. `factor` divides the width."""

    def __init__(self, inputs: int, *, factor: int, residual: bool, causal: bool, rngs: nnx.Rngs):
        self.residual = residual
        self.conv = Conv3d(inputs, 8 * inputs // factor, causal=causal, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        strides = (2, 2, 2)
        y = unfold(self.conv(x), strides)
        if self.residual:
            skip = unfold(x, strides)
            y = y + jnp.tile(skip, y.shape[-1] // skip.shape[-1])
        return y[:, 1:]


def _volume(strides: Strides) -> int:
    return strides[0] * strides[1] * strides[2]
