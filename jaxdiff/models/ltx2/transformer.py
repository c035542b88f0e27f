"""The LTX-2 diffusion transformer (text to video and audio) in Flax.

Reference: LTX-2, arXiv 2601.03233; numerics follow `LTX2VideoTransformer3DModel` of diffusers, which the parity suite
compares with, tensor by tensor.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.models import network
from jaxdiff.models.layers import MLP, LayerNorm, Linear, RMSNorm, gelu_tanh, timestep_embedding
from jaxdiff.models.ltx2.config import LTX2TransformerConfig
from jaxdiff.models.ltx2.layers import Attention, RotaryKind, Rotation
from jaxdiff.taps import SITES, BlockReader, Reader

TIME_FEATURES = 256  # sinusoidal features of the timestep; a constant of the reference
# Directions of the attention between the streams, in the order of its modulations.
TO_VIDEO, TO_AUDIO = 0, 1


class TimeModulation(nnx.Module):
    """`count` modulations of `width` channels from a timestep."""

    def __init__(self, width: int, count: int, *, rngs: nnx.Rngs):
        self.count = count
        self.embedding = MLP(TIME_FEATURES, width, width, jax.nn.silu, rngs=rngs)
        self.projection = Linear(width, count * width, rngs=rngs)

    def __call__(self, timestep: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, 1 or S] -> modulations [B, 1 or S, count, width], embedding [B, 1 or S, width]; float32."""
        time = self.embedding(timestep_embedding(timestep, TIME_FEATURES))
        table = self.projection(jax.nn.silu(time)).astype(jnp.float32)
        return table.reshape(*time.shape[:2], self.count, -1), time.astype(jnp.float32)


class Given(NamedTuple):
    """What one stream is given, the same in every block."""

    text: jax.Array  # [B, N, D]
    text_bias: jax.Array | None  # [B, 1, 1, N]
    modulation: jax.Array  # [B, 1 or S, 6, D] float32: shift, scale and gate of self-attention, then of the MLP
    between: jax.Array  # [B, 1 or S, 5, D] float32: scale and shift of either direction, and the gate of this stream
    rotation: Rotation
    between_rotation: Rotation


class Stream(nnx.Module):
    """What a block does with one of the two streams, video or audio."""

    def __init__(
        self, config: LTX2TransformerConfig, width: int, other: int, heads: int, head_dim: int, *, rngs: nnx.Rngs
    ):
        bias = {"bias": config.attention_bias, "out_bias": config.attention_out_bias}
        between = (config.audio_num_attention_heads, config.audio_attention_head_dim)
        self.self_attention = Attention(width, width, heads, head_dim, **bias, rngs=rngs)
        self.cross_attention = Attention(width, width, heads, head_dim, **bias, rngs=rngs)
        self.other_attention = Attention(width, other, *between, **bias, rngs=rngs)
        self.norm = RMSNorm(width, config.norm_eps, affine=False)
        self.mlp = MLP(width, 4 * width, width, gelu_tanh, rngs=rngs)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (6, width)) * width**-0.5)
        self.between = nnx.Param(jax.random.normal(rngs.params(), (5, width)))

    def attend(self, x, given: Given, tap: BlockReader | None):
        """Modulated self-attention, then attention to the text, which sees normalised tokens and is not gated."""
        shift, scale, gate = self._rows(self.modulation, given.modulation)[:3]
        h = self._modulated(x, scale, shift)
        h = self.self_attention(h, h, rotation=given.rotation, tap=tap)
        h = h if tap is None else tap("self_attention_out", h)
        x = (x + h * gate).astype(x.dtype)
        h = self.cross_attention(self.norm(x), given.text, bias=given.text_bias)
        return x + (h if tap is None else tap("cross_attention_out", h))

    def offered(self, x, given: Given, direction: int):
        """The tokens as the attention between the streams sees them in a direction."""
        rows = self._rows(self.between, given.between)
        return self._modulated(x, rows[2 * direction], rows[2 * direction + 1])

    def listen(self, x, own, other, given: Given, other_given: Given):
        """x plus the gated attention of its `own` offered tokens to those of the other stream."""
        h = self.other_attention(
            own, other, rotation=given.between_rotation, context_rotation=other_given.between_rotation
        )
        return (x + h * self._rows(self.between, given.between)[4]).astype(x.dtype)

    def transform(self, x, given: Given, tap: BlockReader | None):
        """The modulated MLP."""
        shift, scale, gate = self._rows(self.modulation, given.modulation)[3:]
        h = self.mlp(self._modulated(x, scale, shift))
        h = h if tap is None else tap("mlp_out", h)
        return (x + h * gate).astype(x.dtype)

    def _rows(self, table: nnx.Param, given: jax.Array) -> jax.Array:
        return jnp.moveaxis(table[...].astype(jnp.float32) + given, 2, 0)

    def _modulated(self, x, scale, shift):
        return (self.norm(x.astype(jnp.float32)) * (1 + scale) + shift).astype(x.dtype)


