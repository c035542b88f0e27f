"""Clips and captions to a latent store: every clip goes through the VAE and every caption through the text encoder once,
before anything is trained on them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.captions import captioned_videos
from jaxdiff.data.listing import listed
from jaxdiff.data.video import ClipReader, check_videos, list_videos, video_info
from jaxdiff.data.worlds import WorldConfig, prompts, sample_batch
from jaxdiff.errors import ConfigError, MissingDataError, NonFiniteError
from jaxdiff.lamo.motion import LAG
from jaxdiff.mesh import clip_mesh, micro_batches, replicate, shard_batch
from jaxdiff.models.network import fingerprint
from jaxdiff.pipeline import Pipeline
from jaxdiff.processes import count, index, meet
from jaxdiff.progress import progress
from jaxdiff.store import LatentHeader, LatentStore, LatentWriter
from jaxdiff.train.nano import DRAWN, clips_key

CAPTIONS = 512  # embedded in one call, while the text encoder is in memory
FRAMES = 49  # of a clip, where nothing else is asked for: CogVideoX was trained on as many
WORLD = "world"

Embed = Callable[[Sequence[str]], Conditioning]


class Source(Protocol):
    """Clips of one shape, each with a name and a caption."""

    names: tuple[str, ...]
    captions: tuple[str, ...]
    shape: tuple[int, int, int, int]  # (T, H, W, 3)
    fps: float | None
    skipped: dict[str, str]  # name -> why, of the clips that `read` left out so far

    def describe(self) -> dict[str, Any]:
        """What decides the pixels beside names, shape and rate."""

    def read(self, ids: Sequence[int], ahead: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (id, uint8 [T, H, W, 3]) of the clips at these places, `ahead` of them decoded ahead at most."""


