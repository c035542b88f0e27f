"""ResNet in Flax, as a bag of frames: every frame of a clip alone through a network that knows pictures only.

Reference: He et al. 2016, arXiv 1512.03385, and its variant 1.5, which halves the resolution in the 3x3 convolution;
numerics follow `ResNetModel` of transformers, which the parity suite compares with, stage by stage.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.models.vision import vit
from jaxdiff.models.vision.vit import INPUT, PublishedConfig
from jaxdiff.taps import Tap

ACTIVATIONS = {**vit.ACTIVATIONS, "relu": jax.nn.relu}
EPS = 1e-5  # of batch norm
REDUCTION = 4  # of a bottleneck
LAYERS = ("bottleneck", "basic")


@dataclasses.dataclass(frozen=True)
class ResNetConfig(PublishedConfig):
    """Architecture numbers, named as in the published config.json.

    Raises
    ------
    ConfigError : an activation or a kind of layer that is not offered, or stages that do not pair up.
    """

    irrelevant: ClassVar[frozenset[str]] = frozenset({"out_features", "out_indices", "stage_names"})

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False

    def __post_init__(self):
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"ResNet: hidden_act={self.hidden_act!r} is not supported; {', '.join(ACTIVATIONS)} are")
        if self.layer_type not in LAYERS:
            raise ConfigError(f"ResNet: layer_type={self.layer_type!r} is not supported; {' and '.join(LAYERS)} are")
        if len(self.hidden_sizes) != len(self.depths):
            raise ConfigError(f"ResNet: {len(self.hidden_sizes)} hidden_sizes for {len(self.depths)} depths")

    @classmethod
    def resnet_50(cls) -> "ResNetConfig":
        """microsoft/resnet-50: 23,508,032 parameters without its classifier, and 53,120 statistics of its norms."""
        return cls()


class ConvNorm(nnx.Module):
    """A convolution and the frozen batch norm behind it, which is folded into its kernel.

    ``scale (k * x - mean) / sqrt(variance + eps) + bias = (k factor) * x + (bias - mean factor)`` with ``factor = scale /
    sqrt(variance + eps)``, computed in float32. The five tensors stay leaves of their own, as they are published.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.stride, self.padding = stride, size // 2
        init = jax.nn.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.scale = nnx.Param(jnp.ones((outputs,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.mean = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.variance = nnx.Param(jnp.ones((outputs,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, inputs] -> [N, H', W', outputs]"""
        kernel = self.kernel[...]
        factor = self.scale[...].astype(jnp.float32) * jax.lax.rsqrt(self.variance[...].astype(jnp.float32) + EPS)
        folded = (kernel.astype(jnp.float32) * factor).astype(kernel.dtype)
        y = kernels.conv2d(x, folded, self.stride, ((self.padding, self.padding),) * 2)
        return y + (self.bias[...].astype(jnp.float32) - self.mean[...].astype(jnp.float32) * factor).astype(y.dtype)


class Layer(nnx.Module):
    """Two or three convolutions, added to what came in."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[config.hidden_act]
        if config.layer_type == "bottleneck":
            inner = outputs // REDUCTION
            first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
            numbers = [(inputs, inner, 1, first), (inner, inner, 3, second), (inner, outputs, 1, 1)]
        else:
            numbers = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
        self.convs = nnx.List([ConvNorm(i, o, size, stride=s, rngs=rngs) for i, o, size, s in numbers])
        other = inputs != outputs or stride != 1
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, rngs=rngs) if other else None

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for conv in self.convs[:-1]:
            h = self.activation(conv(h))
        return self.activation(self.convs[-1](h) + (x if self.shortcut is None else self.shortcut(x)))


class Stage(nnx.Module):
    """Layers of one resolution; the first one may halve it."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, depth: int, stride: int, *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [
                Layer(config, outputs if i else inputs, outputs, 1 if i else stride, rngs=rngs)
                for i in range(depth)
            ]
        )  # fmt: skip

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


class ResNet(nnx.Module):
    """Pictures to the feature maps of every stage; see `__call__`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxdiff.models.network import Network
    >>> config = ResNetConfig(embedding_size=8, hidden_sizes=(16, 32), depths=(1, 1))
    >>> [x.shape for x in Network.init(ResNet, config, seed=0)(jnp.zeros((1, 2, 32, 32, 3)))]
    [(1, 2, 8, 8, 8), (1, 2, 8, 8, 16), (1, 2, 4, 4, 32)]
    """

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = ConvNorm(config.num_channels, config.embedding_size, 7, stride=2, rngs=rngs)
        widths = (config.embedding_size, *config.hidden_sizes)
        self.stages = nnx.List(
            [
                Stage(config, widths[i], widths[i + 1], depth, 2 if i or config.downsample_in_first_stage else 1, rngs=rngs)
                for i, depth in enumerate(config.depths)
            ]
        )  # fmt: skip

    def __call__(self, pixels: jax.Array) -> list[jax.Array]:
        """Encode every frame by itself.

        Parameters
        ----------
        pixels : [B, T, H, W, C], as `jaxdiff.Encoder.prepare` makes them.

        Returns
        -------
        [B, T, h, w, D] of the stem and of every stage, in the dtype of the weights

        Raises
        ------
        ConfigError : pixels of another number of channels.
        """
        if pixels.ndim != 5 or pixels.shape[-1] != self.config.num_channels:
            raise ConfigError(f"ResNet: pixels must be [B, T, H, W, {self.config.num_channels}], got {pixels.shape}")
        x = ACTIVATIONS[self.config.hidden_act](self.stem(pixels.reshape(-1, *pixels.shape[2:])))
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        found = [x]
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return [x.reshape(*pixels.shape[:2], *x.shape[1:]) for x in found]

    def read(self, pixels: jax.Array, reduce: Sequence[Any]) -> dict[str, jax.Array]:
        """Every stage, reduced.

        Parameters
        ----------
        pixels : as `__call__`.
        reduce : reducers, by name or as objects, see `jaxdiff.taps`.

        Returns
        -------
        "stage1.<reducer>", "stage2.<reducer>", ... -> [1, B, ...], and "input.<reducer>", of the stem. Stages differ in
        width, so that each is an array of its own.
        """
        found = {}
        for i, x in enumerate(self(pixels)):
            tokens, grid = x.reshape(x.shape[0], -1, x.shape[-1]), x.shape[1:4]
            for tap in (Tap("block_out", reducer) for reducer in reduce):
                label = str(tap.name).partition(".")[2]
                found[f"{f'stage{i}' if i else INPUT}.{label}"] = tap.reducer(tokens, grid)[None]
        return found
