"""How a pipeline of the CogVideoX family is driven: what its conditioning must be, and how its network is called."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning, only
from jaxdiff.errors import ConfigError
from jaxdiff.models.cogvideox.transformer import check_size
from jaxdiff.models.family import Family, check_image_latents, open_rows
from jaxdiff.models.network import Network, Params
from jaxdiff.models.text.prompt import TextConvention

OFS = 2.0  # what the published pipeline of CogVideoX 1.5 tells the network, always


@dataclasses.dataclass(frozen=True)
class CogVideoX(Family):
    """CogVideoX 1.0 and 1.5, text to video or (`image_to_video`) from a first frame.

    The network predicts v in the variance-preserving coordinates of its schedule, which also turns it into the velocity
    of the flow (`jaxdiff.flow.VariancePreserving`).
    """

    image_to_video: bool = False
    text: TextConvention = TextConvention(226)  # padding is text to the encoder and to the transformer

    @property
    def name(self) -> str:
        return "cogvideox_i2v" if self.image_to_video else "cogvideox"

    def needs_image(self, transformer: Network) -> bool:
        return self.image_to_video

    def image_fields(
        self, pipeline: Any, first: jax.Array, last: jax.Array | None, tokens: jax.Array | None, frames: int
    ) -> dict[str, jax.Array]:
        """`Conditioning.image_latents`, see `image_latents`; for CogVideoX 1.5 of the padded number of latent frames."""
        if not self.image_to_video or last is not None:
            raise ConfigError(f"this CogVideoX checkpoint takes no {'image' if last is None else 'last_image'}")
        patch = pipeline.transformer.config.patch[0]
        count = 1 + (frames - 1) // pipeline.vae.config.temporal_stride
        return {"image_latents": image_latents(pipeline.vae, first, -(-count // patch) * patch)}

    def example(self, transformer: Network, latents_shape: tuple[int, ...]) -> Conditioning:
        config = transformer.config
        text: Any = jax.ShapeDtypeStruct((1, config.max_text_seq_length, config.text_embed_dim), jnp.float32)
        if not self.image_to_video:
            return Conditioning(text=text)
        shape = (1, *latents_shape[1:4], config.in_channels - config.out_channels)
        image: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
        return Conditioning(text=text, image_latents=image)

    def open_gates(self, transformer: Network) -> Params:
        """One added to the gates of attention and MLP, of the video's tokens and of the text's: they are parts of a linear
        layer of the time embedding, and the one goes to its bias."""
        blocks = dict(transformer.params["blocks"])
        for name in ("attention_modulation", "mlp_modulation"):
            table = blocks[name]["table"]
            bias = table["bias"].reshape(*table["bias"].shape[:-1], 6, -1)
            bias = open_rows(bias).reshape(table["bias"].shape)
            blocks[name] = {**blocks[name], "table": {**table, "bias": bias}}
        return {**transformer.params, "blocks": blocks}

    def validate(self, transformer: Network, latents_shape: tuple[int, ...], cond: Conditioning) -> None:
        """Raise a `ConfigError` that names the first thing that does not fit."""
        config = transformer.config
        channels, image_channels = config.out_channels, config.in_channels - config.out_channels
        if self.image_to_video != bool(image_channels):
            raise ConfigError(
                f"a CogVideoX {'image' if self.image_to_video else 'text'}-to-video pipeline does not go with a "
                f"transformer of in_channels={config.in_channels}, out_channels={channels}"
            )
        if len(latents_shape) != 5 or latents_shape[-1] != channels:
            raise ConfigError(f"latents must be [B, T', H', W', {channels}] for this checkpoint, got {latents_shape}")
        used = ["text"]
        if self.image_to_video:
            used.append("image_latents")
        if config.ofs_embed_dim:
            used.append("extra")
        only(cond, "CogVideoX image-to-video" if self.image_to_video else "CogVideoX text-to-video", *used)
        text, batch = cond.text, latents_shape[0]
        if text.ndim != 3 or text.shape[-1] != config.text_embed_dim or text.shape[0] not in (1, batch):
            raise ConfigError(f"text embeddings must be [{batch} or 1, N, {config.text_embed_dim}], got {text.shape}")
        check_size(config, latents_shape, text.shape[1])
        if self.image_to_video:
            check_image_latents(cond.image_latents, (*latents_shape[:4], image_channels))
        extra = cond.extra or {}
        if set(extra) - {"ofs"}:
            raise ConfigError(f"Conditioning.extra of CogVideoX 1.5 may hold 'ofs', got {', '.join(sorted(extra))}")
        if "ofs" in extra and jnp.shape(extra["ofs"]) not in ((), (1,), (batch,)):
            raise ConfigError(f"ofs must be one number or one a clip, [{batch}], got {jnp.shape(extra['ofs'])}")

    def denoise(self, transformer: Network, latents: jax.Array, timestep: jax.Array, cond: Conditioning, **reading):
        """Raw network output (v) and captured taps.

        Parameters
        ----------
        latents : [B, T', H', W', C] in the schedule's own coordinates, ``alpha x0 + s noise``
        timestep : [B], 0 to 999
        """
        batch = latents.shape[0]
        text = jnp.broadcast_to(cond.text, (batch, *cond.text.shape[1:]))
        if cond.image_latents is not None:
            image = jnp.broadcast_to(cond.image_latents, (batch, *cond.image_latents.shape[1:]))
            latents = jnp.concatenate([latents, image.astype(latents.dtype)], -1)
        ofs = None
        if transformer.config.ofs_embed_dim:
            ofs = jnp.broadcast_to(jnp.asarray((cond.extra or {}).get("ofs", OFS), jnp.float32), (batch,))
        return transformer(latents, timestep, text, ofs, **reading)


def image_latents(vae: Network, image: jax.Array, frames: int) -> jax.Array:
    """`Conditioning.image_latents` from a first frame: its latents, then zeros.

    The posterior's mode, where the published pipeline draws a sample.

    Parameters
    ----------
    vae : the pipeline's; its configuration says how image latents are scaled.
    image : [B, H, W, 3] float in [-1, 1]
    frames : T', latent frames of the video; for CogVideoX 1.5 the padded, even number.

    Returns
    -------
    [B, T', H', W', C] float32
    """
    module = vae.bind()
    mean, _ = jnp.split(module.encode(image[:, None]).astype(jnp.float32), 2, axis=-1)
    return jnp.pad(module.normalise_image(mean), ((0, 0), (0, frames - 1), (0, 0), (0, 0), (0, 0)))
