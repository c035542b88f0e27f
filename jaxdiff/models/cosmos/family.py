"""How a pipeline of the Cosmos family is driven: what its conditioning must be, and how its network is called."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.conditioning import Conditioning, only
from jaxdiff.errors import ConfigError
from jaxdiff.models.cosmos.transformer import token_grid
from jaxdiff.models.family import Family, per_clip, posterior_mode
from jaxdiff.models.network import Network, Params
from jaxdiff.models.text.prompt import TextConvention

# Padding is masked in the encoder; zeros in its place attend like text in the transformer.
T5 = TextConvention(512, attend_padding=False, zero_padding=True)


@dataclasses.dataclass(frozen=True)
class Cosmos(Family):
    """Cosmos-Predict2 and 2.5, from text alone or continuing frames that are given.

    The network takes the states of the flow and predicts its velocity, in both versions. Predict2 is published with the
    coordinates of EDM, ``y = x0 + rho noise``, and the denoiser ``D = c_skip y + c_out F(c_in y)`` with
    ``c_in = c_skip = 1 / (1 + rho)`` and ``c_out = -rho / (1 + rho)`` (arXiv 2206.00364, eq. 7). At
    ``sigma = rho / (1 + rho)`` its input ``c_in y`` is the flow's ``x = (1 - sigma) x0 + sigma noise``, and
    ``F = (x - D) / sigma`` is ``noise - x0``.

    Frames are given as `Conditioning.image_latents` [B, n, H', W', C], the first n of the clip's latents; of one picture
    `Pipeline.with_image` makes them, of more `Pipeline.encode`. The network sees them clean, whatever the state holds
    there, and is told so by a mask and a timestep of their own.

    Parameters
    ----------
    name : of the family
    given : whether frames are "never", "always" or "sometimes" given.
    fps : frames per second where the conditioning has none; None: positions in time are not scaled.
    given_timestep : what the network is told of frames that are given.
    rest : 0, or how far short of sigma 1 the published sampler starts, where it takes a velocity for given frames that
        leads to them only at sigma ``-rest``.
    text : how prompts are embedded; None: their encoder is not ported, and embeddings are passed instead.
    """

    name: str = "cosmos_predict2_text2image"
    given: str = "never"
    fps: float | None = None
    given_timestep: float = 0.0
    rest: float = 0.0
    text: TextConvention | None = T5

    @classmethod
    def video2world(cls) -> "Cosmos":
        """Predict2 Video2World, at 16 frames per second and a noise of 1e-4 in the frames that are given."""
        return cls("cosmos_predict2_video2world", "always", fps=16.0, given_timestep=1e-4 / (1 + 1e-4))

    @classmethod
    def predict2_5(cls) -> "Cosmos":
        """Predict2.5. Its text is every layer of a Qwen2.5-VL (Cosmos-Reason1), normalised per token and joined."""
        return cls("cosmos_predict2_5", "sometimes", given_timestep=1e-4, rest=1 / 201, text=None)

    def needs_image(self, transformer: Network) -> bool:
        return self.given == "always"

    def open_gates(self, transformer: Network) -> Params:
        """One added to the gates of all three branches, through the time embedding that all blocks share.

        No layer of it has a bias. But the slowest cosine among the features of a timestep is 1 to eight digits, as
        timesteps do not exceed 1; one hidden unit is made to answer to it alone, and to add one to the gates alone.
        """
        width = transformer.config.width
        into, out = (transformer.params["time_embedding"][half]["kernel"] for half in ("into", "out"))
        into = into.at[:, 0].set(0.0).at[width // 2 - 1, 0].set(1.0)
        row = jnp.zeros(3 * width).at[2 * width :].set(1 / jax.nn.silu(1.0))
        time = {"into": {"kernel": into}, "out": {"kernel": out.at[0].set(row.astype(out.dtype))}}
        return {**transformer.params, "time_embedding": time}

    def validate(self, transformer: Network, latents_shape: tuple[int, ...], cond: Conditioning) -> None:
        """Raise a `ConfigError` that names the first thing that does not fit."""
        config, continues = transformer.config, self.given != "never"
        if continues != config.continues:
            raise ConfigError(
                f"a {self.name} pipeline does not go with a transformer of in_channels={config.in_channels}, "
                f"out_channels={config.out_channels}"
            )
        if len(latents_shape) != 5 or latents_shape[-1] != config.out_channels:
            raise ConfigError(
                f"latents must be [B, T', H', W', {config.out_channels}] for this checkpoint, got {latents_shape}"
            )
        token_grid(config, latents_shape)
        only(cond, self.name, "text", "fps", "extra", *(["image_latents"] if continues else []))
        text, batch = cond.text, latents_shape[0]
        if text.ndim != 3 or text.shape[-1] != config.text_dim or text.shape[0] not in (1, batch):
            raise ConfigError(f"text embeddings must be [{batch} or 1, N, {config.text_dim}], got {text.shape}")
        if cond.fps is not None and jnp.shape(cond.fps) not in ((), (1,), (batch,)):
            raise ConfigError(f"fps must be one number or one a clip, [{batch}], got {jnp.shape(cond.fps)}")
        self._check_given(cond.image_latents, latents_shape)
        extra: dict[str, Any] = cond.extra or {}
        known = ("padding_mask",) if config.concat_padding_mask else ()
        if set(extra) - set(known):
            raise ConfigError(
                f"Conditioning.extra of {self.name} may hold {' and '.join(known) or 'nothing'}, got "
                f"{', '.join(sorted(extra))}"
            )
        if "padding_mask" in extra:
            shape = jnp.shape(extra["padding_mask"])
            if shape not in ((1, *latents_shape[2:4]), (batch, *latents_shape[2:4])):
                raise ConfigError(
                    f"padding_mask must be [{batch} or 1, {latents_shape[2]}, {latents_shape[3]}], as the latents have "
                    f"it, got {shape}"
                )

    def _check_given(self, given: jax.Array | None, shape: tuple[int, ...]) -> None:
        if given is None:
            if self.given == "always":
                raise ConfigError(
                    "this checkpoint continues a video: pipeline.condition(..., image=first_frame, frames=T), or give "
                    "Conditioning.image_latents, pipeline.encode(first_frames)"
                )
            return
        batch, frames, *rest = shape
        if (
            given.ndim != 5
            or given.shape[0] not in (1, batch)
            or given.shape[1] > frames
            or list(given.shape[2:]) != rest
        ):
            raise ConfigError(
                f"image_latents must be {[f'{batch} or 1', f'up to {frames}', *rest]}, the clip's first latent frames, "
                f"got {given.shape}"
            )

    def denoise(self, transformer: Network, latents: jax.Array, timestep: jax.Array, cond: Conditioning, **reading):
        """Raw network output (the velocity, and in the frames that are given nothing of meaning) and captured taps.

        Parameters
        ----------
        latents : [B, T', H', W', C], ``(1 - sigma) x0 + sigma noise``
        timestep : [B], 0 to 1
        """
        (batch, frames), given = latents.shape[:2], cond.image_latents
        if transformer.config.continues:
            count = 0 if given is None else given.shape[1]
            is_given = jnp.arange(frames) < count
            if given is not None:
                latents = jnp.concatenate([per_clip(given, batch).astype(latents.dtype), latents[:, count:]], 1)
                timestep = jnp.where(is_given, self.given_timestep, timestep[:, None])
            mask = jnp.broadcast_to(is_given[:, None, None, None], (*latents.shape[:-1], 1))
            latents = jnp.concatenate([latents, mask.astype(latents.dtype)], -1)
        return transformer(
            latents,
            timestep,
            per_clip(cond.text, batch),
            padding_mask=(cond.extra or {}).get("padding_mask"),
            fps=self.fps if cond.fps is None else cond.fps,
            **reading,
        )

    def hold(self, velocity: jax.Array, x: jax.Array, sigma: Any, cond: Conditioning) -> jax.Array:
        """In the frames that are given, c, the straight line to them: ``(x - c) / (sigma + rest)``, 0 where it ends.

        It leaves `rest` of the way at sigma 0, as the published sampler of 2.5 does: that one takes ``noise - c`` for
        the velocity of a state that is the noise itself, at 1 - rest.
        """
        if cond.image_latents is None:
            return velocity
        given = cond.image_latents.astype(jnp.float32)
        count = given.shape[1]
        left = jnp.reshape(jnp.asarray(sigma, jnp.float32), (-1, 1, 1, 1, 1)) + self.rest
        held = jnp.where(left > 0, (x[:, :count] - given) / jnp.where(left > 0, left, 1.0), 0.0)
        return jnp.concatenate([held, velocity[:, count:]], 1)

    def image_fields(
        self, pipeline: Any, first: jax.Array, last: jax.Array | None, tokens: jax.Array | None, frames: int
    ) -> dict[str, jax.Array]:
        """`Conditioning.image_latents` [B, 1, H', W', C], the latents of the first frame alone."""
        if self.given == "never" or last is not None:
            raise ConfigError(f"{self.name} takes no {'image' if last is None else 'last_image'}")
        return {"image_latents": posterior_mode(pipeline.vae, first[:, None])}

    def example(self, transformer: Network, latents_shape: tuple[int, ...]) -> Conditioning:
        text: Any = jax.ShapeDtypeStruct((1, 1, transformer.config.text_dim), jnp.float32)
        given: Any = jax.ShapeDtypeStruct((1, 1, *latents_shape[2:]), jnp.float32)
        return Conditioning(text=text, image_latents=given if self.given == "always" else None)
