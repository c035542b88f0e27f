"""Clips to activations: decode, encode, run the flow backwards, store what the taps read, clip by clip resumable."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.video import ClipReader
from jaxdiff.errors import ConfigError
from jaxdiff.flow import DivergedError, fidelity, invert
from jaxdiff.flow.placement import Placement, per_device
from jaxdiff.flow.plan import make_plan, rounds
from jaxdiff.flow.solvers import as_solver
from jaxdiff.mesh import PADDING, own_mesh, replicate
from jaxdiff.pipeline import Pipeline
from jaxdiff.progress import progress
from jaxdiff.store import ActivationStore
from jaxdiff.study.batches import Batches, Encoded, Prompts, first_readable
from jaxdiff.taps import Edit, Tap

# What enters the first block is the noised input itself, in a linear embedding: the row that every block's
# accuracy must be set against.
INPUT = "input"

# Frames as they are, from the last to the first, and in an order drawn for every scene.
ORDERS = ("forward", "reversed", "shuffled")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How clips are read. All of it decides results, and all of it is stored with them.

    Parameters
    ----------
    frames, size, sampling, stride : the clip that is decoded: number of frames, short side and centre crop in pixels
        (None: as it is), "linspace" over the whole clip or every `stride`-th frame.
    steps, solver : of the inversion.
    capture_sigmas : noise levels to read at (inserted into the grid), or None.
    capture_at : step numbers to read at, if `capture_sigmas` is None.
    taps : "site.reducer" names.
    clips_per_device : clips that a device works on at once.
    stream : write captures from inside the program (bounded memory) instead of returning them.
    error_steps : invert every clip once more on so few of the grid's points, and record how far the ends are apart
        (see `coarse_error`); 0 for not at all.
    order : of the frames, see `frame_order`; `order_seed` draws it.
    """

    frames: int
    size: int | None = None
    sampling: str = "linspace"
    stride: int = 1
    steps: int = 100
    solver: str = "euler"
    capture_sigmas: tuple[float, ...] | None = None
    capture_at: tuple[int, ...] | None = None
    taps: tuple[str, ...] = ("block_out.mean",)
    clips_per_device: int = 4
    stream: bool = False
    error_steps: int = 0
    order: str = ORDERS[0]
    order_seed: int = 0

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ConfigError(f"order is {self.order!r}; choose from {', '.join(ORDERS)}")
        if not 0 <= self.error_steps < self.steps:
            raise ConfigError(f"error_steps is {self.error_steps}; it must be below the {self.steps} steps of the run")
        if self.clips_per_device < 1:
            raise ConfigError(f"clips_per_device is {self.clips_per_device}; it must be at least 1")
        if not self.taps:
            raise ConfigError("no taps: name at least one site and reducer, for example block_out.mean")
        self.tap_objects()

    def tap_objects(self) -> tuple[Tap, ...]:
        """The taps, and for every pooling of block outputs the same pooling of what enters the first block."""
        taps = []
        for name in self.taps:
            site, _, reduce = name.partition(".")
            taps.append(Tap(site, reduce or "mean"))
            if site == "block_out":
                taps.append(Tap("block_in", reduce or "mean", blocks=(0,), name=f"{INPUT}.{reduce or 'mean'}"))
        return tuple(taps)

    def walk(self) -> dict[str, Any]:
        """Arguments of `invert`."""
        return {
            "steps": self.steps,
            "solver": self.solver,
            "capture_sigmas": self.capture_sigmas,
            "capture_at": self.capture_at,
        }

    def ordered(self, clip: Clip, video: np.ndarray) -> np.ndarray:
        """The clip's frames [T, H, W, 3] in the order in which they are to be seen."""
        if self.order == ORDERS[0]:
            return video
        return video[frame_order(self.order, len(video), clip.group, self.order_seed)]

    def reader(self, clips: Sequence[Clip], skip_bad_clips: bool) -> ClipReader:
        return ClipReader(
            [clip.path for clip in clips],
            frames=self.frames,
            size=self.size,
            sampling=self.sampling,
            stride=self.stride,
            skip_bad_clips=skip_bad_clips,
            ahead=2 * self.clips_per_device,
        )


def frame_order(order: str, frames: int, group: str, seed: int) -> np.ndarray:
    """Indices [T] of the frames in the order "forward", "reversed" or "shuffled".

    A shuffled order is drawn once for a scene: its clips, which match frame by frame, still match afterwards, and nothing
    but the order of time is lost.
    """
    if order != "shuffled":
        return np.arange(frames)[:: -1 if order == "reversed" else 1]
    return np.random.default_rng([seed, zlib.crc32(group.encode())]).permutation(frames)


