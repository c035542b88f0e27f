"""The toy example of PIDM (arXiv 2403.14404): points that should lie on the unit circle."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiff.models.layers import Linear
from jaxdiff.models.network import Network
from jaxdiff.physics.diffusion import CosineDiffusion
from jaxdiff.physics.likelihood import Estimation, ResidualLoss, pidm_losses
from jaxdiff.physics.unet import TORCH
from jaxdiff.train.loop import Recipe, fit

POINTS, BATCH = 10_000, 128
EPOCH = -(-POINTS // BATCH)  # steps
MOST = 27.6310211159  # bound on -log p(r = 0), as published: no gradient from points that are far off
WEIGHT = {"none": 0.0, "mean": 0.1, "sample": 0.005}


@dataclasses.dataclass(frozen=True)
class CircleConfig:
    """Width of the hidden layers, and the timesteps that the network tells apart."""

    width: int = 128
    timesteps: int = 100


class CircleNet(nnx.Module):
    """Three linear layers with softplus between, the first two multiplied by an embedding of the time."""

    def __init__(self, config: CircleConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.first, self.second, self.last = (
            Linear(a, b, rngs=rngs, init=TORCH) for a, b in ((2, width), (width, width), (width, 2))
        )
        self.time_first, self.time_second = (
            nnx.Param(jax.random.uniform(rngs.params(), (config.timesteps, width))) for _ in range(2)
        )

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Points [B, 2] at timesteps int [B] -> [B, 2]."""
        x = jax.nn.softplus(self.time_first[...][t] * self.first(x))
        return self.last(jax.nn.softplus(self.time_second[...][t] * self.second(x)))


def off_circle(points: jax.Array) -> jax.Array:
    """``|x|^2 - 1`` of points [B, 2]: the residual."""
    return jnp.sum(jnp.square(points), -1) - 1.0


def train_circle(
    estimation: Estimation,
    steps: int,
    seed: int = 0,
    weight: float | None = None,
    workdir: Path | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> Network:
    """Train as published: Adam, 5e-4, batches of 128 of 10,000 points, pairs of timesteps t and T - 1 - t, no average."""
    start, diffusion = Network.init(CircleNet, CircleConfig(), seed), CosineDiffusion()
    angles = np.random.default_rng([seed, 0xC1]).uniform(0, 2 * np.pi, POINTS)
    extra = {"residual": ResidualLoss(off_circle, WEIGHT[estimation] if weight is None else weight, diffusion, MOST)}

    def loss(params, points, key):
        rows, times, spread = jax.random.split(key, 3)
        clean = points[jax.random.randint(rows, (BATCH,), 0, POINTS)]
        t = jax.random.randint(times, (BATCH // 2,), 0, diffusion.steps)
        t = jnp.concatenate([t, diffusion.steps - 1 - t])
        noise = jax.random.normal(spread, clean.shape)
        found = pidm_losses(start.replace(params), diffusion, clean, noise, t, extra, estimation=estimation)
        return sum(found.values()), found

    recipe = Recipe(steps, 5e-4, warmup=1, decay=0.0, b2=0.999, seed=seed)
    points = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    state = fit(
        loss,
        start.params,
        recipe,
        points,
        workdir=workdir,
        report=report,
        report_every=EPOCH,
        checkpoint_every=20 * EPOCH,
    )
    return start.replace(state.params)


def circle_scores(network: Network, seed: int = 0, count: int = 1000) -> dict[str, float]:
    """Of `count` generated points: median and mean of ``| |x|^2 - 1 |``, and how unevenly they lie around the circle, the
    resultant ``|E exp(i theta)|`` (0: evenly). The mean is that of a few points far off until training has converged."""
    points = np.asarray(
        jax.jit(CosineDiffusion().sample, static_argnums=(2,))(network, jax.random.key(seed), (count, 2))
    )
    off = np.abs(np.square(points).sum(1) - 1)
    angle = np.arctan2(points[:, 1], points[:, 0])
    return {
        "median": float(np.median(off)),
        "mean": float(off.mean()),
        "resultant": float(abs(np.exp(1j * angle).mean())),
    }
