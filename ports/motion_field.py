"""LaMo's motion field as a component's folder; its names are this project's own.

The tensors have torch's names and shapes (``blocks.0.conv_in.weight`` is (out, in, 3, 3)), so that they can be read elsewhere.
"""

from jaxdiff.lamo.motion_field import MotionField, MotionFieldConfig
from ports.families import Port
from ports.rules import layer, norm
from ports.table import Rule, Table
from ports.transforms import as_is, conv2d, linear

SOURCE, LEAF = "blocks.{i}", "blocks/{i}"


def table(config: MotionFieldConfig) -> Table:
    """The rules of `MotionField`; they are the same for all sizes."""
    del config
    return (
        Rule("null", "null", as_is),
        *layer("embed", "embed", linear),
        *(rule for name in ("conv_in", "conv_out") for rule in layer(name, name, conv2d)),
        *norm("norm_out", "norm_out"),
        *(rule for name in ("norm_in", "norm_mid") for rule in norm(f"{SOURCE}.{name}", f"{LEAF}/{name}")),
        *(rule for name in ("conv_in", "conv_out") for rule in layer(f"{SOURCE}.{name}", f"{LEAF}/{name}", conv2d)),
        *(
            rule
            for name in ("film", "squeeze", "excite")
            for rule in layer(f"{SOURCE}.{name}", f"{LEAF}/{name}", linear)
        ),
    )


PORTS = {"MotionField": Port(MotionField, MotionFieldConfig, table)}
