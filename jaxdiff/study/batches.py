"""Clips as encoded micro-batches, with what the network is told of each."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.video import read_video
from jaxdiff.errors import MissingDataError
from jaxdiff.mesh import MicroBatch, micro_batches, shard_batch, spread_rows
from jaxdiff.pipeline import Pipeline

if TYPE_CHECKING:
    from jaxdiff.study.reading import Reading


class Encoded:
    """Latents of clips that this process has encoded, so that the next model to read them need not do it again.

    Latents do not depend on a clip's neighbours, so those kept are bit for bit what encoding would give.

    Parameters
    ----------
    limit : bytes to keep; what does not fit is encoded again.
    """

    def __init__(self, limit: int = 1 << 30):
        self._left = limit
        self._rows: dict[Path, np.ndarray] = {}

    def rows(self, clips: Sequence[Clip]) -> list[np.ndarray] | None:
        """Latents [T', H', W', C] of the clips, or None if one is missing."""
        found = [self._rows.get(clip.path) for clip in clips]
        return None if any(row is None for row in found) else found  # type: ignore[return-value]

    def add(self, clips: Sequence[Clip], latents: jax.Array) -> None:
        """Keep the first rows of `latents` [B, T', H', W', C], one a clip."""
        for clip, row in zip(clips, np.asarray(latents), strict=False):
            if clip.path not in self._rows and row.nbytes <= self._left:
                self._left -= row.nbytes
                self._rows[clip.path] = row.copy()


@dataclasses.dataclass
class Batches:
    """Encoded micro-batches of the clips that are still to do; `skipped` fills while it is iterated."""

    pipeline: Pipeline
    clips: Sequence[Clip]
    reading: "Reading"
    mesh: jax.sharding.Mesh
    todo: Sequence[int]
    skip_bad_clips: bool = False
    encoded: Encoded | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[MicroBatch, jax.Array]]:
        """Yields (micro-batch, latents [B, T', H', W', C])."""
        known = self.encoded and self.encoded.rows([self.clips[i] for i in self.todo])
        if not known:
            for batch, _, latents in self.with_video():
                if self.encoded is not None:
                    self.encoded.add([self.clips[i] for i in batch.clip_ids[: batch.real]], latents)
                yield batch, latents
            return
        for batch in micro_batches(zip(self.todo, known, strict=True), self.reading.clips_per_device, self.mesh):
            yield batch, shard_batch(np.stack(batch.items), self.mesh)

    def conditioned(self, cond: "Conditioning | Prompts") -> Iterator[tuple[MicroBatch, jax.Array, Conditioning]]:
        """Yields (micro-batch, latents, conditioning): `cond`, and where the network needs an image, that every clip
        begins with its own first frame."""
        if not self.pipeline.family.needs_image(self.pipeline.transformer):
            for batch, latents in self:
                yield batch, latents, self._told(cond, batch)
            return
        for batch, video, latents in self.with_video():
            yield batch, latents, continuing(self.pipeline, self._told(cond, batch), video)

    def _told(self, cond: "Conditioning | Prompts", batch: MicroBatch) -> Conditioning:
        if isinstance(cond, Conditioning):
            return cond
        rows = [*range(batch.real), *[batch.real - 1] * (len(batch.clip_ids) - batch.real)]  # padding repeats the last
        return shard_batch(cond.of(self.pipeline, [self.clips[batch.clip_ids[k]] for k in rows]), self.mesh)

    def with_video(self) -> Iterator[tuple[MicroBatch, jax.Array, jax.Array]]:
        """Yields (micro-batch, video uint8 [B, T, H, W, 3], latents [B, T', H', W', C])."""
        reader = self.reading.reader([self.clips[i] for i in self.todo], self.skip_bad_clips)
        numbered = (
            (i, self.reading.ordered(self.clips[i], video)) for i, video in ((self.todo[k], v) for k, v in reader)
        )
        for batch in micro_batches(numbered, self.reading.clips_per_device, self.mesh):
            video = shard_batch(np.stack(batch.items), self.mesh)
            # Laid out as kept latents are, or the same program would be compiled once for each of the two.
            yield batch, video, shard_batch(self.pipeline.encode(spread_rows(video, self.mesh)), self.mesh)
        names = {str(self.clips[i].path): self.clips[i].name for i in self.todo}
        self.skipped.update({names[path]: reason for path, reason in reader.skipped.items()})


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["prompts"])
@dataclasses.dataclass(frozen=True)
class Prompts:
    """In the place of one conditioning for all clips: pairs (name of the clip, its own prompt)."""

    prompts: tuple[tuple[str, str], ...]

    def of(self, pipeline: Pipeline, clips: Sequence[Clip]) -> Conditioning:
        """Conditioning [B, N, D] of the clips, from the cache where their prompts were embedded before."""
        table = dict(self.prompts)
        return pipeline.condition(prompt=[table[clip.name] for clip in clips])


def continuing(pipeline: Pipeline, cond: Conditioning, video: jax.Array | np.ndarray) -> Conditioning:
    """`cond`, with the first frame of the video [B, T, H, W, 3] where the network cannot do without an image."""
    return pipeline.with_image(cond, video) if pipeline.family.needs_image(pipeline.transformer) else cond


def first_readable(clips: Sequence[Clip], reading: "Reading") -> np.ndarray:
    """The clip that the store's shapes follow; whether an unreadable one before it is an error is the reader's to say."""
    broken: MissingDataError | None = None
    for clip in clips:
        try:
            return read_video(
                clip.path, frames=reading.frames, size=reading.size, sampling=reading.sampling, stride=reading.stride
            )
        except MissingDataError as error:
            broken = broken or error
    raise broken or MissingDataError("there are no clips to read")
