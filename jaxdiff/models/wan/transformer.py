"""The video diffusion transformer of Wan 2.1 and 2.2 in Flax, text to video and image to video.

Reference: Wan, arXiv 2503.20314, section 4.2; numerics follow `WanTransformer3DModel` of diffusers, which the parity
suite compares with, tensor by tensor.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.kernels import sequence
from jaxdiff.models import network
from jaxdiff.models.layers import (
    MLP,
    ConfigFromDict,
    LayerNorm,
    Linear,
    RMSNorm,
    gelu,
    gelu_tanh,
    patchify,
    timestep_embedding,
    unpatchify,
)
from jaxdiff.taps import SITES, BlockReader, Reader

IMAGE_EPS = 1e-5  # of the norms around the image tokens; not in the configuration


@dataclasses.dataclass(frozen=True)
class WanTransformerConfig(ConfigFromDict):
    """Architecture numbers, named as in the published transformer/config.json."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int | None = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str | None = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None

    def __post_init__(self):
        if (self.image_dim is None) != (self.added_kv_proj_dim is None):
            raise ConfigError(
                f"WanTransformer: image_dim={self.image_dim} and added_kv_proj_dim={self.added_kv_proj_dim}: a checkpoint "
                "that attends to image tokens has both, any other neither"
            )
        if self.added_kv_proj_dim not in (None, self.width):
            raise ConfigError(
                f"WanTransformer: added_kv_proj_dim={self.added_kv_proj_dim} must be the width of the blocks, {self.width}"
            )
        if self.pos_embed_seq_len is not None and self.image_dim is None:
            raise ConfigError(f"WanTransformer: pos_embed_seq_len={self.pos_embed_seq_len} needs an image_dim")
        if self.attention_head_dim % 2:
            raise ConfigError(f"WanTransformer: attention_head_dim={self.attention_head_dim} must be even")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def channels(self) -> int:
        """Channels C of the latents that are denoised: as many as are predicted, of those that enter."""
        return min(self.in_channels, self.out_channels or self.in_channels)

    @property
    def image_channels(self) -> int:
        """Channels of the conditioning that enters beside the latents; 0 for text to video."""
        return self.in_channels - self.channels

    @classmethod
    def t2v_1_3b(cls) -> "WanTransformerConfig":
        """Wan-AI/Wan2.1-T2V-1.3B-Diffusers: 1,418,996,800 parameters."""
        return cls(num_attention_heads=12, ffn_dim=8960, num_layers=30)

    @classmethod
    def t2v_14b(cls) -> "WanTransformerConfig":
        """Wan-AI/Wan2.1-T2V-14B-Diffusers: 14,288,491,584 parameters."""
        return cls()

    @classmethod
    def i2v_14b(cls) -> "WanTransformerConfig":
        """Wan-AI/Wan2.1-I2V-14B-480P-Diffusers and -720P-Diffusers: 16,394,878,784 parameters."""
        return cls(in_channels=36, image_dim=1280, added_kv_proj_dim=5120)

    @classmethod
    def ti2v_5b(cls) -> "WanTransformerConfig":
        """Wan-AI/Wan2.2-TI2V-5B-Diffusers: 4,999,787,712 parameters."""
        return cls(num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30)

    @classmethod
    def t2v_a14b(cls) -> "WanTransformerConfig":
        """Each of the two experts of Wan-AI/Wan2.2-T2V-A14B-Diffusers: 14,288,491,584 parameters."""
        return cls()

    @classmethod
    def i2v_a14b(cls) -> "WanTransformerConfig":
        """Each of the two experts of Wan-AI/Wan2.2-I2V-A14B-Diffusers: 14,288,901,184 parameters."""
        return cls(in_channels=36)

    @classmethod
    def nano(cls) -> "WanTransformerConfig":
        """The demo's model, trained on generated scenes."""
        return cls(
            num_attention_heads=4,
            attention_head_dim=32,
            text_dim=16,
            freq_dim=64,
            ffn_dim=512,
            num_layers=5,
            rope_max_seq_len=64,
        )


