"""Physics-informed diffusion models (Bastek et al., arXiv 2403.14404) on Darcy flow: training, sampling, honest scores."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.models.network import Network
from jaxdiff.physics import residuals
from jaxdiff.physics.darcy import solve, zero_mean
from jaxdiff.physics.diffusion import CosineDiffusion
from jaxdiff.physics.likelihood import Estimation, ResidualLoss, pidm_losses
from jaxdiff.physics.unet import UNetConfig, new_unet
from jaxdiff.train.loop import Recipe, fit

NULL = 2 / 64 * 10 / 3  # R_MAE of an all-zero pressure where 8 divides n
SMALLEST_PERMEABILITY = 1e-3  # below what data hold; generated fields are raised to it before they are solved for
PROJECTIONS = 256


@dataclasses.dataclass(frozen=True)
class PIDMTraining:
    """How a model of (pressure, permeability) is trained.

    Parameters
    ----------
    n : nodes along a side.
    unet : the network.
    recipe : optimiser, length, average, seed.
    batch : fields a step.
    fields, held_out : training fields, and others to compare with.
    estimation : where the residual is measured, see `pidm_losses`; "none" is plain diffusion.
    weight : c of the residual's likelihood; None: 1e-3 for "mean", 1e-5 for "sample", as published.
    between : DDIM steps of sample estimation between t and 0.
    """

    n: int = 64
    unet: UNetConfig = UNetConfig()
    recipe: Recipe = Recipe(300_000, 1e-4, warmup=1, decay=0.0, b2=0.999, ema=0.99)
    batch: int = 64
    fields: int = 10_000
    held_out: int = 256
    estimation: Estimation = "mean"
    weight: float | None = None
    between: int = 0

    def __post_init__(self):
        if self.estimation not in get_args(Estimation):
            raise ConfigError(f"estimation={self.estimation!r}; choose from {', '.join(get_args(Estimation))}")
        if min(self.batch, self.fields, self.held_out - 1, self.recipe.steps) < 1 or self.between < 0:
            raise ConfigError(
                f"batch={self.batch}, fields={self.fields} and steps={self.recipe.steps} must be at least 1, "
                f"held_out={self.held_out} at least 2 and between={self.between} not negative"
            )
        factor = 2 ** (len(self.unet.dim_mults) - 1)
        if self.n % factor:
            raise ConfigError(f"n={self.n} must divide by {factor}, the halvings of the network")

    @classmethod
    def darcy64(cls, estimation: Estimation = "mean", steps: int = 300_000, seed: int = 0) -> "PIDMTraining":
        """As published, for an accelerator; sample estimation has batches of 16."""
        recipe = dataclasses.replace(cls().recipe, steps=steps, seed=seed)
        return cls(recipe=recipe, batch=16 if estimation == "sample" else 64, estimation=estimation)

    @classmethod
    def darcy16(cls, estimation: Estimation = "mean", steps: int = 2500, seed: int = 0) -> "PIDMTraining":
        """Ours, for processors: a small network, few steps and a learning rate to match."""
        recipe = Recipe(steps, 2e-3, warmup=50, decay=0.5, ema=0.998, seed=seed)
        return cls(16, UNetConfig.small(), recipe, 8, 2048, 256, estimation)

    @property
    def residual_weight(self) -> float:
        """c."""
        published = {"none": 0.0, "mean": 1e-3, "sample": 1e-5}[self.estimation]
        return published if self.weight is None else self.weight


CONFIGS = {"darcy16": PIDMTraining.darcy16, "darcy64": PIDMTraining.darcy64}


def darcy_residual(fields: jax.Array) -> jax.Array:
    """`residuals.darcy` of fields [B, n, n, 2], pressure and permeability."""
    return residuals.darcy(fields[..., 0], fields[..., 1])


def train(
    training: PIDMTraining,
    fields: np.ndarray,
    workdir: Path | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    **options,
) -> dict[str, Network]:
    """Train on fields [N, n, n, 2]; the network with "raw" and with averaged ("ema") weights.

    Parameters
    ----------
    options : of `jaxdiff.train.fit`.

    Raises
    ------
    ConfigError : the fields are of another size.
    NonFiniteError : as `fit`.
    """
    if fields.shape[1:] != (training.n, training.n, 2):
        raise ConfigError(f"fields {fields.shape} are not [N, {training.n}, {training.n}, 2]")
    start = new_unet(training.unet, training.recipe.seed)
    state = fit(
        step_loss(training, start), start.params, training.recipe, fields, workdir=workdir, report=report, **options
    )
    return {"raw": start.replace(state.params), "ema": start.replace(state.ema)}


def step_loss(training: PIDMTraining, network: Network):
    """What `fit` minimises: ``loss(params, fields, key)``; nothing of the network but its configuration is kept."""
    diffusion, network = CosineDiffusion(), network.replace({})
    extra = (
        {} if training.estimation == "none" else {"residual": ResidualLoss(darcy_residual, training.residual_weight)}
    )

    def loss(params, fields, key):
        rows, times, spread = jax.random.split(key, 3)
        clean = fields[jax.random.randint(rows, (training.batch,), 0, len(fields))]
        found = pidm_losses(
            network.replace(params),
            diffusion,
            clean,
            jax.random.normal(spread, clean.shape),
            jax.random.randint(times, (training.batch,), 0, diffusion.steps),
            extra,
            estimation=training.estimation,
            between=training.between,
        )
        return sum(found.values()), found

    return loss


def sample(network: Network, n: int, count: int, seed: int, chunk: int = 64) -> np.ndarray:
    """Generated fields, float32 [count, n, n, 2], ancestrally sampled `chunk` at once."""
    keys = jax.random.split(jax.random.key(seed), -(-count // chunk))
    made = [np.asarray(_sample(network, key, (min(chunk, count), n, n, 2))) for key in keys]
    return np.concatenate(made)[:count]


@functools.partial(jax.jit, static_argnums=2)
def _sample(network, key, shape):
    return CosineDiffusion().sample(network, key, shape)


def residual_mae(fields: np.ndarray) -> float:
    """The published R_MAE: mean absolute residual over nodes, channels and fields [B, n, n, 2]."""
    return float(jnp.mean(jnp.abs(darcy_residual(jnp.asarray(fields)))))


def scores(fields: np.ndarray, reference: np.ndarray, seed: int = 0) -> dict[str, float]:
    """How good generated fields [N, n, n, 2] are beside data that were not trained on, [M, n, n, 2].

    A small residual alone proves nothing: an all-zero pressure has `NULL`. Hence:

    * "r_mae", the residual;
    * "std", of the pressure, over that of data;
    * "solver_error", median of ``|p - solve(K)| / |p|``: whether the pressure belongs to its own permeability. "raised" is the
      share of nodes whose permeability was not positive (below 1e-3) and was raised for that;
    * "wasserstein", sliced: mean over random directions of the distance between the projected distributions, of (p, K) with
      each channel over its standard deviation in data.
    """
    pressure, permeability = zero_mean(fields[..., 0].astype(np.float64)), fields[..., 1]
    solved = solve(np.maximum(permeability, SMALLEST_PERMEABILITY))
    error = np.linalg.norm((pressure - solved).reshape(len(fields), -1), axis=1)
    size = np.linalg.norm(pressure.reshape(len(fields), -1), axis=1)
    return {
        "r_mae": residual_mae(fields),
        "std": float(pressure.std() / reference[..., 0].std()),
        "solver_error": float(np.median(error / np.maximum(size, 1e-12))),
        "raised": float((permeability < SMALLEST_PERMEABILITY).mean()),
        "wasserstein": sliced_wasserstein(fields, reference, seed),
    }


def sliced_wasserstein(fields: np.ndarray, reference: np.ndarray, seed: int = 0) -> float:
    """Mean 1-Wasserstein distance of the projections on `PROJECTIONS` random directions, channels in units of the reference's
    standard deviation."""
    unit = reference.std((0, 1, 2))
    a, b = ((x / unit).reshape(len(x), -1) for x in (fields, reference))
    directions = np.random.default_rng([seed, 0x51]).standard_normal((a.shape[1], PROJECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    # Equally many quantiles of both, so that the sets may differ in size.
    levels = (np.arange(max(len(a), len(b))) + 0.5) / max(len(a), len(b))
    a, b = (np.quantile(x @ directions, levels, axis=0, method="hazen") for x in (a, b))
    return float(np.abs(a - b).mean())


def criteria(found: Mapping[str, float], plain: Mapping[str, float]) -> dict[str, bool]:
    """Whether a model is better than plain diffusion, beyond doubt: all must hold."""
    return {
        "residual below a tenth of plain diffusion's": found["r_mae"] < plain["r_mae"] / 10,
        "residual below that of an all-zero pressure": found["r_mae"] < NULL,
        "spread of the pressure within 25 % of data": abs(found["std"] - 1) <= 0.25,
        "pressure closer to the solver's than plain diffusion's": found["solver_error"] < plain["solver_error"],
        "sliced Wasserstein at most 1.5 times plain diffusion's": found["wasserstein"] <= 1.5 * plain["wasserstein"],
    }
