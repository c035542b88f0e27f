"""`experiments.intervene`: which block must be left alone for a made video to look possible to the probe?

A clip is inverted to its noise and made again from it, with one block's output h disturbed at every step to
``h + alpha std(h) noise`` (The Invisible Hand of Physics, arXiv 2606.05328, its intervention). The new video is inverted and
probed like the study's clips. The probe's logit for "impossible" less that for "possible", set against the video made
without any disturbance, says how much less possible the disturbance of that block made it look.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.errors import ConfigError
from jaxdiff.flow import fidelity, invert, sample
from jaxdiff.mesh import PADDING, own_mesh, replicate
from jaxdiff.pipeline import Pipeline
from jaxdiff.progress import progress
from jaxdiff.report import probe_csv, report_run
from jaxdiff.store import ActivationStore
from jaxdiff.study.batches import Batches, Prompts, continuing
from jaxdiff.study.disturbed import (
    COLUMNS,
    NO_OP,
    ROUND_TRIP,
    Row,
    compare,
    csv_rows,
    fit_probes,
    report_study,
    result_json,
)
from jaxdiff.study.finished import Finished, reopen
from jaxdiff.study.reading import Reading, open_store
from jaxdiff.taps import Edit
from jaxdiff.workdir import Workdir

LEAST_STD = 1e-6


@dataclasses.dataclass(frozen=True)
class InterventionConfig:
    """See the flags of `experiments.intervene`."""

    study: Path
    model: str | None = None
    alpha: float = 0.5
    blocks: tuple[int, ...] | None = None
    clips: int = 180
    probe_sigmas: tuple[float, ...] | None = None
    reencode: bool = True
    seed: int = 0

    def __post_init__(self):
        if not self.alpha > 0:
            raise ConfigError(f"--alpha={self.alpha} must be above 0; a run with 0 is made in any case")
        if self.clips < 1:
            raise ConfigError(f"--clips={self.clips}; expected at least 1")


def disturb(h: jax.Array, key: jax.Array, sigma: Any, strength: jax.Array) -> jax.Array:
    """``h + strength std(h) noise``: the standard deviation is over a token's features, at least 1e-6.

    Parameters
    ----------
    h : [B, S, D]
    key : [B], one a clip, so that a clip's disturbance does not depend on its neighbours in the batch.
    strength : scalar; where it is 0, h itself and nothing drawn.
    """

    def add(h):
        x = h.astype(jnp.float32)
        std = jnp.maximum(x.std(-1, keepdims=True), LEAST_STD)
        noise = jax.vmap(lambda k: jax.random.normal(k, h.shape[1:]))(key)
        return (x + strength * std * noise).astype(h.dtype)

    return jax.lax.cond(strength != 0, add, lambda h: h, h)


def rows_of(config: InterventionConfig, layers: int) -> list[Row]:
    """Without edits, with an edit of size 0, and every block.

    Raises
    ------
    ConfigError : a block that does not exist, or one twice.
    """
    blocks = range(layers) if config.blocks is None else config.blocks
    wrong = [b for b in blocks if not 0 <= b < layers]
    if wrong or len(set(blocks)) < len(blocks):
        raise ConfigError(f"--blocks={config.blocks}: give each of the blocks 0 to {layers - 1} at most once")
    made = [Row(f"block_{block:02d}", block, config.alpha) for block in blocks]
    return [Row(ROUND_TRIP, None, 0.0), Row(NO_OP, 0, 0.0), *made]


def choose_clips(clips: Sequence[Clip], most: int) -> list[int]:
    """Numbers of possible clips, at most `most`: scene by scene and category by category in turn, ascending.

    Raises
    ------
    ConfigError : there is none.
    """
    waiting: dict[str, dict[str, list[int]]] = {}
    for i, clip in enumerate(clips):
        if clip.possible:
            waiting.setdefault(clip.category, {}).setdefault(clip.group, []).append(i)
    # The first clip of every scene, then the second of every scene, and the categories in turn.
    ranked = [
        (place, rank, number, i)
        for number, scenes in enumerate(waiting.values())
        for rank, scene in enumerate(scenes.values())
        for place, i in enumerate(scene)
    ]
    if not ranked:
        raise ConfigError("the study has no possible clip to disturb")
    return sorted(i for *_, i in sorted(ranked)[:most])


@dataclasses.dataclass(frozen=True)
class Maker:
    """The programs of an intervention: noise of a clip, a video from it, and what the network reads of that."""

    pipeline: Pipeline
    reading: Reading
    config: InterventionConfig

    @property
    def layers(self) -> int:
        return self.pipeline.transformer.config.num_layers

    def noise(self, latents: jax.Array, told: Conditioning):
        """The clip's trajectory to its noise, on the study's own steps."""
        return invert(self.pipeline, latents, told, steps=self.reading.steps, solver=self.reading.solver)

    def again(self, trajectory, told: Conditioning, row: Row, clips: np.ndarray) -> jax.Array:
        """Latents made from the noise on the grid reversed, without guidance, by `fidelity.way_back` of the study's solver.

        Which block is disturbed and how much is data to the program: all rows with an edit run the same one.
        """
        edits = () if row.block is None else (Edit("block_out", None, disturb, row.strengths(self.layers)),)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.config.seed), np.maximum(clips, 0))
        return sample(
            self.pipeline, trajectory.latents, told, sigmas=trajectory.sigmas[::-1], solver=fidelity.way_back(self.reading.solver),
            labels=trajectory.labels, edits=edits, key=keys,
        ).latents  # fmt: skip

    def read(self, latents: jax.Array, told: Conditioning) -> tuple[dict[str, np.ndarray], jax.Array]:
        """Captures of the made clip as the study reads, and the latents that were inverted."""
        if self.config.reencode:
            video = _to_bytes(self.pipeline.decode(latents))
            latents, told = self.pipeline.encode(video), continuing(self.pipeline, told, video)
        trajectory = invert(self.pipeline, latents, told, taps=self.reading.tap_objects(), **self.reading.walk())
        return jax.tree.map(np.asarray, trajectory.captured), latents


@jax.jit
def _to_bytes(video: jax.Array) -> jax.Array:
    """What a file of the video would hold: uint8 [B, T, H, W, 3]."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


