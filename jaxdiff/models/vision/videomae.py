"""The encoder of VideoMAE and VideoMAE V2 in Flax: clips to tokens.

Reference: VideoMAE, arXiv 2203.12602, section 3 (a vision transformer over tubelets; keys without bias, fixed sinusoidal
positions); numerics follow `VideoMAEModel` of transformers, which the parity suite compares with, block by block. The
decoder of its training and the heads of fine-tuned classifiers are not ported: nothing is read from them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.models.vision.vit import BOOKKEEPING, PublishedConfig, Shape, VideoTransformer, check_vit

# model_config of VideoMAE V2: names there -> names here; and what must be so, because nothing else is ported.
V2_NAMES = {
    "img_size": "image_size", "patch_size": "patch_size", "in_chans": "num_channels", "num_frames": "num_frames",
    "tubelet_size": "tubelet_size", "embed_dim": "hidden_size", "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads", "layer_norm_eps": "layer_norm_eps", "qkv_bias": "qv_bias",
    "use_mean_pooling": "use_mean_pooling",
}  # fmt: skip
V2_FIXED = {"qk_scale": None, "norm_layer": "nn.LayerNorm", "use_learnable_pos_emb": False, "cos_attn": False}
V2_IRRELEVANT = {
    "attn_drop_rate", "drop_path_rate", "drop_rate", "head_drop_rate", "init_scale", "num_classes", "with_cp",
}  # fmt: skip
V2_OUTSIDE = ("auto_map", "model_config", "use_cache")
V2_EPS = 1e-6  # of its published code, where the file does not say


@dataclasses.dataclass(frozen=True)
class VideoMAEConfig(PublishedConfig):
    """Architecture numbers of the encoder, named as in the published config.json.

    Raises
    ------
    ConfigError : an activation that is not offered, or sizes that do not divide.
    """

    irrelevant: ClassVar[frozenset[str]] = frozenset(
        {
            "decoder_hidden_size", "decoder_intermediate_size", "decoder_num_attention_heads",
            "decoder_num_hidden_layers", "norm_pix_loss",
        }
    )  # fmt: skip

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qv_bias: bool = True
    use_mean_pooling: bool = True

    def __post_init__(self):
        check_vit(self, "VideoMAE")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """As `PublishedConfig.from_dict`. Older files say qkv_bias; those of V2 hold their numbers in a model_config.

        Raises
        ------
        ConfigError : an unknown key, or a V2 model with parts that are not ported (its layer scale, learned positions or
            cosine attention, which no published V2 encoder has).
        """
        if "model_config" in values:
            outside = {*BOOKKEEPING, *V2_OUTSIDE}
            unknown = [key for key in values if key not in outside and not key.startswith("_")]
            if unknown:
                raise ConfigError(f"VideoMAE V2: unknown configuration key {unknown[0]!r}={values[unknown[0]]!r}")
            return cls(**_of_v2(values["model_config"]))
        values = dict(values)
        if "qkv_bias" in values:
            values["qv_bias"] = values.pop("qkv_bias")
        return super().from_dict(values)

    @property
    def shape(self) -> Shape:
        """The numbers under the names that all video transformers share."""
        return Shape(
            width=self.hidden_size,
            layers=self.num_hidden_layers,
            heads=self.num_attention_heads,
            hidden=self.intermediate_size,
            activation=self.hidden_act,
            eps=self.layer_norm_eps,
            patch=(self.tubelet_size, self.patch_size, self.patch_size),
            size=self.image_size,
            channels=self.num_channels,
            biases=(self.qv_bias, False, self.qv_bias),
            final_norm=not self.use_mean_pooling,
        )

    @classmethod
    def base(cls) -> "VideoMAEConfig":
        """MCG-NJU/videomae-base: 86,227,200 parameters of the encoder."""
        return cls(use_mean_pooling=False)

    @classmethod
    def large(cls) -> "VideoMAEConfig":
        """MCG-NJU/videomae-large: 303,860,736 parameters of the encoder."""
        return cls(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
            use_mean_pooling=False,
        )  # fmt: skip

    @classmethod
    def v2_giant(cls) -> "VideoMAEConfig":
        """OpenGVLab/VideoMAEv2-giant: 1,011,607,936 parameters of the encoder."""
        return cls(
            patch_size=14, hidden_size=1408, num_hidden_layers=40, num_attention_heads=16, intermediate_size=6144,
            layer_norm_eps=V2_EPS,
        )  # fmt: skip

    @classmethod
    def nano(cls) -> "VideoMAEConfig":
        """As wide and deep as the nano transformer, for generated scenes: 17 frames and the last one again."""
        return cls(
            image_size=32, patch_size=8, num_frames=18, hidden_size=128, num_hidden_layers=5, num_attention_heads=4,
            intermediate_size=512, use_mean_pooling=False,
            hidden_act="gelu_pytorch_tanh",  # its backward pass is faster on CPUs
        )  # fmt: skip


def _of_v2(values: Mapping[str, Any]) -> dict[str, Any]:
    """`VideoMAEConfig`'s fields from the model_config of a V2 folder."""
    known = {*V2_NAMES, *V2_FIXED, *V2_IRRELEVANT, "mlp_ratio", "init_values"}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"VideoMAE V2: unknown configuration key {unknown[0]!r}={values[unknown[0]]!r}")
    for key, allowed in V2_FIXED.items():
        if values.get(key, allowed) != allowed:
            raise ConfigError(f"VideoMAE V2: {key}={values[key]!r} is not supported, only {allowed!r}")
    if values.get("init_values"):
        raise ConfigError(f"VideoMAE V2: init_values={values['init_values']!r} (layer scale) is not supported")
    fields = {V2_NAMES[key]: value for key, value in values.items() if key in V2_NAMES}
    fields = {"layer_norm_eps": V2_EPS, **fields}
    fields["intermediate_size"] = int(fields.get("hidden_size", 768) * values.get("mlp_ratio", 4))
    return fields


class VideoMAE(VideoTransformer):
    """VideoMAE's encoder: positions are added to the tubelets, once.

    Checkpoints that average their tokens for a classifier (`use_mean_pooling`) have no norm behind the last block, and
    none is applied: the norm in their head is one of averages.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxdiff.models.network import Network
    >>> config = VideoMAEConfig(32, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
    >>> Network.init(VideoMAE, config, seed=0)(jnp.zeros((1, 4, 32, 32, 3)))[0].shape
    (1, 8, 24)
    """

    def grid(self, pixels: jax.Array) -> tuple[int, int, int]:
        """As `VideoTransformer.grid`; the positions are those of `num_frames` frames and of no other number."""
        frames = self.config.num_frames
        if pixels.ndim == 5 and pixels.shape[1] != frames:
            raise ConfigError(f"VideoMAE: {pixels.shape[1]} frames; this checkpoint takes {frames}")
        return super().grid(pixels)

    def positions(self, grid: tuple[int, int, int]) -> jax.Array:
        """See `sinusoids`."""
        return sinusoids(math.prod(grid), self.config.hidden_size)


def sinusoids(tokens: int, width: int) -> jax.Array:
    """``sin, cos`` of ``p / 10000^(2 i / D)`` in channels 2 i and 2 i + 1 of token p: [S, D] float32."""
    channel = np.arange(width)
    angles = np.arange(tokens)[:, None] / 10000.0 ** (2 * (channel // 2) / width)
    return jnp.asarray(np.where(channel % 2, np.cos(angles), np.sin(angles)), jnp.float32)
