"""DPM-Solver++ and UniPC: the samplers of the published pipelines, as solvers of the flow.

Both carry predictions of the clean state, ``m = x - sigma v``, from step to step. Between two steps m is taken for a
polynomial in the log-SNR ``lambda = log((1 - sigma) / sigma)``, and the rest is integrated exactly. Over one step, with
s = sigma_i, t = sigma_{i+1}, h = lambda(t) - lambda(s)::

    x_t = t / s x_s - g m_i - ...,    g = (1 - t) (e^-h - 1) = (t - s) / s

of which the terms written out are an Euler step. Nothing here changes when states are scaled by a function of sigma, so
that these are also the solvers of variance-preserving schedules, whose lambda at the same state is the same.

Where lambda is infinite, at sigma 0 and sigma 1, a step has no ratio to the step beside it and falls back to first
order. This is the reference's own lower order in the first and in the last step, for grids that end at 0.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError
from jaxdiff.flow.solvers import SOLVERS, Solver, State, advance


@dataclasses.dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++(2M), the midpoint kind (arXiv 2211.01095, algorithm 2)."""

    name: ClassVar[str] = "dpmpp_2m"
    order: ClassVar[int] = 2

    def init(self, velocity, x, first):
        """No previous step: one of infinite size."""
        return jax.tree.map(jnp.zeros_like, x), jnp.full_like(first.size, jnp.inf)

    def step(self, velocity, x, start, step, memory):
        """x + (t - s) v_i - g r / 2 (m_i - m_{i-1}), r = h_i / h_{i-1}; remembers m_i and h_i."""
        previous, previous_size = memory
        s, t = step.start.sigma, step.end.sigma
        clean, size = advance(x, -s, start), _log_snr(t) - _log_snr(s)
        bend = -_gain(s, t) * _ratio(size, previous_size) / 2
        return advance(advance(x, step.size, start), bend, _difference(clean, previous)), (clean, size)


@dataclasses.dataclass(frozen=True)
class DPMpp2MSDE(DPMpp2M):
    """DPM-Solver++(2M) of the reverse stochastic differential equation, which adds noise at every step.

    What the published CogVideoX pipelines sample with. It goes down only. Of a Gaussian's variance the error falls with
    the first power of the step.
    """

    name: ClassVar[str] = "dpmpp_2m_sde"
    order: ClassVar[int] = 1
    stochastic: ClassVar[bool] = True

    def step(self, velocity, x, start, step, memory):
        """t / s e^-h x + (1 - t) (1 - e^-2h) (m_i + r / 2 (m_i - m_{i-1})) + t (1 - e^-2h)^(1/2) noise."""
        previous, previous_size = memory
        s, t = step.start.sigma, step.end.sigma
        clean, size = advance(x, -s, start), _log_snr(t) - _log_snr(s)
        ahead = advance(clean, _ratio(size, previous_size) / 2, _difference(clean, previous))
        decay = t * (1 - s) / ((1 - t) * s)  # e^-h
        lost = (s - t) / ((1 - t) * s) * (1 + decay)  # 1 - e^-2h
        x = jax.tree.map(lambda leaf: (t / s * decay * leaf).astype(leaf.dtype), x)
        x = advance(x, (1 - t) * lost, ahead)
        return advance(x, t * jnp.sqrt(lost), step.noise), (clean, size)


class Transition(NamedTuple):
    """What `UniPC` remembers of a step, to correct the state that it led to.

    Attributes
    ----------
    base : where its first-order part led
    clean : m at its start
    bend : its estimate of h dm / dlambda
    size, gain : h and g; a gain of 0 stands for a step that is not corrected
    ratio : -h over the h of the step before, 0 for a first-order step
    number : how many steps were made
    """

    base: State
    clean: State
    bend: State
    size: jax.Array
    gain: jax.Array
    ratio: jax.Array
    number: jax.Array


