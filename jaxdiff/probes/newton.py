"""Newton's method on all folds of one candidate set at once, as `solver` sets the problem up.

The inner systems are solved by conjugate gradients; a bound on what is left to gain says when to stop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# What may be left to gain, as a bound shows: a share of the objective, and at strong penalties, where weights
# hardly change the objective, a share of the weights' own part of it.
TOLERANCE = 3e-5
OF_WEIGHTS = 1e-5
RESOLUTION = 1e-10  # of the objective; weights below it are rounding (features without any linear signal),
HIDDEN = 1e-7  # and up to this share so are those that float32 cannot resolve at this penalty
ROUNDING = 5e-7  # relative error of a float32 objective
NEWTON_LIMIT = 60  # steps per penalty; 2 to 8 are usual
CG_LIMIT = 80  # conjugate gradient iterations per step
CG_RESIDUAL = 0.1  # of the gradient in the preconditioner's norm: a Newton step costs as much as five iterations
SECANT = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 9.0)  # multiples of the last change that are tried at the next penalty
DECREMENT = 1e-5  # of the objective: a step that gains less is solved tightly, as perhaps the last
TIGHT_LIMIT = 500  # conjugate gradient iterations of such a step
SHORTER = 0.5  # factor by which a step that is too long is shortened
UNIT_ROUNDOFF = 6e-8  # of float32
QUASI_SPREAD = 0.35  # largest |1/d - 1| for which the quasi-Newton steps alone are trusted


class Problem(NamedTuple):
    """F columns over one candidate set, in the units of `_standardise` and the rotation of `_rotate`."""

    x: jax.Array  # [n, D]
    basis: jax.Array  # [D, r]
    z: jax.Array  # [n, r] x basis
    zt: jax.Array  # [r, n] stored: a product with a transposed view is slower
    inverse: jax.Array  # [F, D] inverse training variances
    train: jax.Array  # [F, n] float
    signs: jax.Array  # [F, n] +1 and -1


def _conjugate_gradients(times, gradient, diagonal, active, left, enough, allowed):
    """Approximately solve H step = -gradient for every column, `times` being the product with H.

    gradient, diagonal, the argument and value of `times`, and the step are pairs ([F, r], [F]) of weights
    and intercept. `left` bounds what a residual leaves to gain. Loose solves do, except where the step gains no
    more than `enough` [F]: there it goes on until it gains more, or leaves at most `allowed` [F].

    Returns the step, and whether [F] it gave up before that.
    """

    def dot(a, b):
        return (a[0] * b[0]).sum(1) + a[1] * b[1]

    def axpy(scale, a, b):
        return scale[:, None] * a[0] + b[0], scale * a[1] + b[1]

    def scaled(a):
        return a[0] / diagonal[0], a[1] / diagonal[1]

    zero = jnp.zeros_like(gradient[0]), jnp.zeros_like(gradient[1])
    residual = -gradient[0], -gradient[1]
    direction = scaled(residual)
    size = dot(residual, direction)
    goal = CG_RESIDUAL**2 * size

    def unsure(residual, gained):
        return active & (gained <= enough) & (left(residual) > allowed)

    def unfinished(state):
        return jnp.any(state[-1])

    def iterate(state):
        count, step, residual, direction, size, gained, live = state
        image = times(direction)
        curvature = dot(direction, image)
        length = jnp.where(live, size / jnp.where(curvature > 0, curvature, 1), 0)
        step = axpy(length, direction, step)
        residual = axpy(-length, image, residual)
        preconditioned = scaled(residual)
        new = jnp.where(live, dot(residual, preconditioned), size)
        direction = axpy(new / jnp.where(size > 0, size, 1), direction, preconditioned)
        gained = gained + 0.5 * length * size
        tight = unsure(residual, gained) & (allowed > 0) & (count < TIGHT_LIMIT)
        return count + 1, step, residual, direction, new, gained, live & (((new > goal) & (count < CG_LIMIT)) | tight)

    start = 0, zero, residual, direction, size, jnp.zeros_like(size), active & (size > 0)
    _, step, residual, _, _, gained, _ = jax.lax.while_loop(unfinished, iterate, start)
    return step, unsure(residual, gained)


class State(NamedTuple):
    """Where each of the F columns stands."""

    a: jax.Array  # [F, r] weights in the rotated space
    intercept: jax.Array  # [F]
    spread: jax.Array  # [F, D] basis a: the weights on features, times the training variance
    margins: jax.Array  # [F, n]
    loss: jax.Array  # [F]
    square: jax.Array  # [F] squared norm of the standardised weights


def _loss(problem: Problem, margins: jax.Array) -> jax.Array:
    return (problem.train * jax.nn.softplus(-problem.signs * margins)).sum(1)


def _newton_step(problem: Problem, penalty, state: State, done, exact: bool):
    """One damped step of the columns that are not `done`.

    Returns the new state, gaps [F] (bounds on what was left to gain before, in the units of `TOLERANCE`; within
    it there is no step) and stuck [F].
    """
    x, basis, z, zt, inverse, train, signs = problem
    wrong = jax.nn.sigmoid(-signs * state.margins)  # probability of the other label
    pull = -train * signs * wrong
    weight = train * (wrong * (1 - wrong))
    diagonal = weight @ (z * z) + penalty, weight.sum(1) + 1e-20
    objective = state.loss + 0.5 * penalty * state.square

    if exact:  # gradient and Hessian with respect to a

        def back(on_clips, spread):
            return ((on_clips @ x + penalty * spread) * inverse) @ basis

        def times(direction):
            spread = direction[0] @ basis.T
            pushed = weight * ((inverse * spread) @ x.T + direction[1][:, None])
            return back(pushed, spread), pushed.sum(1)

        gradient = back(pull, state.spread), pull.sum(1)
        coupling = back(weight, jnp.zeros_like(state.spread))  # the Hessian between weights and intercept
        least = penalty * jnp.where(inverse > 0, inverse, jnp.inf).min(1)
    else:  # both times the inverse of basis^T (1/d) basis, and that matrix replaced by 1 in the Hessian

        def times(direction):
            pushed = weight * (direction[0] @ zt + direction[1][:, None])
            return pushed @ z + penalty * direction[0], pushed.sum(1)

        gradient = pull @ z + penalty * state.a, pull.sum(1)
        coupling = weight @ z
        least = jnp.full_like(objective, penalty / (1 + QUASI_SPREAD))

    total = jnp.maximum(weight.sum(1), 1e-20)

    def left(residual):
        shift = residual[1] / total
        rest = residual[0] - shift[:, None] * coupling
        return 0.5 * ((rest * rest).sum(1) / least + residual[1] * shift)

    # Float32 sees the gradient through products of rows of x that are rounded (in every direction alike, hence
    # as bad for the minimum as `least` allows) and at margins that are rounded (which H bounds).
    rows = (z * z).sum(1)
    noise = z.shape[1] * ((pull * pull) @ rows) / least + (weight @ rows) * (state.a * state.a).sum(1)
    noise = UNIT_ROUNDOFF**2 * noise
    floor = jnp.clip(4 * noise, RESOLUTION * objective, HIDDEN * objective)
    scale = jnp.minimum(objective, (OF_WEIGHTS * 0.5 * penalty * state.square + floor) / TOLERANCE)
    gap = (left(gradient) + noise) / scale
    active = ~done & ~(gap <= TOLERANCE)
    enough, allowed = DECREMENT * scale, 0.5 * TOLERANCE * scale - noise

    def advance():
        (da, _), unsure = _conjugate_gradients(times, gradient, diagonal, active, left, enough, allowed)
        spread = da @ basis.T
        weights = inverse * spread
        moved = weights @ x.T
        # The intercept that is best with these weights as they move the margins, in quasi-Newton steps too: at strong
        # penalties a small share of the objective, but not of the margins, depends on it.
        db = -(pull + weight * moved).sum(1) / total
        moved = moved + db[:, None]
        cross, own = (state.spread * weights).sum(1), (spread * weights).sum(1)
        slope = (pull * moved).sum(1) + penalty * cross

        # Whether a step is too long is decided once and carried: a loop's condition and its body may round the same
        # expression differently, and would then wait for each other for ever.
        def at(size):
            loss = _loss(problem, state.margins + size[:, None] * moved)
            square = state.square + 2 * size * cross + size**2 * own
            # Float32 sums cannot tell changes of the objective below their own rounding.
            allowed = objective * (1 + ROUNDING) + 1e-4 * size * slope
            return size, loss, square, ~(loss + 0.5 * penalty * square <= allowed) & (size > 0)

        def shorten(trial):
            size, _, _, too_far = trial
            return at(jnp.where(too_far, jnp.where(size > 1e-3, SHORTER * size, 0), size))

        untried = jnp.where(active, 1 / SHORTER, 0.0), state.loss, state.square, active  # the loop's first step is 1
        size, loss, square, _ = jax.lax.while_loop(lambda trial: jnp.any(trial[-1]), shorten, untried)
        after = State(
            state.a + size[:, None] * da,
            state.intercept + size * db,
            state.spread + size[:, None] * spread,
            state.margins + size[:, None] * moved,
            loss,
            square,
        )
        return after, (size == 0) | unsure

    # At every penalty the last step only finds that all columns are done.
    after, stuck = jax.lax.cond(jnp.any(active), advance, lambda: (state, jnp.zeros_like(active)))
    return after, gap, stuck


def newton_path(problem: Problem, penalties, wanted, exact: bool) -> tuple[State, jax.Array]:
    """Solve the columns `wanted` [F] from `penalties[0]` to the last. Returns per penalty [P] the state and gaps."""
    columns, clips = problem.train.shape

    def at_penalty(path, penalty):
        state = _extrapolated(problem, penalty, *path)

        def unfinished(carry):
            return ~jnp.all(carry[2]) & (carry[3] < NEWTON_LIMIT)

        def iterate(carry):
            state, gaps, done, count = carry
            state, gap, stuck = _newton_step(problem, penalty, state, done, exact)
            return state, jnp.where(done, gaps, gap), done | (gap <= TOLERANCE) | stuck, count + 1

        carry = state, jnp.full(columns, jnp.inf), ~wanted, 0
        state, gaps, _, _ = jax.lax.while_loop(unfinished, iterate, carry)
        return (path[1], state), (state, gaps)

    margins, zero = jnp.zeros((columns, clips)), jnp.zeros(columns)
    a, spread = (jnp.zeros((columns, size)) for size in problem.basis.shape[::-1])
    start = State(a, zero, spread, margins, problem.train.sum(1) * jnp.log(2.0), zero)
    return jax.lax.scan(at_penalty, (start, start), penalties)[1]


def _extrapolated(problem: Problem, penalty, before: State, last: State) -> State:
    """Where to start at the next penalty: each column the best of some points on the line through its last two solutions.

    Everything in a state is linear along it, or quadratic, so that no product with the features is needed.
    """
    change = jax.tree.map(jnp.subtract, last, before)
    inverse = problem.inverse
    cross, own = ((inverse * part * change.spread).sum(1) for part in (last.spread, change.spread))

    def at(factor):
        loss = _loss(problem, last.margins + factor * change.margins)
        square = last.square + 2 * factor * cross + factor**2 * own
        return loss, square, loss + 0.5 * penalty * square

    factors = jnp.array(SECANT)
    losses, squares, objectives = jax.lax.map(at, factors)
    best = jnp.argmin(objectives, 0)
    factor = factors[best]

    def pick(values):
        return jnp.take_along_axis(values, best[None], 0)[0]

    return State(
        last.a + factor[:, None] * change.a,
        last.intercept + factor * change.intercept,
        last.spread + factor[:, None] * change.spread,
        last.margins + factor[:, None] * change.margins,
        pick(losses),
        pick(squares),
    )
