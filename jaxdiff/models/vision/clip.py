"""The vision tower of CLIP in Flax: pictures to image tokens.

Reference: CLIP, arXiv 2103.00020, section 2.4 (a vision transformer with a norm in front); numerics follow
`CLIPVisionModel` of transformers, which the parity suite compares with, block by block.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.models import network
from jaxdiff.models.layers import LayerNorm, Linear, patchify
from jaxdiff.models.vision.vit import Block, PublishedConfig, check_vit
from jaxdiff.taps import Reader


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig(PublishedConfig):
    """Architecture numbers of the tower, named as in the published image_encoder/config.json.

    Raises
    ------
    ConfigError : an activation that is not offered, or sizes that do not divide.
    """

    irrelevant: ClassVar[frozenset[str]] = frozenset({"projection_dim"})

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        check_vit(self, "CLIPVision")

    @property
    def tokens(self) -> int:
        """M: the class token and one for each whole patch."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @classmethod
    def vit_h_14(cls) -> "CLIPVisionConfig":
        """laion/CLIP-ViT-H-14-laion2B-s32B-b79K, the image encoder of Wan 2.1: 630,766,080 parameters."""
        return cls(1280, 5120, 32, 16, patch_size=14, hidden_act="gelu")


class CLIPVisionOutput(NamedTuple):
    """What the tower makes of pictures, in the dtype of its weights.

    penultimate : [B, M, D], what leaves the block before the last; Wan is conditioned on it.
    last : [B, M, D], what leaves the last block.
    pooled : [B, D], its class token, normed.
    """

    penultimate: jax.Array
    last: jax.Array
    pooled: jax.Array


class CLIPVision(nnx.Module):
    """CLIP's image encoder; see `__call__`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jaxdiff.models.network import Network
    >>> config = CLIPVisionConfig(16, 32, 2, 2, image_size=28, patch_size=14)
    >>> Network.init(CLIPVision, config, seed=0)(jnp.zeros((1, 28, 28, 3))).penultimate.shape
    (1, 5, 16)
    """

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.config = config
        # Rows of the kernel are ordered (ph, pw, channel): patches flatten as channels-last arrays lie.
        self.patch_embedding = Linear(config.patch_size**2 * config.num_channels, width, bias=False, rngs=rngs)
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (width,)) * width**-0.5)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (config.tokens, width)) * 0.02)
        self.norm_in = LayerNorm(width, config.layer_norm_eps)
        numbers = width, config.num_attention_heads, config.intermediate_size, config.hidden_act, config.layer_norm_eps
        self.blocks = network.stack(lambda r: Block(*numbers, rngs=r), config.num_hidden_layers, rngs)
        self.norm_out = LayerNorm(width, config.layer_norm_eps)

    def __call__(self, pixels: jax.Array) -> CLIPVisionOutput:
        """Encode pictures.

        Parameters
        ----------
        pixels : [B, image_size, image_size, channels], as `jaxdiff.models.vision.to_pixels` makes them.

        Raises
        ------
        ConfigError : pictures of another size.
        """
        config, size = self.config, self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (size, size, config.num_channels):
            raise ConfigError(
                f"CLIPVision: pixels must be [B, {size}, {size}, {config.num_channels}], got {pixels.shape}"
            )
        edge = size // config.patch_size * config.patch_size  # a rest that fills no patch is not looked at
        x = self.patch_embedding(patchify(pixels[:, None, :edge, :edge], (1, config.patch_size, config.patch_size)))
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], 1) + self.positions[...].astype(x.dtype)
        x = self.norm_in(x).astype(x.dtype)

        def run(block, x, tap):
            return block(x[0], tap), x[0]

        reader = Reader((), (), layers=config.num_hidden_layers, grid=(1, 1, x.shape[1]))
        (last, penultimate), _ = network.scan(run, self.blocks, (x, x), reader)
        return CLIPVisionOutput(penultimate, last, self.norm_out(last[:, 0]).astype(x.dtype))
