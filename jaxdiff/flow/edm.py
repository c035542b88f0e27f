"""Grids spaced as in EDM (Karras et al., arXiv 2206.00364), in flow coordinates: the schedules of Cosmos.

EDM writes a state as ``y = x0 + rho noise``. The flow's is ``x = y / (1 + rho)`` at ``sigma = rho / (1 + rho)``.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.flow.multistep import UniPC
from jaxdiff.flow.schedule import KARRAS, FlowMatchEuler, Schedule, UniPCFlow
from jaxdiff.flow.solvers import Solver

POWER = 7.0  # of the spacing, the paper's own and a constant of the reference


@dataclasses.dataclass(frozen=True)
class Karras(Schedule):
    """N values of rho whose 7th roots are spaced evenly from that of `rho_max` to that of `rho_min` (eq. 5), and a last
    step from there to 0. The network is told sigma itself, 0 to 1. `shift` acts on grids of other spacings only.

    Parameters
    ----------
    rho_max, rho_min : ends of the grid as ratios of noise to signal, which the scheduler's file must state.
    """

    rho_max: float = 0.0
    rho_min: float = 0.0

    KEY_OF: ClassVar[dict[str, str]] = {"rho_max": "sigma_max", "rho_min": "sigma_min"}

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.rho_min < self.rho_max:
            raise ConfigError(
                f"a Karras grid needs 0 < sigma_min < sigma_max, got sigma_min={self.rho_min} and "
                f"sigma_max={self.rho_max}"
            )

    @property
    def sigma_min_trained(self) -> float:
        """The smallest sigma above 0 of the published sampler's grids."""
        return self.rho_min / (1 + self.rho_min)

    @property
    def sigma_max(self) -> float:
        """The largest sigma of the grids, where inversion ends and sampling starts."""
        return self.rho_max / (1 + self.rho_max)

    def timestep(self, label):
        """The label itself, and `sigma_min_trained` below that."""
        xp = jnp if isinstance(label, jax.Array) else np
        return xp.maximum(label, self.sigma_min_trained)

    def rounded(self, sigmas):
        """The sigmas in float32: nothing is rounded."""
        return np.asarray(sigmas, np.float32)

    def _rho(self, steps: int) -> np.ndarray:
        low, high = self.rho_min ** (1 / POWER), self.rho_max ** (1 / POWER)
        return (high + np.linspace(0, 1, steps) * (low - high)) ** POWER


@dataclasses.dataclass(frozen=True)
class UniPCKarras(Karras):
    """`UniPCMultistepScheduler` with ``use_karras_sigmas`` and ``use_flow_sigmas``: Cosmos-Predict2.5.

    Its ends are rho 200 and .01, sigma 200/201 and .01/1.01. The pipeline does not tell the network the scheduler's
    integer timesteps.

    Parameters
    ----------
    solver_order, disable_corrector : of the scheduler's own steps, `UniPC`.
    """

    solver_order: int = 2
    disable_corrector: tuple[int, ...] = ()

    SHIFT_KEY: ClassVar[str] = UniPCFlow.SHIFT_KEY
    KEYS: ClassVar[frozenset[str]] = UniPCFlow.KEYS
    REQUIRED: ClassVar[dict[str, tuple[Any, ...]]] = UniPCFlow.REQUIRED | {"use_karras_sigmas": (True,)}
    DEFAULTS: ClassVar[dict[str, Any]] = UniPCFlow.DEFAULTS

    @property
    def solver(self) -> Solver:
        """`UniPC`."""
        return UniPC(self.solver_order, self.disable_corrector)

    def _sampler_sigmas(self, steps, tokens):
        rho = self._rho(steps)
        return rho / (rho + 1)


@dataclasses.dataclass(frozen=True)
class EDM(Karras):
    """`FlowMatchEulerDiscreteScheduler` with ``use_karras_sigmas``, as the pipelines of Cosmos-Predict2 set it up.

    The network takes x and predicts ``noise - x0`` (`jaxdiff.models.cosmos.Cosmos`), so that the flow's Euler step is
    EDM's: ``y + (rho' - rho) (y - D) / rho`` over ``1 + rho'``.

    The published sampler starts from ``rho_max noise`` without any x0: hand ``schedule.sigma_max * noise`` to `sample`
    for the same (the end of an inversion goes in as it is). It ends at rho_min, with a last evaluation whose result it
    drops, and takes ``y = x / (1 - sigma)`` there for clean. A grid here goes on from there to 0, on that evaluation,
    to the network's estimate of the clean state; ``sigmas=schedule.grid(steps)[:-1]`` stops where the published sampler
    does. Its ends are rho 80 and .002, sigma 80/81 and .002/1.002.
    """

    SHIFT_KEY: ClassVar[str] = FlowMatchEuler.SHIFT_KEY
    KEYS: ClassVar[frozenset[str]] = FlowMatchEuler.KEYS | {"sigma_max", "sigma_min", "sigma_data", "final_sigmas_type"}
    # The last two tell this from a Karras grid between other ends, which no checkpoint of a known family has.
    REQUIRED: ClassVar[dict[str, tuple[Any, ...]]] = FlowMatchEuler.REQUIRED | {
        "use_karras_sigmas": (True,),
        "use_dynamic_shifting": (False, None),
        "shift_terminal": (None,),
        "sigma_data": (1.0,),
        "final_sigmas_type": ("sigma_min",),
    }
    DEFAULTS: ClassVar[dict[str, Any]] = FlowMatchEuler.DEFAULTS

    def _sampler_sigmas(self, steps, tokens):
        rho = self._rho(steps).astype(np.float32)  # the scheduler keeps float32, and the pipeline divides those
        return (rho / (rho + np.float32(1))).astype(np.float64)


# `jaxdiff.flow` imports this module, so the registry is complete whenever anything of the flow is in use.
KARRAS.update({"UniPCMultistepScheduler": UniPCKarras, "FlowMatchEulerDiscreteScheduler": EDM})
