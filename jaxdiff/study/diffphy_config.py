"""What `experiments.diffphy` is told, and all that can be wrong with it before anything slow."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.generation import PUBLISHED, Sampling, read_prompts, world_prompts
from jaxdiff.models.lora import LoRA
from jaxdiff.physics.critic import Weights
from jaxdiff.physics.endpoint import Endpoint
from jaxdiff.physics.network_critic import load_critic
from jaxdiff.physics.objectives import check_threshold, reward_weights
from jaxdiff.physics.planner import spoken
from jaxdiff.pipeline import Pipeline
from jaxdiff.train.finetune import FineTuning, check_pipeline
from jaxdiff.train.loop import Recipe


@dataclasses.dataclass(frozen=True)
class DiffPhyConfig:
    """See the flags of `experiments.diffphy`."""

    model: str
    prompts: str
    config: str | None = None
    limit: int | None = None
    samples: int = 8
    scored: int = 2
    planner: str = "rules"
    critic: str = "rules"
    held_out: str = "auto"
    tune: str = "rwr"
    beta: float = 0.1
    phenomena: float = 1.0
    commonsense: float = 1.0
    semantic: float = 1.0
    objective_weight: float = 0.1
    threshold: float = 0.4
    steps: int = 200
    batch: int = 16
    learning_rate: float = 1e-4
    lora_rank: int = 0
    prompt_dropout: float = 0.1
    sampling_steps: int | None = None
    guidance_scale: float | None = None
    world_clips: int = 2048
    critic_file: Path | None = None
    critic_clips: int = 8192
    critic_steps: int = 3000
    endpoint: str = ""
    endpoint_model: str = ""
    endpoint_key: str = "OPENAI_API_KEY"
    endpoint_timeout: float = 120.0
    endpoint_frames: int = 8
    seed: int = 0

    def __post_init__(self):
        name = "nano" if self.config is None and self.model == "nano" else self.config
        if name not in PUBLISHED:
            raise ConfigError(f"--config={name}: say whose sampling settings to take, one of {', '.join(PUBLISHED)}")
        object.__setattr__(self, "config", name)
        for name in ("samples", "scored", "steps", "batch", "world_clips", "critic_clips", "critic_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}={getattr(self, name)} must be at least 1")
        if self.held_out == "auto":
            of_the_world = "network" if self.critic == "rules" else "rules"
            object.__setattr__(self, "held_out", of_the_world if self.prompts == "world" else "none")
        if self.held_out == self.critic:
            raise ConfigError(
                f"--held_out={self.held_out} is the critic that is tuned on; hold another one out, or none"
            )
        if self.tune == "objective" and self.critic != "network":
            raise ConfigError(
                f"--tune=objective needs a critic that a gradient passes through: --critic=network, not {self.critic}"
            )
        reward_weights(np.zeros((1, 1)), self.beta)  # checks beta
        check_threshold(self.threshold)
        _ = self.weights, self.server if self.asks else None  # both check themselves

    @property
    def asks(self) -> bool:
        """Whether an endpoint is asked for anything."""
        return "endpoint" in (self.planner, *self.critics)

    @property
    def weights(self) -> Weights:
        """Of the reward's parts."""
        return Weights(self.phenomena, self.commonsense, self.semantic)

    @property
    def server(self) -> Endpoint:
        """The endpoint."""
        return Endpoint(self.endpoint, self.endpoint_model, self.endpoint_key, self.endpoint_timeout)

    @property
    def critics(self) -> tuple[str, ...]:
        """The critic that is tuned on, and the one that is not."""
        return (self.critic,) if self.held_out == "none" else (self.critic, self.held_out)

    def sampling(self) -> Sampling:
        """The published settings, changed as the flags say."""
        assert self.config is not None  # __post_init__
        said = {"steps": self.sampling_steps, "guidance_scale": self.guidance_scale}
        given: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
        return dataclasses.replace(PUBLISHED[self.config], **given, seed=self.seed)

    def fine_tuning(self, losses: dict[str, Any]) -> FineTuning:
        """How the transformer is trained."""
        recipe = Recipe(self.steps, self.learning_rate, warmup=min(30, self.steps), ema=0.99, seed=self.seed)
        lora = LoRA(self.lora_rank, float(self.lora_rank)) if self.lora_rank else None
        return FineTuning(recipe, self.batch, lora, losses, self.prompt_dropout)

    def captions(self) -> tuple[str, ...]:
        """The prompts.

        Raises
        ------
        ConfigError : one that rules are to plan or judge, and that is none of the generated world.
        """
        found = world_prompts(self.seed) if self.prompts == "world" else read_prompts(self.prompts)
        captions = tuple(prompt.told for prompt in found[: self.limit])
        if self.planner == "rules" or {*self.critics} & {"rules", "network"}:
            for caption in captions:
                spoken(caption)
        return captions

    def check(self, outline: Pipeline) -> None:
        """All that can be wrong before a weight is read: the prompts, the model, the endpoint."""
        captions = self.captions()
        check_pipeline(outline)
        if outline.text_encoder is None and self.config != "nano":
            raise MissingDataError(
                f"{self.model} has no text encoder (text_encoder/ and tokenizer/), which prompts need"
            )
        if outline.vae is None:
            raise MissingDataError(f"{self.model} has no vae/, without which there is nothing to judge")
        if outline.text_encoder is None:
            for caption in captions:
                spoken(caption)
        if {*self.critics} & {"rules", "network"}:
            WorldConfig(self.sampling().frames, self.sampling().height)  # they know clips of these sizes only
        if self.critic_file is not None:
            load_critic(self.critic_file)
        if self.asks:
            self.server.check()
