"""Clips for the page: source, reconstruction and their difference side by side, as one animated WebP.

WebP because every current browser plays it from an `<img>` without script, controls or a network, and because
it is small. A still strip of the same frames goes with it for paper and for readers who asked for no motion.
"""

import base64
import io

import numpy as np
from PIL import Image

GAIN = 4  # of the difference; said in the report
LARGEST = 224  # pixels; larger clips are shrunk, smaller ones kept and enlarged by the browser
GAP = 2  # white pixels between panels


def to_uint8(video: np.ndarray) -> np.ndarray:
    """[T,H,W,3] uint8, or float in [-1, 1], to uint8; values outside are clipped."""
    video = np.asarray(video)
    if video.dtype == np.uint8:
        return video
    return np.clip(np.round((video.astype(np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def difference(source: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Reconstruction minus source, times `GAIN`, about mid grey: brighter is too bright. uint8 in and out."""
    delta = reconstruction.astype(np.int16) - source.astype(np.int16)
    return np.clip(128 + GAIN * delta, 0, 255).astype(np.uint8)


def _shrink(frames: np.ndarray) -> np.ndarray:
    largest = max(frames.shape[1:3])
    if largest <= LARGEST:
        return frames
    height, width = (max(1, round(s * LARGEST / largest)) for s in frames.shape[1:3])
    small = [Image.fromarray(f).resize((width, height), Image.Resampling.BOX) for f in frames]
    return np.stack([np.asarray(f) for f in small])


def panels(source: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """source | reconstruction | difference as frames [T, H', 3 W' + 2 GAP, 3] uint8, shrunk to `LARGEST`.

    The difference is taken at full size, before shrinking, so that fine errors are averaged, not aliased.
    """
    source, reconstruction = to_uint8(source), to_uint8(reconstruction)
    parts = [_shrink(p) for p in (source, reconstruction, difference(source, reconstruction))]
    gap = np.full((*parts[0].shape[:2], GAP, 3), 255, np.uint8)
    return np.concatenate([parts[0], gap, parts[1], gap, parts[2]], axis=2)


def animation(frames: np.ndarray, fps: float, quality: int = 82) -> bytes:
    """Frames [T,H,W,3] uint8 as an endlessly looping animated WebP; small frames are stored without loss."""
    images = [Image.fromarray(f) for f in frames]
    out = io.BytesIO()
    small = frames.shape[1] <= 96
    images[0].save(
        out,
        format="WEBP",
        save_all=True,
        append_images=images[1:],
        duration=max(20, round(1000 / fps)),
        loop=0,
        lossless=small,
        quality=100 if small else quality,
        method=4,
    )
    return out.getvalue()


def strip(source: np.ndarray, reconstruction: np.ndarray, count: int = 8) -> bytes:
    """`count` evenly spaced frames, left to right; source, reconstruction, difference as rows. WebP."""
    source, reconstruction = to_uint8(source), to_uint8(reconstruction)
    picks = np.unique(np.linspace(0, len(source) - 1, count).round().astype(int))
    rows = [_shrink(p[picks]) for p in (source, reconstruction, difference(source, reconstruction))]
    if max(rows[0].shape[1:3]) > 112:  # eight in a row need no more
        rows = [r[:, ::2, ::2] for r in rows]
    edged = [np.pad(r, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255) for r in rows]
    picture = np.concatenate([np.concatenate(list(r), axis=1) for r in edged], axis=0)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format="WEBP", lossless=picture.shape[0] <= 300, quality=82, method=4)
    return out.getvalue()


def data_uri(data: bytes, kind: str = "image/webp") -> str:
    """The bytes as an address that needs no network."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def thumbnail(video: np.ndarray, fps: float, most: int = 24) -> tuple[bytes, bytes]:
    """One clip [T,H,W,3] as a small animation that takes as long as the clip, and its first, middle and last frame. WebP."""
    small = _shrink(to_uint8(video))
    stride = -(-len(small) // most)
    picks = small[[0, len(small) // 2, -1]]
    edged = np.pad(picks, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    out = io.BytesIO()
    still = Image.fromarray(np.concatenate(list(edged), axis=1))
    still.save(out, format="WEBP", lossless=small.shape[1] <= 96, quality=82, method=4)
    return animation(small[::stride], fps / stride), out.getvalue()
