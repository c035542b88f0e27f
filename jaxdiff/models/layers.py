"""Layers that every family of video diffusion transformers shares.

One rule for precision: a linear layer computes in the dtype of its kernel (float32 kernels at full float32
precision on every backend), norms and time embeddings compute in float32.
"""

import dataclasses
import difflib
import functools
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.errors import ConfigError


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel", "down", "up"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A kernel with an adapter beside it, in the place of the kernel: ``kernel + scale down up`` (LoRA, arXiv 2106.09685).

    It is applied factor by factor. A sum in bfloat16 would round small adapters away, and its gradient would be as large
    as the kernel.

    Parameters
    ----------
    kernel : [in, out], or [L, in, out] for stacked blocks.
    down, up : [in, r] and [r, out], or [L, ...]; cast to the kernel's dtype where they are used.
    scale : alpha / r.
    """

    kernel: jax.Array
    down: jax.Array
    up: jax.Array
    scale: float

    def __getitem__(self, index) -> "LowRank":
        """Itself with whole factors (`jaxdiff.mesh.Shard`): as `nnx.Param` reads an array, ``param[...]``."""
        return dataclasses.replace(self, kernel=self.kernel[...], down=self.down[...], up=self.up[...])

    @property
    def dtype(self):
        return self.kernel.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kernel.shape

    def merged(self) -> jax.Array:
        """The sum, formed in float32, in the kernel's dtype."""
        product = jnp.matmul(*(x.astype(jnp.float32) for x in (self.down, self.up)), precision="highest")
        return (self.kernel.astype(jnp.float32) + self.scale * product).astype(self.kernel.dtype)


class Linear(nnx.Module):
    """``x @ kernel + bias``: kernel [in, out], bias [out]; input [..., in] is cast to the kernel's dtype.

    The kernel may be a `LowRank`.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs, init=None):
        init = init or jax.nn.initializers.xavier_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        dot = functools.partial(jnp.matmul, precision=matmul_precision(kernel.dtype))
        x = x.astype(kernel.dtype)
        if isinstance(kernel, LowRank):
            down, up = kernel.down.astype(kernel.dtype), kernel.up.astype(kernel.dtype)
            dot = functools.partial(dot, preferred_element_type=jnp.float32)  # rounded once, as a sum
            narrow = (dot(x, down) * kernel.scale).astype(kernel.dtype)
            y = (dot(x, kernel.kernel) + dot(narrow, up)).astype(kernel.dtype)
        else:
            y = dot(x, kernel)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed and returned in float32."""

    def __init__(self, width: int, eps: float, *, affine: bool = True):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32)) if affine else None
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if affine else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
        if self.scale is None:
            return x
        assert self.bias is not None  # there are both or neither
        return x * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)


class RMSNorm(nnx.Module):
    """RMS norm over the last axis, computed in float32 and returned in the input's dtype."""

    def __init__(self, width: int, eps: float, *, affine: bool = True):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32)) if affine else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        return (y if self.scale is None else y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Normalise over all axes between the first and the last and the channels of a group, in float32: same dtype as x.

    Of [B, T, H, W, C] the frames of a clip have one mean and one variance; with one frame to a row, each its own.
    """

    def __init__(self, width: int, groups: int, eps: float):
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        y = y - y.mean((1, 3), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), (1, 3), keepdims=True) + self.eps)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        return (y.reshape(x.shape) * scale + bias).astype(x.dtype)


class MLP(nnx.Module):
    """Two linear layers with an activation between: [..., inputs] -> [..., hidden] -> [..., outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int, activation, *, bias: bool = True, rngs: nnx.Rngs):
        self.activation = activation
        self.into = Linear(inputs, hidden, bias=bias, rngs=rngs)
        self.out = Linear(hidden, outputs, bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.activation(self.into(x)))


def gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, exactly."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The tanh approximation of GELU, written as ``x * sigmoid(2 u)``: the same function, since
    ``(1 + tanh u) / 2 == sigmoid(2 u)``, with a backward pass that XLA fuses better on CPUs."""
    u = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)
    return x * jax.nn.sigmoid(2.0 * u)


def timestep_embedding(timestep: jax.Array, width: int) -> jax.Array:
    """Sinusoidal features ``[cos | sin]`` of timesteps: [B] -> [B, width], float32 (DDPM, Ho et al. 2020)."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timestep.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def patchify(latents: jax.Array, patch: tuple[int, int, int]) -> jax.Array:
    """[B, T', H', W', C] -> tokens [B, S, pt ph pw C], ordered by frame, row, column."""
    batch, t, h, w, channels = latents.shape
    pt, ph, pw = patch
    x = latents.reshape(batch, t // pt, pt, h // ph, ph, w // pw, pw, channels)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, pt * ph * pw * channels)


def unpatchify(x: jax.Array, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> jax.Array:
    """Tokens [B, S, pt ph pw C] -> [B, T', H', W', C]."""
    (t, h, w), (pt, ph, pw) = grid, patch
    x = x.reshape(x.shape[0], t, h, w, pt, ph, pw, -1).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(x.shape[0], t * pt, h * ph, w * pw, -1)


def matmul_precision(dtype) -> jax.lax.Precision:
    """float32 means float32 (accelerators default to less); lower precisions run natively."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


class ConfigFromDict:
    """Mixin for frozen config dataclasses whose fields are the keys of a published config.json."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a parsed config.json: keys that begin with "_" are metadata, lists become tuples,
        and an unknown key is a `ConfigError` (it would silently change the architecture)."""
        fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # subclasses are dataclasses
        kept = {}
        for key, value in values.items():
            if key.startswith("_"):
                continue
            if key not in fields:
                close = difflib.get_close_matches(key, fields, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(fields)}"
                raise ConfigError(f"{cls.__name__}: unknown configuration key {key!r}={value!r}{hint}")
            kept[key] = tuple(value) if isinstance(value, list) else value
        return cls(**kept)
