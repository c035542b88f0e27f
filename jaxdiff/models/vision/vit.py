"""What the vision transformers here share: activations, the block, how published configurations are read.

CLIP's tower (`clip`) is made of these parts, and so are the video encoders V-JEPA 2 (`vjepa2`) and VideoMAE (`videomae`),
which cut a clip into tubelets.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.models import network
from jaxdiff.models.layers import MLP, ConfigFromDict, LayerNorm, Linear, gelu, gelu_tanh, patchify
from jaxdiff.taps import BlockReader, Reader, Tap

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}

# Keys of published files that say how a network was trained or is stored. Written out, so that any other key is an error.
BOOKKEEPING = frozenset(
    {
        "architectures", "attention_dropout", "attention_probs_dropout_prob", "drop_path_rate", "dropout", "dtype",
        "hidden_dropout_prob", "id2label", "initializer_factor", "initializer_range", "label2id", "model_type",
        "num_labels", "problem_type", "torch_dtype", "transformers_version",
    }
)  # fmt: skip

SITES = ("block_in", "self_attention_out", "self_attention_map", "mlp_out", "block_out")

INPUT = "input"  # what enters the first block: a linear embedding of the pixels, with positions where they are added


class PublishedConfig(ConfigFromDict):
    """`ConfigFromDict` of transformers' files: keys that decide nothing here are known and left out."""

    irrelevant: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """As `ConfigFromDict.from_dict`, without `BOOKKEEPING` and the class's own `irrelevant` keys."""
        skipped = BOOKKEEPING | cls.irrelevant
        return super().from_dict({key: value for key, value in values.items() if key not in skipped})


def check_vit(config: Any, name: str) -> None:
    """Raise a `ConfigError` for numbers that make no such transformer; `config` has transformers' names."""
    for key in ("patch_size", "crop_size", "image_size"):
        if not isinstance(getattr(config, key, 1), int):
            raise ConfigError(f"{name}: {key}={getattr(config, key)!r} is not supported; one number for both sides is")
    if config.hidden_act not in ACTIVATIONS:
        raise ConfigError(f"{name}: hidden_act={config.hidden_act!r} is not supported; {', '.join(ACTIVATIONS)} are")
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"{name}: hidden_size={config.hidden_size} must divide by num_attention_heads={config.num_attention_heads}"
        )


