"""Clips through a pretrained video encoder, read as the probes want them: one candidate per block and pooling."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxdiff.data.clip import Clip
from jaxdiff.encoder import Encoder
from jaxdiff.errors import ConfigError
from jaxdiff.flow.placement import Placement, per_device
from jaxdiff.mesh import clip_axes, micro_batches, own_mesh, replicate, shard_batch
from jaxdiff.progress import progress
from jaxdiff.study.features import Candidate, Features
from jaxdiff.study.reading import INPUT, Reading

BLOCKS, OUTPUT = "block_out", "output"


def read_encoder(
    encoder: Encoder,
    clips: Sequence[Clip],
    reading: Reading,
    *,
    poolings: Sequence[Any] | None = None,
    mesh: Mesh | None = None,
    title: str = "encoder",
) -> Features:
    """States of every clip in every block, pooled on the device.

    The encoder sees clips as it was trained to: its own number of frames, taken from the whole clip with the sampling of
    `reading` (of a ResNet, the frames of `reading`), in its own size. Clips are decoded ahead, prepared one by one,
    and run in padded micro-batches of `reading.clips_per_device`, each device its own, so that a clip's features depend
    neither on its neighbours nor on the number of devices.

    Parameters
    ----------
    clips : that can be read; their order is the order of the features.
    reading : its sampling, stride, order and clips_per_device are used, and its frames where the encoder has no number of
        its own.
    poolings : reducers, by name or as objects; default: those that `reading` pools block outputs by.

    Returns
    -------
    Features with "block_out.<pooling>" of [L + 1, n, D], the last candidate being the output of the network (site
    "output", block L), or, of a ResNet, "stage4.<pooling>" down to "stage1.<pooling>" of one candidate each (the deepest
    first: they differ in width); and "input.<pooling>", what enters the first block (block -1). An encoder has no noise
    level: every sigma is 0.

    Raises
    ------
    ConfigError : no pooling is named.
    MissingDataError : a clip cannot be read.
    """
    mesh = own_mesh() if mesh is None else mesh
    encoder = replicate(encoder, mesh)
    reduce = tuple(_poolings(reading) if poolings is None else poolings)
    if not reduce:
        raise ConfigError(f"taps={','.join(reading.taps)} read no {BLOCKS}; name the encoder's poolings")
    own = dataclasses.replace(reading, frames=encoder.frames or reading.frames, size=None)
    reader = own.reader(clips, skip_bad_clips=False)
    pixels = ((i, encoder.prepare(own.ordered(clips[i], video)[None])[0]) for i, video in reader)
    arrays: dict[str, np.ndarray] = {}
    with progress(title, len(clips)) as task:
        for batch in micro_batches(pixels, reading.clips_per_device, mesh):
            found = _read(encoder, shard_batch(np.stack(batch.items), mesh), reduce=reduce, mesh=mesh)
            for name, values in found.items():
                rows = np.asarray(values).reshape(*values.shape[:2], -1)  # [rows, B, D]
                table = arrays.setdefault(name, np.empty((len(rows), len(clips), rows.shape[2]), np.float32))
                table[:, batch.clip_ids[: batch.real]] = rows[:, : batch.real]
            task.advance(batch.real)
    names = sorted(arrays, reverse=True)  # of stages the deepest first, and the input behind them
    names.sort(key=lambda name: name.startswith(f"{INPUT}."))
    return Features({name: arrays[name] for name in names}, {name: _candidates(name, arrays[name]) for name in names})


@functools.partial(jax.jit, static_argnames=("reduce", "mesh"))
def _read(encoder: Encoder, pixels: jax.Array, *, reduce: tuple[Any, ...], mesh: Mesh) -> dict[str, jax.Array]:
    return per_device(
        lambda encoder, pixels: encoder.read(pixels, reduce),
        Placement(mesh, clip_axes(mesh)), encoder, pixels, len(pixels), lambda axis: PartitionSpec(None, axis),
    )  # fmt: skip


def _poolings(reading: Reading) -> list[str]:
    named = (tap.partition(".") for tap in reading.taps)
    return [pooling or "mean" for site, _, pooling in named if site == BLOCKS]


def _candidates(name: str, values: np.ndarray) -> tuple[Candidate, ...]:
    """What the rows of one array are."""
    site, _, pooling = name.partition(".")
    if site == INPUT:
        return (Candidate(INPUT, pooling, -1, 0, 0.0),)
    if site != BLOCKS:  # stage1 and so on
        return (Candidate(site, pooling, int(site.removeprefix("stage")) - 1, 0, 0.0),)
    last = len(values) - 1
    return tuple(Candidate(OUTPUT if i == last else BLOCKS, pooling, i, 0, 0.0) for i in range(last + 1))
