"""`experiments.physics_suite`: ways to put physics into a video model, on one backbone, with equal budgets and one tracker.

Every variant begins with the same checkpoint and takes as many optimiser steps on as many clips; see docs/physics_suite.md.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.lamo import DriftLoss
from jaxdiff.physics import METRICS, Track, measure
from jaxdiff.physics.control import ControlBranch, controlled, fold, new_branch, told
from jaxdiff.physics.control_training import MaskedClips, Masks, train_control
from jaxdiff.physics.critic import Weights
from jaxdiff.physics.likelihood import ResidualLoss
from jaxdiff.physics.network_critic import NetworkCritic
from jaxdiff.physics.objectives import PhysicsObjective, WeightedClips
from jaxdiff.physics.rewards import ColourKey, DepthReward, FlowReward, LucasKanade, NearThings, SegmentationReward
from jaxdiff.physics.world_mechanics import WORLD_MECHANICS, world_mechanics
from jaxdiff.physics.world_residual import SidewaysMotion
from jaxdiff.pipeline import Pipeline
from jaxdiff.progress import progress
from jaxdiff.store import LatentStore
from jaxdiff.study.diffphy import DiffPhy
from jaxdiff.study.methods import Comparison
from jaxdiff.study.methods_report import Question
from jaxdiff.study.physics_suite_clips import FrameTasks, Scenes, prompted_scenes, scenes
from jaxdiff.study.physics_suite_config import (
    BESIDE,
    CONTROL,
    DRIFT,
    OBJECTIVE,
    ORO,
    OTHER_NOISE,
    PIDM,
    PLAIN,
    RWR,
    TRAINING_WORLD,
    Method,
    PhysicsSuiteConfig,
)
from jaxdiff.study.physics_suite_costs import Cost, costs, table
from jaxdiff.train.finetune import finetune
from jaxdiff.train.latents import WorldClips, embedder, encode_clips
from jaxdiff.train.reward_tuning import tune_on_reward
from jaxdiff.workdir import Workdir

MEASURED = METRICS | WORLD_MECHANICS
EVERY = 50  # steps from one checkpoint to the next


def measured(track: Track, words: np.ndarray, config: Any) -> dict[str, np.ndarray]:
    """Every number of every clip: what the world's laws say, and mechanics."""
    return measure(track, words, config) | world_mechanics(track)


