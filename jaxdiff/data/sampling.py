"""Which frames of a clip are kept, and how large they become."""

import numpy as np

from jaxdiff.errors import ConfigError

SAMPLING = ("linspace", "stride")


def frame_indices(available: int, frames: int | None, sampling: str = "linspace", stride: int = 1) -> np.ndarray:
    """Choose the frames of a clip that are kept.

    Parameters
    ----------
    available : int
        Frames that the clip has.
    frames : int or None
        Frames wanted; None keeps all (with "stride": every stride-th).
    sampling : {"linspace", "stride"}
        "linspace" covers the whole clip: `linspace(0, available - 1, frames)`, truncated, in float32 and
        filled from both ends as `torch.linspace` does, so that the choice is that of the published protocol.
        "stride" takes `0, stride, 2 stride, ...` from the start. A clip that is too short is continued by its
        last frame.

    Returns
    -------
    numpy.ndarray
        int64 `[frames]`, non-decreasing.
    """
    if sampling not in SAMPLING:
        raise ConfigError(f"sampling={sampling!r} is not one of {', '.join(SAMPLING)}.")
    if stride < 1 or available < 1 or (frames is not None and frames < 1):
        raise ConfigError(
            f"frame_indices: available={available}, frames={frames}, stride={stride}; all must be at least 1."
        )
    if sampling == "stride":
        count = -(-available // stride) if frames is None else frames
        return np.minimum(np.arange(count) * stride, available - 1)
    if frames is None or frames >= available:
        return np.minimum(np.arange(available if frames is None else frames), available - 1)
    i, last = np.arange(frames), np.float32(available - 1)
    step = last / np.float32(max(frames - 1, 1))
    # torch fills the second half from the end; in float64 the product with an inexact step can be held
    # exactly, and the one rounding to float32 below is then that of a fused multiply-add
    ascending, descending = i * np.float64(step), np.float64(last) - np.float64(step) * (frames - 1 - i)
    return np.where(i < max(frames // 2, 1), ascending, descending).astype(np.float32).astype(np.int64)


def resize(picture: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Scale a picture so that it just covers `size`, then crop the centre.

    Pillow's bilinear filter, whose support grows with the reduction (antialiased: each output pixel averages
    all the input that it covers). The long side is truncated and the crop's offset rounded, as torchvision's
    Resize and CenterCrop do. A picture that has the size already is returned unchanged.

    Parameters
    ----------
    picture : numpy.ndarray
        uint8 `[H, W, 3]`.
    size : int or (int, int)
        Side of the square, or (height, width).
    """
    from PIL import Image

    height, width = (size, size) if isinstance(size, int) else size
    h, w = picture.shape[:2]
    if (h, w) == (height, width):
        return picture
    if h * width <= w * height:  # relatively wide: the heights meet
        scaled = (height, max(width, int(height * w / h)))
    else:
        scaled = (max(height, int(width * h / w)), width)
    resized = np.asarray(Image.fromarray(picture).resize(scaled[::-1], Image.Resampling.BILINEAR))
    top, left = (round((s - t) / 2) for s, t in zip(scaled, (height, width), strict=True))
    return resized[top : top + height, left : left + width]


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Pixels in [-1, 1] as uint8; uint8 is passed on.

    Raises
    ------
    ValueError
        If a value is not finite or lies outside [-1, 1] by more than 1e-3.
    """
    video = np.asarray(video)
    if video.dtype == np.uint8:
        return video
    if not np.isfinite(video).all() or np.abs(video).max(initial=0.0) > 1.001:
        raise ValueError(
            f"float pixels must be finite and in [-1, 1], found {np.min(video):.4g} .. {np.max(video):.4g}"
        )
    return np.round((np.clip(video.astype(np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)
