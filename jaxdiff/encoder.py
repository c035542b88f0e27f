"""Pretrained video encoders beside the diffusion models: a clip in, the states of every block out."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data.sampling import frame_indices
from jaxdiff.errors import ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.vision import PictureConfig, ResNet, to_pixels
from jaxdiff.models.vision.vit import INPUT
from jaxdiff.taps import FrameMean, Grid3


def load_encoder(folder: str | Path, *, dtype=None) -> "Encoder":
    """Load a video encoder.

    Parameters
    ----------
    folder : a folder as transformers publishes it (config.json, weights as safetensors, and the processor's file, without
        which clips are prepared as all published checkpoints of that class do it): V-JEPA 2, VideoMAE, ResNet; or
        VideoMAE V2 in the layout of OpenGVLab. Predictors, decoders and classifiers in it are left out.
    dtype : dtype of the matmul weights; None: bfloat16 on accelerators, float32 on a CPU. Norms stay float32.

    Raises
    ------
    CheckpointError : not a checkpoint, another class, a pickle, or tensors missing, extra or misshaped (all problems are
        listed at once).
    ConfigError : a configuration key that this version does not know.

    Examples
    --------
    ::

        encoder = jaxdiff.load_encoder("vjepa2-vitl-fpc64-256")
        states = encoder.states(video, "mean")  # video uint8 [B, T, H, W, 3] -> float32 [25, B, 1024]
    """
    from ports.encoders import open_encoder  # against the grain, as in `jaxdiff.load`

    return open_encoder(folder, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A reducer that keeps every token: [B, S, D] -> [B, T', H' W', D] float32."""

    def __call__(self, x: jax.Array, grid: Grid3) -> jax.Array:
        return x.astype(jnp.float32).reshape(x.shape[0], grid[0], -1, x.shape[-1])


@functools.partial(jax.tree_util.register_dataclass, data_fields=["network"], meta_fields=["pictures", "frames"])
@dataclasses.dataclass(frozen=True)
class Encoder:
    """A video encoder as a pytree: weights are leaves, everything else is static and hashable.

    Parameters
    ----------
    network : its weights; `network.module` is `VJEPA2`, `VideoMAE` or `ResNet` of `jaxdiff.models.vision`.
    pictures : how frames are resized, cropped and normalised.
    frames : how many frames a clip is brought to, evenly over its length; None: every frame, each by itself (ResNet).
    """

    network: Network
    pictures: PictureConfig
    frames: int | None = None

    def prepare(self, video: np.ndarray) -> np.ndarray:
        """Clips as the network takes them, on the host.

        Frames ``linspace(0, T - 1, frames)``, truncated, are kept; a clip that is too short is continued by its last
        frame. They are resized and cropped by Pillow on bytes, then rescaled and normalised.

        Parameters
        ----------
        video : uint8 [B, T, H, W, 3]

        Returns
        -------
        float32 [B, frames, h, w, 3]

        Raises
        ------
        ConfigError : anything but bytes.
        """
        video = np.asarray(video)
        if video.ndim != 5 or not video.shape[1]:
            raise ConfigError(f"clips must be uint8 [B, T, H, W, 3], got {video.dtype} {video.shape}")
        video = video[:, frame_indices(video.shape[1], self.frames)]
        pixels = to_pixels(video.reshape(-1, *video.shape[2:]), self.pictures)
        return pixels.reshape(*video.shape[:2], *pixels.shape[1:])

    def read(self, pixels: jax.Array, reduce: Sequence[Any]) -> dict[str, jax.Array]:
        """States of prepared clips through several reducers in one pass. Not jitted: for use inside a jit.

        Tokens are reduced where they arise, inside the scan over blocks.

        Parameters
        ----------
        pixels : float32 [B, T, h, w, 3], of `prepare`.
        reduce : reducers of `jaxdiff.taps`, by name ("mean", "frame_mean", "grid", "moments") or as objects.

        Returns
        -------
        name -> float32 [rows, B, ...]. Of a transformer "block_out.<reducer>", its rows being the blocks and then the
        output, which is normed if the checkpoint norms it; of a ResNet "stage1.<reducer>" and so on, a row each. And
        "input.<reducer>", one row: the embedding of the pixels that the first block or stage takes.
        """
        return self.network.bind().read(pixels, tuple(reduce))

    def states(self, video: np.ndarray, reduce: Any = None) -> jax.Array | tuple[jax.Array, ...]:
        """What every block makes of clips.

        Parameters
        ----------
        video : uint8 [B, T, H, W, 3], of any length and size, see `prepare`.
        reduce : a reducer, by name or as an object. None keeps every token of a transformer (large: a clip of V-JEPA 2
            ViT-L takes 839 MB) and averages a ResNet's positions per frame.

        Returns
        -------
        Of a transformer with L blocks, float32 [L + 1, B, ...], the last row being the output; without a reducer
        [L + 1, B, T', H' W', D]. Of a ResNet a tuple of arrays [B, ...], one a stage (they differ in width); without a
        reducer [B, T, D].
        """
        frames = issubclass(self.network.module, ResNet)
        if reduce is None:
            reduce = FrameMean() if frames else Tokens()
        found = _read(self, self.prepare(video), (reduce,))
        rows = [values for name, values in found.items() if not name.startswith(f"{INPUT}.")]
        return tuple(values[0] for values in rows) if frames else rows[0]


@functools.partial(jax.jit, static_argnames="reduce")
def _read(encoder: Encoder, pixels: jax.Array, reduce: tuple[Any, ...]) -> dict[str, jax.Array]:
    return encoder.read(pixels, reduce)
