"""The law of motion of the generated world as a residual of predicted latents, for `jaxdiff.physics.likelihood.ResidualLoss`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff.physics.network_critic import moments
from jaxdiff.physics.residuals import uniform_motion

WHOLE, EDGE = 0.8, 40.0  # share of its largest area from which on a thing is taken to be whole; how sharply
FAINT = 1e-4  # of the frame; an area far below it is no thing, and its centre is the frame's middle


@dataclasses.dataclass(frozen=True)
class SidewaysMotion:
    """Distance of a thing's centre from motion to the side at constant velocity, ``x_tt = 0``: what all things there obey.

    The thing is what has the colour of which the clip shows most, and its centre the mean place of that colour, to which
    gradients go. Frames in which less of it is seen than elsewhere (screen, border) do not count. How much they count is a
    constant to the gradient: no clip gets better by hiding the thing.

    Parameters
    ----------
    decode : latents [B, T', H', W', C] -> video [B, T, S, S, 3] in [-1, 1], such as `Pipeline.decode`.
    """

    decode: Callable[[jax.Array], jax.Array]

    def __call__(self, latents: jax.Array) -> jax.Array:
        """Residual [B, T], in fractions of the frame's side."""
        return self.of_video(self.decode(latents))

    def of_video(self, video: jax.Array) -> jax.Array:
        """The same of videos [B, T, S, S, 3]."""
        areas, places, _ = moments(video)
        colour = areas.sum(1).argmax(-1)[:, None, None]
        area, place = (jnp.take_along_axis(x, colour, 2)[..., 0] for x in (areas, places))
        largest = jnp.maximum(area.max(1, keepdims=True), FAINT)
        whole = jax.nn.sigmoid(EDGE * (area / largest - WHOLE))
        return uniform_motion(place / (area + FAINT), jax.lax.stop_gradient(whole))
