"""Layers of the CogVideoX VAE: causal in time, with norms over a chunk of frames.

Every layer takes a chunk of frames ``x`` [B, T, H, W, C]. Convolutions in time see the last frames of the chunk before,
from a `Memory`; the norms see this chunk alone, so that a clip's result depends on how it is cut into chunks.
Reference: CogVideoX, arXiv 2408.06072, section 2.1.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdiff.models import streaming
from jaxdiff.models.convolutions import CausalConv3d, Conv2d
from jaxdiff.models.layers import GroupNorm, Linear

CONDITIONED_EPS = 1e-6  # of the norms that latents modulate; a constant of the reference


class Memory(streaming.Memory):
    """What the causal layers remember between two chunks; before the first one, copies of the first frame."""

    def recall(self, like: jax.Array, frames: int) -> jax.Array:
        """The calling layer's last `frames` frames, or the first frame of `like` as often."""
        return jnp.repeat(like[:, :1], frames, axis=1) if self.empty else super().recall(like, frames)


class ConditionedNorm(nnx.Module):
    """``norm(x) * gain(z) + shift(z)``: a group norm that the decoder's latents z modulate pixel by pixel (MoVQ, Zheng
    et al., arXiv 2209.09002, eq. 6). They are enlarged to x by repetition."""

    def __init__(self, width: int, latents: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = GroupNorm(width, groups, CONDITIONED_EPS)
        self.gain = Linear(latents, width, rngs=rngs)
        self.shift = Linear(latents, width, rngs=rngs)

    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        # Linear layers of every pixel, before the repetition: it would only give them the same pixels again.
        return self.norm(x) * enlarged(self.gain(z), x.shape) + enlarged(self.shift(z), x.shape)


class ResidualBlock(nnx.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``; the shortcut is linear where the width changes.

    The norms are plain with ``latents=None``, and else modulated by latents of that many channels.
    """

    def __init__(self, inputs: int, outputs: int, *, groups: int, eps: float, latents: int | None, rngs: nnx.Rngs):
        def norm(width):
            if latents is None:
                return GroupNorm(width, groups, eps)
            return ConditionedNorm(width, latents, groups, rngs=rngs)

        self.norm1 = norm(inputs)
        self.conv1 = CausalConv3d(inputs, outputs, (3, 3, 3), rngs=rngs)
        self.norm2 = norm(outputs)
        self.conv2 = CausalConv3d(outputs, outputs, (3, 3, 3), rngs=rngs)
        self.shortcut = Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array, memory: Memory, z: jax.Array | None = None) -> jax.Array:
        condition = () if z is None else (z,)
        h = self.conv1(jax.nn.silu(self.norm1(x, *condition)), memory)
        h = self.conv2(jax.nn.silu(self.norm2(h, *condition)), memory)
        return h + (x if self.shortcut is None else self.shortcut(x))


class Downsample(nnx.Module):
    """Half the height and width by a convolution, and with `temporal` half the frames by averaging pairs.

    Of an odd number of frames the first one passes alone.
    """

    def __init__(self, width: int, temporal: bool, *, rngs: nnx.Rngs):
        self.temporal = temporal
        self.conv = Conv2d(width, width, 3, stride=2, padding=(0, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.temporal:
            alone = x.shape[1] % 2
            pairs = x[:, alone:].reshape(x.shape[0], -1, 2, *x.shape[2:])
            x = jnp.concatenate([x[:, :alone], pairs.mean(2)], axis=1)
        return self.conv(x)


class Upsample(nnx.Module):
    """Twice the height and width, and with `temporal` twice the frames, by repetition; then a convolution.

    Of an odd number of frames the first one is not repeated.
    """

    def __init__(self, width: int, temporal: bool, *, rngs: nnx.Rngs):
        self.temporal = temporal
        self.conv = Conv2d(width, width, 3, padding=(1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv.doubled(x)  # of each frame alone, so it may come first
        return _repeated(x, 2 * x.shape[1] - x.shape[1] % 2) if self.temporal else x


def enlarged(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[B, t, h, w, C] by repetition to the T, H, W of `shape`, multiples of t, h, w (T as `_repeated` has it)."""
    for axis in (2, 3):
        x = jnp.repeat(x, shape[axis] // x.shape[axis], axis=axis)
    return _repeated(x, shape[1])


def _repeated(x: jax.Array, frames: int) -> jax.Array:
    """Each frame as often as makes `frames` of them; of an odd number of frames the first one only once."""
    alone = x.shape[1] % 2
    if frames == alone:
        return x
    rest = jnp.repeat(x[:, alone:], (frames - alone) // (x.shape[1] - alone), axis=1)
    return jnp.concatenate([x[:, :alone], rest], axis=1)