@jax.jit
def _distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """rms(a - b) / rms(b) of every clip, [B]."""
    axes = tuple(range(1, a.ndim))
    return jnp.sqrt(jnp.mean((a - b) ** 2, axes) / jnp.maximum(jnp.mean(b**2, axes), 1e-12))


def make_clips(
    pipeline: Pipeline,
    cond: Conditioning | Prompts,
    clips: Sequence[Clip],
    rows: Sequence[Row],
    reading: Reading,
    config: InterventionConfig,
    places: dict[str, Any],
    folder: Path,
) -> ActivationStore:
    """Make every clip in every way, invert it, and store what the taps read: entry ``row * clips + clip``.

    A stored entry is not made again; its record holds `change`, the distance of the made latents from the clip's own.
    """
    mesh = own_mesh()
    pipeline, cond = replicate(pipeline, mesh), replicate(cond, mesh)
    maker = Maker(pipeline, reading, config)
    entries = [dataclasses.replace(clip, name=f"{row.name}/{clip.name}") for row in rows for clip in clips]
    metadata = {"alpha": config.alpha, "seed": config.seed, "reencode": config.reencode}
    with open_store(pipeline, entries, reading, folder, places, metadata) as store:
        finished = np.isin(np.arange(len(entries)), sorted(store.finished())).reshape(len(rows), -1)
        todo = np.flatnonzero(~finished.all(0))
        batches = Batches(pipeline, clips, reading, mesh, [int(i) for i in todo])
        with progress("intervene", finished.size, unit="videos", done=int(finished.sum())) as task:
            for batch, latents, told in batches.conditioned(cond):
                ids = batch.clip_ids
                trajectory = maker.noise(latents, told)
                for number, row in enumerate(rows):
                    open_ids = np.where((ids != PADDING) & ~finished[number, np.maximum(ids, 0)], ids, PADDING)
                    if (open_ids == PADDING).all():
                        continue
                    captured, made = maker.read(maker.again(trajectory, told, row, ids), told)
                    entry = np.where(open_ids == PADDING, PADDING, number * len(clips) + open_ids)
                    store.write(entry, captured)
                    change = np.asarray(_distance(made, latents))
                    store.finish(entry, [{"change": float(f"{value:.6g}")} for value in change])
                    task.advance(int((entry != PADDING).sum()), row=row.name)
    return ActivationStore.open(folder)


def run_intervention(config: InterventionConfig, workdir: Path) -> None:
    """Make the clips again with every block disturbed in turn, and report what the probes say."""
    study = reopen(config.study)
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("load"):
            pipeline, cond = study.model(config.model)
        rows = rows_of(config, pipeline.transformer.config.num_layers)
        chosen = choose_clips(study.clips, config.clips)
        slots = probe_slots(study, pipeline, config.probe_sigmas)
        with work.stage("probe"):
            probes = fit_probes(study, slots)
        with work.stage("intervene", clips=len(chosen), rows=len(rows)):
            clips = [study.clips[i] for i in chosen]
            store = make_clips(pipeline, cond, clips, rows, study.reading(), config, study.places, workdir / "store")
        outcome = compare(study, chosen, rows, store, probes, config.seed)
        scenes = len({clip.group for clip in clips})
        probe_csv(workdir / "intervention.csv", csv_rows(outcome, probes, len(clips), scenes), COLUMNS)
        work.write_result(result_json(outcome, probes, len(clips), scenes))
        with work.stage("report"):
            report = report_study(outcome, study, config, probes, len(clips), scenes)
            report_run(work, report)
        work.finish(("result.json", "intervention.csv"))
    print(f"{report.summary}\n-> {workdir / 'report.html'}")


def probe_slots(study: Finished, pipeline: Pipeline, sigmas: Sequence[float] | None) -> list[int]:
    """Slots of the store at which the made clips are probed; the paper's is step 50 of 100.

    Raises
    ------
    ConfigError : a noise level that the study did not read.
    """
    levels = study.sigmas
    if sigmas is None:
        tokens = int(np.prod(study.latents_shape(pipeline)[1:4]))
        middle = float(pipeline.schedule.grid(study.config.steps, tokens=tokens)[-1 - study.config.steps // 2])
        return [int(np.argmin(np.abs(levels - middle)))]
    found = []
    for sigma in sigmas:
        at = int(np.argmin(np.abs(levels - sigma)))
        if abs(levels[at] - sigma) > 1e-3:
            raise ConfigError(f"--probe_sigmas={sigma:g}: the study read {', '.join(f'{s:.4g}' for s in levels)}")
        found.append(at)
    return sorted(set(found))
