"""DPM-Solver++ and UniPC against known flows and distributions, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.flow import DPMpp2M, DPMpp2MSDE, UniPC, integrate
from jaxdiff.flow.integrate import steps_of
from jaxdiff.flow.multistep import _moments
from tests.flow.fields import FIELDS, GRIDS, error, riccati

SOLVERS = {"unipc": UniPC(), "unipc of order 1": UniPC(1), "dpmpp_2m": DPMpp2M()}
INSIDE = {name: lambda n, grid=grid: 0.1 + 0.8 * grid(n) for name, grid in GRIDS.items()}


def slope(solver, field, grids, direction, counts):
    """The order that the errors on two grids, the second twice as fine, show."""
    velocity, flow, x = FIELDS[field]
    errors = []
    for n in counts:
        sigmas = grids(n) if direction == "up" else grids(n)[::-1]
        errors.append(error(integrate(velocity, x, sigmas, solver), flow(x, sigmas[0], sigmas[-1])))
    return np.log2(errors[0] / errors[1])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("grid", INSIDE)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_error_falls_with_the_solvers_order(name, field, grid, direction):
    # Seen within 0.09: the next order in the error's expansion still shows at 1024 steps of the log-SNR.
    assert abs(slope(SOLVERS[name], field, INSIDE[grid], direction, (512, 1024)) - SOLVERS[name].order) < 0.1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("grid", ["even", "alternating"])
@pytest.mark.parametrize("name", SOLVERS)
def test_between_the_ends_of_the_flow_the_order_is_two_up_to_a_logarithm(name, grid, direction):
    """The log-SNR is infinite at both: the first and last step are Euler's, and their neighbours' never become small."""
    seen = slope(SOLVERS[name], "riccati", GRIDS[grid], direction, (512, 1024))
    # n^2 / log n would show as 2 - 1 / log(724) = 1.85.
    assert 1.75 < seen < 2.1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SOLVERS)
def test_steps_from_and_to_the_ends_are_eulers(name):
    for sigmas in ([1.0, 0.0], [0.0, 1.0], [0.6, 0.0], [0.3, 1.0]):
        want = integrate(riccati, 0.5, sigmas, "euler")
        np.testing.assert_allclose(integrate(riccati, 0.5, sigmas, SOLVERS[name]), want, rtol=1e-14)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("direction", ["up", "down"])
def test_unipc_without_its_corrector_is_dpmpp_2m(direction):
    sigmas = GRIDS["shifted"](12)[:: 1 if direction == "up" else -1]
    bare = integrate(riccati, 0.5, sigmas, UniPC(2, range(12)))
    np.testing.assert_allclose(bare, integrate(riccati, 0.5, sigmas, "dpmpp_2m"), rtol=1e-13)
    for disabled in ((), (3,), (0, 1, 2)):
        assert abs(integrate(riccati, 0.5, sigmas, UniPC(2, disabled)) - bare) > 1e-7


@pytest.mark.usefixtures("float64")
def test_the_correctors_coefficients_do_not_cancel():
    near = np.array([-0.49999, -0.3, -1e-3, -1e-9, 1e-9, 1e-3, 0.3, 0.49999])
    far = np.array([-30.0, -5.0, -0.50001, 0.50001, 5.0, 30.0])
    for z in (near[np.abs(near) > 1e-6], far):
        wide = z.astype(np.longdouble)
        b1 = 1 / wide - 1 / np.expm1(wide)
        np.testing.assert_allclose(_moments(z), [b1, b1 + (2 * b1 - 1) / wide], rtol=1e-11)
    np.testing.assert_allclose(_moments(near[3:5]), [[0.5, 0.5], [1 / 3, 1 / 3]], rtol=1e-8)
    assert np.isfinite(_moments(np.array([0.0, -1e4, 1e4]))).all()


# ------------------------------------------------------------------------------------------ noise


MEAN, SPREAD = 0.7, 0.4


def gaussian(x, sigma):
    """The exact velocity for data of one Gaussian: noise - x0, both as expected at x."""
    alpha = 1 - sigma
    gain = 1 / (alpha**2 * SPREAD**2 + sigma**2)
    x0 = MEAN + alpha * SPREAD**2 * gain * (x - alpha * MEAN)
    noise = sigma * gain * (x - alpha * MEAN)
    return noise - x0


def moments(sigmas):
    """Mean and variance of a sample. Every step is linear here, so that its answers to 0 and to unit noises say all."""
    solver, steps = DPMpp2MSDE(), len(sigmas) - 1
    # Row 0 has no noise, row 1 the noise to start from, row i + 2 that of step i.
    x = jnp.zeros(steps + 2).at[1].set(1.0)
    each = jnp.eye(steps + 2)[2:]
    whole = steps_of(sigmas, sigmas, dtype=x.dtype)._replace(noise=each)

    def body(carry, step):
        x, memory = carry
        return solver.step(None, x, gaussian(x, step.start.sigma), step, memory), None

    memory = solver.init(None, x, jax.tree.map(lambda leaf: leaf[0], whole))
    (x, _), _ = jax.lax.scan(body, (x, memory), whole)
    x = np.asarray(x)
    return x[0], np.sum((x[1:] - x[0]) ** 2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("grid", GRIDS)
def test_noisy_samples_come_to_have_the_datas_mean_and_variance(grid):
    errors = []
    for n in (64, 128, 256):
        mean, variance = moments(GRIDS[grid](n)[::-1])
        assert mean == pytest.approx(MEAN, rel=1e-3)
        errors.append(abs(variance - SPREAD**2))
    assert errors[-1] < 5e-3
    assert np.all(np.log2(np.array(errors[:-1]) / errors[1:]) > 0.85)


@pytest.mark.usefixtures("float64")
def test_noise_is_drawn_from_the_key_for_every_step_and_leaf():
    x = {"a": np.zeros(2000), "b": np.zeros((2, 3))}

    def field(x, sigma):
        return jax.tree.map(lambda leaf: gaussian(leaf, sigma), x)

    def run(seed):
        return integrate(field, x, np.linspace(1, 0, 30), "dpmpp_2m_sde", key=jax.random.key(seed))

    end = run(0)
    jax.tree.map(np.testing.assert_array_equal, end, run(0))
    assert np.abs(end["a"] - run(1)["a"]).min() > 0
    assert len(np.unique(np.concatenate([end["a"], end["b"].ravel()]))) == 2006
    # Five standard errors of 2000 samples that all started at the same place.
    assert abs(np.std(end["a"]) - moments(np.linspace(1, 0, 30))[1] ** 0.5) < 5 * SPREAD / (2 * 2000) ** 0.5


def test_noise_needs_a_key_and_goes_down_only():
    with pytest.raises(ConfigError, match="needs key="):
        integrate(gaussian, jnp.float32(0), [1.0, 0.0], "dpmpp_2m_sde")
    with pytest.raises(ConfigError, match="only goes down; for an inversion choose euler"):
        integrate(gaussian, jnp.float32(0), [0.0, 1.0], "dpmpp_2m_sde", key=jax.random.key(0))


def test_unipc_refuses_orders_it_does_not_have():
    with pytest.raises(ConfigError, match="solver_order must be 1 or 2, got 3"):
        UniPC(3)


def test_solvers_are_hashable_values():
    assert {UniPC(), UniPC(2), UniPC(1), UniPC(2, [0]), UniPC(2, (0,)), DPMpp2M(), DPMpp2M(), DPMpp2MSDE()} == {
        UniPC(), UniPC(1), UniPC(2, (0,)), DPMpp2M(), DPMpp2MSDE(),
    }  # fmt: skip
