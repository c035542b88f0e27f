"""How a pipeline of the LTX-Video family is driven: what its conditioning must be, and how its network is called."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning, only
from jaxdiff.errors import ConfigError
from jaxdiff.models.family import Family, open_rows
from jaxdiff.models.ltx.vae_config import STRIDES
from jaxdiff.models.network import Network, Params
from jaxdiff.models.text.prompt import TextConvention

FPS = 25.0  # the published pipelines' default


@dataclasses.dataclass(frozen=True)
class LTX(Family):
    """LTX-Video text to video. The network predicts the velocity of the flow itself, in flow coordinates.

    Parameters
    ----------
    causal_positions : where latent frame f is in time. False: at frame 8 f of the video (0.9.0 and 0.9.1, whose
        folders say `LTXPipeline`). True: at the first frame it stands for, max(0, 8 f - 7) (0.9.5 and later, whose
        folders say `LTXConditionPipeline`).
    text : how prompts are embedded.
    """

    name: str = "ltx"
    causal_positions: bool = False
    # The encoder attends to padding, the transformer does not.
    text: TextConvention = TextConvention(128, pass_mask=True)

    @classmethod
    def v0_9_5(cls) -> "LTX":
        """Of 0.9.5 and later, with longer prompts."""
        return cls(causal_positions=True, text=TextConvention(256, pass_mask=True))

    def open_gates(self, transformer: Network) -> Params:
        """One added to the gates of self-attention and MLP; attention to the text has none."""
        blocks = transformer.params["blocks"]
        return {**transformer.params, "blocks": {**blocks, "modulation": open_rows(blocks["modulation"])}}

    def validate(self, transformer: Network, latents_shape: tuple[int, ...], cond: Conditioning) -> None:
        """Raise a `ConfigError` that names the first thing that does not fit."""
        config = transformer.config
        if len(latents_shape) != 5 or latents_shape[-1] != config.in_channels:
            raise ConfigError(
                f"latents must be [B, T', H', W', {config.in_channels}] for this checkpoint, got {latents_shape}"
            )
        only(cond, "LTX-Video", "text", "text_mask", "fps")
        text, mask, batch = cond.text, cond.text_mask, latents_shape[0]
        if text.ndim != 3 or text.shape[-1] != config.text_dim or text.shape[0] not in (1, batch):
            raise ConfigError(f"text embeddings must be [{batch} or 1, N, {config.text_dim}], got {text.shape}")
        if mask is not None and (mask.shape[1:] != text.shape[1:2] or mask.shape[0] not in (1, batch)):
            raise ConfigError(
                f"text_mask must be [{batch} or 1, {text.shape[1]}], as the text has it, got {mask.shape}"
            )
        if cond.fps is not None and jnp.shape(cond.fps) not in ((), (1,), (batch,)):
            raise ConfigError(f"fps must be one number or one a clip, [{batch}], got {jnp.shape(cond.fps)}")

    def denoise(self, transformer: Network, latents: jax.Array, timestep: jax.Array, cond: Conditioning, **reading):
        """Raw network output and captured taps; `timestep` [B] in 0..1000."""

        def each(x):
            return None if x is None else jnp.broadcast_to(x, (latents.shape[0], *x.shape[1:]))

        return transformer(
            latents,
            timestep,
            each(cond.text),
            each(cond.text_mask),
            positions=self._positions(latents.shape[1:4], FPS if cond.fps is None else cond.fps),
            **reading,
        )

    def _positions(self, grid: tuple[int, ...], fps) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Seconds [T'] (or [B, T']) and pixels [H'], [W'] of the latents, formed as the pipelines form them."""
        frames, rows, columns = (jnp.arange(size, dtype=jnp.float32) for size in grid)
        fps = jnp.asarray(fps, jnp.float32)[..., None]
        time, space = STRIDES
        if self.causal_positions:
            seconds = jnp.maximum(time * frames - (time - 1), 0) * (1 / fps)
        else:
            seconds = frames * (time / fps)
        return seconds, space * rows, space * columns
