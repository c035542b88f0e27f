"""The Cosmos video diffusion transformer in Flax: Predict2 and Predict2.5.

Reference: Cosmos World Foundation Model Platform, arXiv 2501.03575, section 5.1; numerics follow `CosmosTransformer3DModel`
of diffusers, which the parity suite compares with, tensor by tensor.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.models import network
from jaxdiff.models.cosmos.positions import EPS, Grid3, LearnedPositions, rotary, token_grid
from jaxdiff.models.layers import (
    MLP,
    ConfigFromDict,
    LayerNorm,
    Linear,
    RMSNorm,
    patchify,
    timestep_embedding,
    unpatchify,
)
from jaxdiff.taps import SITES, BlockReader, Reader

QK_EPS = 1e-5  # of the norms of queries and keys; a constant of the reference

gelu = functools.partial(jax.nn.gelu, approximate=False)


@dataclasses.dataclass(frozen=True)
class CosmosTransformerConfig(ConfigFromDict):
    """Architecture numbers, named as in the published transformer/config.json.

    `in_channels` counts the latents and, in checkpoints that continue a video, the mask of the frames that are given;
    not the padding mask. `max_size` is the largest (T', H', W'). Where `use_crossattn_projection`, the text has
    `crossattn_proj_in_channels` and is projected; the image fields belong to Cosmos-Transfer and are not used.

    Raises
    ------
    ConfigError : a value that no published Cosmos-Predict checkpoint has and that changes the computation, or sizes
        that do not fit.
    """

    in_channels: int = 16
    out_channels: int = 16
    num_attention_heads: int = 32
    attention_head_dim: int = 128
    num_layers: int = 28
    mlp_ratio: float = 4.0
    text_embed_dim: int = 1024
    adaln_lora_dim: int = 256
    max_size: Grid3 = (128, 240, 240)
    patch_size: Grid3 = (1, 2, 2)
    rope_scale: tuple[float, float, float] = (2.0, 1.0, 1.0)
    concat_padding_mask: bool = True
    extra_pos_embed_type: str | None = "learnable"
    use_crossattn_projection: bool = False
    crossattn_proj_in_channels: int = 1024
    encoder_hidden_states_channels: int = 1024
    controlnet_block_every_n: int | None = None
    img_context_dim_in: int | None = None
    img_context_num_tokens: int = 256
    img_context_dim_out: int = 2048

    def __post_init__(self):
        for key in ("controlnet_block_every_n", "img_context_dim_in"):
            if getattr(self, key):
                raise ConfigError(
                    f"CosmosTransformer: {key}={getattr(self, key)} belongs to Cosmos-Transfer; Cosmos-Predict "
                    "checkpoints are supported"
                )
        if self.extra_pos_embed_type not in (None, "learnable"):
            raise ConfigError(
                f"CosmosTransformer: extra_pos_embed_type={self.extra_pos_embed_type!r} is not supported, only "
                "'learnable' or null"
            )
        if self.patch_size[0] != 1:
            raise ConfigError(f"CosmosTransformer: a patch must be one latent frame, got patch_size={self.patch_size}")
        if self.attention_head_dim % 2 or self.attention_head_dim < 12:
            raise ConfigError(
                f"CosmosTransformer: attention_head_dim={self.attention_head_dim} must be even and at least 12 for "
                "its rotary embedding"
            )
        if self.use_crossattn_projection and self.encoder_hidden_states_channels != self.text_embed_dim:
            raise ConfigError(
                f"CosmosTransformer: the text is projected to encoder_hidden_states_channels="
                f"{self.encoder_hidden_states_channels}, which must be text_embed_dim={self.text_embed_dim}"
            )
        if self.in_channels - self.out_channels not in (0, 1):
            raise ConfigError(
                f"CosmosTransformer: in_channels={self.in_channels} must be out_channels={self.out_channels}, or one "
                "more for the mask of the frames that are given"
            )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_dim(self) -> int:
        """Channels of the text embeddings."""
        return self.crossattn_proj_in_channels if self.use_crossattn_projection else self.text_embed_dim

    @property
    def continues(self) -> bool:
        """Whether the network is told which frames are given."""
        return self.in_channels > self.out_channels

    @property
    def channels(self) -> int:
        """Channels of a patch, the padding mask included."""
        return self.in_channels + self.concat_padding_mask

    @property
    def max_grid(self) -> Grid3:
        """The largest (T', H', W') in tokens."""
        t, h, w = (size // patch for size, patch in zip(self.max_size, self.patch_size, strict=True))
        return (t, h, w)

    @classmethod
    def predict2_2b_text2image(cls) -> "CosmosTransformerConfig":
        """nvidia/Cosmos-Predict2-2B-Text2Image: 1,956,405,248 parameters."""
        return cls(num_attention_heads=16, rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None)

    @classmethod
    def predict2_14b_text2image(cls) -> "CosmosTransformerConfig":
        """nvidia/Cosmos-Predict2-14B-Text2Image: 14,265,265,152 parameters."""
        return dataclasses.replace(cls.predict2_2b_text2image(), num_attention_heads=40, num_layers=36)

    @classmethod
    def predict2_2b_video2world(cls) -> "CosmosTransformerConfig":
        """nvidia/Cosmos-Predict2-2B-Video2World: 1,956,413,440 parameters."""
        return dataclasses.replace(cls.predict2_2b_text2image(), in_channels=17, rope_scale=(1.0, 3.0, 3.0))

    @classmethod
    def predict2_14b_video2world(cls) -> "CosmosTransformerConfig":
        """nvidia/Cosmos-Predict2-14B-Video2World: 14,265,285,632 parameters."""
        return dataclasses.replace(cls.predict2_14b_text2image(), in_channels=17, rope_scale=(20 / 24, 2.0, 2.0))

    @classmethod
    def predict2_5_2b(cls) -> "CosmosTransformerConfig":
        """nvidia/Cosmos-Predict2.5-2B: 2,059,174,912 parameters."""
        return dataclasses.replace(
            cls.predict2_2b_video2world(), use_crossattn_projection=True, crossattn_proj_in_channels=100352
        )

    @classmethod
    def predict2_5_14b(cls) -> "CosmosTransformerConfig":
        """nvidia/Cosmos-Predict2.5-14B: 14,368,047,104 parameters."""
        return dataclasses.replace(cls.predict2_5_2b(), num_attention_heads=40, num_layers=36)


class Modulation(nnx.Module):
    """Adaptive layer norm whose table is of low rank, beside the table that all blocks share (AdaLN-LoRA)."""

    def __init__(self, config: CosmosTransformerConfig, parts: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.width, EPS, affine=False)
        self.into = Linear(config.width, config.adaln_lora_dim, bias=False, rngs=rngs)
        self.out = Linear(config.adaln_lora_dim, parts * config.width, bias=False, rngs=rngs)

    def __call__(self, x, time, shared):
        """x [B, S, D], time [B, F, D] and shared [B, F, 3 D] for F = 1 or T' -> x modulated, in the dtype of x, and the
        gate [B, F, 1, D] float32 if there is a third part."""
        table = self.out(self.into(jax.nn.silu(time))).astype(jnp.float32)
        table = table + shared[..., : table.shape[-1]]
        shift, scale, *gate = jnp.split(table[:, :, None], table.shape[-1] // x.shape[-1], -1)
        return _over_frames(lambda x: self.norm(x) * (1 + scale) + shift, shift, x).astype(x.dtype), gate


class Attention(nnx.Module):
    """Multi-head attention without biases, queries and keys RMS-normalised per head."""

    def __init__(self, config: CosmosTransformerConfig, context: int, *, rngs: nnx.Rngs):
        width, head = config.width, config.attention_head_dim
        self.heads = config.num_attention_heads
        self.query = Linear(width, width, bias=False, rngs=rngs)
        self.key = Linear(context, width, bias=False, rngs=rngs)
        self.value = Linear(context, width, bias=False, rngs=rngs)
        self.out = Linear(width, width, bias=False, rngs=rngs)
        self.query_norm = RMSNorm(head, QK_EPS)
        self.key_norm = RMSNorm(head, QK_EPS)

    def __call__(self, x, context, rope=None, tap: BlockReader | None = None):
        """x [B, Sq, D], context [B, S, C] -> [B, Sq, D]; self-attention has a `tap` and a `rope`."""
        q, k, v = (
            y.reshape(*y.shape[:2], self.heads, -1) for y in (self.query(x), self.key(context), self.value(context))
        )
        q, k = self.query_norm(q), self.key_norm(k)
        if rope is not None:
            q, k = kernels.rotate_halves(q, *rope), kernels.rotate_halves(k, *rope)
        out = kernels.attention(q, k, v) if tap is None else tap.attend(q, k, v)
        return self.out(out.reshape(x.shape))


class Block(nnx.Module):
    """One transformer block: self-attention, cross-attention to the text and an MLP, each modulated and gated."""

    def __init__(self, config: CosmosTransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.attention_modulation = Modulation(config, 3, rngs=rngs)
        self.self_attention = Attention(config, width, rngs=rngs)
        self.cross_modulation = Modulation(config, 3, rngs=rngs)
        self.cross_attention = Attention(config, config.text_embed_dim, rngs=rngs)
        self.mlp_modulation = Modulation(config, 3, rngs=rngs)
        self.mlp = MLP(width, int(width * config.mlp_ratio), width, gelu, bias=False, rngs=rngs)

    def __call__(self, x, text, time, shared, rope, positions, tap: BlockReader):
        """x [B, S, D] in the compute dtype, text [B, N, C], time [B, F, D] and shared [B, F, 3 D] -> x [B, S, D].

        Learned positions, where there are any, join at every block.
        """
        x = tap("block_in", x)
        if positions is not None:
            x = x + positions

        h, gate = self.attention_modulation(x, time, shared)
        x = _gated(x, tap("self_attention_out", self.self_attention(h, h, rope, tap)), *gate)

        h, gate = self.cross_modulation(x, time, shared)
        x = _gated(x, tap("cross_attention_out", self.cross_attention(h, text)), *gate)

        h, gate = self.mlp_modulation(x, time, shared)
        x = _gated(x, tap("mlp_out", self.mlp(h)), *gate)
        return tap("block_out", x)


class CosmosTransformer(nnx.Module):
    """Output of the Cosmos network, from latents, timestep and text embeddings; see `__call__`."""

    sites = SITES

    def __init__(self, config: CosmosTransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        patch = config.patch_size[1] * config.patch_size[2]
        self.config = config
        self.patch_embedding = Linear(patch * config.channels, width, bias=False, rngs=rngs)
        self.time_embedding = MLP(width, width, 3 * width, jax.nn.silu, bias=False, rngs=rngs)
        self.time_norm = RMSNorm(width, EPS)
        self.text_embedding = (
            Linear(config.text_dim, config.text_embed_dim, rngs=rngs) if config.use_crossattn_projection else None
        )
        self.positions = LearnedPositions(config, rngs=rngs) if config.extra_pos_embed_type else None
        self.blocks = network.stack(lambda r: Block(config, rngs=r), config.num_layers, rngs)
        self.modulation = Modulation(config, 2, rngs=rngs)
        self.out = Linear(width, patch * config.out_channels, bias=False, rngs=rngs)

    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        *,
        padding_mask: jax.Array | None = None,
        fps: jax.Array | float | None = None,
        taps=(),
        edits=(),
        sigma=None,
        key=None,
        remat: network.Remat = "none",
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One evaluation of the network.

        Parameters
        ----------
        latents : [B, T', H', W', in_channels]; in checkpoints that continue a video the last channel is 1 in the frames
            that are given and 0 in the others.
        timestep : [B], or [B, T'] for one of every latent frame's own; 0 (clean) to 1 (noise)
        text : [B, N, text_dim], all of which is attended to
        padding_mask : [B or 1, H', W'], 1 where the video was padded; None: nowhere.
        fps : frames per second of the video, one number or [B], by which positions in time are scaled; None: 24, the
            rate at which they are not.
        taps, edits : see `jaxdiff.taps`; `sigma` and `key` are handed to the edits.
        remat : what the backward pass recomputes, see `jaxdiff.models.network.scan`.

        Returns
        -------
        output : [B, T', H', W', out_channels] in the compute dtype
        captured : tap name -> [rows, B, ...]
        """
        config = self.config
        grid = token_grid(config, latents.shape)
        if config.concat_padding_mask:
            mask = jnp.zeros((1, *latents.shape[2:4])) if padding_mask is None else jnp.asarray(padding_mask)
            mask = jnp.broadcast_to(mask[:, None, :, :, None], (*latents.shape[:4], 1))
            latents = jnp.concatenate([latents, mask.astype(latents.dtype)], -1)

        x = self.patch_embedding(patchify(latents, config.patch_size))
        timestep = timestep if timestep.ndim == 2 else timestep[:, None]
        features = timestep_embedding(timestep, config.width)
        shared = self.time_embedding(features).astype(jnp.float32)
        time = self.time_norm(features)
        if self.text_embedding is not None:
            text = gelu(self.text_embedding(text))
        rope = rotary(config, grid, fps)
        positions = None if self.positions is None else self.positions(grid).astype(x.dtype)

        def run(block, x, tap):
            return block(x, text, time, shared, rope, positions, tap)

        reader = Reader(taps, edits, layers=config.num_layers, grid=grid, sigma=sigma, key=key)
        x, captured = network.scan(run, self.blocks, x, reader, remat=remat)
        x, _ = self.modulation(x, time, shared)
        return unpatchify(self.out(x), grid, config.patch_size), captured


def _gated(x, h, gate):
    """``x + gate h`` in float32, rounded once; gate [B, F, 1, D]."""
    return (x + _over_frames(lambda h: h * gate, gate, h)).astype(x.dtype)


def _over_frames(f, table, x):
    """f of x [B, S, D] as [B, F, S / F, D], where the table [B, F, 1, D] has F frames."""
    return f(x.reshape(x.shape[0], table.shape[1], -1, x.shape[-1])).reshape(x.shape)