class Block(nnx.Module):
    """Self-attention and MLP, each on the layer norm of the residual stream and added to it.

    Parameters
    ----------
    width, heads, hidden : D, K, and the width inside the MLP.
    biases : whether the projections to queries, keys and values have one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        activation: str,
        eps: float,
        *,
        biases: tuple[bool, bool, bool] = (True, True, True),
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.attention_norm = LayerNorm(width, eps)
        self.query = Linear(width, width, bias=biases[0], rngs=rngs)
        self.key = Linear(width, width, bias=biases[1], rngs=rngs)
        self.value = Linear(width, width, bias=biases[2], rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.mlp_norm = LayerNorm(width, eps)
        self.mlp = MLP(width, hidden, width, ACTIVATIONS[activation], rngs=rngs)

    def __call__(self, x: jax.Array, tap: BlockReader, rotate: Callable[[jax.Array], jax.Array] | None = None):
        """x [B, S, D] -> x [B, S, D]; `rotate` turns queries and keys [B, S, K, d] by their positions."""
        x = tap("block_in", x)
        h = self.attention_norm(x)
        q, k, v = (layer(h).reshape(*x.shape[:2], self.heads, -1) for layer in (self.query, self.key, self.value))
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if tap.wants_map:
            h, frame_map = kernels.attention_with_frame_map(q, k, v, frames=tap.grid[0])
            tap("self_attention_map", frame_map)
        else:
            h = kernels.attention(q, k, v)
        x = x + tap("self_attention_out", self.out(h.reshape(x.shape)))
        x = x + tap("mlp_out", self.mlp(self.mlp_norm(x)))
        return tap("block_out", x)


class Shape(NamedTuple):
    """The numbers of a video transformer, whatever its published file calls them.

    patch : (frames, rows, columns) of a tubelet; size : height and width of the pixels; final_norm : whether what leaves
    the last block is normed.
    """

    width: int
    layers: int
    heads: int
    hidden: int
    activation: str
    eps: float
    patch: tuple[int, int, int]
    size: int
    channels: int = 3
    biases: tuple[bool, bool, bool] = (True, True, True)
    final_norm: bool = True


class VideoTransformer(nnx.Module):
    """A clip in tubelets through a stack of `Block`; see `__call__`. Subclasses say how tokens know their places."""

    sites = SITES

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        shape: Shape = config.shape
        self.config = config
        # Rows of the kernel are ordered (pt, ph, pw, channel): tubelets flatten as channels-last arrays lie.
        pt, ph, pw = shape.patch
        self.patch_embedding = Linear(pt * ph * pw * shape.channels, shape.width, rngs=rngs)
        numbers = shape.width, shape.heads, shape.hidden, shape.activation, shape.eps
        self.blocks = network.stack(lambda r: Block(*numbers, biases=shape.biases, rngs=r), shape.layers, rngs)
        self.norm = LayerNorm(shape.width, shape.eps) if shape.final_norm else None

    def positions(self, grid: tuple[int, int, int]) -> jax.Array | None:
        """What is added to the tokens of a grid: [S, D], or None."""
        return None

    def rotation(self, grid: tuple[int, int, int]) -> tuple[jax.Array, jax.Array] | None:
        """Cosines and sines [S, d] that `rotate` turns queries and keys by, or None."""
        return None

    def rotate(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """Queries or keys [B, S, K, d], turned."""
        raise TypeError(f"{type(self).__name__} has no rotation")

    def grid(self, pixels: jax.Array) -> tuple[int, int, int]:
        """(T', H', W') of pixels [B, T, H, W, C].

        Raises
        ------
        ConfigError : pixels of another size, or a number of frames that fills no whole tubelets.
        """
        shape, name = self.config.shape, type(self).__name__
        size, (pt, ph, pw) = shape.size, shape.patch
        if pixels.ndim != 5 or pixels.shape[2:] != (size, size, shape.channels):
            raise ConfigError(f"{name}: pixels must be [B, T, {size}, {size}, {shape.channels}], got {pixels.shape}")
        if not pixels.shape[1] or pixels.shape[1] % pt:
            raise ConfigError(f"{name}: {pixels.shape[1]} frames are no whole number of tubelets of {pt}")
        return pixels.shape[1] // pt, size // ph, size // pw

    def __call__(
        self,
        pixels: jax.Array,
        *,
        taps: Sequence[Tap] = (),
        keep: jax.Array | None = None,
        remat: network.Remat = "none",
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encode clips.

        Parameters
        ----------
        pixels : [B, T, size, size, C], as `jaxdiff.Encoder.prepare` makes them.
        taps : see `jaxdiff.taps`.
        keep : int32 [B, n], the tokens that are seen (the others are cut out, as in training by masking); None: all.
        remat : what the backward pass recomputes, see `jaxdiff.models.network.scan`.

        Returns
        -------
        output : [B, S or n, D], what leaves the last block, normed where the checkpoint norms it. Tokens lie by frame,
            row and column.
        captured : tap name -> [rows, B, ...]

        Raises
        ------
        ConfigError : pixels that do not fit.
        """
        shape, grid = self.config.shape, self.grid(pixels)
        edges = [n * p for n, p in zip(grid[1:], shape.patch[1:], strict=True)]
        x = self.patch_embedding(patchify(pixels[:, :, : edges[0], : edges[1]], shape.patch))
        positions, rotation = self.positions(grid), self.rotation(grid)
        if positions is not None:
            x = x + positions.astype(x.dtype)
        if keep is not None:
            x = jnp.take_along_axis(x, keep[..., None], 1)
            rotation = None if rotation is None else (rotation[0][keep], rotation[1][keep])

        def run(block, x, tap):
            return block(
                x, tap, None if rotation is None else functools.partial(self.rotate, cos=rotation[0], sin=rotation[1])
            )

        x, captured = network.scan(run, self.blocks, x, Reader(taps, (), layers=shape.layers, grid=grid), remat=remat)
        return (x if self.norm is None else self.norm(x)), captured

    def read(self, pixels: jax.Array, reduce: Sequence[Any]) -> dict[str, jax.Array]:
        """What each block and the output hold, reduced inside the scan over blocks.

        Parameters
        ----------
        pixels : as `__call__`.
        reduce : reducers, by name or as objects, see `jaxdiff.taps`.

        Returns
        -------
        "block_out.<reducer>" -> [L + 1, B, ...], the last row being the (normed) output; "input.<reducer>" -> [1, B, ...],
        what enters the first block. float32 for the reducers of `jaxdiff.taps` but "full".
        """
        taps = [Tap("block_out", reducer) for reducer in reduce]
        inputs = [Tap("block_in", tap.reduce, (0,), f"{INPUT}.{str(tap.name).partition('.')[2]}") for tap in taps]
        output, captured = self(pixels, taps=(*taps, *inputs))
        grid = self.grid(pixels)
        for tap in taps:
            last = tap.reducer(output, grid)[None]
            captured[str(tap.name)] = jnp.concatenate([captured[str(tap.name)], last])
        return captured
