"""What a run does before it runs: its grid, what the network is told, and which steps are read."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.flow.integrate import check_grid, steps_of
from jaxdiff.flow.schedule import Schedule
from jaxdiff.flow.solvers import DDIMLabel, Node, Solver, Step

# Sigmas closer than this are the same place. A requested 1.0 is thus the 1 - 1e-6 at which Wan's grid starts.
SAME = 1e-5
LABELS = ("sigma", "scheduler")


@dataclasses.dataclass(frozen=True)
class Captures:
    """The part of a plan that shapes the program: how many captures, whether at every step, whether at the
    end.
    """

    count: int
    every: bool
    end: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run.

    Attributes
    ----------
    sigmas, labels : [steps + 1], float64 on the host (or traced, when the caller's grid is)
    middle_labels : [steps]
    slots : int32 [steps], row of the capture buffer that each step writes; -1 for none
    nodes : captured indices into `sigmas`, ascending; the last may be `steps`, the end of the grid
    """

    sigmas: Any
    labels: Any
    middle_labels: Any
    slots: np.ndarray
    nodes: np.ndarray

    @property
    def steps(self) -> int:
        """Steps of the grid."""
        return len(self.slots)

    @property
    def captures(self) -> Captures:
        """What of this the compiled program depends on."""
        end = bool(len(self.nodes)) and int(self.nodes[-1]) == self.steps
        return Captures(len(self.nodes), len(self.nodes) - end == self.steps, end)

    def scanned(self) -> tuple[Step, jax.Array, jax.Array]:
        """What the loop scans over: steps, slots, and step numbers."""
        steps = steps_of(self.sigmas, self.labels, self.middle_labels, dtype=jnp.float32)
        return steps, jnp.asarray(self.slots), jnp.arange(self.steps, dtype=jnp.int32)

    def captured_places(self, solver: Solver) -> tuple[Any, Any]:
        """Sigma and label of every capture, [captured] each: the pairs that the network was evaluated at."""
        sigmas, labels = self.sigmas, self.labels
        whole = Step(Node(sigmas[:-1], labels[:-1]), Node(None, None), Node(sigmas[1:], labels[1:]))
        start = solver.start_node(whole)
        xp = jnp if isinstance(sigmas, jax.Array) else np
        places = (xp.concatenate([a, b[-1:]]) for a, b in zip(start, (sigmas, labels), strict=True))
        sigmas, labels = (place[self.nodes] for place in places)
        return sigmas, labels

    def evaluations(self, solver: Solver) -> int:
        """Forward passes of the run; with guidance each is one of a double batch."""
        total = self.steps * solver.evaluations + solver.first_evaluations
        if solver.evaluates_start:
            return total + self.captures.end
        return total + len(self.nodes)


def rounds(labels: str | None, solver: Solver, *, up: bool) -> bool:
    """Whether the network is told the scheduler's rounded timesteps: by default by samplers and by
    `ddim_label`.

    Raises
    ------
    ConfigError : `labels` is neither None nor one of `LABELS`.
    """
    if labels is None:
        return not up or isinstance(solver, DDIMLabel)
    if labels not in LABELS:
        raise ConfigError(f"labels must be one of {', '.join(map(repr, LABELS))} or None, got {labels!r}")
    return labels == "scheduler"


