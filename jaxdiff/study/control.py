"""`experiments.control`: train a control branch beside a frozen backbone, sample with and without it, and score what it drives.

Masks, latents, checkpoints and every sampled clip are files of the workdir, written whole before the next is begun.
"""

import dataclasses
import io
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.worlds.billiards import Billiards
from jaxdiff.flow import sample
from jaxdiff.mesh import data_mesh, micro_batches, replicate, shard_batch
from jaxdiff.models.network import fingerprint
from jaxdiff.physics.control import (
    ControlBranch,
    ControlledPipeline,
    controlled,
    fold,
    save_branch,
    takes_image,
    told,
)
from jaxdiff.physics.control_training import MaskedClips, Masks, conditioned, train_control
from jaxdiff.pipeline import Pipeline
from jaxdiff.progress import progress
from jaxdiff.report import report_run
from jaxdiff.report.study import Gallery
from jaxdiff.report.video import to_uint8
from jaxdiff.study import control_scores as scores
from jaxdiff.study.control_config import ControlConfig
from jaxdiff.study.control_data import BilliardClips, MaskedSource
from jaxdiff.study.measuring import through_autoencoder
from jaxdiff.train.latents import embedder, encode_clips
from jaxdiff.train.motion_field import split
from jaxdiff.workdir import Workdir

SHOWN = 8  # clips of the contact sheet
BRANCH = "branch"


