"""Where clips come from: video files (PyAV), folders of pictures (Pillow), `.npy` arrays.

A source knows its length and size once it is made, without decoding, and reads the frames that it is asked
for. Whatever is wrong with a file is an exception here; `open_clip` and `jaxdiff.data.video` make it one that
names the file.
"""

import io
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdiff.data.packed import is_packed, packed_bytes
from jaxdiff.data.sampling import resize, to_uint8
from jaxdiff.errors import MissingDataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")

Size = int | tuple[int, int] | None


@dataclass(frozen=True)
class VideoInfo:
    """What a clip is, found without decoding it."""

    frames: int
    height: int
    width: int
    fps: float | None  # None where the container does not say


class Source(Protocol):
    """A clip that has been opened."""

    info: VideoInfo

    def read(self, wanted: Iterable[int], size: Size) -> dict[int, np.ndarray]:
        """Decode the frames of these numbers, resized, each uint8 `[H, W, 3]`."""


# The header of a .npy file is Python text, and Python 3.11's parser fails in threads that parse at once ("AST constructor
# recursion depth mismatch", cpython issue 106905): a sound clip would be skipped as a damaged one.
_PARSING = threading.Lock()


def natural(path: Path) -> list[Any]:
    """Sort key under which frame_2 comes before frame_10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", path.name))]


def image_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder, in natural order; AppleDouble and other hidden files are ignored."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(found, key=natural)


class ArrayFile:
    """A `.npy` file: uint8, or float in [-1, 1]."""

    def __init__(self, path: Path):
        with _PARSING:
            self.values = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, dtype = self.values.shape, self.values.dtype
        known = dtype in (np.uint8, np.float16, np.float32, np.float64)
        if not known or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"it holds {dtype} {list(shape)}, not uint8 or float [T, H, W, 3]")
        frames, height, width, _ = shape
        self.info = VideoInfo(frames, height, width, None)

    def read(self, wanted: Iterable[int], size: Size) -> dict[int, np.ndarray]:
        """Convert and resize some frames."""
        return {int(i): _sized(to_uint8(self.values[i]), size) for i in set(wanted)}


class PictureFolder:
    """A folder of pictures, one a frame."""

    def __init__(self, folder: Path):
        from PIL import Image

        self.files = image_files(folder / "scene" if (folder / "scene").is_dir() else folder)
        if not self.files:
            raise ValueError("it holds no png or jpg frames")
        with Image.open(self.files[0]) as first:  # reads the header only
            self.info = VideoInfo(len(self.files), first.height, first.width, None)

    def read(self, wanted: Iterable[int], size: Size) -> dict[int, np.ndarray]:
        """Decode and resize some pictures; all must have the first one's size."""
        from PIL import Image

        pictures: dict[int, np.ndarray] = {}
        for i in set(wanted):
            try:
                with Image.open(self.files[i]) as opened:
                    picture = np.asarray(opened.convert("RGB"))
            except Exception as error:
                raise ValueError(f"frame {self.files[i].name} cannot be read ({error})") from error
            if picture.shape[:2] != (self.info.height, self.info.width):
                raise ValueError(
                    f"frame {self.files[i].name} is {picture.shape[1]}x{picture.shape[0]}, "
                    f"but {self.files[0].name} is {self.info.width}x{self.info.height}"
                )
            pictures[int(i)] = _sized(picture, size)
        return pictures


class VideoFile:
    """A video file. Its frames are counted by packets, without decoding; headers may be wrong or silent."""

    def __init__(self, path: Path):
        import av

        self.path, self.packed = path, packed_bytes(path) if is_packed(path) else None
        with av.open(self._medium()) as container:
            if not container.streams.video:
                raise ValueError("it holds no video stream")
            stream = container.streams.video[0]
            claimed, rate = stream.frames, stream.average_rate
            height, width = stream.codec_context.height, stream.codec_context.width
            frames = sum(1 for packet in container.demux(stream) if packet.size)
        if frames == 0:
            raise ValueError("it holds no frames")
        if frames < claimed:
            raise ValueError(f"it is truncated: {frames} of the {claimed} frames that its header promises")
        self.info = VideoInfo(frames, height, width, float(rate) if rate else None)

    def _medium(self) -> str | io.BytesIO:
        return str(self.path) if self.packed is None else io.BytesIO(self.packed)

    def _decode(self) -> Iterator[Any]:
        import av

        with av.open(self._medium()) as container:
            stream = container.streams.video[0]
            # one thread: with several, which damage is noticed depends on their timing, and with it the clips
            # that a run skips. Clips are decoded side by side instead (ClipReader).
            stream.codec_context.thread_count = 1
            yield from container.decode(stream)

    def read(self, wanted: Iterable[int], size: Size) -> dict[int, np.ndarray]:
        """Decode the file once from its start, and convert and resize only the frames that are wanted."""
        chosen, decoded = set(wanted), 0
        pictures: dict[int, np.ndarray] = {}
        for frame in self._decode():
            if frame.is_corrupt:
                raise ValueError(f"its frame {decoded} is damaged")
            if decoded in chosen:
                picture = frame.to_ndarray(format="rgb24")
                # phones store the sensor's picture and how far to turn it, counterclockwise
                pictures[decoded] = _sized(np.rot90(picture, frame.rotation // 90), size)
            decoded += 1
        if decoded < self.info.frames:
            raise ValueError(f"only {decoded} of its {self.info.frames} frames can be decoded")
        return pictures


def _sized(picture: np.ndarray, size: Size) -> np.ndarray:
    return np.ascontiguousarray(picture if size is None else resize(picture, size))


def open_clip(path: Path) -> Source:
    """Open whatever lies at a path.

    Raises
    ------
    MissingDataError
        If there is nothing, or nothing that can be read.
    """
    if not path.exists() and not is_packed(path):
        raise MissingDataError(f"{path}: no such clip.")
    try:
        if is_packed(path):
            return VideoFile(path)
        if path.is_dir():
            return PictureFolder(path)
        if path.stat().st_size == 0:
            raise ValueError("it is an empty file")
        return ArrayFile(path) if path.suffix.lower() == ".npy" else VideoFile(path)
    except (ImportError, MemoryError):  # not the clip's fault
        raise
    except Exception as error:  # decoders raise whatever they like on damaged input
        raise MissingDataError(f"{path}: the clip cannot be read: {error}.") from error
