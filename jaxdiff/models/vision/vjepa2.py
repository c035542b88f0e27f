"""The encoder of V-JEPA 2 in Flax: clips to tokens.

Reference: V-JEPA 2, arXiv 2506.09985, section 2 (a vision transformer over tubelets with rotary positions along three
axes); numerics follow `VJEPA2Model` of transformers, which the parity suite compares with, block by block. The predictor
of its training is not ported: nothing is read from it.
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.models.vision.vit import PublishedConfig, Shape, VideoTransformer, check_vit

THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class VJEPA2Config(PublishedConfig):
    """Architecture numbers of the encoder, named as in the published config.json.

    Raises
    ------
    ConfigError : an activation that is not offered, or sizes that do not divide.
    """

    # Of the predictor and of the pooler of fine-tuned classifiers; and sizes that other keys repeat.
    irrelevant: ClassVar[frozenset[str]] = frozenset(
        {
            "image_size", "num_pooler_layers", "pred_hidden_size", "pred_mlp_ratio", "pred_num_attention_heads",
            "pred_num_hidden_layers", "pred_num_mask_tokens", "pred_zero_init_mask_tokens", "wide_SiLU",
        }
    )  # fmt: skip

    patch_size: int = 16
    crop_size: int = 256
    frames_per_clip: int = 64
    tubelet_size: int = 2
    hidden_size: int = 1024
    in_chans: int = 3
    num_attention_heads: int = 16
    num_hidden_layers: int = 24
    mlp_ratio: float = 4.0
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    hidden_act: str = "gelu"

    def __post_init__(self):
        check_vit(self, "VJEPA2")
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ConfigError(f"VJEPA2: heads of {self.hidden_size // self.num_attention_heads} channels; must be even")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """As `PublishedConfig.from_dict`; gated MLPs, which the published code knows and no checkpoint has, are refused."""
        if values.get("use_SiLU"):
            raise ConfigError("VJEPA2: use_SiLU=True is not supported")
        return super().from_dict({key: value for key, value in values.items() if key != "use_SiLU"})

    @property
    def shape(self) -> Shape:
        """The numbers under the names that all video transformers share."""
        return Shape(
            width=self.hidden_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            hidden=int(self.hidden_size * self.mlp_ratio),
            activation=self.hidden_act,
            eps=self.layer_norm_eps,
            patch=(self.tubelet_size, self.patch_size, self.patch_size),
            size=self.crop_size,
            channels=self.in_chans,
            biases=(self.qkv_bias,) * 3,
        )

    @classmethod
    def vitl_fpc64_256(cls) -> "VJEPA2Config":
        """facebook/vjepa2-vitl-fpc64-256: 303,885,312 parameters of the encoder."""
        return cls()

    @classmethod
    def vith_fpc64_256(cls) -> "VJEPA2Config":
        """facebook/vjepa2-vith-fpc64-256: 631,648,000 parameters of the encoder."""
        return cls(hidden_size=1280, num_hidden_layers=32)

    @classmethod
    def vitg_fpc64_256(cls) -> "VJEPA2Config":
        """facebook/vjepa2-vitg-fpc64-256: 1,012,173,952 parameters of the encoder."""
        return cls(hidden_size=1408, num_hidden_layers=40, num_attention_heads=22, mlp_ratio=48 / 11)

    @classmethod
    def vitg_fpc64_384(cls) -> "VJEPA2Config":
        """facebook/vjepa2-vitg-fpc64-384: the same on larger frames."""
        return dataclasses.replace(cls.vitg_fpc64_256(), crop_size=384)

    @classmethod
    def nano(cls) -> "VJEPA2Config":
        """As wide and deep as the nano transformer, for generated scenes: 17 frames and the last one again."""
        return cls(
            patch_size=8,
            crop_size=32,
            frames_per_clip=18,
            hidden_size=128,
            num_attention_heads=4,
            num_hidden_layers=5,
            hidden_act="gelu_pytorch_tanh",  # its backward pass is faster on CPUs
        )


class VJEPA2(VideoTransformer):
    """V-JEPA 2's encoder: rotary positions in every block, a layer norm at the end.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxdiff.models.network import Network
    >>> config = VJEPA2Config(crop_size=32, hidden_size=24, num_attention_heads=2, num_hidden_layers=2)
    >>> Network.init(VJEPA2, config, seed=0)(jnp.zeros((1, 4, 32, 32, 3)))[0].shape
    (1, 8, 24)
    """

    def rotation(self, grid: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
        """See `turns`."""
        return turns(grid, self.config.hidden_size // self.config.num_attention_heads)

    def rotate(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        """See `turn`."""
        return turn(x, cos, sin)


def turns(grid: tuple[int, int, int], head: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [S, d] of every channel of heads of d channels, float32.

    A third of the channels each (rounded down to an even number m) turn with frame, row and column; the rest stay. The
    m / 2 frequencies of an axis are laid out twice, one set after the other, while `turn` pairs neighbours: the two
    channels of a pair turn by different angles. That is no rotation, but it is what the published weights were trained
    with.
    """
    width = 2 * (head // 3 // 2)
    frequencies = THETA ** -(np.arange(width // 2, dtype=np.float64) / max(width / 2, 1))
    angles = np.zeros((*grid, head))
    for axis, place in enumerate(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")):
        angles[..., axis * width : (axis + 1) * width] = np.tile(place[..., None] * frequencies, 2)
    angles = angles.reshape(-1, head)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def turn(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """``x cos + (-x[1], x[0], -x[3], x[2], ...) sin`` in float32: x [B, S, K, d], cos and sin [S, d] or [B, S, d]; returned
    in the dtype of `x`."""
    y = x.astype(jnp.float32)
    pairs = y.reshape(*y.shape[:-1], -1, 2)
    swapped = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(y.shape)
    return (y * cos[..., None, :] + swapped * sin[..., None, :]).astype(x.dtype)
