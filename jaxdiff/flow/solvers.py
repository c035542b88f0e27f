"""Solvers of ``dx / dsigma = v(x, sigma)`` as small frozen objects with one step signature.

A solver moves a state over one `Step` from sigma_i to sigma_{i+1} = sigma_i + h, up or down, with uneven h.
States are pytrees; sums are formed leaf by leaf and returned in the leaf's dtype. Below, v(x, s) tells the
network the sigma of the state unless another *label* is written: v(x, s; label).

==============  ===========================================================  =====  ===========
name            step                                                         order  evaluations
==============  ===========================================================  =====  ===========
`Euler`         x + h v(x, s_i)                                              1      1
`Heun`          x + h (k1 + k2) / 2, k2 = v(x + h k1, s_{i+1})               2      2
`Midpoint`      x + h v(x + h/2 v(x, s_i), s_i + h/2)                        2      2
`FireFlow`      the same with the last midpoint velocity for v(x, s_i)       2      1 (+1)
`AB2`           x + h ((1 + r/2) v_i - r/2 v_{i-1}), r = h_i / h_{i-1}       2      1
`FixedPoint`    y = x + h v(y, s_{i+1}), iterated                            1      iterations
`DDIMLabel`     x + h v(x, s_i; s_{i+1})                                     1      1
`UniPC`         see `jaxdiff.flow.multistep`                                 3      1
`DPMpp2M`       see `jaxdiff.flow.multistep`                                 2      1
`DPMpp2MSDE`    the same with noise added at every step                      1      1
==============  ===========================================================  =====  ===========
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError

State = Any  # a pytree of arrays
Velocity = Callable[[State, jax.Array, jax.Array], State]  # v(x, sigma, label)


class Node(NamedTuple):
    """A place on the flow: where the state is, and what the network is told."""

    sigma: Any
    label: Any


class Step(NamedTuple):
    """One step of a grid, or, with array leaves [steps], all of them.

    `noise` is standard normal, of the state's tree and shapes, and only there for solvers that are `stochastic`.
    """

    start: Node
    middle: Node
    end: Node
    noise: Any = None

    @property
    def size(self):
        """h, signed."""
        return self.end.sigma - self.start.sigma


class Solver:
    """What every solver offers; subclasses are frozen dataclasses, compared and hashed by value.

    Attributes
    ----------
    name : key in `SOLVERS`.
    order : global order of accuracy of the trajectory.
    evaluations : network evaluations per step.
    first_evaluations : further evaluations, once, before the first step.
    evaluates_start : the step's first evaluation is at the start state, at `start_node`; the caller makes it
        and hands it in, so that it can read the network's states there at no cost.
    stochastic : every step is given noise; such a solver goes down only.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    evaluations: ClassVar[int] = 1
    first_evaluations: ClassVar[int] = 0
    evaluates_start: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False

    def start_node(self, step: Step) -> Node:
        """Where the start state is evaluated: its own place, unless the solver shifts the label."""
        return step.start

    def init(self, velocity: Velocity, x: State, first: Step) -> Any:
        """What the solver remembers from step to step, before the `first` step."""
        return ()

    def step(self, velocity: Velocity, x: State, start: State | None, step: Step, memory: Any):
        """One step.

        Parameters
        ----------
        velocity : the field, ``velocity(x, sigma, label)``.
        x : state at ``step.start.sigma``.
        start : the velocity at ``start_node(step)``; None for solvers that do not evaluate there.
        step : scalars.
        memory : from `init` or the previous step.

        Returns
        -------
        x : state at ``step.end.sigma``
        memory : for the next step
        """
        raise TypeError(f"{type(self).__name__} is not a solver; choose one of {', '.join(SOLVERS)}")


@dataclasses.dataclass(frozen=True)
class Euler(Solver):
    """Explicit Euler (The Invisible Hand of Physics, arXiv 2606.05328, its inversion step)."""

    name: ClassVar[str] = "euler"
    order: ClassVar[int] = 1

    def step(self, velocity, x, start, step, memory):
        """x + h v_i."""
        return advance(x, step.size, start), memory


@dataclasses.dataclass(frozen=True)
class DDIMLabel(Solver):
    """Euler whose network is told the sigma of the step's end while the state stays at its start.

    This is the DDIM inversion convention, and what the code released with arXiv 2606.05328 does. For a field
    that ignores its label it is `Euler`.
    """

    name: ClassVar[str] = "ddim_label"
    order: ClassVar[int] = 1

    def start_node(self, step):
        """State of the start, label of the end."""
        return Node(step.start.sigma, step.end.label)

    def step(self, velocity, x, start, step, memory):
        """x + h v_i, with v_i from `start_node`."""
        return advance(x, step.size, start), memory


@dataclasses.dataclass(frozen=True)
class Heun(Solver):
    """Heun's method: the trapezoidal rule with an Euler prediction."""

    name: ClassVar[str] = "heun"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def step(self, velocity, x, start, step, memory):
        """x + h (v_i + k2) / 2."""
        end = velocity(advance(x, step.size, start), *step.end)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, start, end)
        return advance(x, step.size, mean), memory


@dataclasses.dataclass(frozen=True)
class Midpoint(Solver):
    """The explicit midpoint rule; RF-Solver (arXiv 2411.04746) is algebraically the same step."""

    name: ClassVar[str] = "midpoint"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def step(self, velocity, x, start, step, memory):
        """x + h v at the predicted midpoint."""
        middle = velocity(advance(x, step.size / 2, start), *step.middle)
        return advance(x, step.size, middle), memory