class Block(nnx.Module):
    """One block: in each stream self-attention and attention to the text, then each attends to the other, then MLPs."""

    def __init__(self, config: LTX2TransformerConfig, *, rngs: nnx.Rngs):
        width, audio = config.width, config.audio_width
        self.video = Stream(config, width, audio, config.num_attention_heads, config.attention_head_dim, rngs=rngs)
        self.audio = Stream(
            config, audio, width, config.audio_num_attention_heads, config.audio_attention_head_dim, rngs=rngs
        )

    def __call__(self, streams, video_given: Given, audio_given: Given | None, tap: BlockReader):
        """(video [B, S, D], audio [B, L, Da] or None) -> the same; without audio, the video is alone."""
        video, audio = streams
        video = self.video.attend(tap("block_in", video), video_given, tap)
        if audio_given is not None:
            audio = self.audio.attend(audio, audio_given, None)
            asks, answers = (
                (self.video.offered(video, video_given, direction), self.audio.offered(audio, audio_given, direction))
                for direction in (TO_VIDEO, TO_AUDIO)
            )
            video = self.video.listen(video, *asks, video_given, audio_given)
            audio = self.audio.listen(audio, *answers[::-1], audio_given, video_given)
            audio = self.audio.transform(audio, audio_given, None)
        return tap("block_out", self.video.transform(video, video_given, tap)), audio


