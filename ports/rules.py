"""Rules that the tables of several families share."""

from dataclasses import replace

from ports.table import Rule, Table
from ports.transforms import Transform, as_is

# Into a wide layer the output is split over `tensor`, out of it the input is; the other side is split over
# `fsdp`.
INTO = ("fsdp", "tensor")
BACK = ("tensor", "fsdp")


def layer(source: str, leaf: str, kernel: Transform, spec: tuple = (), *, keep_float32: bool = False) -> Table:
    """A linear layer or a convolution: `weight` -> `kernel`, `bias` -> `bias`, split as the outputs are."""
    return (
        Rule(f"{source}.weight", f"{leaf}/kernel", kernel, spec, keep_float32),
        Rule(f"{source}.bias", f"{leaf}/bias", as_is, spec[1:], keep_float32),
    )


def prefixed(table: Table, prefix: str) -> Table:
    """The same table for files in which every name has a prefix."""
    return tuple(replace(rule, source=prefix + rule.source) for rule in table)


def norm(source: str, leaf: str) -> Table:
    """A norm with gain and bias, float32 in every dtype: `weight` -> `scale`, `bias` -> `bias`."""
    return (
        Rule(f"{source}.weight", f"{leaf}/scale", keep_float32=True),
        Rule(f"{source}.bias", f"{leaf}/bias", keep_float32=True),
    )
