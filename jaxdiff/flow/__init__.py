"""The flow: sigma grids, solvers, and running a pipeline's field over them.

`invert` and `sample` walk a `Pipeline`; `integrate` is the same loop over any field. `fidelity` measures how
far a run can be trusted.
"""

from jaxdiff.flow import fidelity
from jaxdiff.flow.backward import Backward
from jaxdiff.flow.edm import EDM, UniPCKarras
from jaxdiff.flow.guidance import DynamicGuidance, ExpertGuidance, Guide
from jaxdiff.flow.integrate import integrate
from jaxdiff.flow.inversion import invert, sample
from jaxdiff.flow.multistep import DPMpp2M, DPMpp2MSDE, UniPC
from jaxdiff.flow.schedule import Schedule
from jaxdiff.flow.solvers import (
    AB2,
    SOLVERS,
    DDIMLabel,
    Euler,
    FireFlow,
    FixedPoint,
    Heun,
    Midpoint,
    Node,
    Solver,
    Step,
)
from jaxdiff.flow.trajectory import DivergedError, Trajectory
from jaxdiff.flow.variance_preserving import VariancePreserving, VariancePreservingSDE
from jaxdiff.flow.wan_schedules import DPMSolverFlow, OfficialUniPC

__all__ = [
    "AB2",
    "EDM",
    "SOLVERS",
    "Backward",
    "DDIMLabel",
    "DPMSolverFlow",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DivergedError",
    "DynamicGuidance",
    "Euler",
    "ExpertGuidance",
    "FireFlow",
    "FixedPoint",
    "Guide",
    "Heun",
    "Midpoint",
    "Node",
    "OfficialUniPC",
    "Schedule",
    "Solver",
    "Step",
    "Trajectory",
    "UniPC",
    "UniPCKarras",
    "VariancePreserving",
    "VariancePreservingSDE",
    "fidelity",
    "integrate",
    "invert",
    "sample",
]
