"""How a pipeline of the Wan family is driven: what its conditioning must be, and how its network is called."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning, only
from jaxdiff.errors import ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.text.prompt import TextConvention
from jaxdiff.models.text.tokenizer import clean


@dataclasses.dataclass(frozen=True)
class Wan:
    """Wan 2.1 text to video. The network predicts the velocity of the flow itself, in flow coordinates."""

    name: str = "wan"
    # No mask reaches the transformer: zeros in place of padding attend like text.
    text: TextConvention = TextConvention(512, clean, attend_padding=False, zero_padding=True)

    def validate(self, transformer: Network, latents_shape: tuple[int, ...], cond: Conditioning) -> None:
        """Raise a `ConfigError` that names the first thing that does not fit."""
        config = transformer.config
        if len(latents_shape) != 5 or latents_shape[-1] != config.in_channels:
            raise ConfigError(
                f"latents must be [B, T', H', W', {config.in_channels}] for this checkpoint, got {latents_shape}"
            )
        if any(n % p for n, p in zip(latents_shape[1:4], config.patch_size, strict=True)):
            raise ConfigError(
                f"latents {latents_shape}: T', H', W' must be multiples of the patch size {config.patch_size}; "
                "choose another video size"
            )
        only(cond, "Wan text-to-video", "text")
        text = cond.text
        if text.ndim != 3 or text.shape[-1] != config.text_dim or text.shape[0] not in (1, latents_shape[0]):
            raise ConfigError(
                f"text embeddings must be [{latents_shape[0]} or 1, N, {config.text_dim}], got {text.shape}"
            )

    def denoise(self, transformer: Network, latents: jax.Array, timestep: jax.Array, cond: Conditioning, **reading):
        """Raw network output and captured taps; `timestep` [B] in 0..1000."""
        text = jnp.broadcast_to(cond.text, (latents.shape[0], *cond.text.shape[1:]))
        return transformer(latents, timestep, text, **reading)
