"""Residual operators: known solutions have none, errors shrink as they should, and the Darcy metric has its known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.physics import residuals
from jaxdiff.physics.pidm import NULL


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


darcy = jax.jit(residuals.darcy)  # one program a size, instead of one for every operation


def slope(errors, sizes):
    """Order of convergence in the spacing between the first and the last size."""
    return np.log(errors[0] / errors[-1]) / np.log((sizes[-1] - 1) / (sizes[0] - 1))


def grid(n):
    return np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")


def test_darcy_converges_at_second_order_to_a_manufactured_solution(float64):  # T1
    sizes, errors = (16, 32, 64), []
    for n in sizes:
        x, y = grid(n)
        p = np.cos(np.pi * x) * np.cos(np.pi * y)
        p_x, p_y = -np.pi * np.sin(np.pi * x) * np.cos(np.pi * y), -np.pi * np.cos(np.pi * x) * np.sin(np.pi * y)
        varying = 2 + x * y**2  # beside the constant one of the known answer
        exact = np.stack([2 * np.pi**2 * p, 2 * np.pi**2 * varying * p - y**2 * p_x - 2 * x * y * p_y])
        found = darcy(np.stack([p, p]), np.stack([np.ones((n, n)), varying]))[..., 0] + residuals.darcy_source(n)
        error = np.abs(found - exact)
        inside = error[:, 1:-1, 1:-1].mean((1, 2))
        errors.append([*inside, error[0].max()])  # the largest are at the edges, with eleven times the constant
    one, varying, edges = np.array(errors).T
    assert slope(one, sizes) == pytest.approx(2, abs=0.1)
    assert slope(varying, sizes) == pytest.approx(2, abs=0.1)
    assert slope(edges, sizes) > 1.85


@pytest.mark.parametrize("n", [16, 32, 48, 64])
def test_no_pressure_at_all_has_the_known_residual_whatever_the_permeability(n):  # T2
    permeability = np.exp(np.random.default_rng(n).standard_normal((2, n, n)))
    found = np.abs(darcy(np.zeros((2, n, n), np.float32), permeability))
    assert found.mean((1, 2, 3)) == pytest.approx(2 * [NULL], abs=1e-6)
    assert pytest.approx(0.1041667, abs=1e-7) == NULL


def test_the_boundary_channels_are_outward_slopes_on_the_edges_and_zero_inside():
    x, y = grid(16)
    found = np.asarray(darcy((3 * x + 5 * y)[None], np.ones((1, 16, 16))))[0]
    assert found[0, :, 1] == pytest.approx(-3, abs=1e-4)
    assert found[-1, :, 1] == pytest.approx(3, abs=1e-4)
    assert found[:, 0, 2] == pytest.approx(-5, abs=1e-4)
    assert found[:, -1, 2] == pytest.approx(5, abs=1e-4)
    assert not found[1:-1, :, 1].any() and not found[:, 1:-1, 2].any()
    # The source alone is left of the equation: ten in one corner of two by two nodes, minus ten in the other.
    equation = found[..., 0]
    assert equation[:2, :2] == pytest.approx(-10, abs=0.01) and equation[-2:, -2:] == pytest.approx(10, abs=0.01)
    assert (np.abs(equation) > 0.01).sum() == 8


def decaying(n, rate=1.0):
    """A clip of exp(-rate t) cos(pi x) cos(pi y), and its steps."""
    x, y = grid(n)
    t = np.linspace(0, 0.5, n)[:, None, None]
    return (np.exp(-rate * t) * np.cos(np.pi * x) * np.cos(np.pi * y))[None], 0.5 / (n - 1), 1 / (n - 1)


def test_heat_waves_and_drift_converge_at_second_order_where_the_law_holds(float64):
    sizes, errors = (8, 16), []  # coarse, for small programs; hence the wide tolerance
    a, u, v = 0.3, 0.4, -0.2

    @functools.partial(jax.jit, static_argnums=3)
    def laws(warm, waving, drifting, n):
        h = 1 / (n - 1)
        velocity = np.array([u, v]).reshape(1, 1, 1, 1, 2)
        return (
            residuals.heat(warm, a, h / 2, h),
            residuals.wave(waving, 0.7, h, h),
            residuals.advection_diffusion(drifting, velocity, a, h, h),
        )

    for n in sizes:
        x, y = grid(n)
        t = np.linspace(0, 1, n)[:, None, None]
        warm, _, _ = decaying(n, 2 * np.pi**2 * a)
        waving = np.cos(np.sqrt(2) * np.pi * 0.7 * t) * np.cos(np.pi * x) * np.cos(np.pi * y)
        drifting = np.exp(-2 * a * t) * np.sin(x - u * t) * np.sin(y - v * t)
        errors.append(
            [float(np.abs(r[:, 1:-1, 1:-1, 1:-1]).mean()) for r in laws(warm, waving[None], drifting[None], n)]
        )
    for law in np.array(errors).T:
        assert slope(law, sizes) == pytest.approx(2, abs=0.35)


def test_a_source_and_a_velocity_enter_the_equations():
    clip, step, spacing = decaying(8)
    assert residuals.heat(clip, 0.0, step, spacing, source=2.0) == pytest.approx(
        np.asarray(residuals.heat(clip, 0.0, step, spacing)) - 2.0, abs=1e-5
    )
    still = residuals.advection_diffusion(clip, np.zeros((1, 1, 1, 1, 2)), 0.1, step, spacing)
    assert still == pytest.approx(np.asarray(residuals.heat(clip, 0.1, step, spacing)), abs=1e-5)


def test_a_rotation_is_incompressible_and_a_source_flow_is_not():
    x, y = grid(8)
    flow = np.stack([-(y - 0.5), x - 0.5], -1)[None]
    assert residuals.incompressibility(flow, 1 / 7) == pytest.approx(0, abs=1e-5)
    assert residuals.incompressibility(np.stack([x, y], -1)[None], 1 / 7) == pytest.approx(2, abs=1e-5)
    clip = np.broadcast_to(flow[:, None], (1, 3, 8, 8, 2))
    assert residuals.incompressibility(clip, 1 / 7).shape == (1, 3, 8, 8)


def test_elasticity_multiplies_with_the_assembled_stiffness_matrix():
    rng, (h, w) = np.random.default_rng(0), (3, 4)
    density = rng.uniform(0.1, 1, (1, h, w))
    u, load = rng.standard_normal((2, 1, h + 1, w + 1, 2))
    fixed = rng.random((1, h + 1, w + 1, 2)) < 0.3
    matrix = np.zeros((2 * (h + 1) * (w + 1),) * 2)
    for i in range(h):
        for j in range(w):
            nodes = [(i + a) * (w + 1) + j + b for a, b in residuals.CORNERS]
            where = [2 * node + component for node in nodes for component in range(2)]
            matrix[np.ix_(where, where)] += density[0, i, j] * residuals._stiffness()
    expected = (matrix @ u.reshape(-1)).reshape(u.shape) - load
    found = residuals.elasticity(u, density, load, fixed)
    assert found == pytest.approx(np.where(fixed, u, expected), abs=1e-5)


def test_the_stiffness_is_that_of_plane_stress():
    stiffness, corners = residuals._stiffness(), np.array(residuals.CORNERS, float)
    assert stiffness == pytest.approx(stiffness.T)
    assert np.linalg.eigvalsh(stiffness) == pytest.approx(np.abs(np.linalg.eigvalsh(stiffness)))  # no negative energy
    assert (np.linalg.eigvalsh(stiffness) < 1e-12).sum() == 3  # two translations and a rotation
    rotation = np.stack([-corners[:, 1], corners[:, 0]], -1).reshape(-1)
    assert stiffness @ rotation == pytest.approx(0, abs=1e-12)
    # A unit square stretched by e along x with free sides: energy e^2 E / 2 with E = 1, and it thins by Poisson's 0.3.
    stretch = (corners * [1.0, -0.3]).reshape(-1)
    assert stretch @ stiffness @ stretch == pytest.approx(1.0)


def test_uniform_motion_is_the_distance_from_the_weighted_line_and_bridges_what_is_hidden():
    rng = np.random.default_rng(0)
    time, weight = np.arange(9.0), rng.random((3, 9)).astype(np.float32)
    weight[0, 3:6] = 0  # hidden
    weight[2] = 0
    steady = (0.3 + rng.random((3, 1)) * time).astype(np.float32)
    steady[0, 3:6] += 5
    assert np.abs(residuals.uniform_motion(steady, weight)).max() < 1e-5
    bent = steady + 0.01 * (time - 4).astype(np.float32) ** 2
    found = np.asarray(residuals.uniform_motion(bent, weight))
    for row in (0, 1):
        line = np.polyval(np.polyfit(time, bent[row], 1, w=np.sqrt(weight[row])), time)
        np.testing.assert_allclose(found[row], np.sqrt(weight[row]) * (bent[row] - line), atol=2e-5)
    assert (found[2] == 0).all()


@pytest.mark.parametrize(
    ("law", "arguments", "message"),
    [
        (residuals.darcy, [(2, 16, 15), (2, 16, 15)], r"pressure \(2, 16, 15\) is not \[B, n, n\]"),
        (residuals.darcy, [(2, 16, 16), (2, 15, 16)], r"permeability is \(2, 15, 16\) and must be \(2, 16, 16\)"),
        (residuals.darcy, [(2, 6, 6), (2, 6, 6)], "needs 8"),
        (lambda u: residuals.incompressibility(u, 1.0), [(2, 8, 8, 3)], r"\[B, ..., H, W, 2\]"),
        (lambda u: residuals.heat(u, 1.0, 1.0, 1.0), [(8, 8, 8)], r"temperature \(8, 8, 8\)"),
        (lambda u: residuals.wave(u, 1.0, 1.0, 1.0), [(1, 3, 8, 8)], "needs 4 nodes along axis 1"),
        (lambda c, u: residuals.advection_diffusion(c, u, 1.0, 1.0, 1.0), [(1, 4, 8, 8), (1, 3, 8, 8, 2)], "may be 1"),
        (residuals.elasticity, [(1, 4, 4, 2), (1, 4, 4), (1, 4, 4, 2), (1, 4, 4, 2)], r"must be \(1, 5, 5, 2\)"),
        (residuals.uniform_motion, [(2, 9), (2, 8)], r"weight is \(2, 8\) and must be \(2, 9\)"),
    ],
)
def test_fields_of_the_wrong_shape_are_told(law, arguments, message):
    with pytest.raises(ConfigError, match=message):
        law(*(jnp.zeros(shape) for shape in arguments))
