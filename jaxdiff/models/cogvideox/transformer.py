"""The CogVideoX video diffusion transformer in Flax: 1.0 and 1.5, text to video and image to video.

Reference: CogVideoX, arXiv 2408.06072, section 2.2; numerics follow `CogVideoXTransformer3DModel` of diffusers, which the
parity suite compares with, tensor by tensor.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.kernels import sequence
from jaxdiff.models import network
from jaxdiff.models.cogvideox import positions
from jaxdiff.models.layers import (
    MLP,
    ConfigFromDict,
    LayerNorm,
    Linear,
    gelu_tanh,
    patchify,
    timestep_embedding,
    unpatchify,
)
from jaxdiff.taps import SITES, TEXT_SITE, BlockReader, Reader

QK_EPS = 1e-6  # of the norms of queries and keys; a constant of the reference


@dataclasses.dataclass(frozen=True)
class CogVideoXTransformerConfig(ConfigFromDict):
    """Architecture numbers, named as in the published transformer/config.json.

    `sample_height`, `sample_width` and `sample_frames` are the trained size in latent rows and columns and in video
    frames. `dropout` acts in training only and is not applied here. `patch_bias` is read for CogVideoX 1.0 alone: the
    patch embedding of 1.5 has a bias whatever it says.

    Raises
    ------
    ConfigError : a value that no published checkpoint has and that changes the computation, or sizes that do not fit.
    """

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embed_dim: int = 512
    ofs_embed_dim: int | None = None
    text_embed_dim: int = 4096
    num_layers: int = 30
    dropout: float = 0.0
    attention_bias: bool = True
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    patch_size_t: int | None = None
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = 226
    activation_fn: str = "gelu-approximate"
    timestep_activation_fn: str = "silu"
    norm_elementwise_affine: bool = True
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False
    patch_bias: bool = True

    def __post_init__(self):
        only = {
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "activation_fn": "gelu-approximate",
            "timestep_activation_fn": "silu",
            "norm_elementwise_affine": True,
        }
        for key, value in only.items():
            if getattr(self, key) != value:
                raise ConfigError(
                    f"CogVideoXTransformer: {key}={getattr(self, key)!r} is not supported, only {value!r}"
                )
        if self.ofs_embed_dim not in (None, self.time_embed_dim):
            raise ConfigError(
                f"CogVideoXTransformer: ofs_embed_dim={self.ofs_embed_dim} is added to the time embedding and must be "
                f"time_embed_dim={self.time_embed_dim}, or null"
            )
        turned = self.use_rotary_positional_embeddings
        if self.use_learned_positional_embeddings and not turned:
            raise ConfigError("CogVideoXTransformer: learned positions without rotary ones are in no checkpoint")
        size = self.attention_head_dim if turned else self.width
        if size % 16:
            what = "attention_head_dim" if turned else "num_attention_heads * attention_head_dim"
            raise ConfigError(f"CogVideoXTransformer: {what}={size} must be a multiple of 16 for its positions")
        if self.in_channels < self.out_channels:
            raise ConfigError(
                f"CogVideoXTransformer: in_channels={self.in_channels} hold the latents' out_channels="
                f"{self.out_channels} and, from image to video, those of the image"
            )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def text_dim(self) -> int:
        """Channels of the text embeddings."""
        return self.text_embed_dim

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a token."""
        return (self.patch_size_t or 1, self.patch_size, self.patch_size)

    @property
    def sample_grid(self) -> tuple[int, int, int]:
        """(T', H', W') in tokens of the trained size."""
        frames = (self.sample_frames - 1) // self.temporal_compression_ratio + 1
        return (frames // self.patch[0], self.sample_height // self.patch[1], self.sample_width // self.patch[2])

    @classmethod
    def cogvideox_2b(cls) -> "CogVideoXTransformerConfig":
        """THUDM/CogVideoX-2b: 1,693,783,872 parameters."""
        return cls()

    @classmethod
    def cogvideox_5b(cls) -> "CogVideoXTransformerConfig":
        """THUDM/CogVideoX-5b: 5,570,283,072 parameters."""
        return cls(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)

    @classmethod
    def cogvideox_5b_i2v(cls) -> "CogVideoXTransformerConfig":
        """THUDM/CogVideoX-5b-I2V: 5,570,479,680 parameters and a table of 17,776 positions."""
        return dataclasses.replace(cls.cogvideox_5b(), in_channels=32, use_learned_positional_embeddings=True)

    @classmethod
    def cogvideox1_5_5b(cls) -> "CogVideoXTransformerConfig":
        """THUDM/CogVideoX1.5-5B: 5,570,676,352 parameters."""
        return dataclasses.replace(
            cls.cogvideox_5b(),
            sample_width=300,
            sample_height=300,
            sample_frames=81,
            patch_size_t=2,
            max_text_seq_length=224,
            patch_bias=False,
        )

    @classmethod
    def cogvideox1_5_5b_i2v(cls) -> "CogVideoXTransformerConfig":
        """THUDM/CogVideoX1.5-5B-I2V: 5,571,594,880 parameters."""
        return dataclasses.replace(cls.cogvideox1_5_5b(), in_channels=32, ofs_embed_dim=512)


class Attention(nnx.Module):
    """Attention among all tokens, text and video; queries and keys are layer-normalised per head."""

    def __init__(self, config: CogVideoXTransformerConfig, *, rngs: nnx.Rngs):
        width, bias = config.width, config.attention_bias
        self.heads = config.num_attention_heads
        self.query = Linear(width, width, bias=bias, rngs=rngs)
        self.key = Linear(width, width, bias=bias, rngs=rngs)
        self.value = Linear(width, width, bias=bias, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.query_norm = LayerNorm(config.attention_head_dim, QK_EPS)
        self.key_norm = LayerNorm(config.attention_head_dim, QK_EPS)

    def __call__(self, x, rope, text_tokens: int, tap: BlockReader):
        """x [B, N + S, D], the text first -> [B, N + S, D]."""
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (self.query(x), self.key(x), self.value(x)))
        q, k = self.query_norm(q).astype(v.dtype), self.key_norm(k).astype(v.dtype)
        if rope is not None:
            q, k = kernels.rotate_pairs(q, *rope), kernels.rotate_pairs(k, *rope)
        return self.out(tap.attend(q, k, v, prefix=text_tokens).reshape(x.shape))


class Modulation(nnx.Module):
    """One layer norm for both streams; a shift, scale and gate for each, from the time embedding."""

    def __init__(self, config: CogVideoXTransformerConfig, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(config.width, config.norm_eps)
        self.table = Linear(config.time_embed_dim, 6 * config.width, rngs=rngs)

    def __call__(self, text, video, time):
        """-> the modulated streams as one sequence [B, N + S, D], and the function that adds a gated one [B, N + S, D]
        to the streams."""
        table = self.table(time).astype(jnp.float32)[:, None]
        shift, scale, gate, text_shift, text_scale, text_gate = jnp.split(table, 6, axis=-1)

        def modulated(x, shift, scale):
            return (self.norm(x) * (1 + scale) + shift).astype(x.dtype)

        def add(h):
            text_h, h = h[:, : text.shape[1]], h[:, text.shape[1] :]
            return (text + text_gate * text_h).astype(text.dtype), (video + gate * h).astype(video.dtype)

        return jnp.concatenate([modulated(text, text_shift, text_scale), modulated(video, shift, scale)], 1), add


class Block(nnx.Module):
    """One transformer block: attention over text and video together, then an MLP on each token."""

    def __init__(self, config: CogVideoXTransformerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.attention_modulation = Modulation(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_modulation = Modulation(config, rngs=rngs)
        self.mlp = MLP(width, 4 * width, width, gelu_tanh, rngs=rngs)

    def __call__(self, text, video, time, rope, tap: BlockReader):
        """text [B, N, D], video [B, S, D], time [B, time_embed_dim] float32 -> text, video.

        Taps and edits see the video's tokens. The frame map is that of the video's queries over the video's keys: each
        query's attention to the text is left out and the rest brought back to a sum of one, so that rows sum to one as
        they do where text is attended to elsewhere.
        """
        video = tap("block_in", video)

        def read(site, h):
            return jnp.concatenate([h[:, : text.shape[1]], tap(site, h[:, text.shape[1] :])], 1)

        h, add = self.attention_modulation(text, video, time)
        h = self.attention(h, rope, text.shape[1], tap)
        text, video = add(read("self_attention_out", h))

        h, add = self.mlp_modulation(text, video, time)
        text, video = add(read("mlp_out", self.mlp(h)))
        return text, tap("block_out", video)


class CogVideoXTransformer(nnx.Module):
    """What CogVideoX predicts (v) from latents, timestep and text embeddings; see `__call__`."""

    sites = tuple(site for site in SITES if site != "cross_attention_out")
    written = (*sites, TEXT_SITE)

    def __init__(self, config: CogVideoXTransformerConfig, *, rngs: nnx.Rngs):
        width, time_width = config.width, config.time_embed_dim
        patch = config.patch[0] * config.patch[1] * config.patch[2]
        self.config = config
        # Rows of the kernel are ordered (pt, ph, pw, channel): patches flatten as channels-last arrays lie.
        bias = config.patch_bias or config.patch_size_t is not None
        self.patch_embedding = Linear(patch * config.in_channels, width, bias=bias, rngs=rngs)
        self.text_embedding = Linear(config.text_embed_dim, width, rngs=rngs)
        self.time_embedding = MLP(width, time_width, time_width, jax.nn.silu, rngs=rngs)
        ofs_width = config.ofs_embed_dim
        self.ofs_embedding = MLP(ofs_width, ofs_width, ofs_width, jax.nn.silu, rngs=rngs) if ofs_width else None
        t, h, w = config.sample_grid
        table = jnp.zeros((config.max_text_seq_length + t * h * w, width), jnp.float32)
        self.positions = nnx.Param(table) if config.use_learned_positional_embeddings else None
        self.blocks = network.stack(lambda r: Block(config, rngs=r), config.num_layers, rngs)
        self.video_norm = LayerNorm(width, config.norm_eps)
        self.norm = LayerNorm(width, config.norm_eps)
        self.modulation = Linear(time_width, 2 * width, rngs=rngs)
        self.out = Linear(width, patch * config.out_channels, rngs=rngs)

    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        ofs: jax.Array | None = None,
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
        latents : [B, T', H', W', in_channels]; from image to video, the image's channels come last.
        timestep : [B], 0 to 999
        text : [B, N, text_embed_dim]; CogVideoX has no text mask, padded positions attend.
        ofs : [B], for checkpoints with `ofs_embed_dim`
        taps, edits : see `jaxdiff.taps`; `sigma` and `key` are handed to the edits.
        remat : what the backward pass recomputes, see `jaxdiff.models.network.scan`.

        Returns
        -------
        output : [B, T', H', W', out_channels] in the compute dtype
        captured : tap name -> [rows, B, ...]

        Raises
        ------
        ConfigError : the latents or the text do not fit the checkpoint's patches or positions.
        """
        config = self.config
        check_size(config, latents.shape, text.shape[1])
        t, h, w = (n // p for n, p in zip(latents.shape[1:4], config.patch, strict=True))
        grid = (t, h, w)

        time = self.time_embedding(timestep_embedding(timestep, config.width))
        if self.ofs_embedding is not None:
            assert ofs is not None and config.ofs_embed_dim  # such a checkpoint is always told one
            time = time + self.ofs_embedding(timestep_embedding(ofs, config.ofs_embed_dim))
        time = jax.nn.silu(time.astype(jnp.float32))

        video = self.patch_embedding(sequence.own(patchify(latents, config.patch)))
        text = self.text_embedding(text)
        rope = None
        if config.use_rotary_positional_embeddings:
            base = None if config.patch_size_t else config.sample_grid[1:]
            tables = positions.rotary(grid, config.attention_head_dim, base, still=text.shape[1])
            rope = tuple(sequence.own(table, 0, text.shape[1]) for table in tables)
        else:
            scales = config.spatial_interpolation_scale, config.temporal_interpolation_scale
            video = video + sequence.own(positions.sincos(grid, config.width, *scales), 0).astype(video.dtype)
        if self.positions is not None:
            table = self.positions[...].astype(video.dtype)
            text, video = text + table[: text.shape[1]], video + sequence.own(table[text.shape[1] :], 0)

        def run(block, streams, tap):
            return block(*streams, time, rope, tap)

        reader = Reader(taps, edits, layers=config.num_layers, grid=grid, sigma=sigma, key=key)
        (_, video), captured = network.scan(run, self.blocks, (text, video), reader, remat=remat)

        shift, scale = jnp.split(self.modulation(time).astype(jnp.float32)[:, None], 2, axis=-1)
        dtype = video.dtype
        video = self.video_norm(video).astype(dtype)
        video = self.out((self.norm(video) * (1 + scale) + shift).astype(dtype))
        return unpatchify(sequence.whole(video, t * h * w), grid, config.patch), captured


def check_size(config: CogVideoXTransformerConfig, shape: tuple[int, ...], text_tokens: int) -> None:
    """Raise a `ConfigError` for latents [B, T', H', W', C] or a text that the checkpoint has no patches or positions
    for."""
    if any(n % p or not n for n, p in zip(shape[1:4], config.patch, strict=True)):
        hint = "choose another video size"
        if shape[1] % config.patch[0]:
            hint = "repeat the first latent frame in front, as the published pipeline pads, or choose another length"
        raise ConfigError(f"latents {shape}: T', H', W' must be multiples of the patch size {config.patch}; {hint}")
    grid = tuple(n // p for n, p in zip(shape[1:4], config.patch, strict=True))
    if config.use_learned_positional_embeddings:
        # diffusers adds sines, which the checkpoint was not trained with, where the number of frames is another.
        if grid != config.sample_grid or text_tokens != config.max_text_seq_length:
            size = tuple(n * p for n, p in zip(config.sample_grid, config.patch, strict=True))
            raise ConfigError(
                f"this checkpoint has learned positions for latents of T', H', W' = {size} and "
                f"{config.max_text_seq_length} text tokens, and for no other size; got {shape[1:4]} and {text_tokens}"
            )
    elif config.patch_size_t and any(n > m for n, m in zip(grid[1:], config.sample_grid[1:], strict=True)):
        largest = tuple(n * config.patch_size for n in config.sample_grid[1:])
        raise ConfigError(
            f"latents {shape}: this checkpoint has positions for at most {largest} latent rows and columns"
        )
