"""Causal networks over clips of any length: a few frames at a time, with what their layers remember in between.

A causal layer takes a chunk of frames ``x`` [B, T, H, W, C] and a `Memory`. It asks the memory for the frames that came
before the chunk and leaves its own last frames there for the next chunk; run chunk after chunk by `stream`, the layers
then compute exactly what they would compute on the whole sequence.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError


class Memory:
    """What the causal layers of one network remember between two chunks, in the order in which they are called.

    ``Memory(None)`` is the memory before the first frame; afterwards `state` is the tuple to start the next chunk
    with. The tuple has the same shapes after every chunk, so it is a `jax.lax.scan` carry.
    """

    def __init__(self, state: tuple[jax.Array, ...] | None):
        self.empty = state is None  # this is the first chunk
        self._past = iter(state or ())
        self._kept: list[jax.Array] = []

    @property
    def state(self) -> tuple[jax.Array, ...]:
        """The frames to carry to the next chunk."""
        return tuple(self._kept)

    def recall(self, like: jax.Array, frames: int) -> jax.Array:
        """The calling layer's last `frames` frames [B, frames, H, W, C]; zeros before the first chunk."""
        if self.empty:
            return jnp.zeros((like.shape[0], frames, *like.shape[2:]), like.dtype)
        return next(self._past)

    def keep(self, frames: jax.Array) -> None:
        """Remember these frames for the calling layer's next chunk."""
        self._kept.append(frames)


def stream(
    network: Callable[[jax.Array, Any], jax.Array],
    x: jax.Array,
    chunk: int,
    *,
    first: int = 1,
    memory: type[Memory] = Memory,
) -> jax.Array:
    """Run a causal network over [B, T, ...]: the `first` frames, then `chunk` frames at a time, then what is left.

    The network is called as ``network(frames, memory)``; an instance of `memory` hands each chunk what its layers kept
    of the one before.
    """

    def step(state, frames):
        past = memory(state)
        y = network(frames, past)
        return past.state, y  # a state is complete only after the network has run

    state, y = step(None, x[:, :first])
    parts = [y]
    count, rest = divmod(x.shape[1] - first, chunk)
    if count:
        chunks = x[:, first : first + count * chunk].reshape(x.shape[0], count, chunk, *x.shape[2:])
        state, y = jax.lax.scan(step, state, jnp.moveaxis(chunks, 1, 0))
        y = jnp.moveaxis(y, 0, 1)
        parts.append(y.reshape(y.shape[0], count * y.shape[2], *y.shape[3:]))
    if rest:
        parts.append(step(state, x[:, -rest:])[1])
    return jnp.concatenate(parts, axis=1)


def check_video(name: str, shape: tuple[int, ...], channels: int, config: Any) -> None:
    """Raise a `ConfigError` for a video that is not [B, T, H, W, channels] or does not fit the configuration's strides."""
    if len(shape) != 5 or shape[-1] != channels:
        raise ConfigError(f"{name}.encode: video must be [B, T, H, W, {channels}], got {shape}")
    frames, stride = shape[1], config.temporal_stride
    if frames < 1 or (frames - 1) % stride:
        fits = 1 + (max(frames, 1) - 1) // stride * stride
        raise ConfigError(
            f"{name}.encode: {frames} frames do not fit {stride}k+1; the nearest lengths that do are {fits} and "
            f"{fits + stride}"
        )
    if any(n < 1 or n % config.spatial_stride for n in shape[2:4]):
        raise ConfigError(
            f"{name}.encode: frames of {shape[2]}x{shape[3]} pixels do not fit: height and width must be multiples of "
            f"{config.spatial_stride}"
        )
