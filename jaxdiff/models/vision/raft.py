"""RAFT in Flax: optical flow by a recurrent network that looks up correlations of all pairs of positions.

Reference: Teed and Deng 2020, arXiv 2003.12039; numerics and names follow torchvision's `raft_large` and `raft_small`, which
the parity suite compares with, module by module.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.models.layers import ConfigFromDict
from jaxdiff.models.network import Network

EPS = 1e-5  # of both norms
STRIDE = 8  # of the encoders
SOFTER = 0.25  # what the published code multiplies the logits of the upsampling by
BLOCKS, NORMS = ("residual", "bottleneck"), ("instance", "batch", "none")


@dataclasses.dataclass(frozen=True)
class RAFTConfig(ConfigFromDict):
    """Architecture numbers, named as the arguments of torchvision's builder; the default is `raft_large`.

    Raises
    ------
    ConfigError : a kind of block or norm that is not offered, or numbers that make no RAFT.
    """

    feature_encoder_layers: tuple[int, ...] = (64, 64, 96, 128, 256)
    feature_encoder_block: str = "residual"
    feature_encoder_norm_layer: str = "instance"
    context_encoder_layers: tuple[int, ...] = (64, 64, 96, 128, 256)
    context_encoder_block: str = "residual"
    context_encoder_norm_layer: str = "batch"
    corr_block_num_levels: int = 4
    corr_block_radius: int = 4
    motion_encoder_corr_layers: tuple[int, ...] = (256, 192)
    motion_encoder_flow_layers: tuple[int, ...] = (128, 64)
    motion_encoder_out_channels: int = 128
    recurrent_block_hidden_state_size: int = 128
    recurrent_block_kernel_size: tuple[tuple[int, int], ...] = ((1, 5), (5, 1))
    flow_head_hidden_size: int = 256
    use_mask_predictor: bool = True

    def __post_init__(self):
        sizes = tuple(map(tuple, self.recurrent_block_kernel_size))  # lists in a config.json
        object.__setattr__(self, "recurrent_block_kernel_size", sizes)
        for side in ("feature", "context"):
            layers, block, norm = (getattr(self, f"{side}_encoder_{key}") for key in ("layers", "block", "norm_layer"))
            if len(layers) != 5 or block not in BLOCKS or norm not in NORMS or layers[0] != layers[1]:
                raise ConfigError(
                    f"RAFT: {side}_encoder_layers={layers} must be five widths, the first two alike, of blocks "
                    f"{' or '.join(BLOCKS)} (got {block!r}) with norms {', '.join(NORMS)} (got {norm!r})"
                )
        hidden = self.recurrent_block_hidden_state_size
        if hidden >= self.context_encoder_layers[-1] or len(self.motion_encoder_flow_layers) != 2:
            raise ConfigError(
                f"RAFT: the hidden state of {hidden} is part of the context's {self.context_encoder_layers[-1]} channels, and "
                f"there are two motion_encoder_flow_layers, got {self.motion_encoder_flow_layers}"
            )

    @classmethod
    def raft_large(cls) -> "RAFTConfig":
        """torchvision's raft_large, the published RAFT: 5,257,536 parameters."""
        return cls()

    @classmethod
    def raft_small(cls) -> "RAFTConfig":
        """torchvision's raft_small: 990,162 parameters."""
        return cls(
            feature_encoder_layers=(32, 32, 64, 96, 128),
            feature_encoder_block="bottleneck",
            context_encoder_layers=(32, 32, 64, 96, 160),
            context_encoder_block="bottleneck",
            context_encoder_norm_layer="none",
            corr_block_radius=3,
            motion_encoder_corr_layers=(96,),
            motion_encoder_flow_layers=(64, 32),
            motion_encoder_out_channels=82,
            recurrent_block_hidden_state_size=96,
            recurrent_block_kernel_size=((3, 3),),
            flow_head_hidden_size=128,
            use_mask_predictor=False,
        )

    @property
    def smallest(self) -> int:
        """Pixels that a side must have, or the coarsest correlations have fewer than two positions."""
        return STRIDE * 2**self.corr_block_num_levels