@dataclasses.dataclass(frozen=True)
class FireFlow(Solver):
    """Midpoint rule that predicts its midpoint with the previous one's velocity (FireFlow, arXiv 2412.07517).

    The stale velocity is off by O(h), so the midpoint by O(h^2) and the step by O(h^3): still second order.
    The first step has no previous midpoint and evaluates its start.
    """

    name: ClassVar[str] = "fireflow"
    order: ClassVar[int] = 2
    first_evaluations: ClassVar[int] = 1
    evaluates_start: ClassVar[bool] = False

    def init(self, velocity, x, first):
        """The start's own velocity stands for the missing midpoint."""
        return velocity(x, *first.start)

    def step(self, velocity, x, start, step, memory):
        """x + h v at the midpoint that the last one predicts; remembers it."""
        middle = velocity(advance(x, step.size / 2, memory), *step.middle)
        return advance(x, step.size, middle), middle


@dataclasses.dataclass(frozen=True)
class AB2(Solver):
    """Adams-Bashforth of two steps for uneven grids (Hairer, Norsett, Wanner, Solving ODEs I, III.5).

    The first step is Euler's: its local error O(h^2) is made once, so the trajectory stays second order.

    A grid may have a tiny step where a noise level was put in to be read. Over it the difference of two velocities is mostly
    rounding, which r would blow up in the step after; so the velocity before a step of less than an eighth of the last
    distance is kept in its place, and r counts from there.
    """

    name: ClassVar[str] = "ab2"
    order: ClassVar[int] = 2

    def init(self, velocity, x, first):
        """No previous step: a step of size 0."""
        return _zero_velocity(velocity, x, first), jnp.zeros_like(first.size)

    def step(self, velocity, x, start, step, memory):
        """x + h (v_i + r/2 (v_i - v_{i-1})); remembers v_i and h."""
        previous, distance = memory
        # No previous step: ratio 0 leaves Euler.
        ratio = jnp.where(distance == 0, 0, step.size / jnp.where(distance == 0, 1, distance))
        mixed = jax.tree.map(lambda v, p: v + ratio / 2 * (v - p), start, previous)
        tiny = jnp.abs(step.size) < jnp.abs(distance) / 8
        kept = jax.tree.map(lambda v, p: jnp.where(tiny, p, v), start, previous)
        return advance(x, step.size, mixed), (kept, jnp.where(tiny, distance + step.size, step.size))


@dataclasses.dataclass(frozen=True)
class FixedPoint(Solver):
    """The implicit Euler step, solved by fixed-point iteration: the inverse of an `Euler` step taken from the
    end.

    Converges where ``|h| Lip(v) < 1``, by that factor per iteration; then Euler on the reversed grid returns
    to the start. The first guess uses the last step's velocity. (As in AIDI, arXiv 2309.04907, without its
    momentum.)
    """

    iterations: int = 10

    name: ClassVar[str] = "fixed_point"
    order: ClassVar[int] = 1
    evaluates_start: ClassVar[bool] = False

    def __post_init__(self):
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise ConfigError(f"FixedPoint: iterations must be a positive integer, got {self.iterations!r}")

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """One per iteration."""
        return self.iterations

    def init(self, velocity, x, first):
        """No guess: iterate from the start."""
        return _zero_velocity(velocity, x, first)

    def step(self, velocity, x, start, step, memory):
        """x + h v after the iterations; remembers v."""

        def iterate(_, v):
            return velocity(advance(x, step.size, v), *step.end)

        v = jax.lax.fori_loop(0, self.iterations, iterate, memory)
        return advance(x, step.size, v), v


# `jaxdiff.flow` imports the module that adds the multistep solvers, so the registry is complete whenever anything of the
# flow is in use.
SOLVERS: dict[str, Solver] = {
    solver.name: solver for solver in (Euler(), Heun(), Midpoint(), FireFlow(), AB2(), FixedPoint(), DDIMLabel())
}


def as_solver(solver: str | Solver) -> Solver:
    """A solver from its name, or the object itself.

    Raises
    ------
    ConfigError : an unknown name, or an object without a solver's methods.
    """
    if isinstance(solver, str):
        if solver not in SOLVERS:
            close = difflib.get_close_matches(solver, SOLVERS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(SOLVERS)}"
            raise ConfigError(f"unknown solver {solver!r}; {hint}")
        return SOLVERS[solver]
    wanted = ("init", "step", "start_node", "evaluations", "first_evaluations", "evaluates_start")
    missing = [name for name in wanted if not hasattr(solver, name)]
    if isinstance(solver, type) or missing:
        raise ConfigError(
            f"solver must be a name ({', '.join(SOLVERS)}) or a solver object like FixedPoint(20), got {solver!r}"
        )
    return solver


def is_stochastic(solver: Solver, *, up: bool) -> bool:
    """Whether the solver needs noise at every step.

    Raises
    ------
    ConfigError : it does, and the grid goes up: noise cannot be taken out again.
    """
    stochastic = getattr(solver, "stochastic", False)
    if stochastic and up:
        ways = ", ".join(name for name, other in SOLVERS.items() if not other.stochastic)
        raise ConfigError(f"{solver.name} adds noise at every step and only goes down; for an inversion choose {ways}")
    return stochastic


def white_noise(key: jax.Array, number: jax.Array, x: State) -> State:
    """The noise of step `number`: standard normal, like x, every leaf its own."""
    leaves, tree = jax.tree.flatten(x)
    keys = jax.random.split(jax.random.fold_in(key, number), len(leaves))
    drawn = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def advance(x: State, h, v: State) -> State:
    """``x + h v``, leaf by leaf, in the dtype of x's leaves."""
    return jax.tree.map(lambda x, v: x + (h * v).astype(x.dtype), x, v)


def _zero_velocity(velocity: Velocity, x: State, first: Step) -> State:
    shapes = jax.eval_shape(velocity, x, *first.start)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
