"""The encoders of T5 v1.1 and UMT5 in Flax: token ids to text embeddings.

Reference: T5, arXiv 1910.10683, section 2.1, with the gated MLP of arXiv 2002.05202; UMT5, arXiv 2304.09151. Numerics
follow `T5EncoderModel` and `UMT5EncoderModel` of transformers, which the parity suite compares with, tensor by tensor.
"""

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.models import network
from jaxdiff.models.layers import ConfigFromDict, Linear, RMSNorm, gelu_tanh

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": gelu_tanh,
}
# Keys of published files that say how the whole encoder-decoder was trained, generates or is stored. Written out, so
# that any other key is an error.
IRRELEVANT = frozenset(
    {
        "architectures", "bos_token_id", "classifier_dropout", "decoder_start_token_id", "dropout_rate", "dtype",
        "eos_token_id", "initializer_factor", "is_encoder_decoder", "model_type", "n_positions", "num_decoder_layers",
        "output_past", "pad_token_id", "scalable_attention", "scale_decoder_outputs", "task_specific_params",
        "tie_word_embeddings", "tokenizer_class", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class T5Config(ConfigFromDict):
    """Architecture numbers of a T5 encoder, named as in the published text_encoder/config.json.

    Raises
    ------
    ConfigError : an activation that is not offered.
    """

    # Whether every block has a relative position bias of its own, or the first one's serves all.
    bias_per_block: ClassVar[bool] = False

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"

    def __post_init__(self):
        kind, _, activation = self.feed_forward_proj.rpartition("-")
        if kind not in ("", "gated") or activation not in ACTIVATIONS:
            raise ConfigError(
                f"T5: feed_forward_proj={self.feed_forward_proj!r} is not supported; an activation of "
                f"{', '.join(ACTIVATIONS)}, alone or after 'gated-'"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """As `ConfigFromDict.from_dict`, without the keys that do not touch the encoder (`IRRELEVANT`).

        Raises
        ------
        ConfigError : an unknown key, a decoder, or derived keys that contradict `feed_forward_proj`.
        """
        config = super().from_dict(
            {k: v for k, v in values.items() if k not in (*IRRELEVANT, "dense_act_fn", "is_gated_act", "is_decoder")}
        )
        derived = {"dense_act_fn": config.activation, "is_gated_act": config.gated, "is_decoder": False}
        for key, value in derived.items():
            if values.get(key, value) != value:
                raise ConfigError(
                    f"{cls.__name__}: {key}={values[key]!r} contradicts {value!r}, which an encoder with "
                    f"feed_forward_proj={config.feed_forward_proj!r} has"
                )
        return config

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies its activations by a second projection."""
        return self.feed_forward_proj.startswith("gated-")

    @property
    def activation(self) -> str:
        """Name of the MLP's activation; "gated-gelu" has always meant the tanh approximation."""
        name = self.feed_forward_proj.rpartition("-")[2]
        return "gelu_new" if self.gated and name == "gelu" else name

    @property
    def inner(self) -> int:
        """Width of queries, keys and values of all heads, which need not be `d_model`."""
        return self.num_heads * self.d_kv

    @classmethod
    def t5_v1_1_xxl(cls) -> "T5Config":
        """google/t5-v1_1-xxl, the text encoder of CogVideoX and LTX-Video: 4,762,310,656 parameters."""
        return T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")

    @classmethod
    def t5_11b(cls) -> "T5Config":
        """google-t5/t5-11b, the text encoder of Cosmos-Predict2: 4,864,791,552 parameters."""
        return T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128)


@dataclasses.dataclass(frozen=True)
class UMT5Config(T5Config):
    """Architecture numbers of a UMT5 encoder: T5 with a relative position bias in every block."""

    bias_per_block: ClassVar[bool] = True

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"

    @classmethod
    def umt5_xxl(cls) -> "UMT5Config":
        """google/umt5-xxl, the text encoder of Wan: 5,680,910,336 parameters."""
        return cls(vocab_size=256384, d_model=4096, d_ff=10240, num_layers=24, num_heads=64)


class RelativeBias(nnx.Module):
    """A learned bias on attention scores, by head and bucket of the distance between two tokens."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        shape = (config.relative_attention_num_buckets, config.num_heads)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(self, buckets: np.ndarray) -> jax.Array:
        """Buckets int [N, N] -> float32 [1, K, N, N]."""
        return self.embedding[...].astype(jnp.float32)[buckets].transpose(2, 0, 1)[None]


class Block(nnx.Module):
    """Self-attention and MLP, each on the RMS norm of the residual stream and added to it."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        width, inner = config.d_model, config.inner
        self.heads = config.num_heads
        self.activation = ACTIVATIONS[config.activation]
        self.attention_norm = RMSNorm(width, config.layer_norm_epsilon)
        self.query = Linear(width, inner, bias=False, rngs=rngs)
        self.key = Linear(width, inner, bias=False, rngs=rngs)
        self.value = Linear(width, inner, bias=False, rngs=rngs)
        self.out = Linear(inner, width, bias=False, rngs=rngs)
        self.relative_bias = RelativeBias(config, rngs=rngs) if config.bias_per_block else None
        self.mlp_norm = RMSNorm(width, config.layer_norm_epsilon)
        self.mlp_gate = Linear(width, config.d_ff, bias=False, rngs=rngs) if config.gated else None
        self.mlp_into = Linear(width, config.d_ff, bias=False, rngs=rngs)
        self.mlp_out = Linear(config.d_ff, width, bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, buckets: np.ndarray) -> jax.Array:
        """x [B, N, D], bias float32 (the mask, and the relative bias if all blocks share it) -> [B, N, D]."""
        if self.relative_bias is not None:
            bias = bias + self.relative_bias(buckets)
        h = self.attention_norm(x)
        q, k, v = (self._split(layer(h)) for layer in (self.query, self.key, self.value))
        # Unscaled scores (T5 folds the scale into its initialisation), and a bias that flash kernels would round.
        h = kernels.attention(q, k, v, bias=bias, scale=1.0, implementation="blockwise")
        x = x + self.out(h.reshape(*x.shape[:2], -1))

        h = self.mlp_norm(x)
        if self.mlp_gate is None:
            return x + self.mlp_out(self.activation(self.mlp_into(h)))
        return x + self.mlp_out(self.activation(self.mlp_gate(h)) * self.mlp_into(h))

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)


class T5Encoder(nnx.Module):
    """Text embeddings from token ids; see `__call__`."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_size, config.d_model)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.relative_bias = None if config.bias_per_block else RelativeBias(config, rngs=rngs)
        self.blocks = network.stack(lambda r: Block(config, rngs=r), config.num_layers, rngs)
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Embed tokens.

        Parameters
        ----------
        ids : [B, N] integers below `vocab_size`
        mask : [B, N] bool, True at tokens that may be attended to; None: all. Positions that are masked get an
            embedding too, of no meaning.

        Returns
        -------
        [B, N, d_model] in the compute dtype
        """
        buckets = relative_buckets(ids.shape[1], self.config)
        bias = jnp.zeros((1, 1, 1, ids.shape[1]), jnp.float32)
        if mask is not None:
            bias = jnp.where(mask[:, None, None], bias, -1e9)
        if self.relative_bias is not None:
            bias = bias + self.relative_bias(buckets)
        graphdef, stacked = nnx.split(self.blocks)

        def body(x, params):
            return nnx.merge(graphdef, params)(x, bias, buckets), None

        x, _ = jax.lax.scan(body, self.embedding[...][ids], stacked)
        return self.norm(x)


class UMT5Encoder(T5Encoder):
    """The same with a relative position bias in every block, as its configuration says."""


def relative_buckets(tokens: int, config: T5Config) -> np.ndarray:
    """The bucket of every (query, key) pair: int32 [N, N] (T5, section 2.1; arXiv 1910.10683).

    Half of the buckets are for keys behind the query, half for keys ahead. Of each half, the first half holds one
    distance each, the others grow logarithmically to `relative_attention_max_distance` and hold all beyond it.
    """
    position = np.arange(tokens)
    offset = position[None, :] - position[:, None]
    distance = np.abs(offset)
    half = config.relative_attention_num_buckets // 2
    exact = half // 2
    ratio = math.log(config.relative_attention_max_distance / exact)
    # Distances on the edge of a bucket belong to the upper one; the small addend keeps them there in floating point.
    far = exact + np.floor(np.log(np.maximum(distance, 1) / exact) / ratio * (half - exact) + 1e-6).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(far, half - 1))
    return (bucket + half * (offset > 0)).astype(np.int32)
