"""What a `Pipeline` asks of every family of models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.models.network import Network, Params
from jaxdiff.models.text.prompt import TextConvention


class Family:
    """How the pipelines of one family are driven; subclasses are frozen dataclasses.

    They also have ``validate(transformer, latents_shape, cond)``, which raises a `ConfigError` that names the first thing
    that does not fit, and ``denoise(transformer, latents, timestep, cond, **reading)``, which gives the raw network
    output and what the taps captured. The answers here are those of a text-to-video family.
    """

    text: TextConvention | None  # None: its text encoder is not ported, and embeddings are passed instead

    def needs_image(self, transformer: Network) -> bool:
        """Whether the network cannot run without the image that its video begins with."""
        return False

    def takes_image_tokens(self, transformer: Network) -> bool:
        """Whether an image also reaches the network through the folder's image encoder."""
        return False

    def image_fields(
        self, pipeline: Any, first: jax.Array, last: jax.Array | None, tokens: jax.Array | None, frames: int
    ) -> dict[str, jax.Array]:
        """The fields of `Conditioning` for a video that begins with a picture; traced by `Pipeline.with_image`.

        Parameters
        ----------
        pipeline : has the networks.
        first, last : [B, H, W, 3] float in [-1, 1], the first frame and, where it is given, the last.
        tokens : [B, M, D] of the image encoder (first frame, then last), for families that take them.
        frames : T of the video.

        Raises
        ------
        ConfigError : the family cannot use it.
        """
        raise ConfigError(f"{type(self).__name__} makes videos from text alone; it takes no image")

    def hold(self, velocity: jax.Array, x: jax.Array, sigma: Any, cond: Conditioning) -> jax.Array:
        """The velocity at the state x, where frames that an image fixes may have one of their own."""
        return velocity

    def open_gates(self, transformer: Network) -> Params:
        """The weights of a network with one added to every gate that scales a branch before it is added to the tokens.

        Fresh weights leave these gates near zero, so that a block hardly changes what goes through it. For an untrained
        control that mixes tokens at full strength.

        Raises
        ------
        ConfigError : the family does not know its gates.
        """
        raise ConfigError(f"{type(self).__name__} does not say which of its weights are gates (Family.open_gates)")

    def example(self, transformer: Network, latents_shape: tuple[int, ...]) -> Conditioning:
        """Shapes of a conditioning of one clip that `validate` accepts, `jax.ShapeDtypeStruct` leaves."""
        length = self.text.max_length if self.text else 1
        text: Any = jax.ShapeDtypeStruct((1, length, transformer.config.text_dim), jnp.float32)
        return Conditioning(text=text)


def open_rows(table: jax.Array, rows: tuple[int, ...] = (2, 5)) -> jax.Array:
    """A modulation table [..., 6, D] with one added to the rows of its gates: by default those of (shift, scale, gate) of
    attention, then of the MLP."""
    return table.at[..., np.array(rows), :].add(1.0)


def posterior_mode(vae: Network, video: jax.Array) -> jax.Array:
    """Normalised latents of a video [B, T, H, W, 3] in [-1, 1]: [B, T', H', W', C] float32."""
    module = vae.bind()
    mean, _ = jnp.split(module.encode(video).astype(jnp.float32), 2, axis=-1)
    return module.normalise(mean)


def held(velocity: jax.Array, x: jax.Array, sigma: Any, first: jax.Array) -> jax.Array:
    """A velocity [B, T', H', W', C] whose first latent frame flows straight to `first` c [B, 1, H', W', C]: there
    ``(x - c) / sigma``, and 0 at sigma 0.

    Every solver follows a straight line exactly: sampling ends in c, and an inversion that starts in c stays in it.
    """
    sigma = jnp.reshape(jnp.asarray(sigma, jnp.float32), (-1, 1, 1, 1, 1))
    distance = x[:, :1] - first.astype(jnp.float32)
    straight = jnp.where(sigma > 0, distance / jnp.where(sigma > 0, sigma, 1.0), 0.0)
    return jnp.concatenate([straight, velocity[:, 1:]], 1)


def per_clip(x: Any, batch: int) -> jax.Array:
    """[B or 1, ...] -> [B, ...]"""
    return jnp.broadcast_to(x, (batch, *x.shape[1:]))


def check_image_latents(latents: jax.Array | None, shape: tuple[int, ...]) -> None:
    """Raise a `ConfigError` unless they are [B or 1, T', H', W', C] of this shape."""
    if latents is None:
        raise ConfigError(
            "this checkpoint continues an image: pipeline.condition(..., image=first_frame, frames=T), or give "
            f"Conditioning.image_latents {[shape[0], *shape[1:]]}"
        )
    if latents.shape not in (shape, (1, *shape[1:])):
        raise ConfigError(f"image_latents must be {[shape[0], *shape[1:]]} (or of batch 1), got {latents.shape}")
