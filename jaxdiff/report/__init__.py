"""A run's numbers as something to read: one self-contained html file, and the long table of probes."""

from jaxdiff.report.study import (
    Check,
    ClipView,
    Curve,
    Estimate,
    Fidelity,
    FrameAttention,
    Grid,
    Group,
    Measure,
    Panel,
    Points,
    Row,
    Study,
    Table,
)
from jaxdiff.report.table import PROBE_COLUMNS, probe_csv

__all__ = [
    "PROBE_COLUMNS",
    "Check",
    "ClipView",
    "Curve",
    "Estimate",
    "Fidelity",
    "FrameAttention",
    "Grid",
    "Group",
    "Measure",
    "Panel",
    "Points",
    "Row",
    "Study",
    "Table",
    "probe_csv",
    "write_report",
]


def write_report(path, study):
    """Write `study` as one html file; see `jaxdiff.report.html.write_report`."""
    from jaxdiff.report.html import write_report  # matplotlib and pillow are only needed here

    return write_report(path, study)