@dataclasses.dataclass(frozen=True)
class UniPC(Solver):
    """UniPC (arXiv 2302.04867) on predictions of the clean state, B(h) = e^-h - 1 ("bh2").

    Every state is evaluated where the predictor put it; the evaluation then corrects it before the next step. The last
    state is not corrected. The predictor of order 2 is the step of `DPMpp2M`; its corrected trajectory is third order away
    from sigma 0 and 1, and second order on grids that begin or end there.

    Parameters
    ----------
    solver_order : of the predictor, 1 or 2
    disable_corrector : steps, counted from 0, whose results are not corrected
    """

    solver_order: int = 2
    disable_corrector: tuple[int, ...] = ()

    name: ClassVar[str] = "unipc"

    def __post_init__(self):
        if self.solver_order not in (1, 2):
            raise ConfigError(f"UniPC: solver_order must be 1 or 2, got {self.solver_order!r}")
        object.__setattr__(self, "disable_corrector", tuple(self.disable_corrector))

    @property
    def order(self) -> int:  # type: ignore[override]
        """One more than the predictor's."""
        return self.solver_order + 1

    def init(self, velocity, x, first):
        """No previous step, so nothing to correct."""
        zeros = jax.tree.map(jnp.zeros_like, x)
        none = jnp.zeros_like(first.size)
        return Transition(x, zeros, zeros, jnp.full_like(none, jnp.inf), none, none, jnp.int32(0))

    def step(self, velocity, x, start, step, memory):
        """Correct x, then x + (t - s) (x - m_i) / s - g / 2 D, with D = -h_i / h_{i-1} (m_{i-1} - m_i)."""
        s, t = step.start.sigma, step.end.sigma
        clean = advance(x, -s, start)
        corrected = self._corrected(x, clean, memory)
        # (x - m) / s for the corrected x and the m of the uncorrected one; at s = 0 nothing was corrected.
        slope = advance(start, jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1), 0), _difference(corrected, x))
        base = advance(corrected, step.size, slope)
        size, gain = _log_snr(t) - _log_snr(s), _gain(s, t)
        ratio = -_ratio(size, memory.size) if self.solver_order == 2 else jnp.zeros_like(size)
        bend = jax.tree.map(lambda d: (ratio * d).astype(d.dtype), _difference(memory.clean, clean))
        last = Transition(base, clean, bend, size, gain, ratio, memory.number + 1)
        return advance(base, -gain / 2, bend), last

    def _corrected(self, x: State, clean: State, last: Transition) -> State:
        """base - g (rho_1 D + rho_2 (m_i - m_{i-1})), where rho solves the two order conditions of UniC."""
        second = last.ratio != 0
        b1, b2 = _moments(-jnp.where(second, last.size, 1))
        rho1 = jnp.where(second, last.ratio * (b1 - b2) / (last.ratio - 1), 0)
        rho2 = jnp.where(second, b1 - rho1, 0.5)  # the reference's first-order corrector is the trapezoid
        wanted = last.gain != 0
        if self.disable_corrector:
            wanted &= ~jnp.isin(last.number - 1, jnp.array(self.disable_corrector))
        better = advance(last.base, -last.gain * rho1, last.bend)
        better = advance(better, -last.gain * rho2, _difference(clean, last.clean))
        return jax.tree.map(lambda a, b: jnp.where(wanted, a, b), better, x)


def _log_snr(sigma: jax.Array) -> jax.Array:
    return jnp.log1p(-sigma) - jnp.log(sigma)


def _gain(s: jax.Array, t: jax.Array) -> jax.Array:
    """(t - s) / s, and 0 at s = 0, from where every step is first order."""
    return jnp.where(s > 0, (t - s) / jnp.where(s > 0, s, 1), 0)


def _ratio(size: jax.Array, previous: jax.Array) -> jax.Array:
    """h_i / h_{i-1}, and 0 where either is infinite."""
    known = jnp.isfinite(size) & jnp.isfinite(previous)
    return jnp.where(known, jnp.where(known, size, 0) / jnp.where(known, previous, 1), 0)


def _difference(a: State, b: State) -> State:
    return jax.tree.map(lambda a, b: a - b, a, b)


def _moments(z: jax.Array) -> tuple[Any, Any]:
    """b_1 = 1/z - 1/(e^z - 1) and b_2 = (2 b_1 - 1) / z + b_1, the right-hand side of UniC's conditions.

    Both cancel at small z. There they are the series of Bernoulli's numbers.
    """
    near = jnp.abs(z) < 0.5
    small, large = jnp.where(near, z, 0), jnp.where(near, 1, z)
    square = small * small
    series = -1 / 12 + square * (1 / 720 + square * (-1 / 30240 + square * (1 / 1209600 - square / 47900160)))
    b1 = jnp.where(near, 0.5 + small * series, 1 / large - 1 / jnp.expm1(large))
    return b1, b1 + jnp.where(near, 2 * series, (2 * b1 - 1) / large)


SOLVERS.update({solver.name: solver for solver in (UniPC(), DPMpp2M(), DPMpp2MSDE())})
