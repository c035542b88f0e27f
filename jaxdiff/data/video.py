"""Reading and writing clips.

Everything becomes uint8 RGB `[T, H, W, 3]`. What cannot be read is a `MissingDataError` that names the file.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from jaxdiff.data.sampling import frame_indices, to_uint8
from jaxdiff.data.sources import VIDEO_SUFFIXES, VideoInfo, image_files, natural, open_clip
from jaxdiff.errors import ConfigError, MissingDataError


def list_videos(folder: str | Path) -> list[Path]:
    """All clips below a folder, sorted: video files, `.npy` files, and folders that directly hold pictures.

    Of a folder with a `scene` subfolder (the layout of IntPhys) the subfolder is the clip; its depth and
    masks are none.

    Raises
    ------
    MissingDataError
        If the folder does not exist or holds no clip.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingDataError(
            f"{folder}: no such folder. --videos takes a folder of video files (or of folders of png frames)."
        )

    def below(path: Path) -> list[Path]:
        if (path / "scene").is_dir():
            return below(path / "scene")
        clips = [path] if image_files(path) else []
        for entry in sorted(path.iterdir(), key=natural):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                clips += below(entry)
            elif entry.suffix.lower() in (*VIDEO_SUFFIXES, ".npy"):
                clips.append(entry)
        return clips

    clips = below(folder)
    if not clips:
        kinds = ", ".join((*VIDEO_SUFFIXES, ".npy"))
        raise MissingDataError(
            f"{folder}: no clips below it. Looked for {kinds} files and for folders of png or jpg frames."
        )
    return clips


def video_info(path: str | Path, min_frames: int = 1) -> VideoInfo:
    """Length, size and rate of a clip, without decoding it.

    Raises
    ------
    MissingDataError
        If it is absent, empty, damaged as far as its container shows, or shorter than `min_frames`.
    """
    return _long_enough(Path(path), open_clip(Path(path)).info, min_frames)


def _long_enough(path: Path, info: VideoInfo, min_frames: int) -> VideoInfo:
    if info.frames < min_frames:
        raise MissingDataError(
            f"{path}: the clip is too short: {info.frames} frames, and at least {min_frames} are needed."
        )
    return info


def frames_at(path: Path, info: VideoInfo, frames: int, fps: float) -> np.ndarray:
    """The `frames` frames from a clip's start that are nearest to `fps` a second, int64 `[frames]`.

    Raises
    ------
    MissingDataError
        If the clip knows no rate, or a lower one, or is too short.
    """
    if info.fps is None or info.fps < 0.99 * fps:  # 23.976 is called 24
        known = "no rate" if info.fps is None else f"{info.fps:g} frames a second"
        raise MissingDataError(f"{path}: the clip has {known}, and {fps:g} frames a second are to be taken.")
    at = np.rint(np.arange(frames) * max(info.fps / fps, 1.0)).astype(np.int64)
    _long_enough(path, info, int(at[-1]) + 1)
    return at


def read_video(
    path: str | Path,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    sampling: str = "linspace",
    *,
    stride: int = 1,
    min_frames: int = 1,
    fps: float | None = None,
) -> np.ndarray:
    """Read one clip.

    Parameters
    ----------
    path : str or Path
        A video file, a folder of png or jpg frames (in natural order), or a `.npy` file.
    frames, sampling, stride
        Which frames: see `frame_indices`. The last one is repeated when the clip is short.
    size : int or (int, int), optional
        Picture size: see `resize` (short side to `size`, centre crop). None keeps the clip's own.
    min_frames : int
        A clip with fewer frames of its own is an error instead of being padded.
    fps : float, optional
        Take `frames` frames from the start at this rate, in the place of `sampling`; see `frames_at`.

    Returns
    -------
    numpy.ndarray
        uint8 RGB `[T, H, W, 3]`.

    Raises
    ------
    MissingDataError
        If the clip is absent, empty, damaged, too short, or its pictures differ in size.
    """
    path = Path(path)
    source = open_clip(path)
    if fps is not None and frames is not None:
        wanted = frames_at(path, source.info, frames, fps)
    else:
        wanted = frame_indices(_long_enough(path, source.info, min_frames).frames, frames, sampling, stride)
    try:
        pictures = source.read(wanted.tolist(), size)
        return np.stack([pictures[int(i)] for i in wanted])
    except (ImportError, MemoryError):  # not the clip's fault
        raise
    except Exception as error:  # decoders raise whatever they like on damaged input
        raise MissingDataError(f"{path}: the clip cannot be read: {error}.") from error