class Suite(Comparison):
    """The variants' networks and the methods' clips, each made once and kept in the workdir."""

    def __init__(self, config: PhysicsSuiteConfig, pipeline: Pipeline, work: Workdir):
        super().__init__(config, pipeline, work, limit=config.limit)
        self.embed = embedder(pipeline, world=True)

    @property
    def methods(self) -> Mapping[str, Method]:
        """See `Comparison.methods`."""
        return self.config.methods

    # ---------------------------------------------------------------------------------------------- what is shared

    @cached_property
    def store(self) -> LatentStore:
        """The training clips of all variants, encoded."""
        with self.work.stage("encode"):
            source = WorldClips(self.config.clips, TRAINING_WORLD, world=self.config.world)
            return encode_clips(self.pipeline, source, self.work.path / "latents", self.embed, batch=32)

    @cached_property
    def scenes(self) -> Scenes:
        """The training clips as pictures, with what covers every pixel."""
        return scenes(self.config.world, TRAINING_WORLD, self.config.clips)

    @cached_property
    def critic(self) -> NetworkCritic:
        """Judge of RWR and of the objective; the tracker, which scores, is held out. Trained once for all seeds."""
        return self._judging(self.work).network_critic

    def critic_validity(self) -> dict[str, Any]:
        """Whether that judge tells clips that break a law from clips that break none."""
        return self._judging(self.work).validity("network")

    def _judging(self, work: Workdir, seed: int = 0, critic: Path | None = None) -> DiffPhy:
        return DiffPhy(self.config.diffphy(seed, critic or self.config.critic_file), self.pipeline, work)

    @cached_property
    def frames(self) -> list[Conditioning]:
        """What the methods that are told a first frame are told of each clip: prompt and that frame's latents."""
        first = self.true.video[:, :1]
        size = self.config.clips_per_device
        encode = [
            np.asarray(self.pipeline.encode(jnp.asarray(first[i : i + size]))) for i in range(0, len(first), size)
        ]
        latents = np.concatenate(encode)
        return [_host(told(self.told[text], first=latents[i : i + 1])) for i, text in enumerate(self.prompts)]

    @cached_property
    def true(self) -> Scenes:
        """True clips of the prompts, none of them trained on: the first frame and the screen of each may be told."""
        return prompted_scenes(self.config.world, OTHER_NOISE + self.config.world_seed, self.prompts, self.samples)

    @cached_property
    def masks(self) -> list[Conditioning]:
        """What the control branch is told of each clip: prompt, first frame, and where the screen is."""
        signal = fold(self.true.screen, self.store.header.latent_shape)
        return [_host(told(cond, signal[i : i + 1])) for i, cond in enumerate(self.frames)]

    # -------------------------------------------------------------------------------------------------- the variants

    def losses(self, trained: str) -> dict[str, Any]:
        """What stands beside the denoising loss."""
        config, decode = self.config, self.pipeline.decode
        if trained == DRIFT:
            return {"drift": DriftLoss()}
        if trained == PIDM:
            return {"residual": ResidualLoss(SidewaysMotion(decode), config.pidm_weight)}
        if trained == OBJECTIVE:
            weights = Weights(*[config.objective_weight] * 3)
            return {"physics": PhysicsObjective(self.critic, decode, weights, config.threshold)}
        return {}

    @property
    def reward(self) -> Any:
        """What ORO optimises."""
        made: dict[str, Callable[[], Any]] = {
            "segmentation": lambda: SegmentationReward(ColourKey()),
            "flow": lambda: FlowReward(LucasKanade()),
            "depth": lambda: DepthReward(NearThings()),
        }
        return made[self.config.reward]()

    def tasks(self) -> FrameTasks:
        """What ORO samples for."""
        return FrameTasks(self.store, self.scenes)

    def branch(self, seed: int) -> ControlBranch:
        """A control branch before training."""
        header = self.store.header
        shape = (header.frames, *header.size, 3)
        return new_branch(self.pipeline, self.config.blocks, header.latent_shape, shape, seed=seed)

    def network(self, seed: int, trained: str | None) -> Pipeline:
        """See `Comparison.network`."""
        if trained is None:
            return self.pipeline
        with progress(f"seed {seed}, {trained}", self.config.steps, unit="steps") as task:
            given = {"report": self.reporter(f"seed {seed}, {trained}", task), "checkpoint_every": EVERY}
            folder = self.folder(seed) / trained
            if trained == CONTROL:
                return self._controlled(seed, folder, given)
            if trained == ORO:
                tuned = tune_on_reward(
                    controlled(self.pipeline, None), self.tasks(), self.reward, self.store.header.latent_shape,
                    self.config.reward_tuning(seed), folder, **given,
                )  # fmt: skip
                return dataclasses.replace(self.pipeline, transformer=tuned.transformer)
            data: Any = self.weighted(seed) if trained == RWR else self.store
            training = self.config.fine_tuning(seed, self.losses(trained))
            return finetune(self.pipeline, data, training, folder, empty=self.told[""], **given)

    def _controlled(self, seed: int, folder: Path, given: dict[str, Any]) -> Pipeline:
        data = MaskedClips(self.store, Masks.pack(self.scenes.screen))
        training = self.config.control_training(seed)
        branch = train_control(self.pipeline, self.branch(seed), data, training, folder, empty=self.told[""], **given)
        return controlled(self.pipeline, branch)

    def weighted(self, seed: int) -> WeightedClips:
        """Samples of the checkpoint with the weights of their rewards, for RWR."""
        critic = self.config.critic_file or self.work.path / "critic" / "critic.npz"
        _ = self.critic  # there before it is opened by its name
        with Workdir(self.folder(seed) / "judged", {"seed": seed, "samples": self.config.rwr_samples}) as work:
            found, said = self._judging(work, seed, critic).weighted()
            work.write_result(said)
        return found

    def clips(self, seed: int, name: str, pipeline: Pipeline) -> np.ndarray:
        """See `Comparison.clips`."""
        how = self.methods[name].told
        each = {"prompt": lambda: None, "frame": lambda: self.frames, "mask": lambda: self.masks}[how]()
        if how == "frame":
            pipeline = controlled(pipeline, None)
        return self.sampled(f"sample seed {seed}, {name}", pipeline, self.config.sampling(seed), each=each)

    # ------------------------------------------------------------------------------------------------------- the answer

    def question(self, cost: Mapping[str, Cost], critic: Mapping[str, Any] | None) -> Question:
        """What is asked."""
        methods = self.methods
        return Question(
            "Physics in one backbone: the field's ways at equal budgets",
            {name: method.title for name, method in methods.items()},
            PLAIN,
            tuple(name for name, method in methods.items() if method.trained not in (None, PLAIN)),
            self.facts(critic),
            metrics=MEASURED,
            beside={name: other for name, other in BESIDE.items() if name in methods},
            tables=(table(cost, {name: METHOD_TITLES[name] for name in cost}),),
            notes=NOTES,
        )

    def facts(self, critic: Mapping[str, Any] | None) -> dict[str, str]:
        """What a reader must know of the budgets."""
        config = self.config
        seeds = ", ".join(map(str, config.seeds))
        found = {
            "budget of a variant": f"{config.steps} optimiser steps of {config.batch} clips, seeds {seeds}",
            "training clips": str(len(self.store)),
            "clips of a method and seed": f"{len(self.prompts)} ({len(set(self.prompts))} prompts)",
            "sampling": f"{config.sampling_steps} steps, classifier-free guidance {config.guidance_scale:g}",
        }
        if critic is not None:
            found["critic of RWR and DiffPhy"] = (
                f"AUC {critic['auc']:.3f} on clips that break a law or none ({critic['auc_shuffled']:.3f} for shuffled labels)"
            )
        return found


