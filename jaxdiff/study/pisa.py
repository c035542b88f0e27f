"""`experiments.pisa`: fine-tune on falling things, then on rewards through the sampler, and measure on falls that were held out.

The stages are PISA's (arXiv 2503.09595): a checkpoint that continues a first frame; post-training by fine-tuning on simulated
falls; object reward optimisation, one reward a run, each from the fine-tuned weights. Every stage has checkpoints and every
method's clips are a file: an interrupted run goes on where it stopped.
"""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.worlds.drop import PROMPT, DropConfig, Drops, drops
from jaxdiff.errors import ConfigError
from jaxdiff.flow import Backward, sample
from jaxdiff.models.lora import LoRA, merged
from jaxdiff.models.vision.raft import load_raft
from jaxdiff.models.wan import Wan
from jaxdiff.physics.pisa import pisa_metrics
from jaxdiff.physics.rewards import (
    ColourKey,
    DepthReward,
    FlowReward,
    LucasKanade,
    NearThings,
    RAFTFlow,
    SegmentationReward,
    Target,
    check_masks,
)
from jaxdiff.pipeline import Pipeline
from jaxdiff.progress import progress
from jaxdiff.store import LatentStore
from jaxdiff.train.finetune import FineTuning, check_pipeline, finetune
from jaxdiff.train.latents import Embed, embedder, encode_clips
from jaxdiff.train.loop import Recipe
from jaxdiff.train.reward_tuning import RewardTuning, Task, tune_on_reward
from jaxdiff.workdir import Workdir

BASE, TUNED = "base", "fine-tuned"
SEEN, FAR = "seen", "far"
STREAMS = {SEEN: 1_000_003, FAR: 2_000_003}  # of held-out clips, beside the seed of the training clips
REWARDS = ("segmentation", "flow", "depth")
AT_ONCE = 16  # clips that are sampled together
RAFT_SMALLEST = 128  # pixels a side
Scores = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PisaConfig:
    """See the flags of `experiments.pisa`."""

    model: str
    frames: int = 17
    size: int = 32
    height: tuple[float, float] = (0.15, 0.35)
    far_height: tuple[float, float] = (0.4, 0.5)
    prompt: str = PROMPT
    clips: int = 2048
    held_out: int = 64
    steps: int = 1500
    batch: int = 16
    learning_rate: float = 5e-4
    lora_rank: int = 0
    rewards: tuple[str, ...] = ("flow",)
    reward_clips: int = 512
    reward_steps: int = 100
    reward_batch: int = 4
    reward_learning_rate: float = 5e-5
    backward: str = "full"
    backward_steps: int | None = None
    sampling_steps: int = 10
    guidance_scale: float = 1.0
    raft: Path | None = None
    seed: int = 0

    def __post_init__(self):
        counts = (
            "clips",
            "held_out",
            "steps",
            "batch",
            "reward_clips",
            "reward_steps",
            "reward_batch",
            "sampling_steps",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}={getattr(self, name)} must be at least 1")
        odd = [name for name in self.rewards if name not in REWARDS]
        if odd or len(set(self.rewards)) < len(self.rewards):
            raise ConfigError(f"--rewards={','.join(self.rewards)}: each of {', '.join(REWARDS)} once at most")
        if self.reward_clips > self.clips:
            raise ConfigError(f"--reward_clips={self.reward_clips} are taken from the --clips={self.clips}")
        if self.seed < 0 or self.seed >= STREAMS[SEEN]:
            raise ConfigError(f"--seed={self.seed}; expected 0 to {STREAMS[SEEN] - 1}")
        if self.raft is not None and "flow" not in self.rewards:
            raise ConfigError("--raft is the network of the flow reward, which is not among --rewards")
        _ = self.reward_tuning, self.world, self.far_world  # each checks itself

    @property
    def world(self) -> DropConfig:
        """Of training clips, and of held-out clips of heights like theirs."""
        return DropConfig(self.frames, self.size, height=self.height)

    @property
    def far_world(self) -> DropConfig:
        """Of held-out clips of other heights."""
        return dataclasses.replace(self.world, height=self.far_height)

    @property
    def lora(self) -> LoRA | None:
        """What is adapted."""
        return LoRA(self.lora_rank, float(self.lora_rank)) if self.lora_rank else None

    @property
    def fine_tuning(self) -> FineTuning:
        """The first stage."""
        recipe = Recipe(self.steps, self.learning_rate, warmup=min(30, self.steps), ema=0.99, seed=self.seed)
        return FineTuning(recipe, self.batch, self.lora, prompt_dropout=0.0, logit_mean=0.5, first_frame=True)

    @property
    def reward_tuning(self) -> RewardTuning:
        """The second stage."""
        steps = self.reward_steps
        recipe = Recipe(steps, self.reward_learning_rate, warmup=min(10, steps), decay=0.0, ema=0.9, seed=self.seed)
        mode: Any = self.backward
        return RewardTuning(
            recipe, self.reward_batch, self.lora, self.sampling_steps, self.guidance_scale,
            backward=Backward(mode, self.backward_steps),
        )  # fmt: skip

    def check(self, outline: Pipeline) -> Pipeline:
        """All that can be wrong before a weight is read; the pipeline as it will be used."""
        check_pipeline(outline)
        outline = continuing(outline)
        if outline.text_encoder is None:
            embedder(outline, world=True)([self.prompt])
        shape = jax.eval_shape(outline.encode, jax.ShapeDtypeStruct((1, *self.shape), jnp.uint8)).shape
        first = jax.ShapeDtypeStruct((1, 1, *shape[2:]), jnp.float32)
        example = outline.family.example(outline.transformer, shape)
        outline.family.validate(outline.transformer, shape, dataclasses.replace(example, image_latents=first))
        if self.raft is not None:
            load_raft(self.raft)
        return outline

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, 3) of a clip."""
        return self.frames, self.size, self.size, 3


def continuing(pipeline: Pipeline) -> Pipeline:
    """The pipeline as one that takes its first frame in place: Wan text-to-video networks can be trained to, as 2.2's is."""
    family = pipeline.family
    if isinstance(family, Wan) and not family.image_to_video:
        return dataclasses.replace(pipeline, family=dataclasses.replace(family, expand_timesteps=True))
    return pipeline


