"""Layout changes between torch tensors and this project's leaves, each a small named function with its
inverse.

Torch keeps output channels first; here they are last and activations are channels-last. Every transform works
on plain NumPy arrays and returns a view wherever NumPy can, so that a memory-mapped tensor is only read when
it is copied into its place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Transform:
    """A layout change: `forward` maps a torch tensor to a leaf (or to one row of a stacked leaf), `inverse`
    maps it back."""

    name: str
    forward: Change
    inverse: Change

    def leaf_shape(self, torch_shape: Sequence[int]) -> tuple[int, ...]:
        """The leaf's shape for a torch shape; nothing is allocated."""
        return self.forward(_phantom(torch_shape)).shape

    def torch_shape(self, leaf_shape: Sequence[int]) -> tuple[int, ...]:
        """The torch shape of a leaf shape; nothing is allocated."""
        return self.inverse(_phantom(leaf_shape)).shape


def _phantom(shape: Sequence[int]) -> np.ndarray:
    # Every stride is zero, so any transpose or reshape of it is a view of one element.
    return np.broadcast_to(np.zeros((), np.int8), tuple(shape))


def permute(name: str, *axes: int) -> Transform:
    """A transposition, `leaf = torch.transpose(axes)`."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Transform(name, lambda x: x.transpose(axes), lambda x: x.transpose(back))


def squeeze(name: str, *axes: int) -> Transform:
    """Drop axes of length one: a torch tensor `(1, 6, D)` becomes the leaf `[6, D]`."""
    return Transform(name, lambda x: np.squeeze(x, axis=axes), lambda x: np.expand_dims(x, axis=axes))


as_is = Transform("as_is", lambda x: x, lambda x: x)
linear = permute("linear", 1, 0)  # (out, in) -> [in, out]
conv2d = permute("conv2d", 2, 3, 1, 0)  # (O, I, H, W) -> [H, W, I, O]
conv3d = permute("conv3d", 2, 3, 4, 1, 0)  # (O, I, T, H, W) -> [T, H, W, I, O]
drop_first = squeeze("drop_first", 0)  # (1, n, D) -> [n, D]
linear1x1 = Transform(  # a 1x1 Conv2d used as a linear layer: (O, I, 1, 1) -> [I, O]
    "linear1x1", lambda x: np.squeeze(x, axis=(2, 3)).T, lambda x: x.T[:, :, None, None]
)
linear1x1x1 = Transform(  # the same of a Conv3d: (O, I, 1, 1, 1) -> [I, O]
    "linear1x1x1", lambda x: np.squeeze(x, axis=(2, 3, 4)).T, lambda x: x.T[:, :, None, None, None]
)
gain2d = squeeze("gain2d", 1, 2)  # (C, 1, 1) -> [C]
gain3d = squeeze("gain3d", 1, 2, 3)  # (C, 1, 1, 1) -> [C]


def patch_matmul(channels: int, patch: Sequence[int]) -> Transform:
    """A convolution whose stride is its kernel, as a matrix: `(D, C, pt, ph, pw) -> [pt*ph*pw*C, D]`, or the same
    without `pt`.

    Rows are ordered (pt, ph, pw, C), the order in which a patch of a channels-last array lies in memory.
    """
    axes = tuple(range(len(patch)))
    return Transform(
        f"patch_matmul{(channels, *patch)}",
        lambda x: x.transpose(*(axis + 2 for axis in axes), 1, 0).reshape(-1, x.shape[0]),
        lambda x: x.reshape(*patch, channels, x.shape[1]).transpose(len(patch) + 1, len(patch), *axes),
    )


def patch_linear(channels: int, patch: Sequence[int]) -> Transform:
    """A linear layer over patches that lie (C, pt, ph, pw): `(D, C*pt*ph*pw) -> [pt*ph*pw*C, D]`."""
    convolution = patch_matmul(channels, patch)
    return Transform(
        f"patch_linear{(channels, *patch)}",
        lambda x: convolution.forward(x.reshape(x.shape[0], channels, *patch)),
        lambda x: convolution.inverse(x).reshape(x.shape[1], -1),
    )


def patch_rows(volume: int, transform: Transform) -> Transform:
    """`transform` of a tensor whose rows make patches: `(C*volume, ...)` becomes `(volume*C, ...)` first."""

    def swapped(x: np.ndarray, rows: int) -> np.ndarray:
        return x.reshape(rows, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)

    return Transform(
        f"patch_rows({volume}, {transform.name})",
        lambda x: transform.forward(swapped(x, x.shape[0] // volume)),
        lambda x: swapped(transform.inverse(x), volume),
    )
