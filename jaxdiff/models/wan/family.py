"""How a pipeline of the Wan family is driven: what its conditioning must be, and how its network is called."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning, only
from jaxdiff.errors import ConfigError
from jaxdiff.models.family import Family, check_image_latents, held, open_rows, per_clip, posterior_mode
from jaxdiff.models.network import Network, Params
from jaxdiff.models.text.prompt import TextConvention
from jaxdiff.models.text.tokenizer import clean
from jaxdiff.models.wan.transformer import WanTransformerConfig


@dataclasses.dataclass(frozen=True)
class Wan(Family):
    """Wan 2.1 and 2.2. The network predicts the velocity of the flow itself, in flow coordinates.

    An image that the video begins with enters in one of two ways. Image-to-video checkpoints take it beside the latents,
    in channels of its own, and those of Wan 2.1 through tokens of an image encoder as well. TI2V-5B (`expand_timesteps`)
    takes it in place of the first latent frame, which is told timestep 0; without an image it is a text-to-video model.

    Parameters
    ----------
    image_to_video : a checkpoint that cannot do without an image (published as `WanImageToVideoPipeline`).
    expand_timesteps : latent frames have timesteps of their own.
    boundary_ratio : of a pipeline with two networks: the first one serves the timesteps from this share of them up, the
        second one those below.
    """

    image_to_video: bool = False
    expand_timesteps: bool = False
    boundary_ratio: float | None = None
    # No mask reaches the transformer: zeros in place of padding attend like text.
    text: TextConvention = TextConvention(512, clean, attend_padding=False, zero_padding=True)

    def __post_init__(self):
        if not isinstance(self.expand_timesteps, bool):
            raise ConfigError(f"Wan: expand_timesteps must be true or false, got {self.expand_timesteps!r}")
        ratio = self.boundary_ratio
        if ratio is not None and not (isinstance(ratio, (int, float)) and 0 <= ratio <= 1):
            raise ConfigError(f"Wan: boundary_ratio must be a number in [0, 1], got {ratio!r}")

    @property
    def name(self) -> str:
        return "wan_i2v" if self.image_to_video else "wan"

    def needs_image(self, transformer: Network) -> bool:
        return transformer.config.image_channels > 0

    def takes_image_tokens(self, transformer: Network) -> bool:
        return transformer.config.image_dim is not None

    def validate(self, transformer: Network, latents_shape: tuple[int, ...], cond: Conditioning) -> None:
        """Raise a `ConfigError` that names the first thing that does not fit."""
        config, batch = transformer.config, latents_shape[0]
        self._check_kind(config)
        if len(latents_shape) != 5 or latents_shape[-1] != config.channels:
            raise ConfigError(
                f"latents must be [B, T', H', W', {config.channels}] for this checkpoint, got {latents_shape}"
            )
        if any(n % p for n, p in zip(latents_shape[1:4], config.patch_size, strict=True)):
            raise ConfigError(
                f"latents {latents_shape}: T', H', W' must be multiples of the patch size {config.patch_size}; "
                "choose another video size"
            )
        used = ["text"]
        if config.image_channels or self.expand_timesteps:
            used.append("image_latents")
        if config.image_dim is not None:
            used.append("image_embeds")
        only(cond, "Wan image-to-video" if config.image_channels else "Wan text-to-video", *used)
        text = cond.text
        if text.ndim != 3 or text.shape[-1] != config.text_dim or text.shape[0] not in (1, batch):
            raise ConfigError(f"text embeddings must be [{batch} or 1, N, {config.text_dim}], got {text.shape}")
        if config.image_channels:
            check_image_latents(cond.image_latents, (*latents_shape[:4], config.image_channels))
        elif cond.image_latents is not None:
            check_image_latents(cond.image_latents, (batch, 1, *latents_shape[2:]))
        if config.image_dim is not None:
            _check_tokens(config, cond.image_embeds, batch)

    def _check_kind(self, config: WanTransformerConfig) -> None:
        if self.expand_timesteps:
            if config.image_channels or config.image_dim is not None or config.patch_size[0] != 1:
                raise ConfigError(
                    f"expand_timesteps does not go with a transformer of in_channels={config.in_channels}, "
                    f"out_channels={config.out_channels}, image_dim={config.image_dim}, patch_size={config.patch_size}"
                )
        elif self.image_to_video != bool(config.image_channels):
            raise ConfigError(
                f"a Wan {'image' if self.image_to_video else 'text'}-to-video pipeline does not go with a transformer of "
                f"in_channels={config.in_channels}, out_channels={config.out_channels}"
            )

    def denoise(self, transformer: Network, latents: jax.Array, timestep: jax.Array, cond: Conditioning, **reading):
        """Raw network output and captured taps; `timestep` [B] in 0..1000."""
        batch, frames = latents.shape[:2]
        text, tokens = per_clip(cond.text, batch), cond.image_embeds
        if cond.image_latents is not None:
            image = per_clip(cond.image_latents, batch).astype(latents.dtype)
            if self.expand_timesteps:
                latents = jnp.concatenate([image, latents[:, 1:]], 1)
                timestep = jnp.broadcast_to(timestep[:, None], (batch, frames)).at[:, 0].set(0.0)
            else:
                latents = jnp.concatenate([latents, image], -1)
        return transformer(latents, timestep, text, None if tokens is None else per_clip(tokens, batch), **reading)

    def hold(self, velocity: jax.Array, x: jax.Array, sigma: Any, cond: Conditioning) -> jax.Array:
        """Of `expand_timesteps`, the first latent frame flows straight to the image, see `held`, as the published pipeline's
        ends in it.

        The network is shown the image there in any case, and what it predicts there means nothing.
        """
        if not self.expand_timesteps or cond.image_latents is None:
            return velocity
        return held(velocity, x, sigma, cond.image_latents)

    def image_fields(
        self, pipeline: Any, first: jax.Array, last: jax.Array | None, tokens: jax.Array | None, frames: int
    ) -> dict[str, jax.Array]:
        """`Conditioning.image_latents`, and `image_embeds` where the network takes them.

        Image-to-video: ``[B, T', H', W', 4 + C]``: of each video frame that a latent frame stands for, whether it is
        given; then the latents of the video whose other frames are grey (zeros). TI2V: [B, 1, H', W', C], the latents of
        the first frame alone.
        """
        config = pipeline.transformer.config
        self._check_kind(config)
        if not config.image_channels:
            if not self.expand_timesteps or last is not None:
                raise ConfigError(f"this Wan checkpoint takes no {'last_image' if self.expand_timesteps else 'image'}")
            return {"image_latents": posterior_mode(pipeline.vae, first[:, None])}
        stride = pipeline.vae.config.temporal_stride
        if config.image_channels != stride + config.channels:
            raise ConfigError(
                f"Wan image-to-video needs {stride} + {config.channels} channels beside the latents, but the transformer "
                f"has in_channels={config.in_channels}, out_channels={config.out_channels}"
            )
        if last is not None and config.image_dim is not None and config.pos_embed_seq_len is None:
            raise ConfigError(
                "this Wan checkpoint takes no last_image: it has no positions for the tokens of two images"
            )
        if last is not None and frames < 2:
            raise ConfigError("a video of one frame has no last_image")
        video = jnp.zeros((first.shape[0], frames, *first.shape[1:])).at[:, 0].set(first)
        given = jnp.zeros(frames).at[0].set(1.0)
        if last is not None:
            video, given = video.at[:, -1].set(last), given.at[-1].set(1.0)
        latents = posterior_mode(pipeline.vae, video)
        # The first latent frame stands for one frame, counted `stride` times.
        given = jnp.concatenate([jnp.repeat(given[:1], stride), given[1:]]).reshape(-1, 1, 1, stride)
        given = jnp.broadcast_to(given, (*latents.shape[:4], stride))
        fields = {"image_latents": jnp.concatenate([given, latents], -1)}
        return fields if tokens is None else fields | {"image_embeds": tokens}

    def open_gates(self, transformer: Network) -> Params:
        """One added to the gates of self-attention and MLP; attention to the text has none."""
        blocks = transformer.params["blocks"]
        return {**transformer.params, "blocks": {**blocks, "modulation": open_rows(blocks["modulation"])}}

    def example(self, transformer: Network, latents_shape: tuple[int, ...]) -> Conditioning:
        config, cond = transformer.config, super().example(transformer, latents_shape)
        if config.image_channels:
            image: Any = jax.ShapeDtypeStruct((1, *latents_shape[1:4], config.image_channels), jnp.float32)
            cond = dataclasses.replace(cond, image_latents=image)
        if config.image_dim is not None:
            tokens: Any = jax.ShapeDtypeStruct((1, config.pos_embed_seq_len or 1, config.image_dim), jnp.float32)
            cond = dataclasses.replace(cond, image_embeds=tokens)
        return cond


def _check_tokens(config: WanTransformerConfig, tokens: jax.Array | None, batch: int) -> None:
    if tokens is None:
        raise ConfigError(
            "this checkpoint attends to the tokens of an image: pipeline.condition(..., image=first_frame, frames=T), or "
            f"give Conditioning.image_embeds [{batch}, M, {config.image_dim}]"
        )
    if tokens.ndim != 3 or tokens.shape[-1] != config.image_dim or tokens.shape[0] not in (1, batch):
        raise ConfigError(f"image_embeds must be [{batch} or 1, M, {config.image_dim}], got {tokens.shape}")
    if config.pos_embed_seq_len not in (None, tokens.shape[1]):
        raise ConfigError(
            f"this checkpoint has positions for {config.pos_embed_seq_len} image tokens, those of a first and a last "
            f"frame; got {tokens.shape[1]}: give last_image too"
        )