@dataclasses.dataclass
class DropClips:
    """Simulated clips as `jaxdiff.train.latents.encode_clips` reads them."""

    world: DropConfig
    seed: int
    count: int
    prompt: str
    fps: float | None = None
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.names = tuple(f"drop-{self.seed}-{i:06d}" for i in range(self.count))
        self.captions = (self.prompt,) * self.count
        self.shape = (self.world.frames, self.world.size, self.world.size, 3)

    @cached_property
    def drawn(self) -> Drops:
        """All of them."""
        found = drops(self.world, self.seed, self.count)
        check_masks(found.masks, self.names)
        return found

    def describe(self) -> dict[str, Any]:
        """The draw."""
        return {"world": dataclasses.asdict(self.world), "seed": self.seed}

    def read(self, ids: Sequence[int], ahead: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `jaxdiff.train.latents.Source`."""
        for i in ids:
            yield i, self.drawn.video[i]


@dataclasses.dataclass(frozen=True)
class DropTasks:
    """Falls to be sampled from their first frame and compared with how they went, `jaxdiff.train.reward_tuning.Tasks`."""

    store: LatentStore
    clips: Drops
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int] | np.ndarray) -> Task:
        """The tasks at these places."""
        found: Any = self.store.read(indices)
        at, video = np.asarray(indices), self.clips.video
        cond = Conditioning(found.text, found.text_mask, image_latents=found.latents[:, :1])
        return Task(cond, Target(_floats(video[at]), self.clips.masks[at]))


class Pisa:
    """The parts of a run; each keeps what it makes in the workdir and makes only what is not there."""

    def __init__(self, config: PisaConfig, pipeline: Pipeline, work: Workdir):
        self.config, self.work = config, work
        self.pipeline = continuing(pipeline)
        self.embed: Embed = embedder(pipeline, world=pipeline.text_encoder is None)
        self.training = DropClips(config.world, config.seed, config.clips, config.prompt)
        worlds = {SEEN: config.world, FAR: config.far_world}
        self.cells = {
            name: DropClips(world, STREAMS[name] + config.seed, config.held_out, config.prompt).drawn
            for name, world in worlds.items()
        }

    @cached_property
    def store(self) -> LatentStore:
        """The training clips, encoded."""
        with self.work.stage("encode"):
            return encode_clips(self.pipeline, self.training, self.work.path / "latents", self.embed, batch=AT_ONCE)

    @cached_property
    def negative(self) -> Conditioning | None:
        """What guidance leads away from."""
        return None if self.config.guidance_scale == 1.0 else self.embed([""])

    def rewards(self) -> dict[str, Any]:
        """The rewards asked for, with their networks."""
        config = self.config
        flow: Any = LucasKanade()
        if config.raft is not None:
            flow = RAFTFlow(load_raft(config.raft), scale=-(-RAFT_SMALLEST // config.size))
        made = {
            "segmentation": SegmentationReward(ColourKey()),
            "flow": FlowReward(flow),
            "depth": DepthReward(NearThings()),
        }
        return {name: made[name] for name in config.rewards}

    def pipelines(self) -> Iterator[tuple[str, Callable[[], Pipeline]]]:
        """Every method with what makes its pipeline; the rewards' begin with the fine-tuned one, which is made once."""
        tuned = functools.cache(self._fine_tuned)
        yield BASE, lambda: self.pipeline
        yield TUNED, tuned
        for name, reward in self.rewards().items():
            yield name, functools.partial(self._rewarded, name, reward, tuned)

    def _fine_tuned(self) -> Pipeline:
        with progress("fine-tune", self.config.steps, unit="steps") as task:
            return _whole(
                finetune(
                    self.pipeline, self.store, self.config.fine_tuning, self.work.path / TUNED,
                    report=self._reporter(TUNED, task), report_every=5, checkpoint_every=100,
                )
            )  # fmt: skip

    def _rewarded(self, name: str, reward: Any, start: Callable[[], Pipeline]) -> Pipeline:
        tasks = DropTasks(self.store, self.training.drawn, self.config.reward_clips)
        with progress(f"optimise {name}", self.config.reward_steps, unit="steps") as task:
            return _whole(
                tune_on_reward(
                    start(), tasks, reward, self.store.header.latent_shape, self.config.reward_tuning,
                    self.work.path / f"rewarded-{name}", negative=self.negative, report=self._reporter(name, task),
                    report_every=5, checkpoint_every=25,
                )
            )  # fmt: skip

    def _reporter(self, stage: str, task: Any) -> Callable[[int, dict[str, float]], None]:
        def report(step: int, metrics: dict[str, float]) -> None:
            self.work.log("train", stage=stage, step=step, **{k: float(f"{v:.6g}") for k, v in metrics.items()})
            task.advance(step - task.done, loss=metrics["loss"])

        return report

    def clips(self, cell: str, method: str, pipeline: Callable[[], Pipeline]) -> np.ndarray:
        """A method's clips of a cell, uint8 [N, T, H, W, 3]; all methods begin at the same noise."""
        path = self.work.path / "clips" / f"{method}-{cell}.npy"
        if not path.exists():
            network, truth = pipeline(), self.cells[cell].video
            with self.work.stage("sample", method=method, cell=cell), progress(f"{method}, {cell}", len(truth)) as task:
                parts = []
                for start in range(0, len(truth), AT_ONCE):
                    parts.append(self._continued(network, truth, start, STREAMS[cell]))
                    task.advance(len(parts[-1]))
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate(parts))
            self.work.write(f"clips/{path.name}", buffer.getvalue())
        return np.load(path)

    def _continued(self, pipeline: Pipeline, truth: np.ndarray, start: int, stream: int) -> np.ndarray:
        """Samples for `AT_ONCE` clips: the last batch is filled up, so that no clip depends on how many there are."""
        config = self.config
        ids = np.minimum(np.arange(start, start + AT_ONCE), len(truth) - 1)
        cond = self.embed([config.prompt] * AT_ONCE)
        cond = pipeline.with_image(cond, truth[ids], frames=config.frames)
        root = jax.random.key(stream + config.seed)
        keys = jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.asarray(ids))
        noise = jax.vmap(lambda key: jax.random.normal(key, self.store.header.latent_shape))(keys)
        made = sample(
            pipeline, noise, cond, steps=config.sampling_steps, solver="euler", guidance_scale=config.guidance_scale,
            negative=self.negative, key=keys,
        )  # fmt: skip
        video = np.asarray(pipeline.decode(made.latents))
        return _bytes(video)[: len(truth) - start]

    def references(self, cell: str) -> dict[str, np.ndarray]:
        """Clips whose score is a bound: the truth, the truth through the VAE, and the first frame held."""
        truth = self.cells[cell].video
        coded = [
            np.asarray(self.pipeline.decode(self.pipeline.encode(jnp.asarray(truth[i : i + AT_ONCE]))))
            for i in range(0, len(truth), AT_ONCE)
        ]
        held = np.repeat(truth[:, :1], truth.shape[1], 1)
        return {"true clips": truth, "encoded and decoded": _bytes(np.concatenate(coded)), "first frame held": held}

    def scores(self, cell: str, video: np.ndarray) -> dict[str, Scores]:
        """The metrics of clips of a cell, "corrected" and "published"; the thing is found by its colour."""
        truth = self.cells[cell]
        first, masks = jnp.asarray(_floats(truth.video[:, 0])), jnp.asarray(truth.masks[:, 0])
        found = np.asarray(ColourKey()(jnp.asarray(_floats(video)), first, masks))[..., 0] > 0
        exact = truth.masks[..., 0] > 0.5
        return {
            "corrected": pisa_metrics(found, exact),
            "published": pisa_metrics(found, exact, compatible=True),
        }