def make_plan(
    schedule: Schedule,
    *,
    steps: int,
    sigmas: Any,
    tokens: int | None = None,
    up: bool,
    rounded: bool,
    start_sigma: float | None = None,
    reads: bool = False,
    capture_at: Sequence[int] | None = None,
    capture_sigmas: Sequence[float] | None = None,
) -> Plan:
    """Settle a run from what the user asked for.

    Parameters
    ----------
    steps, sigmas : the schedule's own grid with that many steps, unless a grid is given.
    tokens : positions T' H' W' of the latents, on which the grids of some schedules depend.
    up : from clean to noise; a grid must go that way.
    rounded : tell the network the scheduler's timesteps, not the states' own.
    start_sigma : start there instead: what the grid has before it is left out.
    reads : whether there are taps. Without `capture_at` and `capture_sigmas` they read at every step.
    capture_at : steps of the grid as it is before `capture_sigmas` are put in; -1 is the last step and the
        number of steps is the grid's end.
    capture_sigmas : places to read at; those that the grid lacks are put in.

    Raises
    ------
    ConfigError : whatever of this does not fit together.
    """
    traced = isinstance(sigmas, jax.core.Tracer)
    if traced:
        if rounded or capture_sigmas is not None or start_sigma is not None:
            raise ConfigError(
                "a traced sigmas grid cannot be rounded to scheduler timesteps nor take capture_sigmas or start_sigma: "
                'pass a concrete one (close over it), or labels="sigma" and capture_at'
            )
        grid = sigmas
    else:
        grid = _directed(
            schedule.grid(steps, tokens=tokens) if sigmas is None else check_grid(sigmas), sigmas is None, up
        )
        grid = grid if start_sigma is None else _from(grid, start_sigma)
    if not reads and (capture_at is not None or capture_sigmas is not None):
        raise ConfigError("capture_at and capture_sigmas say where taps read, but there are no taps=")

    size = grid.shape[0] - 1
    if not reads:
        nodes = np.zeros(0, np.int64)
    elif capture_at is None and capture_sigmas is None:
        nodes = np.arange(size)
    else:
        nodes = _steps(capture_at, size)
    if capture_sigmas is not None:
        grid, nodes = _insert(grid, nodes, capture_sigmas)

    slots = np.full(grid.shape[0] - 1, -1, np.int32)
    inside = nodes[nodes < len(slots)]
    slots[inside] = np.arange(len(inside))
    labels, middle_labels = grid, (grid[:-1] + grid[1:]) / 2
    if rounded:
        labels, middle_labels = schedule.rounded(grid), schedule.rounded(middle_labels)
    return Plan(grid, labels, middle_labels, slots, nodes)


def _directed(grid: np.ndarray, own: bool, up: bool) -> np.ndarray:
    if own:
        return grid[::-1] if up else grid
    if (grid[-1] > grid[0]) != up:
        way = "invert goes up, from clean to noise" if up else "sample goes down, from noise to clean"
        raise ConfigError(f"{way}, but sigmas go from {grid[0]} to {grid[-1]}; pass sigmas[::-1]")
    if grid.min() < 0 or grid.max() > 1:
        raise ConfigError(f"sigmas must lie in [0, 1], got {grid.min()} to {grid.max()}")
    return grid


def _from(grid: np.ndarray, start_sigma: float) -> np.ndarray:
    """The rising grid from `start_sigma` on."""
    low, high = grid[0], grid[-1]
    if not low - SAME <= start_sigma < high - SAME:
        raise ConfigError(f"start_sigma={start_sigma} must lie on the grid, from {low} to below {high}")
    near = int(np.argmin(np.abs(grid - start_sigma)))
    start = grid[near] if abs(grid[near] - start_sigma) <= SAME else float(start_sigma)
    return np.append(start, grid[grid > start])


def _steps(capture_at: Sequence[int] | None, size: int) -> np.ndarray:
    if capture_at is None:
        return np.zeros(0, np.int64)
    wanted = np.atleast_1d(np.asarray(capture_at))
    if wanted.size and not np.issubdtype(wanted.dtype, np.integer):
        raise ConfigError(f"capture_at holds step numbers, got {capture_at!r}; sigmas go into capture_sigmas")
    wrong = wanted[(wanted < -size) | (wanted > size)]
    if wrong.size:
        raise ConfigError(
            f"capture_at: step {wrong[0]} does not exist; this grid has steps 0 to {size - 1}, and {size} is its end"
        )
    return np.unique(np.where(wanted < 0, wanted + size, wanted)).astype(np.int64)


def _insert(grid: np.ndarray, nodes: np.ndarray, capture_sigmas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The grid with the wanted sigmas in it, and the captured indices in the new grid."""
    wanted = np.atleast_1d(np.asarray(capture_sigmas, np.float64))
    up, low, high = grid[0] < grid[-1], grid.min(), grid.max()
    outside = wanted[~((wanted >= low - SAME) & (wanted <= high + SAME))]
    if outside.size:
        raise ConfigError(f"capture_sigmas: {outside[0]} lies outside of the grid, {low} to {high}")
    captured = list(grid[nodes])
    for sigma in np.sort(wanted):
        near = int(np.argmin(np.abs(grid - sigma)))
        if abs(grid[near] - sigma) <= SAME:
            captured.append(grid[near])
        else:
            grid = np.append(grid, sigma)
            captured.append(sigma)
    ordered = np.sort(grid) if up else np.sort(grid)[::-1]
    return ordered, np.flatnonzero(np.isin(ordered, captured))
