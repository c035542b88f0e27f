"""The flow: sigma grids, solvers, and running a pipeline's field over them.

`invert` and `sample` walk a `Pipeline`; `integrate` is the same loop over any field. `fidelity` measures how
far a run can be trusted.
"""

from jaxdiff.flow import fidelity
from jaxdiff.flow.integrate import integrate
from jaxdiff.flow.inversion import DivergedError, Trajectory, invert, sample
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
from jaxdiff.flow.variance_preserving import VariancePreserving

__all__ = [
    "AB2",
    "SOLVERS",
    "DDIMLabel",
    "DivergedError",
    "Euler",
    "FireFlow",
    "FixedPoint",
    "Heun",
    "Midpoint",
    "Node",
    "Schedule",
    "Solver",
    "Step",
    "Trajectory",
    "VariancePreserving",
    "fidelity",
    "integrate",
    "invert",
    "sample",
]
