"""How many generated scenes fit a time budget on this machine: measured once, and then fixed for the workdir."""

import json
import time
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import MissingDataError
from jaxdiff.flow import invert
from jaxdiff.mesh import data_size, own_mesh, replicate, shard_batch
from jaxdiff.pipeline import Pipeline
from jaxdiff.study.batches import continuing
from jaxdiff.workdir import Workdir, dump_json

if TYPE_CHECKING:
    from jaxdiff.study.config import StudyConfig

FILE = "scenes.json"
MOST = 160  # scenes a category; more narrow the intervals by little
STEP = 5

CLIPS = 12  # a scene of each of the three categories, four clips each
OTHER_WORK = 1.3  # everything over the networks' own time: reading, probing, writing
FIXED = 70.0  # seconds that do not depend on the number of clips: start, compiling, fidelity, the report


def choose_scenes(
    work: Workdir, config: "StudyConfig", pipeline: Pipeline, cond: Conditioning, evaluations: float, spent: float
) -> int:
    """Scenes a category for `config.time_budget` seconds: `config.scenes` at least, `MOST` at most, in steps of 5.

    One batch is inverted to compile and once more to time it. The choice is written to scenes.json before anything
    depends on it; a run that finds the file keeps to it, so that what is interrupted ends as it would have ended.

    Parameters
    ----------
    evaluations : of a network in the whole study, a clip, in units of one inversion.
    spent : seconds since the start.

    Raises
    ------
    MissingDataError : scenes.json is damaged.
    """
    if not config.time_budget:
        return config.scenes
    file = work.path / FILE
    if file.exists():
        try:
            return int(json.loads(file.read_bytes())["scenes"])
        except (ValueError, KeyError, TypeError) as error:
            raise MissingDataError(
                f"{file} does not hold the number of scenes ({error!r}); remove the workdir"
            ) from None
    begun = time.monotonic()
    seconds = seconds_per_clip(pipeline, cond, config)
    spent += time.monotonic() - begun
    scenes = fitting(config.time_budget - spent - FIXED, seconds * evaluations * OTHER_WORK * CLIPS, config.scenes)
    work.write(FILE, dump_json({"scenes": scenes, "time_budget": config.time_budget, "seconds_per_clip": seconds}))
    print(f"{scenes} scenes a category for a budget of {config.time_budget:g} s ({1000 * seconds:.0f} ms a clip)")
    return scenes


def fitting(seconds: float, each: float, least: int) -> int:
    """How many scenes at `each` seconds fit, in steps of `STEP`, between `least` and the larger of it and `MOST`."""
    return min(max(least, int(seconds / each) // STEP * STEP), max(least, MOST))


def seconds_per_clip(pipeline: Pipeline, cond: Conditioning, config: "StudyConfig") -> float:
    """Time of one inversion, compiled, as the study runs it."""
    mesh, reading = own_mesh(), config.reading()
    pipeline, cond = replicate(pipeline, mesh), replicate(cond, mesh)
    clips = reading.clips_per_device * data_size(mesh)
    size = config.size or 32
    video = np.zeros((clips, config.frames, size, size, 3), np.uint8)
    shape = jax.eval_shape(pipeline.encode, video).shape
    latents = shard_batch(jax.random.normal(jax.random.key(0), shape), mesh)
    cond = continuing(pipeline, cond, shard_batch(video, mesh))

    def timed() -> float:
        start = time.monotonic()
        jax.block_until_ready(invert(pipeline, latents, cond, taps=reading.tap_objects(), **reading.walk()).latents)
        return time.monotonic() - start

    timed()  # compiles
    return timed() / clips
