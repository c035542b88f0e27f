"""The Darcy data: pressures are least-squares solutions, and fields are decided by their seed."""

import jax
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.physics import darcy, residuals


def test_a_pressure_is_the_least_squares_solution_of_everything_that_is_measured():
    n = 8
    permeability = darcy.permeabilities(n, 1, 3)
    with jax.enable_x64(True):

        @jax.jit
        def measured(p):
            return residuals.darcy(p.reshape(1, n, n), permeability).reshape(-1)

        nothing = np.zeros(n * n)
        source = -np.asarray(measured(nothing))
        columns = np.stack([np.asarray(measured(row)) + source for row in np.eye(n * n)], 1)  # it is affine
        matrix, right = np.concatenate([columns, darcy.trapezoid(n).reshape(1, -1)]), np.append(source, 0.0)
    expected = np.linalg.lstsq(matrix, right, rcond=None)[0].reshape(n, n)
    found = darcy.solve(permeability)[0]
    assert found == pytest.approx(expected, abs=1e-9 * np.abs(expected).max())
    assert (found * darcy.trapezoid(n)).sum() == pytest.approx(0, abs=1e-12)


def test_the_residual_of_data_is_that_of_the_published_generator():  # T3; n = 64 is in docs: a field takes 20 s
    permeability = darcy.permeabilities(32, 1, 0)
    pressure = darcy.solve(permeability)
    with jax.enable_x64(True):
        found = float(np.abs(jax.jit(residuals.darcy)(pressure, permeability)).mean())
    assert found < 1e-2


def test_a_field_is_decided_by_its_seed_and_its_place():
    few, many = darcy.fields(8, 2, seed=1), darcy.fields(8, 5, seed=1)
    assert np.array_equal(few, many[:2])
    assert not np.array_equal(few[0], few[1])
    assert not np.array_equal(few, darcy.fields(8, 2, seed=2))
    assert (few[..., 1] > 0).all()


def test_log_permeabilities_have_the_covariance_of_their_modes():
    n, count = 8, 4000
    log = np.log(darcy.permeabilities(n, count)).reshape(count, -1)
    x = np.linspace(0, 1, n)
    places = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    # At n = 8 the 64 modes are all there are.
    expected = np.exp(-np.linalg.norm(places[:, None] - places[None], axis=-1) / 0.1)
    assert np.cov(log.T) == pytest.approx(expected, abs=5 * np.sqrt(2 / count))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: darcy.fields(6, 1), "at least 8"),
        (lambda: darcy.solve(np.ones((1, 8, 9))), r"\(1, 8, 9\) is not \[B, n, n\]"),
        (lambda: darcy.solve(np.zeros((1, 8, 8))), "positive and finite"),
    ],
)
def test_impossible_problems_are_refused(work, message):
    with pytest.raises(ConfigError, match=message):
        work()
