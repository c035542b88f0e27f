"""What `experiments.physics_suite` is told: which variants of a backbone are compared, at which budget."""

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.flow import Backward
from jaxdiff.generation import Sampling
from jaxdiff.physics.control import check_backbone, takes_image
from jaxdiff.physics.control_training import ControlTraining
from jaxdiff.pipeline import Pipeline
from jaxdiff.study.diffphy_config import DiffPhyConfig
from jaxdiff.study.methods import check_counts
from jaxdiff.train.finetune import ExtraLoss, FineTuning, PromptedLoss, check_pipeline
from jaxdiff.train.latents import embedder, latent_shape
from jaxdiff.train.loop import Recipe
from jaxdiff.train.reward_tuning import RewardTuning

PLAIN, DRIFT, PIDM, RWR, OBJECTIVE, ORO, CONTROL = "plain", "drift", "pidm", "rwr", "objective", "oro", "control"
REWARDS = ("segmentation", "flow", "depth")
TRAINING_WORLD = 1  # seed of the training clips; the shipped model was trained on 0
# Added to a seed: the samples that rwr is trained on begin at other noise than those that are scored.
OTHER_NOISE = 1_000_003


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to clips: which network, and what it is told: the prompt, with the first frame of a true clip, with its mask."""

    title: str
    trained: str | None
    told: Literal["prompt", "frame", "mask"] = "prompt"


METHODS = {
    "base": Method("not trained", None),
    PLAIN: Method("plain fine-tune", PLAIN),
    DRIFT: Method("drift loss (LaMo)", DRIFT),
    PIDM: Method("residual of motion (PIDM)", PIDM),
    RWR: Method("reward-weighted (RWR)", RWR),
    OBJECTIVE: Method("critic's objective (DiffPhy)", OBJECTIVE),
    ORO: Method("object reward (ORO)", ORO),
    "plain-frame": Method("plain, told frame 0", PLAIN, "frame"),
    "oro-frame": Method("ORO, told frame 0", ORO, "frame"),
    CONTROL: Method("control (InterDyn), told", CONTROL, "mask"),
}
BESIDE = {"oro-frame": "plain-frame", CONTROL: "plain-frame"}  # what is told more is compared with what is told as much
VARIANTS = tuple(dict.fromkeys(method.trained for method in METHODS.values() if method.trained is not None))


@dataclasses.dataclass(frozen=True)
class PhysicsSuiteConfig:
    """See the flags of `experiments.physics_suite`."""

    model: str
    variants: tuple[str, ...] = VARIANTS
    seeds: tuple[int, ...] = (1, 2, 3)
    clips: int = 4096
    steps: int = 120
    batch: int = 32
    learning_rate: float = 5e-4
    prompt_dropout: float = 0.2
    logit_mean: float = 0.5
    limit: int | None = None
    samples: int = 2
    sampling_steps: int = 24
    guidance_scale: float = 2.0
    clips_per_device: int = 16
    scenes: int = 40
    world_seed: int = 0
    pidm_weight: float = 10.0
    rwr_samples: int = 4
    beta: float = 0.1
    critic_file: Path | None = None
    critic_clips: int = 4096
    critic_steps: int = 2000
    objective_weight: float = 0.1
    threshold: float = 0.4
    reward: str = "segmentation"
    reward_learning_rate: float = 5e-5
    reward_sampling_steps: int = 8
    backward: str = "last"
    backward_steps: int | None = 2
    blocks: int = 3
    control_dropout: float = 0.05

    def __post_init__(self):
        check_counts(
            self, "clips", "steps", "batch", "samples", "sampling_steps", "clips_per_device", "scenes", "rwr_samples",
            "critic_clips", "critic_steps", "reward_sampling_steps", "blocks",
        )  # fmt: skip
        for name in self.variants:
            if name not in VARIANTS:
                close = difflib.get_close_matches(name, VARIANTS, 1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise ConfigError(f"--variants: {name!r} is unknown; {hint}Known: {', '.join(VARIANTS)}")
        if PLAIN not in self.variants or len(set(self.variants)) < len(self.variants):
            raise ConfigError(
                f"--variants={','.join(self.variants)}: each once, and {PLAIN} among them, from which the others' differences "
                "are taken"
            )
        if self.reward not in REWARDS:
            raise ConfigError(f"--reward={self.reward}; one of {', '.join(REWARDS)}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit={self.limit} must be at least 1")
        if self.pidm_weight < 0 or self.objective_weight <= 0:
            raise ConfigError(
                f"--pidm_weight={self.pidm_weight} must not be negative, --objective_weight={self.objective_weight} positive"
            )
        if min(self.seeds) < 0 or max(self.seeds) >= OTHER_NOISE:
            raise ConfigError(f"--seeds={','.join(map(str, self.seeds))}; expected 0 to {OTHER_NOISE - 1}")
        # Each checks itself.
        _ = self.fine_tuning(0, {}), self.control_training(0), self.reward_tuning(0), self.diffphy(0, None)

    @property
    def world(self) -> WorldConfig:
        """Of all clips."""
        return WorldConfig()

    @property
    def methods(self) -> Mapping[str, Method]:
        """Those of the variants that are asked for, in the order of the report."""
        return {n: m for n, m in METHODS.items() if m.trained is None or m.trained in self.variants}

    def recipe(self, seed: int, learning_rate: float) -> Recipe:
        """Optimiser and length: of all variants alike but for the learning rate of a reward."""
        return Recipe(self.steps, learning_rate, warmup=min(30, self.steps), ema=0.99, seed=seed)

    def sampling(self, seed: int) -> Sampling:
        """How clips are sampled; the noise of a seed is its own."""
        world = self.world
        return Sampling(
            world.frames, world.size, world.size, 8, self.sampling_steps, self.guidance_scale, seed=seed,
            clips_per_device=self.clips_per_device,
        )  # fmt: skip

    def fine_tuning(self, seed: int, losses: Mapping[str, ExtraLoss | PromptedLoss]) -> FineTuning:
        """How a network is fine-tuned; variants differ in their losses and weights of clips only."""
        return FineTuning(
            self.recipe(seed, self.learning_rate), self.batch, losses=losses, prompt_dropout=self.prompt_dropout,
            logit_mean=self.logit_mean,
        )  # fmt: skip

    def control_training(self, seed: int) -> ControlTraining:
        """How a branch is trained."""
        recipe = self.recipe(seed, self.learning_rate)
        return ControlTraining(recipe, self.batch, self.prompt_dropout, self.control_dropout, self.logit_mean)

    def reward_tuning(self, seed: int) -> RewardTuning:
        """How a reward is optimised."""
        mode: Any = self.backward
        steps = None if self.backward == "full" else self.backward_steps
        recipe = self.recipe(seed, self.reward_learning_rate)
        return RewardTuning(recipe, self.batch, steps=self.reward_sampling_steps, backward=Backward(mode, steps))

    def diffphy(self, seed: int, critic: Path | None) -> DiffPhyConfig:
        """Critic and weighted samples, as `experiments.diffphy` has them."""
        return DiffPhyConfig(
            self.model, "world", "nano", self.limit, self.rwr_samples, critic="network", beta=self.beta,
            threshold=self.threshold, sampling_steps=self.sampling_steps, guidance_scale=self.guidance_scale,
            critic_file=critic, critic_clips=self.critic_clips, critic_steps=self.critic_steps, seed=OTHER_NOISE + seed,
        )  # fmt: skip

    def recorded(self) -> dict[str, Any]:
        """What decides the results, in what json can hold."""
        values = dataclasses.asdict(self) | {"beta": str(self.beta)}
        if self.critic_file is not None:
            values["critic_file"] = hashlib.sha256(self.critic_file.read_bytes()).hexdigest()
        return values

    def check(self, outline: Pipeline) -> None:
        """All that can be wrong before a weight is read; the pipeline's leaves may be shapes.

        Raises
        ------
        ConfigError : the checkpoint cannot be trained on clips of the generated world.
        MissingDataError : it has no VAE.
        """
        check_pipeline(outline)
        if outline.vae is None:
            raise MissingDataError(f"{self.model} has no vae/, without which there are no clips to score")
        if takes_image(outline):
            raise ConfigError(
                f"{self.model} continues an image, and these clips are of prompts: give a text-to-video model"
            )
        world = self.world
        embedder(outline, world=True)([""])
        shape = (1, *latent_shape(outline, (world.frames, world.size, world.size, 3)))
        example = outline.family.example(outline.transformer, shape)
        text = jax.ShapeDtypeStruct((1, 3, outline.transformer.config.text_dim), jnp.float32)
        outline.family.validate(outline.transformer, shape, dataclasses.replace(example, text=text))
        if CONTROL in self.variants:
            check_backbone(outline, self.blocks)
        if self.critic_file is not None:
            self.diffphy(0, self.critic_file).check(outline)
