"""DiffPhy's objective, differentiable through the decoder, and the reward-weighted regression of a survey of the field.

The paper (arXiv 2505.21653) adds three terms to the diffusion loss: for the facts of the plan (phenomena), for physical
commonsense and for semantic consistency, each from a critic that sees the predicted clean video. Its equations and weights
are not public. The form of the terms and their weights here are ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.physics.critic import HIGHEST, LOWEST, Weights


class Ratings(NamedTuple):
    """What a differentiable critic says of a batch.

    Attributes
    ----------
    facts : float32 [B, F], logit of yes for every fact.
    told : float32 [B, F], 1 for the facts that belong to the clip's plan, 0 for the others.
    commonsense, semantic : float32 [B], 1 to 5.
    """

    facts: jax.Array
    told: jax.Array
    commonsense: jax.Array
    semantic: jax.Array


class DifferentiableCritic(Protocol):
    """A critic that a gradient passes through."""

    def rate(self, video: jax.Array, cond: Conditioning) -> Ratings:
        """Rate videos [B, T, H, W, 3], float in [-1, 1], by what their network was told."""


@dataclasses.dataclass(frozen=True)
class PhysicsObjective:
    """The three terms, a `jaxdiff.train.finetune.PromptedLoss`.

    For clip b with the facts F_b, at noise levels below the threshold only (above it the predicted clean latent is a blur
    that no critic can judge; the objective is 0 there)::

        phenomena   w_p mean_{i in F_b} -log sigmoid(logit_i)
        commonsense w_c (5 - commonsense_b) / 4
        semantic    w_s (5 - semantic_b) / 4

    each averaged over the whole batch, so that its weight does not depend on how many clips are below the threshold.

    Parameters
    ----------
    critic : gradients reach the video; the critic's own weights are given, not trained.
    decode : latents [B, T', H', W', C] -> video [B, T, H, W, 3] in [-1, 1], such as `Pipeline.decode`.
    weights : beside the denoising loss. Ours.
    threshold : sigma below which the critic is asked, in flow coordinates. Ours.
    """

    critic: DifferentiableCritic
    decode: Callable[[jax.Array], jax.Array]
    weights: Weights = dataclasses.field(default_factory=lambda: Weights(0.1, 0.1, 0.1))
    threshold: float = 0.4
    prompted: bool = dataclasses.field(default=True, init=False)

    def __post_init__(self):
        check_threshold(self.threshold)

    def __call__(
        self, predicted: jax.Array, clean: jax.Array, sigma: jax.Array, cond: Conditioning
    ) -> dict[str, jax.Array]:
        """See `PromptedLoss`; `clean` is not looked at."""
        ratings = self.critic.rate(self.decode(predicted), cond)
        facts = -jax.nn.log_sigmoid(ratings.facts) * ratings.told
        terms = {
            "phenomena": facts.sum(-1) / jnp.maximum(ratings.told.sum(-1), 1.0),
            "commonsense": (HIGHEST - ratings.commonsense) / (HIGHEST - LOWEST),
            "semantic": (HIGHEST - ratings.semantic) / (HIGHEST - LOWEST),
        }
        asked = (sigma < self.threshold).astype(jnp.float32)
        return {name: getattr(self.weights, name) * jnp.mean(asked * value) for name, value in terms.items()}


def check_threshold(sigma: float) -> None:
    """Raise a `ConfigError` for a threshold that is no noise level, or that no clip could be below."""
    if not 0 < sigma <= 1:
        raise ConfigError(f"--threshold={sigma}; expected a sigma above 0, at most 1")


# -------------------------------------------------------------------------------------------- reward-weighted regression


def reward_weights(rewards: np.ndarray, beta: float) -> np.ndarray:
    """``K softmax_k(r_k / beta)`` of the K samples of each prompt: mean 1, so that the loss keeps its size.

    Regression with these weights on samples of p fits the tilted p(x) exp(r(x) / beta) / Z. With beta infinite all are
    exactly 1, which is plain fine-tuning.

    Parameters
    ----------
    rewards : [P, K]; nan for a sample that could not be judged, whose weight is 0.

    Returns
    -------
    float64 [P, K]; all 0 for a prompt of which no sample could be judged.

    Raises
    ------
    ConfigError : beta is not positive.
    """
    if not beta > 0:
        raise ConfigError(f"--beta={beta} must be positive; inf weighs all samples alike")
    rewards = np.asarray(rewards, np.float64)
    known = np.isfinite(rewards)
    best = np.where(known, rewards, -np.inf).max(-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        raised = np.where(known, np.exp((rewards - best) / beta), 0.0)
    mean = raised.mean(-1, keepdims=True)
    return np.divide(raised, mean, out=np.zeros_like(raised), where=mean > 0)


def effective_sample_size(weights: np.ndarray) -> np.ndarray:
    """``(sum w)^2 / sum w^2`` over the last axis: how many equally weighted samples are worth as much; 0 without weight."""
    square = np.square(weights).sum(-1)
    return np.divide(np.square(weights.sum(-1)), square, out=np.zeros_like(square), where=square > 0)


class WeightedBatch(NamedTuple):
    """Clips with weights, as `jaxdiff.train.finetune.Clips` reads them."""

    latents: np.ndarray
    text: np.ndarray
    text_mask: np.ndarray | None
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class WeightedClips:
    """Encoded clips with a weight each in the denoising loss: ``sum_k w_k L_FM(x_k)`` up to its size.

    Parameters
    ----------
    clips : a `jaxdiff.store.LatentStore`, or what reads like one.
    weights : [clips]
    """

    clips: Any
    weights: np.ndarray

    def __post_init__(self):
        if np.shape(self.weights) != (len(self.clips),):
            raise ConfigError(f"{len(self.clips)} clips need as many weights, got {np.shape(self.weights)}")
        if not np.sum(self.weights) > 0:
            raise ConfigError("no clip has any weight: none could be judged, or all rewards are not finite")

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, indices: Sequence[int] | np.ndarray) -> WeightedBatch:
        """The clips at these places with their weights."""
        found = self.clips.read(indices)
        weight = np.asarray(self.weights)[np.asarray(indices)].astype(np.float32)
        return WeightedBatch(found.latents, found.text, found.text_mask, weight)