class Attention(nnx.Module):
    """Multi-head attention with RMS-normalised queries and keys (across heads, before the split into heads).

    With `image`, it also attends to the tokens of an image: through keys and values of their own and a softmax of their
    own, whose result is added to the other's.
    """

    def __init__(self, config: WanTransformerConfig, *, image: bool = False, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.num_attention_heads
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.query_norm = RMSNorm(width, config.eps)
        self.key_norm = RMSNorm(width, config.eps)
        self.image_key = Linear(width, width, rngs=rngs) if image else None
        self.image_value = Linear(width, width, rngs=rngs) if image else None
        self.image_key_norm = RMSNorm(width, config.eps) if image else None

    def __call__(self, x, context, rope=None, image=None, tap: BlockReader | None = None):
        """x [B, Sq, D], context [B, S, D], image [B, M, D] -> [B, Sq, D]; self-attention has a `tap` and a `rope`."""
        q = self._split(self.query_norm(self.query(x)))
        k = self._split(self.key_norm(self.key(context)))
        v = self._split(self.value(context))
        if rope is not None:
            q, k = kernels.rotate_pairs(q, *rope), kernels.rotate_pairs(k, *rope)
        out = kernels.attention(q, k, v) if tap is None else tap.attend(q, k, v)
        if image is not None:
            assert self.image_key is not None and self.image_value is not None and self.image_key_norm is not None
            k = self._split(self.image_key_norm(self.image_key(image)))
            out = out + kernels.attention(q, k, self._split(self.image_value(image)))
        return self.out(out.reshape(x.shape))

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)


class ImageEmbedding(nnx.Module):
    """Tokens of the image encoder [B, M, image_dim] -> [B, M, D]; norms in float32.

    `pos_embed_seq_len`: the M tokens are those of a first and a last frame, told apart by learned positions.
    """

    def __init__(self, config: WanTransformerConfig, *, rngs: nnx.Rngs):
        assert config.image_dim is not None
        size, tokens = config.image_dim, config.pos_embed_seq_len
        self.positions = None if tokens is None else nnx.Param(jnp.zeros((tokens, size), jnp.float32))
        self.norm_in = LayerNorm(size, IMAGE_EPS)
        self.mlp = MLP(size, size, config.width, gelu, rngs=rngs)
        self.norm_out = LayerNorm(config.width, IMAGE_EPS)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        dtype = self.mlp.into.kernel.dtype
        x = tokens.astype(dtype)
        if self.positions is not None:
            x = x + self.positions[...].astype(dtype)
        return self.norm_out(self.mlp(self.norm_in(x))).astype(dtype)


class Block(nnx.Module):
    """One transformer block: modulated self-attention, cross-attention to text and image, modulated MLP."""

    def __init__(self, config: WanTransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.self_attention = Attention(config, rngs=rngs)
        self.cross_attention = Attention(config, image=config.image_dim is not None, rngs=rngs)
        self.norm = LayerNorm(width, config.eps, affine=False)
        self.cross_norm = LayerNorm(width, config.eps) if config.cross_attn_norm else None
        self.mlp = MLP(width, config.ffn_dim, width, gelu_tanh, rngs=rngs)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (6, width)) * width**-0.5)

    def __call__(self, x, text, image, modulation, rope, tap: BlockReader):
        """x [B, S, D] in the compute dtype, text [B, N, D], image [B, M, D] or None -> x [B, S, D].

        `modulation` is float32 [B, 6, D], or [B, G, 6, D] for G equal groups of consecutive tokens. Residual sums with
        a gate are formed in float32 and rounded once, as in the reference.
        """
        dtype = x.dtype
        modulation = self.modulation[...].astype(jnp.float32) + modulation
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _per_token(modulation, tap.tokens)
        x = tap("block_in", x)

        h = (self.norm(x) * (1 + scale) + shift).astype(dtype)
        h = tap("self_attention_out", self.self_attention(h, h, rope, tap=tap))
        x = (x + h * gate).astype(dtype)

        h = x if self.cross_norm is None else self.cross_norm(x).astype(dtype)
        h = tap("cross_attention_out", self.cross_attention(h, text, image=image))
        x = x + h

        h = (self.norm(x) * (1 + mlp_scale) + mlp_shift).astype(dtype)
        h = tap("mlp_out", self.mlp(h))
        x = (x + h.astype(jnp.float32) * mlp_gate).astype(dtype)
        return tap("block_out", x)


