"""Further grids that Wan is sampled on: DPM-Solver++'s, and that of the code Wan was released with."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxdiff.flow.multistep import DPMpp2M, DPMpp2MSDE
from jaxdiff.flow.schedule import SCHEDULERS, TruncatedFlow, UniPCFlow
from jaxdiff.flow.solvers import Solver


@dataclasses.dataclass(frozen=True)
class OfficialUniPC(UniPCFlow):
    """The grid of the code that Wan was released with, which no diffusers scheduler has.

    ``linspace(.999, 0, steps + 1)``, shifted: it starts below the diffusers grid and its last step is shorter. For a
    sample as that code makes it::

        sample(pipeline, noise, cond, sigmas=OfficialUniPC(shift=5.0).grid(50), solver="unipc", ...)
    """

    @property
    def sigma_max(self) -> float:
        """.999, shifted."""
        return _sigma_max(self)

    def _sampler_sigmas(self, steps, tokens):
        return _from_below_one(self, steps)


@dataclasses.dataclass(frozen=True)
class DPMSolverFlow(TruncatedFlow):
    """`DPMSolverMultistepScheduler` with ``use_flow_sigmas``: the grid of `OfficialUniPC` and another sampler.

    Parameters
    ----------
    algorithm_type : "dpmsolver++" or, with noise at every step, "sde-dpmsolver++"
    """

    algorithm_type: str = "dpmsolver++"

    KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "solver_order",
            "prediction_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "algorithm_type",
            "solver_type", "lower_order_final", "euler_at_final", "use_karras_sigmas", "use_exponential_sigmas",
            "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "flow_shift", "final_sigmas_type",
            "lambda_min_clipped", "variance_type", "timestep_spacing", "steps_offset", "rescale_betas_zero_snr",
            "use_dynamic_shifting", "time_shift_type",
        }
    )  # fmt: skip
    REQUIRED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "prediction_type": ("flow_prediction",),
        "use_flow_sigmas": (True,),
        "use_karras_sigmas": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "use_lu_lambdas": (False, None),
        "use_dynamic_shifting": (False, None),
        "thresholding": (False, None),
        "variance_type": (None,),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),  # the scheduler takes the last three for the first
        "solver_order": (2,),
        # A last step to 0 is first order whatever lower_order_final and euler_at_final say.
        "final_sigmas_type": ("zero",),
    }
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "prediction_type": "epsilon",
        "use_flow_sigmas": False,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "solver_order": 2,
        "final_sigmas_type": "zero",
    }

    @property
    def solver(self) -> Solver:
        """`DPMpp2M` or `DPMpp2MSDE`."""
        return DPMpp2MSDE() if self.algorithm_type == "sde-dpmsolver++" else DPMpp2M()

    @property
    def sigma_max(self) -> float:
        """.999, shifted."""
        return _sigma_max(self)

    def _sampler_sigmas(self, steps, tokens):
        return _from_below_one(self, steps)


def _from_below_one(schedule: TruncatedFlow, steps: int) -> np.ndarray:
    # Counted from the clean end and turned around, for the reference's rounding.
    sigmas = 1.0 - np.linspace(1, 1 / schedule.num_train_timesteps, steps + 1)
    return np.flip(schedule._shifted(sigmas))[:-1]


def _sigma_max(schedule: TruncatedFlow) -> float:
    return float(_from_below_one(schedule, 1)[0])


SCHEDULERS["DPMSolverMultistepScheduler"] = DPMSolverFlow
