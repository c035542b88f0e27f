"""Operations of a program, counted in its jaxpr: nothing is compiled, and shapes do in the place of weights.

XLA's cost analysis counts the body of a loop once and knows nothing of what happens inside a Pallas kernel. Here the layers of
a network, the blocks of its attention, the steps of a solver and the tiles of a kernel count as often as they run.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def products(function: Callable, *args: Any) -> int:
    """Operations (a multiply-add is two) of all matrix products and convolutions of ``function(*args)``, over all devices.

    What a `jax.shard_map` does counts once for each device of its axes, a Pallas kernel once for each cell of its grid.

    Parameters
    ----------
    args : pytrees of arrays or of `jax.ShapeDtypeStruct`.

    Raises
    ------
    ValueError : the program has a loop whose number of turns is not known before it runs.
    """
    return count(jax.make_jaxpr(function)(*args).jaxpr)


def count(jaxpr: Jaxpr) -> int:
    """As `products`, of what is traced already."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if not (equation.outvars or equation.effects):  # all that a forward pass would be recomputed for was kept
            continue
        inside = [count(part) for part in _inside(params)]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * _size(equation.outvars[0]) * _size(equation.invars[0], contracted)
        elif name == "conv_general_dilated":
            _, inputs, *spatial = params["dimension_numbers"].rhs_spec
            total += 2 * _size(equation.outvars[0]) * _size(equation.invars[1], (inputs, *spatial))
        elif name == "while" and any(inside):
            raise ValueError("the program has a while loop with matrix products in it: how often it turns is not known")
        elif name == "scan":
            total += params["length"] * sum(inside)
        elif name == "pallas_call":
            total += math.prod(params["grid_mapping"].grid) * sum(inside)
        elif name == "shard_map":
            total += math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * sum(inside)
        else:
            total += max(inside, default=0) if name == "cond" else sum(inside)
    return total


def _size(variable: Any, axes: Sequence[int] | None = None) -> int:
    """Elements of an array along some of its axes, by default all."""
    shape = variable.aval.shape
    return math.prod(shape if axes is None else (shape[axis] for axis in axes))


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part