def run_pisa(config: PisaConfig, pipeline: Pipeline, work: Workdir, save: Callable[[Pipeline, str], Any]) -> None:
    """Train, sample, measure; leaves result.json, clips.csv and report.html. `save(pipeline, name)` keeps a trained one."""
    from jaxdiff.study.pisa_report import Answer, write

    run = Pisa(config, pipeline, work)
    clips: dict[str, dict[str, np.ndarray]] = {cell: dict(run.references(cell)) for cell in run.cells}
    for name, make in run.pipelines():
        made = functools.cache(make)
        for cell, found in clips.items():
            found[name] = run.clips(cell, name, made)
        if name != BASE:
            save(made(), name)
    with work.stage("measure"):
        scores: Mapping[str, Mapping[str, dict[str, Scores]]] = {
            cell: {name: run.scores(cell, video) for name, video in found.items()} for cell, found in clips.items()
        }
    write(Answer(config, scores), clips, work)


def _whole(pipeline: Pipeline) -> Pipeline:
    """With adapters, where there are any, added to the weights."""
    return dataclasses.replace(pipeline, transformer=merged(pipeline.transformer))


def _floats(video: np.ndarray) -> Any:
    return video.astype(np.float32) / 127.5 - 1.0


def _bytes(video: np.ndarray) -> np.ndarray:
    return np.round((np.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
