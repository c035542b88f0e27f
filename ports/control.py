"""What a control branch has beside its copied blocks, as a component's folder; the names are this project's own.

The copied blocks lie beside it in the names of the backbone's own checkpoints.
"""

from jaxdiff.physics.control import ControlLinks, ControlLinksConfig
from ports.families import Port
from ports.rules import BACK, INTO, layer
from ports.table import Table
from ports.transforms import linear


def table(config: ControlLinksConfig) -> Table:
    """The rules of `ControlLinks`; they are the same for all sizes."""
    del config
    return (
        *layer("signal_in", "signal_in", linear, INTO),
        *layer("signal_out", "signal_out", linear, BACK),
        *layer("links.{block}", "links", linear, INTO),
    )


PORTS = {"ControlLinks": Port(ControlLinks, ControlLinksConfig, table)}
