"""How a pipeline of the LTX-2 family is driven: what its conditioning must be, and how its networks are called."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning, only
from jaxdiff.errors import ConfigError
from jaxdiff.models.family import Family, open_rows, per_clip
from jaxdiff.models.network import Network, Params
from jaxdiff.models.text.prompt import TextConvention

FPS = 24.0  # the published pipeline's default
EXTRA = ("audio_latents", "audio_text", "audio_timestep")


@dataclasses.dataclass(frozen=True)
class LTX2(Family):
    """LTX-2.0. The network predicts the velocities of the flow itself; the state here is the video alone.

    **Without audio** (the default) the video stream runs alone: no attention between the streams, as with the reference's
    ``isolate_modalities``, and the audio stream is not computed. The field is then a function of the video, which is what
    inverting a clip without a sound track asks for. It is not foreign to the checkpoint: the published sampler evaluates
    it in every step, for its modality guidance.

    **With audio**, ``Conditioning.extra`` holds

    - "audio_latents" [B or 1, L, audio_in_channels]: normalised patches, as the published pipeline packs them. They are
      *held*: the network sees them as they are at every sigma, and its audio output is dropped. The published sampler
      moves them with the video; one evaluation is the same, a trajectory is not.
    - "audio_text" [B or 1, N, caption_channels]: the text of the audio stream, from the audio connector.
    - "audio_timestep", a number or [B], optional: what the network is told of the audio, 0 (clean) to 1000. Left out, it
      is the video's, which is true of audio at the video's own noise level; clean audio goes with 0.

    Taps and edits are of the video stream.

    `Pipeline.condition(text=states, text_mask=mask)` sends the states of all layers of the language model through the
    folder's connectors. That model, Gemma 3, is not ported.
    """

    name: str = "ltx2"
    text: TextConvention | None = None

    def open_gates(self, transformer: Network) -> Params:
        """One added to the gates of self-attention and MLP in both streams. Those between the streams start at full strength,
        and attention to the text has none."""
        blocks = {
            name: {**stream, "modulation": open_rows(stream["modulation"])}
            for name, stream in transformer.params["blocks"].items()
        }
        return {**transformer.params, "blocks": blocks}

    def validate(self, transformer: Network, latents_shape: tuple[int, ...], cond: Conditioning) -> None:
        """Raise a `ConfigError` that names the first thing that does not fit."""
        config = transformer.config
        if len(latents_shape) != 5 or latents_shape[-1] != config.in_channels:
            raise ConfigError(
                f"latents must be [B, T', H', W', {config.in_channels}] for this checkpoint, got {latents_shape}"
            )
        only(cond, "LTX-2", "text", "text_mask", "fps", "extra")
        text, mask, batch = cond.text, cond.text_mask, latents_shape[0]
        if text.ndim != 3 or text.shape[-1] != config.text_dim or text.shape[0] not in (1, batch):
            raise ConfigError(
                f"text embeddings must be [{batch} or 1, N, {config.text_dim}], as the connectors make them "
                f"(pipeline.condition(text=states)), got {text.shape}"
            )
        if mask is not None and (mask.shape[1:] != text.shape[1:2] or mask.shape[0] not in (1, batch)):
            raise ConfigError(
                f"text_mask must be [{batch} or 1, {text.shape[1]}], as the text has it, got {mask.shape}"
            )
        if cond.fps is not None and jnp.shape(cond.fps) not in ((), (1,), (batch,)):
            raise ConfigError(f"fps must be one number or one a clip, [{batch}], got {jnp.shape(cond.fps)}")
        self._check_audio(config, cond.extra or {}, text, batch)

    def _check_audio(self, config: Any, extra: dict[str, Any], text: jax.Array, batch: int) -> None:
        if set(extra) - set(EXTRA):
            raise ConfigError(
                f"Conditioning.extra of LTX-2 may hold {', '.join(EXTRA)}, got {', '.join(sorted(extra))}"
            )
        audio, words, timestep = (extra.get(name) for name in EXTRA)
        if words is not None and (words.shape[1:] != text.shape[1:] or words.shape[0] not in (1, batch)):
            raise ConfigError(
                f"audio_text must be [{batch} or 1, {text.shape[1]}, {text.shape[2]}], as the text, got {words.shape}"
            )
        if audio is None:
            if timestep is not None:
                raise ConfigError("audio_timestep is set, and there are no audio_latents")
            return
        if audio.ndim != 3 or audio.shape[-1] != config.audio_in_channels or audio.shape[0] not in (1, batch):
            raise ConfigError(
                f"audio_latents must be [{batch} or 1, L, {config.audio_in_channels}], packed as the published pipeline "
                f"packs them, got {audio.shape}"
            )
        if words is None:
            raise ConfigError("audio_latents need audio_text, the text of the audio connector")
        if timestep is not None and jnp.shape(timestep) not in ((), (1,), (batch,)):
            raise ConfigError(f"audio_timestep must be one number or one a clip, [{batch}], got {jnp.shape(timestep)}")

    def denoise(self, transformer: Network, latents: jax.Array, timestep: jax.Array, cond: Conditioning, **reading):
        """Raw network output of the video and captured taps; `timestep` [B] in 0..1000."""
        batch, extra = latents.shape[0], cond.extra or {}
        audio: dict[str, Any] = {}
        if "audio_latents" in extra:
            audio = {
                "audio": per_clip(extra["audio_latents"], batch),
                "audio_text": per_clip(extra["audio_text"], batch),
            }
            if "audio_timestep" in extra:
                told = jnp.asarray(extra["audio_timestep"], jnp.float32)
                audio["audio_timestep"] = jnp.broadcast_to(told, (batch,))
        output, _, captured = transformer(
            latents,
            timestep,
            per_clip(cond.text, batch),
            None if cond.text_mask is None else per_clip(cond.text_mask, batch),
            fps=FPS if cond.fps is None else cond.fps,
            **audio,
            **reading,
        )
        return output, captured

    def connect(self, connectors: Network, cond: Conditioning) -> Conditioning:
        """`cond` with its text, the states of all layers of the language model, sent through the connectors.

        Registers take the place of padding there, so that the result has no mask. Text that has the connectors' width
        already stays as it is.
        """
        config = connectors.config
        if cond.text.ndim == 3 and cond.text.shape[-1] == config.caption_channels:
            return cond
        video, audio = connectors(cond.text, cond.text_mask)
        return dataclasses.replace(cond, text=video, text_mask=None, extra={**(cond.extra or {}), "audio_text": audio})
