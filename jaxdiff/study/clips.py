"""The clips of a study: listed, counted, paired and read once before any model is built."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.datasets import Dataset, open_dataset
from jaxdiff.data.listing import listed
from jaxdiff.data.video import ClipReader
from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.probes.folds import grouped_folds
from jaxdiff.progress import progress
from jaxdiff.study.batches import Prompts
from jaxdiff.study.probing import CLIP_LABELS, GROUPS, MATCHED, NOTES, TARGETS, label_table
from jaxdiff.study.reading import Reading
from jaxdiff.workdir import Workdir, dump_json

if TYPE_CHECKING:
    from jaxdiff.pipeline import Pipeline
    from jaxdiff.study.config import StudyConfig

FILE = "clips.json"  # written once all clips could be read, so that a run that goes on need not look again
WORLD = "world"
THREADS = 8
AHEAD_OF_ENCODER = 64  # prompts that are embedded in one call


def checked_data(work: Workdir, config: "StudyConfig", shard: tuple[int, int] = (0, 1)) -> Dataset:
    """`load_data`, and unless bad clips are left out, every clip of it (of `shard` (k, n): every n-th from the k-th on) read
    once; logged as a stage of the run."""
    with work.stage("data"):
        data = load_data(config, work.path, config.scenes)
        if not config.skip_bad_clips:
            refuse_unreadable(work, data.clips, config.reading(), config.data_dir or work.path / "world", shard)
    return data


def load_data(config: "StudyConfig", workdir: Path, scenes: int) -> Dataset:
    """The data set of the flags; generated scenes are written in IntPhys's layout first, and read back by its loader.

    Raises
    ------
    ConfigError, MissingDataError : see `open_dataset`; or the groups do not fill the folds.
    """
    if config.dataset == WORLD:
        from jaxdiff.data.worlds.layout import write_intphys

        folder = config.data_dir or workdir / "world"
        world = WorldConfig(frames=config.frames, size=config.size or 32)
        write_intphys(world, config.world_seed, scenes, folder, depth=False, masks=False)
        data = open_dataset(WORLD, folder, scenes=scenes)
    else:
        data = open_dataset(
            config.dataset, config.data_dir, split=config.split, subset=config.subset, labels=config.labels,
            leaking_prompt=config.leaking_prompt,
        )  # fmt: skip
    _fill_folds(data, config.outer, config.inner)
    return data


def _fill_folds(data: Dataset, outer: int, inner: int) -> None:
    """Raise a ConfigError where there are fewer groups than folds, before an inversion is paid for."""
    groups = [clip.group for clip in data.clips]
    folds = grouped_folds(groups, outer)
    for fold in range(outer):
        try:
            grouped_folds([g for g, at in zip(groups, folds, strict=True) if at != fold], inner)
        except ConfigError as error:
            raise ConfigError(f"inside outer fold {fold}: {error}") from error


def refuse_unreadable(
    work: Workdir, clips: Sequence[Clip], reading: Reading, where: str | Path, shard: tuple[int, int] = (0, 1)
) -> None:
    """Decode every clip once, as it will be read, and raise one error that names all that cannot be.

    Decoding costs little beside an inversion, and finds damage that no header shows.

    Raises
    ------
    MissingDataError
    """
    expected = dump_json({"readable": len(clips)})
    try:
        if (work.path / FILE).read_bytes() == expected:
            return
    except OSError:
        pass
    threads = min(THREADS, os.cpu_count() or 1)
    reader = ClipReader(
        [clip.path for clip in clips], frames=reading.frames, size=reading.size, sampling=reading.sampling,
        stride=reading.stride, skip_bad_clips=True, ahead=2 * threads, threads=threads, shard=shard,
    )  # fmt: skip
    with progress("check clips", len(reader)) as task:
        for _ in reader:
            task.advance()
    if reader.skipped:
        raise MissingDataError(
            f"{where}: {len(reader.skipped)} of {len(clips)} clips cannot be read:"
            f"{listed(sorted(reader.skipped.values()))}\nMend or replace them. --skip_bad_clips leaves out their scenes "
            "instead, and the report lists them."
        )
    work.write(FILE, expected)


def store_metadata(data: Dataset) -> dict[str, Any]:
    """What a store holds of its clips, so that it can be probed again by itself."""
    found: dict[str, Any] = {}
    if data.measured:
        found[TARGETS] = {
            name: {"unit": data.units[name], "values": values.tolist()} for name, values in data.targets.items()
        }
        found[GROUPS] = [clip.group for clip in data.clips]
    else:
        found[CLIP_LABELS] = label_table(data.clips)
    if data.matched != tuple(clip.group for clip in data.clips):
        found[MATCHED] = list(data.matched)
    return found | ({NOTES: list(data.notes)} if data.notes else {})


def described(config: "StudyConfig", data: Dataset | None) -> "StudyConfig":
    """The configuration with the data set's own prompt, where it has one and no flag says otherwise."""
    if data is None or data.prompt is None or data.prompts is not None:
        return config
    silent = config.config != "nano" and not config.prompt and config.text_embeddings is None
    return dataclasses.replace(config, prompt=data.prompt) if silent else config


def told(pipeline: "Pipeline", data: Dataset, cond: Conditioning) -> Conditioning | Prompts:
    """`cond`, unless every clip has a prompt of its own; those are embedded once here and kept in the cache."""
    if data.prompts is None:
        return cond
    pipeline.condition(prompt=data.prompts[0])  # where there is no encoder, the error names one prompt and not all
    for start in range(0, len(data), AHEAD_OF_ENCODER):
        pipeline.condition(prompt=data.prompts[start : start + AHEAD_OF_ENCODER])
    return Prompts(tuple((clip.name, prompt) for clip, prompt in zip(data.clips, data.prompts, strict=True)))
