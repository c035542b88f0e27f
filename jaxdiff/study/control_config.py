"""What `experiments.control` is told, and all that can be wrong with it before a weight is read."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.worlds.billiards import BilliardConfig
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.models.network import Remat
from jaxdiff.physics.control import ControlBranch, check_backbone, fold, new_branch, takes_image
from jaxdiff.physics.control_training import ControlTraining, training_loss
from jaxdiff.pipeline import Pipeline
from jaxdiff.study.control_data import HELD_OUT, BilliardClips, MaskedSource, find_masked
from jaxdiff.study.diffphy import TOLD_FPS
from jaxdiff.train.latents import latent_shape
from jaxdiff.train.loop import Recipe

BILLIARDS = "billiards"

# What a named configuration says where a flag does not. Of the published training, learning rate, optimiser and clips a step
# are known (two devices with four each), its length is not; what is beside them, and all of nano's, is ours. The published
# guidance, which is by the image and rises from frame to frame from 1 to 3, has no counterpart: 1 is none.
NAMED: dict[str, dict[str, Any]] = {
    "nano": {
        "steps": 3000, "learning_rate": 1e-3, "warmup": 50, "batch": 32, "ema": 0.998, "prompt_dropout": 0.0, "logit_mean": 0.5,
        "sampling_steps": 20, "guidance_scale": 1.0, "clips_per_device": 16,
    },
    "interdyn": {
        "steps": 20000, "learning_rate": 1e-5, "warmup": 0, "batch": 8, "ema": 0.9999, "prompt_dropout": 0.1, "logit_mean": 0.0,
        "sampling_steps": 50, "guidance_scale": 1.0, "clips_per_device": 1,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """See the flags of `experiments.control`."""

    model: str
    videos: str = BILLIARDS
    masks: Path | None = None
    captions: Path | None = None
    config: str = "nano"
    blocks: int | None = None
    scale: float = 1.0
    pairs: int = 2048
    discs: int = 2
    frames: int | None = None
    size: tuple[int, ...] | None = None
    fps: float | None = None
    held_out: int = 32
    steps: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    warmup: int | None = None
    ema: float | None = None
    prompt_dropout: float | None = None
    control_dropout: float = 0.05
    logit_mean: float | None = None
    remat: Remat = "all_but_attention"
    sampling_steps: int | None = None
    guidance_scale: float | None = None
    clips_per_device: int | None = None
    checkpoint_every: int = 250
    seed: int = 0

    def __post_init__(self):
        if self.config not in NAMED:
            raise ConfigError(f"--config={self.config} is unknown; choose from {', '.join(NAMED)}")
        for name, value in NAMED[self.config].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.held_out < 2:
            raise ConfigError(f"--held_out={self.held_out}: another clip's mask takes at least 2")
        for name in ("steps", "batch", "sampling_steps", "clips_per_device", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}={getattr(self, name)} must be at least 1")
        if self.size is not None and not (1 <= len(self.size) <= 2 and min(self.size) > 0):
            raise ConfigError(f"--size={','.join(map(str, self.size))}; expected HEIGHT,WIDTH or one number")
        if self.generated:
            if self.masks is not None or self.captions is not None or self.fps is not None:
                raise ConfigError(
                    "generated billiards have masks of their own, no captions and no rate; leave out --masks, --captions and "
                    "--fps, or give --videos=FOLDER"
                )
        elif self.masks is None:
            raise ConfigError(
                "--videos=FOLDER needs --masks=FOLDER: for every clip a mask video of its name, white on the driver"
            )
        _ = self.training  # checks itself

    @property
    def generated(self) -> bool:
        """Whether the clips are the world's."""
        return self.videos == BILLIARDS

    @property
    def training(self) -> ControlTraining:
        """How the branch is trained."""
        given: Any = self  # __post_init__ has filled what may be None
        recipe = Recipe(given.steps, given.learning_rate, warmup=given.warmup, ema=given.ema, seed=self.seed)
        return ControlTraining(
            recipe, given.batch, given.prompt_dropout, self.control_dropout, given.logit_mean, remat=self.remat
        )

    def sources(self) -> tuple[MaskedSource, BilliardClips | None]:
        """The clips, and those that are held out, where these are others; listed and checked, none is read."""
        if self.generated:
            asked: dict[str, Any] = {"frames": self.frames, "size": self.size and self.size[0], "discs": self.discs}
            world = BilliardConfig(**{name: value for name, value in asked.items() if value is not None})
            return BilliardClips(self.pairs, self.seed, world), BilliardClips(self.held_out, self.seed, world, HELD_OUT)
        assert self.masks is not None  # __post_init__
        size = None if self.size is None else (self.size[0], self.size[-1])
        found = find_masked(
            Path(self.videos), self.masks, self.captions, frames=self.frames or 49, size=size, fps=self.fps
        )
        if self.held_out >= len(found.names):
            raise ConfigError(f"--held_out={self.held_out}, and there are {len(found.names)} clips")
        return found, None

    def told_fps(self, pipeline: Pipeline, fps: float | None) -> float | None:
        """The clips' frames per second, for families that are told it."""
        return fps if pipeline.family.name.startswith(TOLD_FPS) else None

    def branch(self, pipeline: Pipeline, latents: tuple[int, ...], video: tuple[int, ...]) -> ControlBranch:
        """The branch before training: by default a copy of the first half of the blocks."""
        layers = pipeline.transformer.config.num_layers
        blocks = -(-layers // 2) if self.blocks is None else self.blocks
        check_backbone(pipeline, blocks)
        return new_branch(pipeline, blocks, latents, video, seed=self.seed)

    def check(self, outline: Pipeline, source: MaskedSource) -> tuple[int, ...]:
        """All that can be wrong without weights, which may be shapes; returns the shape of a clip's latents.

        Raises
        ------
        ConfigError : backbone, branch and clips do not go together.
        MissingDataError : there is no VAE, or no text encoder for captions.
        """
        if outline.text_encoder is None and self.config != "nano":
            raise MissingDataError(
                f"{self.model} has no text encoder (text_encoder/ and tokenizer/), which prompts need"
            )
        made = latent_shape(outline, source.shape)
        family, transformer = outline.family, outline.transformer
        cond = family.example(transformer, (1, *made))
        family.validate(transformer, (1, *made), cond)
        signal = fold(np.zeros((1, *source.shape[:3]), bool), made)
        if not takes_image(outline):
            first: Any = jax.ShapeDtypeStruct((1, 1, *made[1:]), jnp.float32)
            cond = dataclasses.replace(cond, extra={**(cond.extra or {}), "first": first})
        loss_of = dataclasses.replace(outline, vae=None, image_encoder=None)

        def value(pipeline: Pipeline, latents, signal, cond: Conditioning, key):
            branch = self.branch(pipeline, made, source.shape)
            training = dataclasses.replace(self.training, prompt_dropout=0.0)
            loss = training_loss(pipeline, branch, training, self.told_fps(outline, source.fps))
            return loss(branch.params, ((pipeline, None), (latents, signal, cond)), key)

        latents = jax.ShapeDtypeStruct((1, *made), jnp.float32)
        jax.eval_shape(value, loss_of, latents, signal, cond, jax.random.key(0))
        return made