class ControlRun:
    """The parts of a run; each keeps what it makes in the workdir and makes only what is not there."""

    def __init__(
        self, config: ControlConfig, pipeline: Pipeline, work: Workdir, source: MaskedSource, held_out: BilliardClips | None,
        masks: Masks, mesh: jax.sharding.Mesh | None,
    ):  # fmt: skip
        self.config, self.pipeline, self.work, self.source, self.mesh = config, pipeline, work, source, mesh
        self.masks, self.embed = masks, embedder(pipeline, world=pipeline.text_encoder is None)
        if held_out is not None:
            self.rows: np.ndarray = np.arange(len(masks))
            self.truth: Billiards | None = held_out.all()
            self.video, self.driver = self.truth.video, self.truth.masks[:, :, 0]
            self.names, captions = held_out.names, held_out.captions
        else:
            self.rows, aside = split(len(masks), config.held_out / len(masks), config.seed)
            self.truth = None
            self.video = np.stack([video for _, video in source.read(aside.tolist(), 4)])
            self.driver = masks.read(aside)
            self.names, captions = (tuple(texts[i] for i in aside) for texts in (source.names, source.captions))
        self.text = jax.tree.map(np.asarray, self.embed(captions))

    @cached_property
    def latents_shape(self) -> tuple[int, ...]:
        """(T', H', W', C) of a clip."""
        video = jax.ShapeDtypeStruct((1, *self.source.shape), jnp.uint8)
        return jax.eval_shape(self.pipeline.encode, video).shape[1:]

    @cached_property
    def start(self) -> ControlBranch:
        """The branch before training."""
        return self.config.branch(self.pipeline, self.latents_shape, self.source.shape)

    def untrained(self) -> dict[str, Any]:
        """What a branch does before training, one velocity compared: whether the mask changes a bit, and how far the result is
        from the backbone's by a program of its own, relative to its largest value."""
        x = jax.random.normal(jax.random.key(self.config.seed), (1, *self.latents_shape))
        sigma, blank = jnp.float32(0.7), np.zeros_like(self.driver[:1])
        with_branch = controlled(self.pipeline, self.start)
        found, other = (with_branch.velocity(x, sigma, self.told(mask, [0])) for mask in (self.driver[:1], blank))
        alone = with_branch.velocity(x, sigma, self.told(None, [0]))
        difference = float(jnp.abs(found - alone).max() / jnp.abs(alone).max())
        return {"equal_for_any_mask": bool(jnp.array_equal(found, other)), "difference": float(f"{difference:.3g}")}

    def trained(self) -> ControlBranch:
        """The branch with averaged weights, from its checkpoints if it was trained before."""
        config, source = self.config, self.source
        size = max(1, min(64, 64 * 32 * 32 * 17 // int(np.prod(source.shape[:3]))))
        with self.work.stage("encode", clips=len(source.names)):
            folder = self.work.path / "latents"
            store = encode_clips(self.pipeline, source, folder, self.embed, batch=size, mesh=self.mesh)
        firsts = None
        if takes_image(self.pipeline):
            firsts = np.stack([video[0] for _, video in source.read(range(len(source.names)), 4)])
        data = MaskedClips(store, self.masks, firsts, self.rows)
        empty = self.embed(("",)) if config.training.prompt_dropout else None
        with progress("train the branch", config.training.recipe.steps, unit="steps") as task:

            def report(step: int, metrics: dict[str, float]) -> None:
                self.work.log("train", step=step, **{name: float(f"{value:.6g}") for name, value in metrics.items()})
                task.advance(step - task.done, loss=metrics["loss"])

            return train_control(
                self.pipeline, self.start, data, config.training, self.work.path / "training", empty=empty,
                fps=config.told_fps(self.pipeline, source.fps), mesh=self.mesh, report=report,
                checkpoint_every=config.checkpoint_every,
            )  # fmt: skip

    def told(self, masks: np.ndarray | None, clips) -> Conditioning:
        """What is told of held-out clips: prompt, first frame, and masks, or None for the backbone alone."""
        cond = jax.tree.map(lambda leaf: jnp.asarray(leaf[np.asarray(clips)]), self.text)
        fps = self.config.told_fps(self.pipeline, self.source.fps)
        first = self.video[np.asarray(clips), :1]
        latents = None if takes_image(self.pipeline) else self.pipeline.encode(jnp.asarray(first))
        cond = conditioned(self.pipeline, dataclasses.replace(cond, fps=fps), self.video.shape[1], first[:, 0], latents)
        return cond if masks is None else told(cond, fold(masks, self.latents_shape))

    def clips(self, name: str, branch: ControlBranch) -> np.ndarray:
        """Held-out clips of one of `control_scores.SETS`, uint8 [N, T, H, W, 3]."""
        paths = [self.work.path / "clips" / name / f"{clip.replace('/', '_')}.npy" for clip in self.names]
        todo = [i for i, path in enumerate(paths) if not path.exists()]
        if todo:
            masks = given_masks(name, self.driver)
            pipeline = controlled(self.pipeline, None if masks is None else branch, self.config.scale)
            title = f"sample: {scores.SETS[name]}"
            with (
                self.work.stage(title, clips=len(todo)),
                progress(title, len(paths), done=len(paths) - len(todo)) as task,
            ):
                for i, video in self._sampled(pipeline, masks, todo):
                    buffer = io.BytesIO()
                    np.save(buffer, video)
                    self.work.write(paths[i].relative_to(self.work.path).as_posix(), buffer.getvalue())
                    task.advance()
        return np.stack([np.load(path) for path in paths])

    def _sampled(self, pipeline: ControlledPipeline, masks: np.ndarray | None, todo: list[int]):
        config: Any = self.config  # has filled what may be None
        mesh = self.mesh or data_mesh()
        pipeline = replicate(pipeline, mesh)
        guided = config.guidance_scale != 1.0
        negative = replicate(self.embed(("",)), mesh) if guided else None
        scene = 1 if self.truth is None else 2  # the clips of a first picture begin at the same noise
        root = jax.random.key(config.seed + 1)
        for batch in micro_batches(((i, i) for i in todo), config.clips_per_device, mesh):
            rows = list(batch.items)
            keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.asarray(rows) // scene)
            noise = jax.vmap(lambda key: jax.random.normal(key, self.latents_shape))(keys)
            cond = self.told(None if masks is None else masks[np.asarray(rows)], rows)
            fps, cond = cond.fps, dataclasses.replace(cond, fps=None)
            cond = dataclasses.replace(shard_batch(cond, mesh), fps=fps)
            made = sample(
                pipeline, shard_batch(noise, mesh), cond, steps=config.sampling_steps, negative=negative,
                guidance_scale=config.guidance_scale, key=shard_batch(keys, mesh),
            )  # fmt: skip
            videos = to_uint8(np.asarray(pipeline.decode(made.latents)))
            yield from zip(batch.clip_ids[: batch.real].tolist(), videos, strict=False)


def given_masks(name: str, driver: np.ndarray) -> np.ndarray | None:
    """What each clip of a set is told [N, T, H, W]: its driver's mask, none, or that of a clip half the list away, with another
    first picture."""
    if name == scores.BACKBONE:
        return None
    if name == scores.ZEROED:
        return np.zeros_like(driver)
    away = len(driver) // 2 // 2 * 2 or 1
    return np.roll(driver, away, 0) if name == scores.SHUFFLED else driver


def run_control(
    config: ControlConfig, pipeline: Pipeline, work: Workdir, source: MaskedSource, held_out: BilliardClips | None,
    masks: Masks, mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train, sample, score, report; returns result.json."""
    run = ControlRun(config, pipeline, work, source, held_out, masks, mesh)
    before = fingerprint(pipeline.transformer)
    untrained = run.untrained()
    branch = run.trained()
    save_branch(branch, work.path / BRANCH)
    videos = {name: run.clips(name, branch) for name in scores.SETS}
    frozen = fingerprint(pipeline.transformer) == before
    known = {"true": run.video, "autoencoder": through_autoencoder(pipeline, run.video, config.clips_per_device or 1)}
    aims = []
    if run.truth is not None:
        truth = run.truth
        known["reversed"] = run.video[:, ::-1]
        found = {name: scores.billiard_scores(video, truth, config.seed) for name, video in (videos | known).items()}
        overlap = found["true"]["other"][0]
        gain = scores.propagation_gain(videos, truth, config.seed)
        aims, measures = scores.checks(found, overlap, untrained, frozen, gain), scores.MEASURES
    else:
        found = {name: scores.video_scores(video, run.video, config.seed) for name, video in (videos | known).items()}
        measures = {"psnr": scores.MEASURES["psnr"]}
    parameters = {
        "branch": sum(leaf.size for leaf in jax.tree.leaves(branch.params)),
        "backbone": sum(leaf.size for leaf in jax.tree.leaves(pipeline.transformer.params)),
    }
    result = {
        "headline": {
            key: scores.as_json(found)[scores.CONTROL][key] for key in measures if key in found[scores.CONTROL]
        },
        "sets": scores.as_json(found),
        "aims": [dataclasses.asdict(aim) for aim in aims],
        "untrained_branch": untrained,
        "backbone_unchanged": frozen,
        "clips": {"trained_on": len(run.rows), "held_out": len(run.video)},
        "parameters": parameters,
        "blocks": branch.links.config.blocks,
        "training": config.training,
    }
    work.write_result(result)
    facts = {
        "clips trained on": str(len(run.rows)),
        "held-out clips": str(len(run.video)),
        "blocks of the branch": f"{branch.links.config.blocks} of {pipeline.transformer.config.num_layers}",
        "parameters": "{branch:,} beside {backbone:,}".format(**parameters),
        "steps": str(config.steps),
    }
    title = (
        "A control branch on generated billiards"
        if run.truth is not None
        else "A control branch on videos of one's own"
    )
    report_run(work, scores.study(title, facts, found, aims, contact_sheet(run, videos, known), measures))
    return result


def contact_sheet(run: ControlRun, videos: dict[str, np.ndarray], known: dict[str, np.ndarray]) -> Gallery:
    """The first held-out clips: the mask, the truth, and what was sampled of it."""
    mask = np.repeat(run.driver[..., None].astype(np.uint8) * 255, 3, -1)
    columns = {"driver's mask": mask, "true": run.video, "autoencoder": known["autoencoder"]}
    columns |= {scores.SETS[name]: video for name, video in videos.items()}
    rows = slice(0, min(SHOWN, len(run.video)))
    return Gallery(tuple(columns), run.names[rows], np.stack([video[rows] for video in columns.values()], 1))


def summary(result: dict[str, Any]) -> str:
    """result.json in lines of a terminal."""
    names = list(result["sets"])
    measures = [key for key in scores.MEASURES if key in result["sets"][names[0]]]
    lines = [f"{'':16s}" + "".join(f"{name:>13s}" for name in names)]
    for key in measures:
        cells = (result["sets"][name][key]["value"] for name in names)
        lines.append(f"{key:16s}" + "".join(f"{'-':>13s}" if cell is None else f"{cell:13.3f}" for cell in cells))
    lines += [
        f"{'met' if aim['met'] else 'MISSED':>7s} {aim['name']}: {aim['value']} ({aim['bar']})"
        for aim in result["aims"]
    ]
    return "\n".join(lines)