METHOD_TITLES = {
    PLAIN: "plain",
    DRIFT: "LaMo",
    PIDM: "PIDM",
    RWR: "RWR",
    OBJECTIVE: "DiffPhy",
    ORO: "ORO",
    CONTROL: "InterDyn",
}

NOTES = (
    "All variants begin with the same checkpoint and take the same number of optimiser steps on the same number of clips. What a "
    "step costs differs, and stands in the table of budgets.",
    "Methods that are told a first frame know more of the clip than the others. Their differences from a plain fine-tune that is "
    "told the same frame stand apart. The control branch is told where the screen is, never where the thing is.",
    "PIDM's residual is the law behind a part of the velocity residual, read from colours instead of by the tracker; the critic "
    "of RWR and DiffPhy judges the same laws from pixels. No variant is trained on the tracker itself.",
    "A number is a mean over clips that have it: what shows no thing has no motion, and is in the empty clips.",
)


def run_physics_suite(
    config: PhysicsSuiteConfig, pipeline: Pipeline, work: Workdir, operations: Callable[..., int]
) -> str:
    """Train, sample, score, report; the summary.

    Parameters
    ----------
    operations : counts those of ``function(*args)``, `jaxdiff.scaling.operations.products`.
    """
    suite = Suite(config, pipeline, work)
    clips = suite.run()
    critic = suite.critic_validity() if {RWR, OBJECTIVE} & {*config.variants} else None
    cost = costs(suite, operations)
    further = {"costs": cost, "critic": critic}
    return suite.conclude(clips, suite.question(cost, critic), measured, further)


def _host(cond: Conditioning) -> Conditioning:
    return jax.tree.map(np.asarray, cond)
