"""Fine-tuning on a reward whose gradient goes back through the decoder and the sampler (VADER, arXiv 2407.08737)."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import Backward, sample
from jaxdiff.flow.guidance import is_off
from jaxdiff.models.lora import LoRA
from jaxdiff.pipeline import Pipeline
from jaxdiff.train.finetune import rebuilt, rows, trainable
from jaxdiff.train.loop import Loss, Recipe, fit


class Task(NamedTuple):
    """What a batch of samples is made from, and what each is compared with; every leaf is [B, ...]."""

    cond: Conditioning
    target: Any


class Tasks(Protocol):
    """Where tasks come from."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> Task:
        """The tasks at these places, leaves [B, ...] on the host."""


@dataclasses.dataclass(frozen=True)
class RewardTuning:
    """How a checkpoint is tuned on a reward.

    Parameters
    ----------
    recipe : optimiser, length, average, seed.
    batch : samples a step, over all devices.
    lora : what is adapted; None trains all weights, as float32 beside the checkpoint's dtype.
    steps, guidance_scale, solver : of the sampler. PISA samples in 10 steps.
    backward : through which of these steps the gradient goes.
    """

    recipe: Recipe = dataclasses.field(
        default_factory=lambda: Recipe(steps=500, learning_rate=1e-5, warmup=10, decay=0.0)
    )
    batch: int = 2
    lora: LoRA | None = None
    steps: int = 10
    guidance_scale: float = 1.0
    solver: str = "euler"
    backward: Backward = dataclasses.field(default_factory=Backward)

    def __post_init__(self):
        if self.batch < 1 or self.steps < 1:
            raise ConfigError(f"batch={self.batch} and steps={self.steps} must be at least 1")


def reward_loss(pipeline: Pipeline, shape: tuple[int, ...], config: RewardTuning) -> Loss:
    """Minus the mean reward: ``loss(params, ((frozen, rest, reward, negative), task), key)``.

    Noise is drawn with `key`, sampled down, decoded and rewarded; nothing of this stops a gradient but `config.backward`.

    Parameters
    ----------
    pipeline : its leaves may be shapes; nothing but its configuration is kept.
    shape : (T', H', W', C) of a clip's latents.

    Returns
    -------
    A `Loss`. `frozen` is as in `jaxdiff.train.finetune.trainable`, `rest` the pipeline without its transformer's weights,
    `reward` a function ``(video [B, T, H, W, 3] in [-1, 1], target) -> [B]`` that is a pytree, `negative` the prompt to lead
    away from, of batch 1, or None.
    """
    trained = rebuilt(pipeline.transformer, config.lora)

    def loss(params, given, key):
        (frozen, rest, reward, negative), task = given
        noise_key, key = jax.random.split(key)
        batch = jax.tree.leaves(task.target)[0].shape[0]
        made = sample(
            dataclasses.replace(rest, transformer=trained(params, frozen)),
            jax.random.normal(noise_key, (batch, *shape)),
            task.cond,
            steps=config.steps,
            solver=config.solver,
            guidance_scale=config.guidance_scale,
            negative=negative,
            key=key,
            backward=config.backward,
        )
        rewards = reward(rest.decode(made.latents), task.target)
        return -jnp.mean(rewards), {"reward": jnp.mean(rewards)}

    return loss


def tune_on_reward(
    pipeline: Pipeline,
    tasks: Tasks,
    reward: Any,
    shape: tuple[int, ...],
    config: RewardTuning,
    workdir: Path | None = None,
    *,
    negative: Conditioning | None = None,
    mesh: Mesh | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    **options: Any,
) -> Pipeline:
    """Train the transformer of a pipeline to be rewarded; continue from `workdir` if it holds a checkpoint.

    Parameters
    ----------
    tasks : step i samples for those that i and the seed decide, each once an epoch.
    reward, shape, negative : see `reward_loss`.
    options : of `jaxdiff.train.loop.fit`, as `checkpoint_every`.

    Returns
    -------
    The pipeline with averaged weights, a LoRA beside the weights as in `finetune`.

    Raises
    ------
    ConfigError : tasks, reward and checkpoint do not fit together, or there is guidance without `negative`; before anything
        slow.
    NonFiniteError : as `fit`; the newest checkpoint is the state before.
    """
    if pipeline.transformer_2 is not None:
        raise ConfigError("this checkpoint has two networks; only checkpoints with one can be tuned on a reward")
    negative = None if is_off(config.guidance_scale, negative) else negative
    network, recipe = pipeline.transformer, config.recipe
    key = jax.random.fold_in(jax.random.key(recipe.seed), recipe.steps)  # none of the steps' own
    params, frozen = trainable(network, config.lora, key)
    rest = dataclasses.replace(pipeline, transformer=network.replace({}))

    def batch(step: int) -> Task:
        return tasks.read(rows(step, config.batch, len(tasks), recipe.seed))

    loss, given = reward_loss(pipeline, tuple(shape), config), (frozen, rest, reward, negative)
    jax.eval_shape(loss, params, (given, tasks.read([0])), key)
    state = fit(loss, params, recipe, given, batches=batch, mesh=mesh, workdir=workdir, report=report, **options)
    return dataclasses.replace(pipeline, transformer=rebuilt(network, config.lora)(state.ema, frozen))
