"""The U-Net of PIDM (Bastek et al., arXiv 2403.14404): a video-diffusion U-Net whose attention stays within a frame.

Every level has two residual blocks that are told the time, linear attention over the positions, and a strided convolution
to the next; full attention sits at the bottom. Modules and numbers follow the published code, whose temporal attention is
built and never called and is left out here. Weights start as torch's do but for the biases, which are zero.
"""

import dataclasses
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.kernels import attention, conv2d
from jaxdiff.models.convolutions import doubled_conv2d
from jaxdiff.models.layers import ConfigFromDict, GroupNorm, LayerNorm, Linear, gelu
from jaxdiff.models.network import Network

EPS = 1e-5
TORCH = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # uniform within 1 / sqrt(fan in)


@dataclasses.dataclass(frozen=True)
class UNetConfig(ConfigFromDict):
    """Sizes, named as the arguments of the published class.

    Parameters
    ----------
    dim : channels of the first level; level i has ``dim * dim_mults[i]``.
    channels, out_dim : of the input and of the output (default: as the input).
    attn_heads, attn_dim_head : of every attention.
    init_kernel_size : of the first convolution.
    resnet_groups : of the group norms.
    sigmoid_last_channel : squeeze the last output channel into (0, 1), as a density.
    """

    dim: int = 32
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    channels: int = 2
    out_dim: int | None = None
    attn_heads: int = 8
    attn_dim_head: int = 32
    init_kernel_size: int = 7
    resnet_groups: int = 8
    sigmoid_last_channel: bool = False

    def __post_init__(self):
        if self.dim % self.resnet_groups or self.init_kernel_size % 2 == 0:
            raise ConfigError(
                f"UNet: dim={self.dim} must be a multiple of resnet_groups={self.resnet_groups} and "
                f"init_kernel_size={self.init_kernel_size} odd"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before the first level and after each."""
        return (self.dim, *(self.dim * m for m in self.dim_mults))

    @classmethod
    def darcy(cls) -> "UNetConfig":
        """Pressure and permeability on 64 x 64 nodes, as published."""
        return cls()

    @classmethod
    def mechanics(cls) -> "UNetConfig":
        """Displacements and density from those, three conditioning fields and four of boundary conditions, as published."""
        return cls(dim=128, channels=10, out_dim=3, sigmoid_last_channel=True)

    @classmethod
    def small(cls) -> "UNetConfig":
        """For 16 x 16 nodes and processors."""
        return cls(dim=16, dim_mults=(1, 2, 4), attn_heads=4, attn_dim_head=16)


def new_unet(config: UNetConfig, seed: int = 0) -> Network:
    """Weights as `Network.init` would draw them, but drawn by NumPy: XLA needs half a minute on a processor to compile a
    hundred draws."""
    rng, network = np.random.default_rng(seed), Network.abstract(UNet, config)

    def draw(path, leaf):
        kind = path[-1].key
        if kind != "kernel":
            return jnp.full(leaf.shape, float(kind == "scale"), leaf.dtype)
        bound = math.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(rng.uniform(-bound, bound, leaf.shape), leaf.dtype)

    return network.replace(jax.tree_util.tree_map_with_path(draw, network.params))


class UNet(nnx.Module):
    """Clean fields from noisy ones; frames of a clip are seen one by one, but share the statistics of the group norms."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths, time = config.widths, 4 * config.dim
        levels = list(itertools.pairwise(widths))
        self.init_conv = Convolution(config.channels, widths[0], config.init_kernel_size, rngs=rngs)
        self.time_in, self.time_out = _linear(config.dim, time, rngs=rngs), _linear(time, time, rngs=rngs)

        def level(inputs: int, outputs: int, resample: type[nnx.Module] | None) -> Level:
            return Level(config, inputs, outputs, time, resample, rngs=rngs)

        deepest = len(levels) - 1
        self.downs = nnx.List([level(a, b, Halve if i < deepest else None) for i, (a, b) in enumerate(levels)])
        self.mid_block1 = ResidualBlock(config, widths[-1], widths[-1], time, rngs=rngs)
        self.mid_attention = Attention(config, widths[-1], rngs=rngs)
        self.mid_block2 = ResidualBlock(config, widths[-1], widths[-1], time, rngs=rngs)
        upwards = enumerate(reversed(levels))
        self.ups = nnx.List([level(2 * b, a, Double if i < deepest else None) for i, (a, b) in upwards])
        self.final_block = ResidualBlock(config, 2 * config.dim, config.dim, None, rngs=rngs)
        self.final_conv = _linear(config.dim, config.out_dim or config.channels, rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Denoise.

        Parameters
        ----------
        x : [B, H, W, channels] or clips [B, T, H, W, channels]; H and W divide by two to the number of levels less one.
        t : int [B], timesteps.

        Returns
        -------
        float32 [B, H, W, out_dim] or [B, T, H, W, out_dim]

        Raises
        ------
        ConfigError : x has other channels, or a side that does not divide.
        """
        config = self.config
        sides, factor = x.shape[-3:-1], 2 ** (len(config.dim_mults) - 1)
        if x.ndim not in (4, 5) or x.shape[-1] != config.channels or any(side % factor for side in sides):
            raise ConfigError(
                f"UNet: x {x.shape} is not [B, H, W, {config.channels}] or [B, T, H, W, {config.channels}] with sides that "
                f"divide by {factor}"
            )
        single = x.ndim == 4
        frames = x[:, None] if single else x
        time = self.time_out(gelu(self.time_in(_timestep_features(t, config.dim))))
        x = begun = self.init_conv(frames)
        kept = []
        for down in self.downs:
            x = down.blocks(x, time)
            kept.append(x)
            x = down.resampled(x)
        x = self.mid_block2(self.mid_attention(self.mid_block1(x, time)), time)
        for up in self.ups:
            x = up.resampled(up.blocks(jnp.concatenate([x, kept.pop()], -1), time))
        x = self.final_conv(self.final_block(jnp.concatenate([x, begun], -1)))
        if config.sigmoid_last_channel:
            x = jnp.concatenate([x[..., :-1], jax.nn.sigmoid(x[..., -1:])], -1)
        return x[:, 0] if single else x


class Level(nnx.Module):
    """Two residual blocks, linear attention, and a change of resolution."""

    def __init__(self, config, inputs: int, outputs: int, time: int, resample, *, rngs: nnx.Rngs):
        self.block1 = ResidualBlock(config, inputs, outputs, time, rngs=rngs)
        self.block2 = ResidualBlock(config, outputs, outputs, time, rngs=rngs)
        self.attention = LinearAttention(config, outputs, rngs=rngs)
        self.resample = None if resample is None else resample(outputs, rngs=rngs)

    def blocks(self, x: jax.Array, time: jax.Array) -> jax.Array:
        return self.attention(self.block2(self.block1(x, time), time))

    def resampled(self, x: jax.Array) -> jax.Array:
        return x if self.resample is None else self.resample(x)


class ResidualBlock(nnx.Module):
    """Twice convolution, group norm and SiLU, scaled and shifted by the time in between, added to what came in."""

    def __init__(self, config, inputs: int, outputs: int, time: int | None, *, rngs: nnx.Rngs):
        self.conv1, self.norm1 = (
            Convolution(inputs, outputs, 3, rngs=rngs),
            GroupNorm(outputs, config.resnet_groups, EPS),
        )
        self.conv2, self.norm2 = (
            Convolution(outputs, outputs, 3, rngs=rngs),
            GroupNorm(outputs, config.resnet_groups, EPS),
        )
        self.film = None if time is None else _linear(time, 2 * outputs, rngs=rngs)
        self.shortcut = None if inputs == outputs else _linear(inputs, outputs, rngs=rngs)

    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        y = self.norm1(self.conv1(x))
        if self.film is not None and time is not None:
            scale, shift = jnp.split(self.film(jax.nn.silu(time))[:, None, None, None], 2, -1)
            y = y * (scale + 1.0) + shift
        y = jax.nn.silu(self.norm2(self.conv2(jax.nn.silu(y))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Convolution(nnx.Module):
    """Of every frame of [B, T, H, W, in], with zeros around: kernel [size, size, in, out]."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.stride, self.around = stride, (size - 1) // 2
        self.kernel = nnx.Param(TORCH(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        sides = (self.around, self.around)
        y = conv2d(x.reshape(-1, *x.shape[2:]), self.kernel[...], self.stride, (sides, sides))
        return y.reshape(*x.shape[:2], *y.shape[1:]) + self.bias[...]


class ChannelNorm(nnx.Module):
    """Layer norm over the channels with a gain."""

    def __init__(self, width: int):
        self.norm = LayerNorm(width, EPS, affine=False)
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x) * self.scale[...]


class LinearAttention(nnx.Module):
    """Attention over the positions of a frame at linear cost: softmax of the queries over channels and of the keys over
    positions, ``q (k^T v) / (H W)``; added to what came in."""

    def __init__(self, config, width: int, *, rngs: nnx.Rngs):
        self.heads, inner = config.attn_heads, config.attn_heads * config.attn_dim_head
        self.norm = ChannelNorm(width)
        self.to_qkv = _linear(width, 3 * inner, bias=False, rngs=rngs)
        self.to_out = _linear(inner, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x).reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])
        q, k, v = jnp.split(self.to_qkv(y).reshape(*y.shape[:2], 3 * self.heads, -1), 3, 2)  # [N, P, heads, d]
        q = jax.nn.softmax(q, -1) * q.shape[-1] ** -0.5
        k = jax.nn.softmax(k, 1)
        context = jnp.einsum("npkd,npke->nkde", k, v / v.shape[1], precision="highest")
        y = jnp.einsum("npkd,nkde->npke", q, context, precision="highest")
        return x + self.to_out(y.reshape(*y.shape[:2], -1)).reshape(x.shape)


class Attention(nnx.Module):
    """Softmax attention over the positions of a frame, added to what came in."""

    def __init__(self, config, width: int, *, rngs: nnx.Rngs):
        self.heads, inner = config.attn_heads, config.attn_heads * config.attn_dim_head
        self.norm = ChannelNorm(width)
        self.to_qkv = _linear(width, 3 * inner, bias=False, rngs=rngs)
        self.to_out = _linear(inner, width, bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x).reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])
        q, k, v = jnp.split(self.to_qkv(y).reshape(*y.shape[:2], 3 * self.heads, -1), 3, 2)
        y = attention(q, k, v)
        return x + self.to_out(y.reshape(*y.shape[:2], -1)).reshape(x.shape)