def check_videos(
    paths: Iterable[str | Path], min_frames: int = 1, *, frames: int | None = None, fps: float | None = None
) -> dict[Path, str]:
    """Look at all clips without decoding them, before anything slow starts: the unreadable ones and why. With `frames` and
    `fps`, also those that are not long or fast enough for that."""
    bad = {}
    for path in map(Path, paths):
        try:
            info = video_info(path, min_frames)
            if frames is not None and fps is not None:
                frames_at(path, info, frames, fps)
        except MissingDataError as error:
            bad[path] = str(error)
    return bad


class ClipReader:
    """Clips decoded ahead by grain's threads, in order.

    Parameters
    ----------
    paths : sequence of str or Path
        What `read_video` takes.
    frames, size, sampling, stride, min_frames, fps
        As for `read_video`.
    skip_bad_clips : bool
        False: the first unreadable clip ends the iteration with its `MissingDataError`. True: it is left out
        and noted in `skipped`, a dict from the path (as given) to the reason.
    ahead : int
        Clips that are held decoded, at most.
    threads : int
        Clips that are decoded at once. Order, and which clip's error comes first, do not depend on it.
    shard : (int, int)
        (k, n): of all clips, every n-th from the k-th on; `process_shard()` where several processes share the work.

    Yields
    ------
    (int, numpy.ndarray)
        Position in `paths`, and the clip uint8 `[T, H, W, 3]`.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        frames: int | None = None,
        size: int | tuple[int, int] | None = None,
        sampling: str = "linspace",
        stride: int = 1,
        min_frames: int = 1,
        fps: float | None = None,
        skip_bad_clips: bool = False,
        ahead: int = 4,
        threads: int = 2,
        shard: tuple[int, int] = (0, 1),
    ):
        index, count = shard
        if not 0 <= index < count:
            raise ConfigError(f"shard {index} of {count}: shards are numbered from 0")
        self.paths, self.skip_bad_clips = list(paths), skip_bad_clips
        self.positions = range(len(self.paths))[index::count]
        self.ahead = max(ahead, 1)
        self.threads = max(1, min(threads, self.ahead))
        self.read = partial(
            read_video, frames=frames, size=size, sampling=sampling, stride=stride, min_frames=min_frames, fps=fps
        )
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.positions)

    def _try(self, position: int) -> tuple[int, np.ndarray | None, MissingDataError | None]:
        """A clip, or why there is none: an exception would end grain's iteration for good."""
        try:
            return position, self.read(self.paths[position]), None
        except MissingDataError as error:
            return position, None, error

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        import grain

        if not self.positions:
            return
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=self.ahead)
        decoded = iter(grain.MapDataset.source(self.positions).map(self._try).to_iter_dataset(options))
        try:
            for position, clip, error in decoded:
                if clip is not None:
                    yield position, clip
                elif error is not None and not self.skip_bad_clips:
                    raise error
                else:
                    self.skipped[str(self.paths[position])] = str(error)
        finally:  # also when the consumer stops early
            decoded.close()


def process_shard() -> tuple[int, int]:
    """This process among those of the run: the `shard` of its `ClipReader`."""
    import jax

    return jax.process_index(), jax.process_count()


def parse_shard(text: str) -> tuple[int, int] | None:
    """The shard of a flag: "k/n", "auto" for this process among those of jax.distributed, or nothing for None.

    Raises
    ------
    ConfigError
        If it is not written so, or if there are several processes and nothing says what each is to do.
    """
    index, count = process_shard()
    if text == "auto":
        return index, count
    if not text:
        if count > 1:
            raise ConfigError(
                f"this is one of {count} processes of jax.distributed, and they cannot do the same work in one folder: give "
                "each --shard=auto, and run the command without it afterwards in one process"
            )
        return None
    first, _, every = text.partition("/")
    if not (first.isdigit() and every.isdigit() and int(first) < int(every)):
        raise ConfigError(f"--shard={text}: write k/n with k from 0 to n - 1, for example 0/4, or auto")
    return int(first), int(every)


def write_video(path: str | Path, frames: np.ndarray, fps: float = 8.0, crf: int = 12) -> Path:
    """Write an H.264 mp4 that browsers play.

    Parameters
    ----------
    frames : numpy.ndarray
        uint8, or float in [-1, 1], `[T, H, W, 3]`. Odd sides are continued by one row or column (4:2:0 needs
        even ones).
    fps : float
        Frames per second.
    crf : int
        x264's constant rate factor: lower is better and larger; 12 is visually lossless.
    """
    import av

    frames = to_uint8(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"write_video({path}): frames must be [T, H, W, 3] and not empty, got {list(frames.shape)}.")
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        # Equal frames give equal files. x264's macroblock tree does not: with AVX-512 it reads past rows of fewer than 16
        # macroblocks, and what lies there decides.
        options = {"crf": str(crf), "mbtree": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the file depends on how many there are
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
