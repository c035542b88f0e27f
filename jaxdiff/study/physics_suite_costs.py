"""What equal budgets cost: the same number of optimiser steps on the same number of clips is not the same work."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.physics import control_training
from jaxdiff.physics.control import controlled, fold, told
from jaxdiff.report.study import Table
from jaxdiff.study.physics_suite_config import CONTROL, OBJECTIVE, ORO, PIDM, RWR
from jaxdiff.train.finetune import trainable, training_loss
from jaxdiff.train.reward_tuning import reward_loss

if TYPE_CHECKING:
    from jaxdiff.study.physics_suite import Suite


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one variant and seed.

    Attributes
    ----------
    steps, clips : of the optimiser, and how many clips they saw: the budget, equal for all.
    evaluations : forward passes of the network for a clip in training. What is recomputed on the way back does not count.
    decoded : clips that training sent through the decoder.
    trained : parameters.
    operations : of all matrix products and convolutions of training, with what is recomputed.
    before : the same of what training needs first, for this seed alone: samples of the checkpoint.
    """

    steps: int
    clips: int
    evaluations: int
    decoded: int
    trained: int
    operations: int
    before: int


def costs(suite: "Suite", operations: Callable[..., int]) -> dict[str, Cost]:
    """Of every variant, counted without running anything; see `run_physics_suite` for `operations`."""
    return {name: _cost(suite, name, operations) for name in suite.config.variants}


def table(found: Mapping[str, Cost], titles: Mapping[str, str]) -> Table:
    """For the report."""
    least = min(cost.operations for cost in found.values())
    rows = tuple(
        (
            titles[name],
            f"{cost.steps:,}",
            f"{cost.clips:,}",
            f"{cost.evaluations:,}",
            f"{cost.decoded:,}",
            f"{cost.trained:,}",
            f"{cost.operations / 1e12:.2f}",
            f"{cost.operations / least:.1f}",
            f"{cost.before / 1e12:.2f}",
        )
        for name, cost in found.items()
    )
    return Table(
        "Budgets",
        ("", "steps", "clips", "evaluations", "decoded clips", "parameters", "TFLOP", "of the least", "TFLOP before"),
        rows,
        "Of one seed. Steps and clips are equal by design; evaluations are forward passes of the network for a clip in training. "
        "TFLOP are those of matrix products and convolutions, counted in the program and not timed, what is recomputed included; "
        "before: of the samples that RWR is trained on. The critic of RWR and DiffPhy is trained once for all seeds.",
    )


def _cost(suite: "Suite", name: str, operations: Callable[..., int]) -> Cost:
    config, samples = suite.config, len(suite.prompts) // suite.config.samples * suite.config.rwr_samples
    clips = config.steps * config.batch
    loss, params, given = _program(suite, name)
    step = operations(jax.value_and_grad(lambda p, g, k: loss(p, g, k)[0]), params, given, jax.random.key(0))
    return Cost(
        steps=config.steps,
        clips=clips,
        evaluations=clips * (config.reward_sampling_steps if name == ORO else 1),
        decoded=clips if name in (PIDM, OBJECTIVE, ORO) else 0,
        trained=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        operations=config.steps * step,
        before=samples * _sample(suite, operations) if name == RWR else 0,
    )


def _sample(suite: "Suite", operations: Callable[..., int]) -> int:
    """Operations of one sampled clip."""
    config, pipeline = suite.config, suite.pipeline
    x = jnp.zeros((1, *suite.store.header.latent_shape))
    cond = suite.told[suite.prompts[0]]
    each = operations(lambda p, x: p.velocity(x, jnp.float32(0.5), cond), pipeline, x)
    passes = config.sampling_steps * (2 if config.sampling(0).guided else 1)
    return passes * each + operations(lambda p, x: p.decode(x), pipeline, x)


def _program(suite: "Suite", name: str) -> tuple[Any, Any, Any]:
    """Loss, what is trained, and what the loss is given in a step, as the training of the variant has them."""
    config, pipeline = suite.config, suite.pipeline
    rows = np.arange(config.batch)
    if name == ORO:
        tasks = suite.tasks()
        tuning = config.reward_tuning(0)
        first = controlled(pipeline, None)
        loss = reward_loss(first, suite.store.header.latent_shape, tuning)
        params, frozen = trainable(pipeline.transformer, None, jax.random.key(0))
        rest = dataclasses.replace(first, transformer=pipeline.transformer.replace({}))
        return loss, params, ((frozen, rest, suite.reward, None), tasks.read(rows % len(tasks)))
    read: Any = suite.store.read(rows % len(suite.store))
    empty = suite.told[""] if config.prompt_dropout else None
    if name == CONTROL:
        branch = suite.branch(0)
        loss = control_training.training_loss(pipeline, branch, config.control_training(0))
        header = suite.store.header
        signal = fold(np.zeros((config.batch, header.frames, *header.size), bool), header.latent_shape)
        cond = told(Conditioning(read.text, read.text_mask), first=read.latents[:, :1])
        return loss, branch.params, ((dataclasses.replace(pipeline, vae=None), empty), (read.latents, signal, cond))
    loss = training_loss(pipeline, config.fine_tuning(0, suite.losses(name)))
    params, frozen = trainable(pipeline.transformer, None, jax.random.key(0))
    weight = (np.ones(config.batch, np.float32),) if name == RWR else ()
    return loss, params, ((frozen, empty), (read.latents, read.text, read.text_mask, *weight))