class BatchNorm(nnx.Module):
    """Frozen batch norm, float32."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.mean = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.variance = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.scale[...] * jax.lax.rsqrt(self.variance[...] + EPS)
        return ((x.astype(jnp.float32) - self.mean[...]) * factor + self.bias[...]).astype(x.dtype)


class Conv(nnx.Module):
    """A convolution that keeps the size but for its stride, perhaps with a norm behind it."""

    def __init__(
        self, inputs: int, outputs: int, size: int | tuple[int, int], *, stride: int = 1, norm: str = "none", rngs: nnx.Rngs
    ):  # fmt: skip
        high, wide = (size, size) if isinstance(size, int) else size
        self.stride, self.padding, self.kind = stride, ((high // 2,) * 2, (wide // 2,) * 2), norm
        init = jax.nn.initializers.he_normal()
        self.kernel = nnx.Param(init(rngs.params(), (high, wide, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.norm = BatchNorm(outputs) if norm == "batch" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, inputs] -> [N, H', W', outputs]"""
        y = kernels.conv2d(x, self.kernel[...], self.stride, self.padding) + self.bias[...]
        if self.norm is not None:
            return self.norm(y)
        if self.kind == "instance":  # of every picture and channel by itself
            z = y.astype(jnp.float32)
            z = z - z.mean((1, 2), keepdims=True)
            y = (z * jax.lax.rsqrt(jnp.square(z).mean((1, 2), keepdims=True) + EPS)).astype(y.dtype)
        return y


class Block(nnx.Module):
    """Two or three convolutions with relu, added to what came in, relu again."""

    def __init__(self, kind: str, inputs: int, outputs: int, stride: int, norm: str, *, rngs: nnx.Rngs):
        if kind == "bottleneck":
            inner = outputs // 4
            numbers = [(inputs, inner, 1, 1), (inner, inner, 3, stride), (inner, outputs, 1, 1)]
        else:
            numbers = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
        self.convs = nnx.List([Conv(i, o, size, stride=s, norm=norm, rngs=rngs) for i, o, size, s in numbers])
        self.downsample = None if stride == 1 else Conv(inputs, outputs, 1, stride=stride, norm=norm, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for conv in self.convs:
            y = jax.nn.relu(conv(y))
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x)))


