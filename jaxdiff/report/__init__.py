"""A run's numbers as something to read: one self-contained html file, and the long table of probes."""

import dataclasses

from jaxdiff.report.study import (
    Check,
    ClipView,
    Curve,
    Estimate,
    Fidelity,
    FrameAttention,
    Gallery,
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
from jaxdiff.workdir import command_line

__all__ = [
    "PROBE_COLUMNS",
    "Check",
    "ClipView",
    "Curve",
    "Estimate",
    "Fidelity",
    "FrameAttention",
    "Gallery",
    "Grid",
    "Group",
    "Measure",
    "Panel",
    "Points",
    "Row",
    "Study",
    "Table",
    "probe_csv",
    "report_run",
    "write_report",
]


def write_report(path, study):
    """Write `study` as one html file; see `jaxdiff.report.html.write_report`."""
    from jaxdiff.report.html import write_report  # matplotlib and pillow are only needed here

    return write_report(path, study)


def report_run(work, study):
    """Write `study` as report.html of the run in `work` (`jaxdiff.workdir.Workdir`), with how it was run: its
    configuration, command and environment."""
    session = work.sessions()[-1]
    told = dataclasses.replace(study, config=work.config, environment=shown(session), command=command_line(session))
    write_report(work.path / "report.html", told)


def shown(session):
    """An entry of env.json without its command, which reports show by itself."""
    return {name: value for name, value in session.items() if name != "command"}
