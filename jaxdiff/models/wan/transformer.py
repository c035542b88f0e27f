"""The Wan 2.1 video diffusion transformer (text to video) in Flax.

Reference: Wan, arXiv 2503.20314, section 4.2; numerics follow `WanTransformer3DModel` of diffusers, which the parity
suite compares with, tensor by tensor.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.models import network
from jaxdiff.models.layers import (
    MLP,
    ConfigFromDict,
    LayerNorm,
    Linear,
    RMSNorm,
    gelu_tanh,
    patchify,
    timestep_embedding,
    unpatchify,
)
from jaxdiff.taps import SITES, BlockReader, Reader


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
        for key in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
            if getattr(self, key) is not None:
                raise ConfigError(
                    f"WanTransformer: {key}={getattr(self, key)} belongs to an image-to-video checkpoint; "
                    "text-to-video checkpoints are supported"
                )
        if self.attention_head_dim % 2:
            raise ConfigError(f"WanTransformer: attention_head_dim={self.attention_head_dim} must be even")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def t2v_1_3b(cls) -> "WanTransformerConfig":
        """Wan-AI/Wan2.1-T2V-1.3B-Diffusers: 1,418,996,800 parameters."""
        return cls(num_attention_heads=12, ffn_dim=8960, num_layers=30)

    @classmethod
    def t2v_14b(cls) -> "WanTransformerConfig":
        """Wan-AI/Wan2.1-T2V-14B-Diffusers: 14,288,491,584 parameters."""
        return cls()

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
    """Multi-head attention with RMS-normalised queries and keys (across heads, before the split into heads)."""

    def __init__(self, config: WanTransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.num_attention_heads
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.query_norm = RMSNorm(width, config.eps)
        self.key_norm = RMSNorm(width, config.eps)

    def __call__(self, x, context, rope=None, frames=None):
        """x [B, Sq, D], context [B, S, D] -> [B, Sq, D], and with `frames` the frame map [B, K, T', T']."""
        q = self._split(self.query_norm(self.query(x)))
        k = self._split(self.key_norm(self.key(context)))
        v = self._split(self.value(context))
        if rope is not None:
            q, k = kernels.rotate_pairs(q, *rope), kernels.rotate_pairs(k, *rope)
        frame_map = None
        if frames is None:
            out = kernels.attention(q, k, v)
        else:
            out, frame_map = kernels.attention_with_frame_map(q, k, v, frames=frames)
        return self.out(out.reshape(x.shape)), frame_map

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)


class Block(nnx.Module):
    """One transformer block: modulated self-attention, cross-attention to the text, modulated MLP."""

    def __init__(self, config: WanTransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.self_attention = Attention(config, rngs=rngs)
        self.cross_attention = Attention(config, rngs=rngs)
        self.norm = LayerNorm(width, config.eps, affine=False)
        self.cross_norm = LayerNorm(width, config.eps) if config.cross_attn_norm else None
        self.mlp = MLP(width, config.ffn_dim, width, gelu_tanh, rngs=rngs)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (6, width)) * width**-0.5)

    def __call__(self, x, text, modulation, rope, tap: BlockReader):
        """x [B, S, D] in the compute dtype, text [B, N, D], modulation [B, 6, D] float32 -> x [B, S, D].

        Residual sums with a gate are formed in float32 and rounded once, as in the reference.
        """
        dtype = x.dtype
        modulation = self.modulation[...].astype(jnp.float32) + modulation
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, axis=1)
        x = tap("block_in", x)

        h = (self.norm(x) * (1 + scale) + shift).astype(dtype)
        h, frame_map = self.self_attention(h, h, rope, tap.grid[0] if tap.wants_map else None)
        if frame_map is not None:
            tap("self_attention_map", frame_map)
        h = tap("self_attention_out", h)
        x = (x + h * gate).astype(dtype)

        h = x if self.cross_norm is None else self.cross_norm(x).astype(dtype)
        h = tap("cross_attention_out", self.cross_attention(h, text)[0])
        x = x + h

        h = (self.norm(x) * (1 + mlp_scale) + mlp_shift).astype(dtype)
        h = tap("mlp_out", self.mlp(h))
        x = (x + h.astype(jnp.float32) * mlp_gate).astype(dtype)
        return tap("block_out", x)


class WanTransformer(nnx.Module):
    """Velocity of Wan's flow, from latents, timestep and text embeddings; see `__call__`."""

    sites = SITES

    def __init__(self, config: WanTransformerConfig, *, rngs: nnx.Rngs):
        width, patch = config.width, _volume(config.patch_size)
        self.config = config
        # Rows of the kernel are ordered (pt, ph, pw, channel): patches flatten as channels-last arrays lie.
        self.patch_embedding = Linear(patch * config.in_channels, width, rngs=rngs)
        self.time_embedding = MLP(config.freq_dim, width, width, jax.nn.silu, rngs=rngs)
        self.time_projection = Linear(width, 6 * width, rngs=rngs)
        self.text_embedding = MLP(config.text_dim, width, width, gelu_tanh, rngs=rngs)
        self.blocks = network.stack(lambda r: Block(config, rngs=r), config.num_layers, rngs)
        self.norm = LayerNorm(width, config.eps, affine=False)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, width)) * width**-0.5)
        self.out = Linear(width, patch * (config.out_channels or config.in_channels), rngs=rngs)

    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        *,
        taps=(),
        edits=(),
        sigma=None,
        key=None,
        remat: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One evaluation of the network.

        Parameters
        ----------
        latents : [B, T', H', W', C]
        timestep : [B], 0 (clean) to 1000 (noise)
        text : [B, N, text_dim]; Wan has no text mask, padded positions are zeros and attend.
        taps, edits : see `jaxdiff.taps`; `sigma` and `key` are handed to the edits.
        remat : recompute each block in the backward pass instead of keeping its activations.

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

        x = self.patch_embedding(patchify(latents, patch))
        time = self.time_embedding(timestep_embedding(timestep, config.freq_dim)).astype(x.dtype)
        modulation = self.time_projection(jax.nn.silu(time)).astype(jnp.float32)
        modulation = modulation.reshape(x.shape[0], 6, -1)
        text = self.text_embedding(text)
        rope = kernels.rope_3d(grid, config.attention_head_dim)

        reader = Reader(taps, edits, layers=config.num_layers, grid=grid, sigma=sigma, key=key)

        def run(block, x, tap):
            return block(x, text, modulation, rope, tap)

        x, captured = network.scan(run, self.blocks, x, reader, remat=remat)

        shift, scale = jnp.split(self.modulation[...] + time[:, None].astype(jnp.float32), 2, axis=1)
        x = self.out((self.norm(x) * (1 + scale) + shift).astype(x.dtype))
        return unpatchify(x, grid, patch), captured


def _volume(patch):
    return patch[0] * patch[1] * patch[2]