def invert_clips(
    pipeline: Pipeline,
    clips: Sequence[Clip],
    cond: Conditioning | Prompts,
    reading: Reading,
    folder: Path,
    *,
    metadata: dict[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    skip_bad_clips: bool = False,
    encoded: Encoded | None = None,
    title: str = "invert",
    edits: Sequence[Edit] = (),
    shard: tuple[int, int] | None = None,
) -> tuple[ActivationStore, dict[str, str]]:
    """Invert every clip and store what the taps read.

    A network that continues an image is told the first frame of each clip. A clip that is stored is not computed again, so an interrupted run continues; its record holds the statistics of the
    noise that it ended in, and its `coarse_error` if that was asked for. Latents come from `encoded` where it has them.
    `edits` write into the network meanwhile; say in `metadata` which, or a store made with others is taken for this one.
    `shard` (k, n) inverts every n-th clip from the k-th on, while other processes invert the others into the same store.

    Returns
    -------
    store : open for reading, with the captured sigmas and labels in its metadata
    skipped : clip name -> reason, for clips that could not be decoded or diverged (only with `skip_bad_clips`)

    Raises
    ------
    MissingDataError : a clip cannot be read.
    DivergedError : a state became NaN or infinite; the message names clip and step.
    StoreWriteError : the disk is full, for example; clips that were finished stay.
    """
    mesh = own_mesh() if mesh is None else mesh
    taps = reading.tap_objects()
    pipeline = replicate(pipeline, mesh)
    cond = replicate(cond, mesh)
    places = _places(pipeline, reading, _latents_shape(pipeline, clips, reading))
    store = open_store(pipeline, clips, reading, folder, places, metadata, shard)
    first, every = shard or (0, 1)
    mine = range(first, len(clips), every)
    with store:
        finished = store.finished()
        todo = [i for i in mine if i not in finished]
        batches = Batches(pipeline, clips, reading, mesh, todo, skip_bad_clips, encoded)
        diverged: dict[str, str] = {}
        with progress(title, len(mine), done=len(mine) - len(todo)) as task:
            for batch, latents, told in _first_compiles(batches.conditioned(cond), task):
                ids = batch.clip_ids.copy()
                sink = store.sink(ids, mesh) if reading.stream else None
                try:
                    trajectory = invert(pipeline, latents, told, taps=taps, sink=sink, edits=edits, **reading.walk())
                except DivergedError as error:
                    trajectory = _without(error, ids, clips, diverged, skip_bad_clips)
                if trajectory is not None and (ids != PADDING).any():
                    if sink is None:
                        store.write(ids, jax.tree.map(np.asarray, trajectory.captured))
                    rows = _rows(_per_clip(fidelity.noise_statistics, trajectory.latents))
                    if reading.error_steps:
                        errors = coarse_error(pipeline, latents, trajectory.latents, told, reading)
                        for row, error in zip(rows, errors, strict=True):
                            row |= error
                    store.finish(ids, rows, wait=False)  # the next clips run while these become durable
                task.advance(batch.real)
    return ActivationStore.open(folder), batches.skipped | diverged


def _first_compiles(batches, task):
    """The batches; the first one's work is shown as compile time."""
    iterator = iter(batches)
    with task.compiling():
        first = next(iterator, None)
    if first is not None:
        yield first
        yield from iterator


def _without(error: DivergedError, ids, clips, diverged, skip):
    names = [clips[ids[i]].name for i in error.clips if ids[i] != PADDING]
    if not skip and names:
        raise DivergedError(
            f"{', '.join(names)}: {error}", error.clips, error.step, error.sigma, error.trajectory
        ) from error
    diverged.update(dict.fromkeys(names, f"not finite at step {error.step}"))
    ids[error.clips] = PADDING
    return error.trajectory


def coarse_error(
    pipeline: Pipeline, latents: jax.Array, ends: jax.Array, cond: Conditioning, reading: Reading
) -> list[dict[str, float]]:
    """How hard each clip's flow is to follow, at the price of `reading.error_steps` evaluations.

    The inversion is repeated on that many steps, over points of the same grid from the same first to the same last one.
    The relative rms distance between the two ends is, to leading order, proportional to the error of the finer run
    (for a solver of order p and m times longer steps, ``m^p - 1`` times it): a measure per clip, not a bound.

    Parameters
    ----------
    latents, ends : [B, T', H', W', C], where the inversion began and ended.

    Returns
    -------
    One {"coarse_error": float} a clip, empty where the coarse run is not finite.
    """
    solver = as_solver(reading.solver)
    sigmas = make_plan(
        pipeline.schedule, steps=reading.steps, sigmas=None, tokens=math.prod(latents.shape[1:4]), up=True,
        rounded=rounds(None, solver, up=True),
    ).sigmas  # fmt: skip
    few = np.unique(np.linspace(0, len(sigmas) - 1, reading.error_steps + 1).round().astype(int))
    try:
        trajectory = invert(pipeline, latents, cond, sigmas=np.asarray(sigmas)[few], solver=solver)
    except DivergedError as error:
        if error.trajectory is None:
            return [{} for _ in latents]
        trajectory = error.trajectory
    values = np.asarray(_per_clip(_distance, trajectory.latents, ends))
    return [{"coarse_error": float(f"{v:.6g}")} if np.isfinite(v) else {} for v in values]


def _distance(a, b):
    axes = tuple(range(1, a.ndim))
    return jnp.sqrt(jnp.mean((a - b) ** 2, axes) / jnp.maximum(jnp.mean(b**2, axes), 1e-12))


def _per_clip(f, *arrays):
    """``f(*arrays)`` of arrays [B, ...], on every device for its own clips: a clip's numbers depend on no other clip."""
    sharding = arrays[0].sharding
    spread = isinstance(sharding, NamedSharding) and sharding.spec and sharding.spec[0] is not None
    placement = Placement(sharding.mesh, sharding.spec[0]) if spread else None
    return _placed(arrays, f=f, placement=placement)


@functools.partial(jax.jit, static_argnames=("f", "placement"))
def _placed(arrays, *, f, placement):
    def run(_, arrays):
        return f(*arrays)

    return per_device(run, placement, (), arrays, arrays[0].shape[0], lambda axis: PartitionSpec(axis))


def _rows(table: dict[str, jax.Array]) -> list[dict[str, float]]:
    """{name: [B]} -> B dicts of host floats (four significant digits are what such a statistic is worth)."""
    host = {name: np.asarray(values) for name, values in table.items()}
    size = len(next(iter(host.values())))
    return [{name: float(f"{values[i]:.6g}") for name, values in host.items()} for i in range(size)]


def open_store(
    pipeline: Pipeline,
    clips: Sequence[Clip],
    reading: Reading,
    folder: Path,
    places: dict[str, list[float]],
    metadata: dict[str, Any] | None,
    shard: tuple[int, int] | None = None,
) -> ActivationStore:
    """Create the store of a reading, or reopen it to go on; `places` holds the sigmas and labels of its slots."""
    if taken := {*(metadata or {})} & {*places, "reading"}:
        raise ConfigError(f"a store's metadata already has {', '.join(sorted(taken))}; choose another name")
    taps, layers = reading.tap_objects(), pipeline.transformer.config.num_layers
    shapes = pipeline.tap_shapes(taps, _latents_shape(pipeline, clips, reading))
    return ActivationStore.create(
        folder,
        clips=len(clips),
        names=[clip.name for clip in clips],
        slots=len(places["sigmas"]),
        specs={name: jax.ShapeDtypeStruct((s.shape[0], *s.shape[2:]), s.dtype) for name, s in shapes.items()},
        rows={str(tap.name): tap.rows(layers) for tap in taps},
        metadata={**(metadata or {}), **places, "reading": dataclasses.asdict(reading)},
        shard=shard,
    )


def _latents_shape(pipeline: Pipeline, clips: Sequence[Clip], reading: Reading) -> tuple[int, ...]:
    """Of one clip: (1, T', H', W', C)."""
    video = first_readable(clips, reading)
    return jax.eval_shape(pipeline.encode, jax.ShapeDtypeStruct((1, *video.shape), jnp.uint8)).shape


def _places(pipeline: Pipeline, reading: Reading, latents_shape: tuple[int, ...]) -> dict[str, list[float]]:
    """Sigmas and labels of the captures, and where the walk begins and ends, from the plan that `invert` will follow."""
    solver = as_solver(reading.solver)
    plan = make_plan(
        pipeline.schedule,
        steps=reading.steps,
        sigmas=None,
        tokens=math.prod(latents_shape[1:4]),
        up=True,
        rounded=rounds(None, solver, up=True),
        reads=True,
        capture_at=reading.capture_at,
        capture_sigmas=reading.capture_sigmas,
    )
    sigmas, labels = (np.asarray(values, np.float64) for values in plan.captured_places(solver))
    ends = [float(plan.sigmas[0]), float(plan.sigmas[-1])]  # some schedules neither begin at 0 nor end at 1
    return {"sigmas": sigmas.tolist(), "labels": labels.tolist(), "walked": ends}
