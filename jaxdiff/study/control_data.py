"""Clips and the masks of what drives them, for `experiments.control`: generated billiards, or folders of one's own."""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdiff.data.listing import listed
from jaxdiff.data.video import list_videos, read_video, video_info
from jaxdiff.data.worlds.billiards import BilliardConfig, Billiards, billiards
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.physics.control_training import Masks
from jaxdiff.progress import progress
from jaxdiff.train.latents import Source, VideoClips
from jaxdiff.workdir import Workdir

DRAWN = 32  # pairs at once
HELD_OUT = 1_000_000  # the first pair that is never trained on


class MaskedSource(Source, Protocol):
    """Clips as `jaxdiff.train.latents.encode_clips` reads them, and the masks of their drivers."""

    def masks(self) -> Iterator[np.ndarray]:
        """bool [T, H, W] of every clip, in order."""


@dataclasses.dataclass
class BilliardClips:
    """Clips of generated pairs `start` to ``start + pairs``, hit and miss by turns; the driver's mask is exact."""

    pairs: int
    seed: int
    world: BilliardConfig = dataclasses.field(default_factory=BilliardConfig)
    start: int = 0
    fps: float | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.pairs < 1 or self.seed < 0:
            raise ConfigError(f"{self.pairs} pairs and --seed={self.seed}: at least one pair, and no seed below 0")
        self.names = tuple(
            f"billiards-{self.seed}-{self.start + i:06d}-{end}" for i in range(self.pairs) for end in ("hit", "miss")
        )
        self.captions = ("",) * len(self.names)
        self.shape = (self.world.frames, self.world.size, self.world.size, 3)
        self._last: tuple[int, Billiards] | None = None

    def describe(self) -> dict[str, Any]:
        """The draw."""
        return {"world": dataclasses.asdict(self.world), "seed": self.seed, "start": self.start}

    def read(self, ids: Sequence[int], ahead: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.read`."""
        for i in ids:
            yield i, self._drawn(i).video[i % (2 * DRAWN)]

    def masks(self) -> Iterator[np.ndarray]:
        """See `MaskedSource`."""
        for i in range(len(self.names)):
            yield self._drawn(i).masks[i % (2 * DRAWN), :, 0]

    def all(self) -> Billiards:
        """Every clip with all that is true of it."""
        return billiards(self.world, self.seed, self.pairs, self.start)

    def _drawn(self, clip: int) -> Billiards:
        chunk = clip // (2 * DRAWN)
        if self._last is None or self._last[0] != chunk:
            first = chunk * DRAWN
            drawn = billiards(self.world, self.seed, min(DRAWN, self.pairs - first), self.start + first)
            self._last = chunk, drawn
        return self._last[1]


@dataclasses.dataclass
class MaskedVideos(VideoClips):
    """A folder of videos, and one of mask videos under the same names: white where the driver is. Use `find_masked`."""

    mask_paths: tuple[Path, ...] = ()

    def masks(self) -> Iterator[np.ndarray]:
        """See `MaskedSource`. A pixel is the driver's from half of white up."""
        frames, height, width, _ = self.shape
        for path in self.mask_paths:
            video = read_video(path, frames=frames, size=(height, width), min_frames=frames, fps=self.fps)
            yield video.mean(-1) >= 127.5


def find_masked(
    folder: Path, masks: Path, captions: Path | None, *, frames: int, size: tuple[int, int] | None, fps: float | None
) -> MaskedVideos:
    """Clips and masks of two folders; none is decoded.

    Raises
    ------
    MissingDataError : as `VideoClips.find`; a clip without a mask, or a mask of another length or size; all are named.
    """
    clips = VideoClips.find(folder, captions, frames=frames, size=size, fps=fps)
    there = {path.relative_to(masks).with_suffix("").as_posix(): path for path in list_videos(masks)}
    problems, found = [], []
    for name, path in zip(clips.names, clips.paths, strict=True):
        mask = there.get(Path(name).with_suffix("").as_posix())
        if mask is None:
            problems.append(f"{name!r} has no mask of its name below {masks}")
            continue
        of_clip, of_mask = (
            (info.frames, info.height, info.width) for info in (video_info(path), video_info(mask, frames))
        )
        if of_clip != of_mask:
            told = " and ".join("{} frames of {} x {}".format(*shape) for shape in (of_clip, of_mask))
            problems.append(f"{name!r} and its mask differ in length or size: {told}")
        found.append(mask)
    if problems:
        raise MissingDataError(f"{masks}: every clip needs a mask of its own length and size:{listed(problems)}")
    return MaskedVideos(**{f.name: getattr(clips, f.name) for f in dataclasses.fields(clips)}, mask_paths=tuple(found))


def stored_masks(work: Workdir, source: MaskedSource, name: str = "masks.npy") -> Masks:
    """The masks of a source, read once and kept as bits in the workdir.

    Raises
    ------
    MissingDataError : a mask cannot be read, or is empty in every frame; all empty ones are named.
    """
    frames, height, width, _ = source.shape
    shape, path = (frames, height, width), work.path / name
    if not path.exists():
        bits, empty = [], []
        with progress("read masks", len(source.names)) as task:
            for clip, mask in zip(source.names, source.masks(), strict=True):
                if not mask.any():
                    empty.append(f"{clip!r} shows no driver in any frame")
                bits.append(np.packbits(mask))
                task.advance()
        if empty:
            raise MissingDataError(
                f"{len(empty)} of {len(bits)} masks are empty; leave those clips out, or give masks that are white where the driver "
                f"is:{listed(empty)}"
            )
        buffer = io.BytesIO()
        np.save(buffer, np.stack(bits))
        work.write(name, buffer.getvalue())
    return Masks(np.load(path, mmap_mode="r"), shape)