class Encoder(nnx.Module):
    """Pictures [N, H, W, 3] to features [N, H / 8, W / 8, layers[-1]]."""

    def __init__(self, layers: tuple[int, ...], kind: str, norm: str, *, rngs: nnx.Rngs):
        self.stem = Conv(3, layers[0], 7, stride=2, norm=norm, rngs=rngs)
        blocks = []
        for inputs, outputs, stride in zip(layers[:3], layers[1:4], (1, 2, 2), strict=True):
            blocks.append(Block(kind, inputs, outputs, stride, norm, rngs=rngs))
            blocks.append(Block(kind, outputs, outputs, 1, norm, rngs=rngs))
        self.blocks = nnx.List(blocks)
        self.out = Conv(layers[3], layers[4], 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class MotionEncoder(nnx.Module):
    """Flow so far and correlations about where it leads -> features, the flow itself the last two."""

    def __init__(self, config: RAFTConfig, *, rngs: nnx.Rngs):
        looked = config.corr_block_num_levels * (2 * config.corr_block_radius + 1) ** 2
        widths, (first, second) = config.motion_encoder_corr_layers, config.motion_encoder_flow_layers
        sizes = zip((looked, *widths), widths, (1, 3), strict=False)
        self.correlation = nnx.List([Conv(i, o, size, rngs=rngs) for i, o, size in sizes])
        self.flow = nnx.List([Conv(2, first, 7, rngs=rngs), Conv(first, second, 3, rngs=rngs)])
        self.out = Conv(widths[-1] + second, config.motion_encoder_out_channels - 2, 3, rngs=rngs)

    def __call__(self, flow: jax.Array, correlation: jax.Array) -> jax.Array:
        x = flow
        for conv in self.correlation:
            correlation = jax.nn.relu(conv(correlation))
        for conv in self.flow:
            x = jax.nn.relu(conv(x))
        return jnp.concatenate([jax.nn.relu(self.out(jnp.concatenate([correlation, x], -1))), flow], -1)


class GRU(nnx.Module):
    """A gated recurrent unit of convolutions: h [N, h, w, D], x [N, h, w, inputs] -> h."""

    def __init__(self, inputs: int, width: int, size: tuple[int, int], *, rngs: nnx.Rngs):
        self.z, self.r, self.q = (Conv(width + inputs, width, size, rngs=rngs) for _ in range(3))

    def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
        both = jnp.concatenate([h, x], -1)
        z, r = jax.nn.sigmoid(self.z(both)), jax.nn.sigmoid(self.r(both))
        return (1 - z) * h + z * jnp.tanh(self.q(jnp.concatenate([r * h, x], -1)))


class RAFT(nnx.Module):
    """Two pictures to the flow between them; see `__call__`."""

    def __init__(self, config: RAFTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.feature_encoder, self.context_encoder = (
            Encoder(*(getattr(config, f"{side}_encoder_{key}") for key in ("layers", "block", "norm_layer")), rngs=rngs)
            for side in ("feature", "context")
        )
        self.motion_encoder = MotionEncoder(config, rngs=rngs)
        hidden = config.recurrent_block_hidden_state_size
        inputs = config.motion_encoder_out_channels + config.context_encoder_layers[-1] - hidden
        self.grus = nnx.List([GRU(inputs, hidden, size, rngs=rngs) for size in config.recurrent_block_kernel_size])
        wide = config.flow_head_hidden_size
        self.head = nnx.List([Conv(hidden, wide, 3, rngs=rngs), Conv(wide, 2, 3, rngs=rngs)])
        upsampling = [(hidden, 256, 3), (256, 9 * STRIDE**2, 1)] if config.use_mask_predictor else []
        self.upsampling = nnx.List([Conv(i, o, size, rngs=rngs) for i, o, size in upsampling])

    def __call__(self, first: jax.Array, second: jax.Array, *, updates: int = 12) -> jax.Array:
        """Flow in pixels after `updates` refinements.

        Each begins at the flow so far as a constant: as in the paper, gradients do not go from one to the next through it.

        Parameters
        ----------
        first, second : [N, H, W, 3] in [-1, 1]; H and W multiples of 8, at least `RAFTConfig.smallest`.

        Returns
        -------
        [N, H, W, 2], (x, y): what is at (x, y) in `first` is at that plus the flow in `second`.

        Raises
        ------
        ConfigError : pictures of other sizes.
        """
        height, width = first.shape[1:3]
        if (
            first.shape != second.shape
            or height % STRIDE
            or width % STRIDE
            or min(height, width) < self.config.smallest
        ):
            raise ConfigError(
                f"RAFT takes two pictures of one size, multiples of {STRIDE} of at least {self.config.smallest} pixels, got "
                f"{first.shape} and {second.shape}"
            )
        here, there = jnp.split(self.feature_encoder(jnp.concatenate([first, second])), 2)
        pyramid = correlations(here, there, self.config.corr_block_num_levels)
        size = self.config.recurrent_block_hidden_state_size
        context = self.context_encoder(first)
        hidden, context = jnp.tanh(context[..., :size]), jax.nn.relu(context[..., size:])
        start = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in context.shape[2:0:-1])), -1)

        @jax.checkpoint
        def update(carry, _):
            hidden, flow = carry
            flow = jax.lax.stop_gradient(flow)
            found = look_up(pyramid, start + flow, self.config.corr_block_radius).astype(hidden.dtype)
            x = jnp.concatenate([context, self.motion_encoder(flow.astype(hidden.dtype), found)], -1)
            for gru in self.grus:
                hidden = gru(hidden, x)
            return (hidden, flow + self.step(hidden).astype(jnp.float32)), None

        flow = jnp.zeros((*context.shape[:3], 2), jnp.float32)
        (hidden, flow), _ = jax.lax.scan(update, (hidden, flow), None, updates)
        if not self.upsampling:
            return _enlarged(flow)
        return convex_upsampling(flow, self.logits(hidden).astype(jnp.float32))

    def step(self, hidden: jax.Array) -> jax.Array:
        """What the hidden state [N, h, w, D] adds to the flow, [N, h, w, 2]."""
        return self.head[1](jax.nn.relu(self.head[0](hidden)))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Of `convex_upsampling`."""
        return SOFTER * self.upsampling[1](jax.nn.relu(self.upsampling[0](hidden)))


def correlations(first: jax.Array, second: jax.Array, levels: int) -> list[jax.Array]:
    """``<first, second> / sqrt(C)`` of every pair of positions [N, h w, h, w], and its means over 2 x 2, 4 x 4, ... of `second`."""
    first, second = (x.astype(jnp.float32) for x in (first, second))
    n, h, w, channels = first.shape
    volume = jnp.einsum("nhwc,nijc->nhwij", first, second, precision="highest") / jnp.sqrt(jnp.float32(channels))
    found = [volume.reshape(n, h * w, h, w)]
    for _ in range(levels - 1):
        h, w = (size // 2 for size in found[-1].shape[2:])
        found.append(found[-1][..., : 2 * h, : 2 * w].reshape(n, -1, h, 2, w, 2).mean((3, 5)))
    return found


def look_up(pyramid: list[jax.Array], places: jax.Array, radius: int) -> jax.Array:
    """Correlations about places (x, y) [N, h, w, 2], bilinear and zero outside: [N, h, w, levels (2 radius + 1)^2].

    A bilinear weight is a product of two triangles, so that a look-up is two small matrix products and no gather.
    Offsets in x change slower than those in y.
    """
    n, h, w, _ = places.shape
    centre, offsets = places.reshape(n, h * w, 2), jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    found = []
    for volume in pyramid:
        sizes = volume.shape[:1:-1]  # of x, of y
        x, y = (_triangles(centre[..., axis, None] + offsets, size) for axis, size in enumerate(sizes))
        rows = jnp.einsum("nmjy,nmyx->nmjx", y, volume, precision="highest")
        found.append(jnp.einsum("nmix,nmjx->nmij", x, rows, precision="highest").reshape(n, h, w, -1))
        centre = centre / 2
    return jnp.concatenate(found, -1)


def convex_upsampling(flow: jax.Array, logits: jax.Array) -> jax.Array:
    """Flow [N, h, w, 2] at eight times the size, each pixel a convex combination of the nine positions about it.

    logits : [N, h, w, 9 * 8 * 8], of (neighbour, row, column).
    """
    n, h, w, _ = flow.shape
    weights = jax.nn.softmax(logits.reshape(n, h, w, 9, STRIDE, STRIDE), 3)
    padded = jnp.pad(STRIDE * flow, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = jnp.stack([padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], 3)
    found = jnp.einsum("nhwkab,nhwkc->nhawbc", weights, around, precision="highest")
    return found.reshape(n, STRIDE * h, STRIDE * w, 2)


def _enlarged(flow: jax.Array) -> jax.Array:
    """Flow at eight times the size, bilinear with the corners kept."""
    rows, columns = (_triangles(jnp.linspace(0, n - 1, STRIDE * n, dtype=jnp.float32), n) for n in flow.shape[1:3])
    return STRIDE * jnp.einsum("ih,jw,nhwc->nijc", rows, columns, flow, precision="highest")


def _triangles(places: jax.Array, size: int) -> jax.Array:
    """Bilinear weights [..., size] of the positions 0 .. size - 1 at places [...]."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(places[..., None] - jnp.arange(size, dtype=jnp.float32)))


def load_raft(path: str | Path) -> Network:
    """A RAFT, float32.

    Parameters
    ----------
    path : a safetensors file of torchvision's raft_large or raft_small (``python -m ports.unpickle`` rewrites the published
        .pth), or a folder with a config.json beside such a file, as `ports.raft.save_raft` writes it.

    Raises
    ------
    CheckpointError : no such file, or its tensors are not those of a RAFT (all problems are listed at once).
    ConfigError : a configuration key that this version does not know.
    """
    from ports.raft import open_raft  # against the grain, as in `jaxdiff.load`

    return open_raft(Path(path))