class WanTransformer(nnx.Module):
    """Velocity of Wan's flow, from latents, timestep, text embeddings and tokens of an image; see `__call__`."""

    sites = SITES

    def __init__(self, config: WanTransformerConfig, *, rngs: nnx.Rngs):
        width, patch = config.width, _volume(config.patch_size)
        self.config = config
        # Rows of the kernel are ordered (pt, ph, pw, channel): patches flatten as channels-last arrays lie.
        self.patch_embedding = Linear(patch * config.in_channels, width, rngs=rngs)
        self.time_embedding = MLP(config.freq_dim, width, width, jax.nn.silu, rngs=rngs)
        self.time_projection = Linear(width, 6 * width, rngs=rngs)
        self.text_embedding = MLP(config.text_dim, width, width, gelu_tanh, rngs=rngs)
        self.image_embedding = None if config.image_dim is None else ImageEmbedding(config, rngs=rngs)
        self.blocks = network.stack(lambda r: Block(config, rngs=r), config.num_layers, rngs)
        self.norm = LayerNorm(width, config.eps, affine=False)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, width)) * width**-0.5)
        self.out = Linear(width, patch * (config.out_channels or config.in_channels), rngs=rngs)

    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        image: jax.Array | None = None,
        *,
        taps=(),
        edits=(),
        sigma=None,
        key=None,
        remat: network.Remat = "none",
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One evaluation of the network.

        Parameters
        ----------
        latents : [B, T', H', W', in_channels]
        timestep : [B], 0 (clean) to 1000 (noise), or [B, G] for G equal groups of consecutive tokens, which lie by frame,
            row and column: one a patched frame, for example, or one a token.
        text : [B, N, text_dim]; Wan has no text mask, padded positions are zeros and attend.
        image : [B, M, image_dim], tokens of the image encoder, for checkpoints with an `image_dim`.
        taps, edits : see `jaxdiff.taps`; `sigma` and `key` are handed to the edits.
        remat : what the backward pass recomputes, see `jaxdiff.models.network.scan`.

        Returns
        -------
        output : [B, T', H', W', out_channels] in the compute dtype
        captured : tap name -> [rows, B, ...]
        """
        config = self.config
        patch = config.patch_size
        grid = (latents.shape[1] // patch[0], latents.shape[2] // patch[1], latents.shape[3] // patch[2])
        if any(n % p for n, p in zip(latents.shape[1:4], patch, strict=True)):
            raise ConfigError(f"latents {latents.shape}: T', H', W' must be multiples of the patch size {patch}")

        x = self.patch_embedding(sequence.own(patchify(latents, patch)))
        time = self.time_embedding(timestep_embedding(timestep, config.freq_dim)).astype(x.dtype)
        modulation = self.time_projection(jax.nn.silu(time)).astype(jnp.float32)
        modulation = modulation.reshape(*timestep.shape, 6, -1)
        text = self.text_embedding(text)
        if self.image_embedding is not None:
            assert image is not None  # `Wan.validate` says so better
            image = self.image_embedding(image)
        rope = tuple(sequence.own(table, 0) for table in kernels.rope_3d(grid, config.attention_head_dim))

        reader = Reader(taps, edits, layers=config.num_layers, grid=grid, sigma=sigma, key=key)

        def run(block, x, tap):
            return block(x, text, image, modulation, rope, tap)

        x, captured = network.scan(run, self.blocks, x, reader, remat=remat)

        tokens = math.prod(grid)
        shift, scale = _per_token(self.modulation[...] + time[..., None, :].astype(jnp.float32), tokens)
        x = self.out((self.norm(x) * (1 + scale) + shift).astype(x.dtype))
        return unpatchify(sequence.whole(x, tokens), grid, patch), captured


def _per_token(modulation: jax.Array, tokens: int) -> list[jax.Array]:
    """The n parts of [B, n, D], each [B, 1, D], or of [B, G, n, D], each [B, S, D] with a value a group of all `tokens`."""
    parts = jnp.split(modulation, modulation.shape[-2], axis=-2)
    if modulation.ndim == 3:
        return parts
    batch, groups, _, width = parts[0].shape
    shape = (batch, groups, tokens // groups, width)
    return [sequence.own(jnp.broadcast_to(part, shape).reshape(batch, tokens, width)) for part in parts]


def _volume(patch):
    return patch[0] * patch[1] * patch[2]
