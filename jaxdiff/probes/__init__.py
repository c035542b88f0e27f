"""Linear probes: fitted exactly, all cells at once, and judged with scenes kept together.

Two protocols. *Corrected* (`nested_cross_validate`): standardised, L2-penalised, grouped folds, every choice
made inside, intervals over scenes. *Published* (`published_protocol`): what the paper's code does, choices on the
reported fold included, to show how much of a number the protocol makes.
"""

from jaxdiff.probes import capacity, controls, permutation, statistics
from jaxdiff.probes.cross_validation import (
    PENALTIES,
    Choice,
    LinearProbeCV,
    NestedResult,
    nested_cross_validate,
    nested_cross_validate_each,
)
from jaxdiff.probes.folds import grouped_folds
from jaxdiff.probes.linear import LinearProbe
from jaxdiff.probes.published import PublishedResult, published_protocol
from jaxdiff.probes.statistics import Interval

__all__ = [
    "PENALTIES",
    "Choice",
    "Interval",
    "LinearProbe",
    "LinearProbeCV",
    "NestedResult",
    "PublishedResult",
    "capacity",
    "controls",
    "grouped_folds",
    "nested_cross_validate",
    "nested_cross_validate_each",
    "permutation",
    "published_protocol",
    "statistics",
]