class Ends(nnx.Module):
    """What surrounds the blocks in one stream."""

    def __init__(self, config: LTX2TransformerConfig, width: int, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.patch_embedding = Linear(inputs, width, rngs=rngs)
        self.text_embedding = MLP(config.caption_channels, width, width, gelu_tanh, rngs=rngs)
        self.time = TimeModulation(width, 6, rngs=rngs)
        self.between = TimeModulation(width, 4, rngs=rngs)
        self.between_gate = TimeModulation(width, 1, rngs=rngs)
        self.norm = LayerNorm(width, 1e-6, affine=False)
        self.modulation = nnx.Param(jax.random.normal(rngs.params(), (2, width)) * width**-0.5)
        self.out = Linear(width, outputs, rngs=rngs)

    def given(self, timestep, gate_timestep, text, text_bias, rotation, between_rotation) -> tuple[Given, jax.Array]:
        """What the blocks are given, and the embedded timestep for `finish`."""
        modulation, time = self.time(timestep)
        between = jnp.concatenate([self.between(timestep)[0], self.between_gate(gate_timestep)[0]], 2)
        return Given(self.text_embedding(text), text_bias, modulation, between, rotation, between_rotation), time

    def finish(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """Tokens after the last block -> the stream's output."""
        shift, scale = jnp.moveaxis(self.modulation[...].astype(jnp.float32) + time[:, :, None], 2, 0)
        return self.out((self.norm(x) * (1 + scale) + shift).astype(x.dtype))


class LTX2Transformer(nnx.Module):
    """Velocities of LTX-2's flow, of the video and, if there is one, of the audio; see `__call__`."""

    sites = SITES

    def __init__(self, config: LTX2TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        inputs, audio = config.in_channels, config.audio_in_channels
        self.video = Ends(config, config.width, inputs, config.out_channels or inputs, rngs=rngs)
        self.audio = Ends(config, config.audio_width, audio, config.audio_out_channels or audio, rngs=rngs)
        self.blocks = network.stack(lambda r: Block(config, rngs=r), config.num_layers, rngs)

    def __call__(
        self,
        latents: jax.Array,
        timestep: jax.Array,
        text: jax.Array,
        text_mask: jax.Array | None = None,
        *,
        fps: jax.Array | float = 24.0,
        audio: jax.Array | None = None,
        audio_timestep: jax.Array | None = None,
        audio_text: jax.Array | None = None,
        taps=(),
        edits=(),
        sigma=None,
        key=None,
        remat: network.Remat = "none",
    ) -> tuple[jax.Array, jax.Array | None, dict[str, jax.Array]]:
        """One evaluation of the network.

        Without `audio` the video is alone: the audio stream is not computed and nothing attends to it, which is what the
        reference's ``isolate_modalities`` does to the video.

        Parameters
        ----------
        latents : [B, T', H', W', C]
        timestep : [B], or [B, T' H' W'] for one of every token's own; 0 (clean) to 1000 (noise)
        text : [B, N, caption_channels], of the video connector
        text_mask : [B, N] bool, True at real tokens, of both texts; None: all are.
        fps : frames per second, a number or [B].
        audio : [B, L, audio_in_channels], patches of audio latents
        audio_timestep : [B] or [B, L]; None: that of the video, which is then [B].
        audio_text : [B, N, caption_channels], of the audio connector
        taps, edits : of the video stream, see `jaxdiff.taps`; `sigma` and `key` are handed to the edits.
        remat : what the backward pass recomputes, see `jaxdiff.models.network.scan`.

        Returns
        -------
        output : [B, T', H', W', out_channels] in the compute dtype
        audio_output : [B, L, audio_out_channels], None without audio
        captured : tap name -> [rows, B, ...]
        """
        config = self.config
        grid = (latents.shape[1], latents.shape[2], latents.shape[3])
        text_bias = None if text_mask is None else jnp.where(text_mask, 0.0, -10000.0)[:, None, None]
        gate_factor = config.cross_attn_timestep_scale_multiplier / config.timestep_scale_multiplier

        x = self.video.patch_embedding(latents.reshape(latents.shape[0], -1, latents.shape[-1]))
        times = timestep if timestep.ndim == 2 else timestep[:, None]
        turned = video_rotations(config, grid, fps)
        video_given, video_time = self.video.given(times, times * gate_factor, text, text_bias, *turned)
        y = audio_given = audio_time = None
        if audio is not None:
            y = self.audio.patch_embedding(audio)
            times = timestep if audio_timestep is None else audio_timestep
            times = times if times.ndim == 2 else times[:, None]
            turned = audio_rotations(config, audio.shape[1])
            audio_given, audio_time = self.audio.given(times, times * gate_factor, audio_text, text_bias, *turned)

        def run(block, streams, tap):
            return block(streams, video_given, audio_given, tap)

        reader = Reader(taps, edits, layers=config.num_layers, grid=grid, sigma=sigma, key=key)
        (x, y), captured = network.scan(run, self.blocks, (x, y), reader, remat=remat)

        x = self.video.finish(x, video_time).reshape(*latents.shape[:-1], -1)
        return x, None if audio_time is None else self.audio.finish(y, audio_time), captured


def video_rotations(
    config: LTX2TransformerConfig, grid: tuple[int, int, int], fps: jax.Array | float
) -> tuple[Rotation, Rotation]:
    """The rotation within the video, and that of its attention to and from audio, where only time counts.

    A token is where the middle of what it stands for is, in seconds and pixels. The first latent frame stands for one
    frame, where the others stand for as many as the VAE's stride.
    """
    kind, heads = RotaryKind(config.rope_type, config.rope_theta), config.num_attention_heads
    stride, *space = config.vae_scale_factors
    seconds = _middles(grid[0], stride, config.causal_offset, jnp.asarray(fps, jnp.float32))
    rows, columns = (
        factor * (jnp.arange(size, dtype=jnp.float32) + 0.5) for size, factor in zip(grid[1:], space, strict=True)
    )
    extents = (config.pos_embed_max_pos, config.base_height, config.base_width)
    own = kind.rotation((seconds, rows, columns), extents, config.width, heads)
    frames = kind.rotation((seconds,), (_longest(config),), config.audio_width, heads)
    tokens = grid[1] * grid[2]
    return own, Rotation(jnp.repeat(frames.cos, tokens, -3), jnp.repeat(frames.sin, tokens, -3), frames.split)


def audio_rotations(config: LTX2TransformerConfig, patches: int) -> tuple[Rotation, Rotation]:
    """The rotation within the audio, and that of its attention to and from video."""
    kind, heads = RotaryKind(config.rope_type, config.rope_theta), config.audio_num_attention_heads
    rate = jnp.float32(config.audio_sampling_rate)
    seconds = _middles(patches, config.audio_scale_factor, config.causal_offset, rate, config.audio_hop_length)
    own, between = (
        kind.rotation((seconds,), (extent,), config.audio_width, heads)
        for extent in (config.audio_pos_embed_max_pos, _longest(config))
    )
    return own, between


def _longest(config: LTX2TransformerConfig) -> int:
    return max(config.pos_embed_max_pos, config.audio_pos_embed_max_pos)


def _middles(count: int, stride: int, offset: int, rate: jax.Array, hop: int = 1) -> jax.Array:
    """The middles of `count` latents in seconds: float32 [count], or [B, count] for rates [B]."""
    frames = jnp.maximum(jnp.arange(count + 1, dtype=jnp.float32) * stride + (offset - stride), 0)
    # XLA makes a product of a division by one number for all, unless it cannot see that it is one.
    rates = jax.lax.optimization_barrier(jnp.broadcast_to(rate[..., None], (*rate.shape, count + 1)))
    edges = frames * hop / rates
    return (edges[..., :-1] + edges[..., 1:]) / 2
