"""Solvers against fields whose flow is known in closed form, in float64, on even and uneven grids, up and
down.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.flow import SOLVERS, DDIMLabel, Euler, FireFlow, FixedPoint, Midpoint, Solver, integrate
from tests.flow.fields import FIELDS, GRIDS, alternating, error, labelled, riccati, riccati_flow

# Those that take the state for what it is; the multistep solvers of the log-SNR have a file of their own.
KEY = jax.random.key(0)
ONE_STEP = [name for name in SOLVERS if name not in ("unipc", "dpmpp_2m", "dpmpp_2m_sde")]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", ONE_STEP)
def test_error_falls_with_the_solvers_order(name, field, grid, direction):
    velocity, flow, x = FIELDS[field]
    solver = FixedPoint(40) if name == "fixed_point" else SOLVERS[name]
    errors = []
    for n in (256, 512):
        sigmas = GRIDS[grid](n) if direction == "up" else GRIDS[grid](n)[::-1]
        got = integrate(labelled(velocity), x, sigmas, solver)
        errors.append(error(got, flow(x, sigmas[0], sigmas[-1])))
    # Seen within 0.06: the next order in the error's expansion still shows at 512 steps.
    assert abs(np.log2(errors[0] / errors[1]) - solver.order) < 0.1


# ------------------------------------------------------------------------------------------ fixed point, FireFlow


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("field", FIELDS)
def test_round_trip_is_exact_for_fixed_point(field, grid):
    velocity, _, x = FIELDS[field]
    sigmas = GRIDS[grid](20)
    # |h| Lip(v) is at most 0.45 on the coarsest step, and 0.45^40 = 1e-14.
    there = integrate(velocity, x, sigmas, FixedPoint(40))
    assert error(integrate(velocity, there, sigmas[::-1], "euler"), x) < 1e-10
    # Explicit Euler does not come back, so the line above says something.
    explicit = integrate(velocity, x, sigmas, "euler")
    assert error(integrate(velocity, explicit, sigmas[::-1], "euler"), x) > 1e-3


@pytest.mark.usefixtures("float64")
def test_fixed_point_converges_with_its_iterations():
    velocity, _, x = FIELDS["spiral"]
    sigmas = GRIDS["even"](20)
    errors = []
    for iterations in (1, 2, 4, 8):
        there = integrate(velocity, x, sigmas, FixedPoint(iterations))
        errors.append(error(integrate(velocity, there, sigmas[::-1]), x))
    # Each iteration gains |h| Lip(v) <= 3.1 / 20; a factor 5 is asked for.
    assert all(b < a / 5**gained for a, b, gained in zip(errors, errors[1:], (1, 2, 4), strict=False))


@pytest.mark.usefixtures("float64")
def test_fireflow_is_midpoint_with_the_last_midpoints_velocity():
    """Against the recursion written out, and equal to the midpoint rule where velocities do not depend on
    x.
    """
    sigmas = alternating(6)
    x, velocity = 0.5, riccati(0.5, sigmas[0])
    for a, b in itertools.pairwise(sigmas):
        velocity = riccati(x + (b - a) / 2 * velocity, (a + b) / 2)
        x = x + (b - a) * velocity
    np.testing.assert_allclose(integrate(riccati, 0.5, sigmas, "fireflow"), x, rtol=1e-14)

    one_step = sigmas[:2]
    assert integrate(riccati, 0.5, one_step, FireFlow()) == integrate(riccati, 0.5, one_step, Midpoint())
    free = [integrate(lambda x, s: jnp.cos(3 * s), 0.5, sigmas, name) for name in ("fireflow", "midpoint")]
    assert free[0] == free[1]


# ------------------------------------------------------------------------------------------ ddim_label


def vp_of(sigma):
    """alpha and standard deviation of the VP process at a flow sigma: sd / alpha = sigma / (1 - sigma)."""
    scale = (sigma**2 + (1 - sigma) ** 2) ** 0.5
    return (1 - sigma) / scale, sigma / scale


def v_prediction(x, label, xp=np):
    """The exact v of two Gaussian modes, at a noisy value x, for a network told the time of `label`."""
    alpha, sd = vp_of(label)
    means, spread = xp.asarray([-1.0, 0.8]), 0.3
    variance = alpha**2 * spread**2 + sd**2
    log_weights = -((x - alpha * means) ** 2) / (2 * variance)
    weights = xp.exp(log_weights - log_weights.max())
    weights = weights / weights.sum()
    x0 = (weights * (means + alpha * spread**2 / variance * (x - alpha * means))).sum()
    noise = (weights * (sd / variance * (x - alpha * means))).sum()
    return alpha * noise - sd * x0


def field_of_vp(x, sigma, label):
    """dx / dsigma in flow coordinates x_flow = x_vp / (alpha + sd): noise - x0, both read off the
    v-prediction.

    The state is scaled and mixed at sigma; the network is told label.
    """
    alpha, sd = vp_of(sigma)
    x_vp = x * (alpha + sd)
    v = v_prediction(x_vp, label, jnp)
    x0, noise = alpha * x_vp - sd * v, sd * x_vp + alpha * v
    return noise - x0


def ddim_inverse(x, alphas_cumprod, sigmas):
    """DDIM inversion with v-prediction, v evaluated at the label of the next timestep (arXiv 2606.05328's
    code).
    """
    for i in range(len(sigmas) - 1):
        now, following = alphas_cumprod[i], alphas_cumprod[i + 1]
        v = v_prediction(x, sigmas[i + 1])
        x0 = np.sqrt(now) * x - np.sqrt(1 - now) * v
        noise = np.sqrt(1 - now) * x + np.sqrt(now) * v
        x = np.sqrt(following) * x0 + np.sqrt(1 - following) * noise
    return x


def vp_schedule(steps):
    """Cumulated alphas of a scaled-linear schedule rescaled to zero terminal SNR, 1 (clean) first, 0 last."""
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    root = np.sqrt(abar)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    picked = np.round(np.arange(1, steps + 1) * 1000 / steps).astype(int) - 1
    return np.concatenate([[1.0], root[picked] ** 2])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("start", [-1.3, 0.1, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_ddim_label_is_the_ddim_inverse_recursion(steps, start):
    abar = vp_schedule(steps)
    alpha, sd = np.sqrt(abar), np.sqrt(1 - abar)
    sigmas = sd / (alpha + sd)
    want = ddim_inverse(start, abar, sigmas)
    got = integrate(field_of_vp, start, sigmas, "ddim_label") * (alpha[-1] + sd[-1])
    # Two orders of the same float64 sums.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_neither_own_labels_nor_a_shifted_state_are_the_ddim_inverse():
    abar = vp_schedule(50)
    sigmas = np.sqrt(1 - abar) / (np.sqrt(abar) + np.sqrt(1 - abar))
    want = ddim_inverse(0.1, abar, sigmas)
    own = integrate(field_of_vp, 0.1, sigmas, "euler")
    # Folding the label into the state: everything at sigma_{i+1}.
    folded = 0.1
    for a, b in itertools.pairwise(sigmas):
        folded = folded + (b - a) * field_of_vp(folded, b, b)
    assert abs(own - want) > 1e-3
    assert abs(folded - want) > 1e-3


# ------------------------------------------------------------------------------------------ what integrate takes


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_what_the_solver_says(name):
    calls = []

    def field(x, sigma, label):
        jax.debug.callback(lambda: calls.append(1))
        return x * sigma

    jax.block_until_ready(integrate(field, jnp.float32(1.0), np.linspace(1, 0, 8), name, key=KEY))
    jax.effects_barrier()
    solver = SOLVERS[name]
    assert len(calls) == 7 * solver.evaluations + solver.first_evaluations


@pytest.mark.parametrize("name", SOLVERS)
def test_state_keeps_its_tree_and_dtypes(name):
    with jax.enable_x64(True):
        x = {
            "single": jnp.ones(3, jnp.float32),
            "double": jnp.ones((2, 2), jnp.float64),
            "complex": jnp.ones(2, jnp.complex64),
            "half": jnp.ones(2, jnp.bfloat16),
        }
        field = labelled(lambda x, sigma: jax.tree.map(lambda leaf: leaf * sigma, x))
        end = integrate(field, x, [1.0, 0.3, 0.0], name, key=KEY)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), end) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), x
        )


@pytest.mark.usefixtures("float64")
def test_float64_is_not_rounded_on_the_way():
    sigmas = np.array([0.0, 0.1, 0.35, 1.0])
    want = 0.3
    for a, b in itertools.pairwise(sigmas):
        want = want + (b - a) * want * a
    assert integrate(lambda x, sigma: x * sigma, 0.3, sigmas) == want


def test_complex_states_follow_a_complex_flow():
    end = integrate(lambda z, s: 2j * s * z, jnp.complex64(1.0), np.linspace(0, 1, 401), "midpoint")
    # order 2 at h = 1/400 in float32
    np.testing.assert_allclose(end, np.exp(1j), atol=1e-5)


def test_the_fields_signature_says_whether_it_takes_a_label():
    seen = {}

    def two(x, sigma, scale=2.0):
        seen["two"] = scale
        return x

    def three(x, sigma, told):
        seen["three"] = told
        return x

    def keyword(x, sigma, *, label=None):
        seen["keyword"] = label
        return x

    for field in (two, three, keyword):
        integrate(field, jnp.float32(1.0), [0.0, 1.0])
    assert seen["two"] == 2.0  # a default that is no label is left alone
    assert seen["three"] is not None
    assert seen["keyword"] is not None


@pytest.mark.parametrize("field", [lambda x: x, lambda x, s, a, b: x, lambda *args: args[0], "euler"])
def test_other_signatures_are_refused(field):
    with pytest.raises(ConfigError, match=r"field\(x, sigma\) or field\(x, sigma, label\)"):
        integrate(field, jnp.float32(1.0), [0.0, 1.0])


def test_ddim_label_without_a_label_is_refused():
    with pytest.raises(ConfigError, match="ddim_label"):
        integrate(lambda x, sigma: x, jnp.float32(1.0), [0.0, 1.0], DDIMLabel())


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([0.0], "at least 2 points"),
        (0.5, "at least 2 points"),
        ([[0.0, 1.0]], "one-dimensional"),
        ([0.0, 0.5, 0.5, 1.0], r"go up as a whole and from 0.5 to 0.5 at step 1"),
        ([1.0, 0.2, 0.4, 0.0], r"go down as a whole and from 0.2 to 0.4 at step 1"),
        ([0.0, 0.0], "strictly monotone"),
        ([0.0, np.nan, 1.0], r"sigmas\[1\] is not finite"),
        ("up", "grid of numbers"),
    ],
)
def test_grids_that_are_not_monotone_are_refused(sigmas, message):
    with pytest.raises(ConfigError, match=message):
        integrate(lambda x, sigma: x, jnp.float32(1.0), sigmas)


@pytest.mark.parametrize("x", [jnp.int32(1), {}, {"a": jnp.ones(2), "b": jnp.arange(2)}])
def test_states_without_fractions_are_refused(x):
    with pytest.raises(ConfigError, match="floating-point"):
        integrate(lambda x, sigma: x, x, [0.0, 1.0])


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ("eulr", "did you mean 'euler'"),
        ("rk45", "choose from"),
        (Euler, "solver object"),
        (3, "solver object"),
    ],
)
def test_unknown_solvers_are_refused(solver, message):
    with pytest.raises(ConfigError, match=message):
        integrate(lambda x, sigma: x, jnp.float32(1.0), [0.0, 1.0], solver)


def test_fixed_point_refuses_no_iterations():
    with pytest.raises(ConfigError, match="positive integer"):
        FixedPoint(0)


def test_solvers_are_hashable_values():
    assert {FixedPoint(3), FixedPoint(3), FixedPoint(4), SOLVERS["euler"], Euler()} == {
        FixedPoint(3),
        FixedPoint(4),
        Euler(),
    }


def test_a_solver_of_the_users_own_is_taken():
    class Backwards(Solver):
        """Euler that walks away from where it should go."""

        name, order = "backwards", 0

        def step(self, velocity, x, start, step, memory):
            return x - step.size * start, memory

    assert integrate(lambda x, s: jnp.ones_like(x), jnp.float32(0), [0.0, 0.5, 1.0], Backwards()) == -1.0


# ------------------------------------------------------------------------------------------ transformations


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [name for name in SOLVERS if not SOLVERS[name].stochastic])
def test_integrate_works_under_jit_vmap_and_grad(name):
    solver = FixedPoint(40) if name == "fixed_point" else name
    sigmas = np.linspace(0, 1, 400)
    x = np.array([0.3, 0.5])

    @jax.jit
    def end(x, sigmas):
        return integrate(labelled(riccati), x, sigmas, solver)

    slope = jax.vmap(jax.value_and_grad(end), (0, None))(x, sigmas)
    # Riccati: d x_1 / d x_0 = (x_1 / x_0)^2. Order 1 at 400 steps leaves 1 %.
    want = riccati_flow(x, 0, 1)
    np.testing.assert_allclose(slope, (want, (want / x) ** 2), rtol=1e-2)


def test_x64_does_not_leak_out_of_these_tests():
    assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.usefixtures("float64")
def test_ab2_does_not_blow_up_rounding_over_a_tiny_step_that_was_put_in():
    def rough(x, sigma):
        return -x + 1e-3 * jnp.sin(1e7 * sigma)  # a network in low precision: another error at every sigma

    even = np.linspace(0, 1, 21)
    grid = np.sort(np.append(even, 0.5 - 1e-6))
    plain, put_in = (integrate(rough, jnp.ones(1), sigmas, "ab2") for sigmas in (even, grid))
    # The ratio of the steps is 50,000; half of it times an error of 1e-3 over a step of 0.05 would be 1.
    assert np.abs(put_in - plain).max() < 1e-3
