"""Integrating a velocity field over a sigma grid: the library's loop without a network around it."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.flow.backward import Backward
from jaxdiff.flow.solvers import (
    DDIMLabel,
    Node,
    Solver,
    State,
    Step,
    Velocity,
    as_solver,
    is_stochastic,
    white_noise,
)


def integrate(
    field: Callable,
    x: State,
    sigmas: Any,
    solver: str | Solver = "euler",
    *,
    key: jax.Array | None = None,
    backward: Backward | None = None,
) -> State:
    """Solve ``dx / dsigma = field(x, sigma)`` from ``sigmas[0]`` to ``sigmas[-1]``, one solver step per
    interval.

    Parameters
    ----------
    field : ``field(x, sigma)`` or ``field(x, sigma, label)``, with scalars; returns a pytree like `x`. A
        parameter called `label`, or a third required one, makes it the second kind.
    x : state, any pytree of inexact arrays; steps keep its dtypes, float64 included.
    sigmas : [steps + 1], strictly monotone, up or down. Under a caller's jit it may be traced, and is then
        trusted.
    solver : a name of `jaxdiff.flow.SOLVERS` or a solver object.
    key : `jax.random` key, for solvers that add noise.
    backward : for gradients through the steps; default: JAX's own, which keep what every step computed.

    Returns
    -------
    The state at ``sigmas[-1]``.

    Raises
    ------
    ConfigError : the grid is not monotone, the solver is unknown, `ddim_label` is asked of a field that cannot
        be told a label, or a solver that adds noise has no key or is asked to go up.
    """
    solver = as_solver(solver)
    velocity = _labelled(field, solver)
    x = jax.tree.map(jnp.asarray, x)
    dtype = _real_dtype(x)
    if not isinstance(sigmas, jax.core.Tracer):
        sigmas = check_grid(sigmas)
    traced = isinstance(sigmas, jax.core.Tracer)
    stochastic = is_stochastic(solver, up=not traced and bool(sigmas[-1] > sigmas[0]))
    if stochastic and key is None:
        raise ConfigError(f"{solver.name} adds noise at every step: it needs key=, a jax.random key")
    steps = steps_of(sigmas, sigmas, dtype=dtype)

    def body(carry, scanned):
        x, memory = carry
        step, number = scanned
        if stochastic:
            step = step._replace(noise=white_noise(key, number, x))  # type: ignore[arg-type]
        start = velocity(x, *solver.start_node(step)) if solver.evaluates_start else None
        return solver.step(velocity, x, start, step, memory), None

    memory = solver.init(velocity, x, jax.tree.map(lambda leaf: leaf[0], steps))
    numbers = jnp.arange(sigmas.shape[0] - 1) if stochastic else None
    if backward is None:
        (x, _), _ = jax.lax.scan(body, (x, memory), (steps, numbers))
    else:
        (x, _), _ = backward.scan(body, (x, memory), (steps, numbers), key)
    return x


def check_grid(sigmas: Any) -> np.ndarray:
    """The grid as float64 [steps + 1].

    Raises
    ------
    ConfigError : fewer than two points, values that are not finite, or a grid that is not strictly monotone.
    """
    try:
        sigmas = np.asarray(sigmas, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sigmas must be a one-dimensional grid of numbers: {error}") from error
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ConfigError(f"sigmas must be a one-dimensional grid of at least 2 points, got shape {sigmas.shape}")
    if not np.isfinite(sigmas).all():
        raise ConfigError(f"sigmas[{int(np.argmin(np.isfinite(sigmas)))}] is not finite")
    down = sigmas[-1] < sigmas[0]
    wrong = np.flatnonzero((np.diff(sigmas) >= 0) if down else (np.diff(sigmas) <= 0))
    if len(wrong):
        i = int(wrong[0])
        raise ConfigError(
            f"sigmas must be strictly monotone, but go {'down' if down else 'up'} as a whole and from "
            f"{sigmas[i]} to {sigmas[i + 1]} at step {i}"
        )
    return sigmas


def steps_of(sigmas, labels, middle_labels=None, *, dtype) -> Step:
    """All steps of a grid, scanned over by the loops: leaves [steps] of `dtype`.

    Middles are formed before the cast, in the grid's own precision.
    """

    def nodes(s, label):
        return Node(jnp.asarray(s, dtype), jnp.asarray(label, dtype))

    if middle_labels is None:
        middle_labels = (labels[:-1] + labels[1:]) / 2
    middle = (sigmas[:-1] + sigmas[1:]) / 2
    return Step(nodes(sigmas[:-1], labels[:-1]), nodes(middle, middle_labels), nodes(sigmas[1:], labels[1:]))


def _real_dtype(x: State):
    """float64 where the state has it, float32 otherwise; complex states step along a real sigma."""
    leaves = jax.tree.leaves(x)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves):
        raise ConfigError(f"the state must hold floating-point arrays, got {[str(leaf.dtype) for leaf in leaves]}")
    # By dtype: the leaf made of a Python float is weakly typed and would count for nothing.
    return jnp.finfo(jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))).dtype


def _labelled(field: Callable, solver: Solver) -> Velocity:
    """`field` as ``velocity(x, sigma, label)``, whichever of the two kinds it is."""
    try:
        parameters = inspect.signature(field).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"field must be field(x, sigma) or field(x, sigma, label): {error}") from error
    if "label" in parameters:
        return lambda x, sigma, label: field(x, sigma, label=label)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters.values() if p.kind in positional and p.default is p.empty]
    if len(required) == 3:
        return field
    if len(required) != 2:
        raise ConfigError(f"field must be field(x, sigma) or field(x, sigma, label), got {inspect.signature(field)}")
    if isinstance(solver, DDIMLabel):
        raise ConfigError(
            "ddim_label tells the network another sigma than the state's: it needs field(x, sigma, label)"
        )
    return lambda x, sigma, label: field(x, sigma)