@dataclasses.dataclass
class VideoClips:
    """A folder of videos with captions. Use `find`."""

    names: tuple[str, ...]
    captions: tuple[str, ...]
    paths: tuple[Path, ...]
    shape: tuple[int, int, int, int]
    fps: float | None
    skip_bad_clips: bool
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def find(
        cls,
        folder: Path,
        captions: Path | None,
        *,
        frames: int,
        size: tuple[int, int] | None,
        fps: float | None,
        skip_bad_clips: bool = False,
    ) -> "VideoClips":
        """List and check the clips; none is decoded. Without captions every clip has the empty one.

        Raises
        ------
        MissingDataError : clips without captions or captions without clips; clips that cannot be opened or have fewer
            frames than are needed (all are named), unless those are skipped.
        ConfigError : clips of several sizes, and no size given.
        """
        if captions is None:
            found = [(path.relative_to(folder).as_posix(), path, "") for path in list_videos(folder)]
        else:
            found = captioned_videos(folder, captions)
        names, paths, texts = zip(*found, strict=True)
        bad = check_videos(paths, frames, frames=frames, fps=fps)
        good = [path for path in paths if path not in bad]
        if bad and (not good or not skip_bad_clips):
            advice = "" if not good else "\n--skip_bad_clips leaves them out."
            raise MissingDataError(
                f"{folder}: {len(bad)} of {len(paths)} clips cannot be encoded:{listed(list(bad.values()))}{advice}"
            )
        if size is None:
            sizes = {(info.height, info.width) for info in map(video_info, good)}
            if len(sizes) > 1:
                raise ConfigError(
                    f"{folder}: the clips have {len(sizes)} sizes, {sorted(sizes)[:5]}; --size=HEIGHT,WIDTH"
                )
            (size,) = sizes
        return cls(names, texts, paths, (frames, *size, 3), fps, skip_bad_clips)

    def describe(self) -> dict[str, Any]:
        """Nothing: another folder with equal names is the same clips in another place."""
        return {}

    def read(self, ids: Sequence[int], ahead: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.read`."""
        frames, height, width, _ = self.shape
        reader = ClipReader(
            [self.paths[i] for i in ids],
            frames=frames,
            size=(height, width),
            min_frames=frames,
            fps=self.fps,
            skip_bad_clips=self.skip_bad_clips,
            ahead=ahead,
        )
        for place, video in reader:
            yield ids[place], video
        names = dict(zip(map(str, self.paths), self.names, strict=True))
        self.skipped |= {names[path]: why for path, why in reader.skipped.items()}


@dataclasses.dataclass
class WorldClips:
    """Clips of the generated world; those of seed s are the ones that `train.nano` trains a model of that seed on."""

    count: int
    seed: int
    structure: str = "plausible"
    world: WorldConfig = dataclasses.field(default_factory=WorldConfig)
    fps: float | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.count < 1 or self.seed < 0:
            raise ConfigError(f"--clips={self.count} must be at least 1 and --seed={self.seed} at least 0")
        drawn = [np.asarray(self._draw(i)[1]) for i in range(-(-self.count // DRAWN))]
        self.captions = tuple(prompts.as_text(row) for row in np.concatenate(drawn)[: self.count])
        self.names = tuple(f"world-{self.seed}-{i:06d}" for i in range(self.count))
        self.shape = (self.world.frames, self.world.size, self.world.size, 3)

    def describe(self) -> dict[str, Any]:
        """The draw."""
        return {"world": dataclasses.asdict(self.world), "seed": self.seed, "structure": self.structure}

    def read(self, ids: Sequence[int], ahead: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `Source.read`."""
        for number, group in itertools.groupby(ids, lambda i: i // DRAWN):
            videos = np.asarray(self._draw(number)[0])
            for i in group:
                yield i, videos[i % DRAWN]

    def _draw(self, number: int) -> tuple[jax.Array, jax.Array]:
        return _world_batch(jax.random.fold_in(clips_key(self.seed), number), self.world, self.structure)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _world_batch(key, world, structure):
    drawn = sample_batch(key, world, DRAWN, structure)
    return drawn.video, drawn.words


def find_clips(
    videos: str,
    captions: Path | None,
    *,
    frames: int | None = None,
    size: tuple[int, ...] | None = None,
    fps: float | None = None,
    count: int = 1,
    seed: int = 0,
    structure: str = "plausible",
    skip_bad_clips: bool = False,
) -> Source:
    """The clips that the flags of a binary name: a folder's, or with ``videos="world"`` generated ones.

    Parameters
    ----------
    frames, size : None: `FRAMES` and the clips' own size, or the generated world's own; a size of one number is a square.
    count, seed, structure : of generated clips.

    Raises
    ------
    ConfigError : settings that do not go together.
    MissingDataError : as `VideoClips.find`.
    """
    if size is not None and not (1 <= len(size) <= 2 and min(size) > 0):
        raise ConfigError(f"--size={','.join(map(str, size))}; expected HEIGHT,WIDTH or one number")
    if videos != WORLD:
        given = None if size is None else (size[0], size[-1])
        return VideoClips.find(
            Path(videos), captions, frames=frames or FRAMES, size=given, fps=fps, skip_bad_clips=skip_bad_clips
        )
    if captions is not None or fps is not None:
        raise ConfigError("generated clips have captions of their own and no rate; leave out --captions and --fps")
    asked: dict[str, Any] = {"frames": frames, "size": size and size[0]}
    world = WorldConfig(**{name: value for name, value in asked.items() if value is not None})
    return WorldClips(count, seed, structure, world)


def embedder(pipeline: Pipeline, *, world: bool = False) -> Embed:
    """Captions to their conditioning: by the folder's text encoder, or as words of the generated world."""
    if not world:
        return lambda captions: pipeline.condition(list(captions))
    width = pipeline.transformer.config.text_dim
    return lambda captions: Conditioning(text=jnp.asarray(prompts.encode_all(captions, width)))


def latent_shape(pipeline: Pipeline, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(T', H', W', C) that the VAE makes of a video (T, H, W, 3).

    Raises
    ------
    ConfigError : it makes nothing of it, or too few latent frames to compare two that are `LAG` apart.
    """
    _, *made = jax.eval_shape(pipeline.encode, jax.ShapeDtypeStruct((1, *shape), jnp.uint8)).shape
    if made[0] <= LAG:
        raise ConfigError(
            f"--frames={shape[0]} are {made[0]} latent frames of this VAE, and motion is that of frames {LAG} apart: at least "
            f"{LAG + 1} latent frames are needed"
        )
    return tuple(made)


def encode_clips(
    pipeline: Pipeline,
    source: Source,
    folder: Path,
    embed: Embed,
    *,
    batch: int = 1,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
) -> LatentStore:
    """Encode every clip of a source into a store, or the rest of them into a store that was begun.

    Clips go through the VAE in micro-batches of one size, `batch` to a device; a clip's latents depend neither on its
    neighbours nor on the number of devices. They go to all devices of `mesh`, whatever its axes: a VAE needs nothing else.
    Where several processes run as one, each encodes every n-th clip on its own devices, and all return when all have.

    Raises
    ------
    ConfigError : the clips do not fit the VAE, or the folder holds another store.
    MissingDataError : a clip cannot be decoded; what was encoded before stays.
    NonFiniteError : latents that are not finite; the clip is named.
    StoreWriteError : the disk is full, for example.
    """
    mesh = clip_mesh(mesh)
    made = latent_shape(pipeline, source.shape)
    pipeline = dataclasses.replace(pipeline, vae=replicate(pipeline.vae, mesh))
    assert pipeline.vae is not None  # `latent_shape` has used it
    total = len(source.names)

    @functools.lru_cache(1)
    def told(start: int) -> tuple[np.ndarray, np.ndarray | None]:
        cond = embed(source.captions[start : start + CAPTIONS])
        return np.asarray(cond.text, np.float32), None if cond.text_mask is None else np.asarray(cond.text_mask)

    text, mask = told(0)
    header = LatentHeader(
        family=pipeline.family.name,
        vae_fingerprint=fingerprint(pipeline.vae),
        latent_shape=made,
        text_shape=(text.shape[1], text.shape[2]),
        masked=mask is not None,
        frames=source.shape[0],
        size=(source.shape[1], source.shape[2]),
        fps=source.fps,
        dtype=dtype,
        count=total,
    )
    shard = None if count() == 1 else (index(), count())
    mine = range(index(), total, count())
    with LatentWriter.create(folder, header, source.names, source.captions, source.describe(), shard) as writer:
        done = writer.finished()
        with progress("encode", len(mine), done=sum(i in done for i in mine)) as task:
            for start in range(0, total, CAPTIONS):
                todo = [i for i in range(start, min(start + CAPTIONS, total)) if i in mine and i not in done]
                if not todo:
                    continue
                text, mask = told(start)
                for part in micro_batches(source.read(todo, 2 * batch), batch, mesh):
                    ids = part.clip_ids[: part.real]
                    latents = np.asarray(pipeline.encode(shard_batch(np.stack(part.items), mesh)))[: part.real]
                    for i, values in zip(ids, latents, strict=True):
                        if not np.isfinite(values).all():
                            raise NonFiniteError(f"{source.names[i]}: the VAE's latents are not finite")
                    writer.write(ids, latents, text[ids - start], None if mask is None else mask[ids - start])
                    task.advance(part.real)
                for i in todo:
                    if source.names[i] in source.skipped:
                        writer.skip(i, source.skipped[source.names[i]])
    meet(f"encoded {folder}")
    return LatentStore.open(folder)
