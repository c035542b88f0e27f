"""What a video diffusion transformer is conditioned on, for every family, as one pytree."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["text", "text_mask", "image_latents", "image_embeds", "fps", "extra"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """Conditioning of one batch. Families say which fields they need and refuse the ones they cannot use.

    Parameters
    ----------
    text : [B, N, text_dim] text embeddings; a leading 1 serves every clip of a batch.
    text_mask : [B, N] bool, True at real tokens, for families that mask text.
    image_latents : what an encoded image adds to the latents, as `Pipeline.with_image` makes it. [B, T', H', W', ...]
        where it enters beside them; [B, 1, H', W', C] where it takes the place of the first frame.
    image_embeds : [B, M, image_dim] image-encoder tokens.
    fps : frames per second, scalar or [B], where time enters the network in seconds.
    extra : dict of further arrays that one family alone knows.
    """

    text: jax.Array
    text_mask: jax.Array | None = None
    image_latents: jax.Array | None = None
    image_embeds: jax.Array | None = None
    fps: jax.Array | float | None = None
    extra: dict[str, Any] | None = None


def as_conditioning(cond: "Conditioning | jax.Array") -> Conditioning:
    """An array means `Conditioning` with that text."""
    return cond if isinstance(cond, Conditioning) else Conditioning(text=jnp.asarray(cond))


def only(cond: Conditioning, family: str, *used: str) -> None:
    """Raise a `ConfigError` when a field that `family` does not use is set."""
    for field in dataclasses.fields(cond):
        if field.name not in used and getattr(cond, field.name) is not None:
            raise ConfigError(f"Conditioning.{field.name} is set, but {family} uses only {', '.join(used)}")