class Halve(Convolution):
    """4 x 4 convolution of stride 2."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, width, 4, stride=2, rngs=rngs)


class Double(nnx.Module):
    """4 x 4 transposed convolution of stride 2: an even row meets taps 3 and 1 of the row before and its own, an odd one taps
    2 and 0 of its own and the row after. Kernel [4, 4, in, out]."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        # Torch counts the outputs of all taps as the fan in here.
        self.kernel = nnx.Param(TORCH(rngs.params(), (4, 4, width, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        taps = jnp.array([[3, 1], [2, 0]])
        kernel = self.kernel[...][
            taps[:, :, None, None], taps
        ]  # [row parity, row tap, column parity, column tap, in, out]
        y = doubled_conv2d(x.reshape(-1, *x.shape[2:]), kernel.transpose(1, 3, 4, 0, 2, 5))
        return y.reshape(*x.shape[:2], *y.shape[1:]) + self.bias[...]


def save_unet(network: Network, folder: str | Path) -> Path:
    """Write a U-Net as a folder, config.json and safetensors in the published names; returns the folder."""
    from ports.pidm import PORTS  # against the grain, as in `jaxdiff.load`
    from ports.writer import save_network

    save_network(network, folder, ports=PORTS)
    return Path(folder)


def load_unet(folder: str | Path) -> Network:
    """A U-Net from a folder that `save_unet` wrote, or with published weights beside such a config.json; float32.

    Raises
    ------
    CheckpointError : no such folder, or its tensors do not fit.
    ConfigError : a configuration key that this version does not know.
    """
    from ports.folder import load_network
    from ports.pidm import PORTS

    return load_network(folder, dtype=jnp.float32, ports=PORTS)


def _timestep_features(t: jax.Array, width: int) -> jax.Array:
    """``[sin | cos]`` of timesteps int [B]; the frequencies reach 1 / 10000 exactly, unlike DDPM's."""
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(width // 2) / (width // 2 - 1))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def _linear(inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs) -> Linear:
    return Linear(inputs, outputs, bias=bias, rngs=rngs, init=TORCH)
