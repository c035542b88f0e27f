"""Data for Darcy flow (PIDM, arXiv 2403.14404, section 4.1): random permeabilities and the pressures that belong to them.

The log of a permeability is a Karhunen-Loève expansion, 64 modes of the covariance ``exp(-distance / 0.1)`` with standard
normal coefficients. Its pressure is the least-squares solution of the discrete equation at every node, of no flux through
each edge, and of a mean of zero: of everything that `residuals.darcy` measures, so that no field has a smaller residual in
the sense of squares.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.physics.residuals import SMALLEST, darcy_source, derivative

MODES, LENGTH = 64, 0.1


def fields(n: int, count: int, seed: int = 0, report: Callable[[int], None] = lambda solved: None) -> np.ndarray:
    """Pairs of pressure and permeability, float32 [count, n, n, 2]; field i depends on (seed, i) and n alone.

    Computed in float64 on the default device: at n = 64 one field takes seconds on a processor. `report` is told of every
    chunk that is done.

    Raises
    ------
    ConfigError : n below 8.
    """
    permeability = permeabilities(n, count, seed)
    chunk = max(1, 2**20 // n**4)
    found = np.empty((count, n, n, 2), np.float32)
    for start in range(0, count, chunk):
        rows = permeability[start : start + chunk]
        # Chunks are of one size, so that one program serves all.
        padded = np.concatenate([rows, np.ones((chunk - len(rows), n, n))])
        found[start : start + chunk, ..., 0] = solve(padded)[: len(rows)]
        found[start : start + chunk, ..., 1] = rows
        report(len(rows))
    return found


def permeabilities(n: int, count: int, seed: int = 0) -> np.ndarray:
    """Positive random fields, float64 [count, n, n]."""
    if n < SMALLEST or count < 1:
        raise ConfigError(
            f"{count} Darcy fields of n={n} nodes along a side; n must be at least {SMALLEST}, and one field"
        )
    weights = np.stack([np.random.default_rng([seed, i]).standard_normal(MODES) for i in range(count)])
    return np.exp(weights @ _modes(n)).reshape(count, n, n)


def solve(permeability: np.ndarray) -> np.ndarray:
    """The pressures of positive permeabilities [B, n, n], float64, each with a mean (trapezoid rule) of zero.

    Normal equations by Cholesky with one step of refinement. Constants solve everything but the condition on the mean, so
    that its weight changes no solution; it is chosen such that the equations are well conditioned.

    Raises
    ------
    ConfigError : a permeability is not positive and finite, or not square.
    """
    permeability = np.asarray(permeability, np.float64)
    if permeability.ndim != 3 or permeability.shape[1] != permeability.shape[2]:
        raise ConfigError(f"permeability {permeability.shape} is not [B, n, n]")
    if not (np.isfinite(permeability) & (permeability > 0)).all():
        raise ConfigError("a permeability must be positive and finite at every node")
    with jax.enable_x64(True):
        return np.asarray(_solve(permeability, *_operators(permeability.shape[-1])))


def zero_mean(pressure: np.ndarray) -> np.ndarray:
    """Pressures [B, n, n] less their mean by the trapezoid rule, which no residual notices."""
    weight = trapezoid(pressure.shape[-1])
    return pressure - (pressure * weight).sum((-2, -1), keepdims=True) / weight.sum()


def trapezoid(n: int) -> np.ndarray:
    """Weights of the nodes in an integral over the unit square, float64 [n, n]: they add up to 1."""
    ends = np.ones(n)
    ends[[0, -1]] = 0.5
    return np.outer(ends, ends) / (n - 1) ** 2


@functools.lru_cache(maxsize=2)
def _modes(n: int) -> np.ndarray:
    """Eigenvectors of the covariance times the roots of their eigenvalues, [modes, n n], largest first."""
    x = np.linspace(0.0, 1.0, n)
    places = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    distance = np.sqrt(np.square(places[:, None] - places[None]).sum(-1))
    values, vectors = np.linalg.eigh(np.exp(-distance / LENGTH))
    values, vectors = values[::-1][:MODES], vectors[:, ::-1][:, :MODES]
    # The sign of an eigenvector is the library's whim, and a seed should mean the same field everywhere. (Modes that share an
    # eigenvalue may still be mixed.)
    signs = np.sign(np.random.default_rng(0).standard_normal(n * n) @ vectors)
    return (np.sqrt(values) * signs * vectors).T


@functools.lru_cache(maxsize=2)
def _operators(n: int) -> tuple[np.ndarray, ...]:
    """Dense float64 matrices of what is linear in the pressure, on flattened fields: [n n, n n] the derivatives along x and
    y and the Laplacian, [4 n + 1, n n] the conditions on edges and mean; and the source."""
    h = 1.0 / (n - 1)
    one = np.eye(n)
    with jax.enable_x64(True):
        first, second = (np.asarray(derivative(jnp.asarray(one), 0, order, h)) for order in (1, 2))
    along_x, along_y = np.kron(first, one), np.kron(one, first)
    edge_x, edge_y = (along.reshape(n, n, n * n) for along in (along_x, along_y))
    mean = trapezoid(n).reshape(1, -1) / h**3
    conditions = np.concatenate([edge_x[0], edge_x[-1], edge_y[:, 0], edge_y[:, -1], mean])
    return along_x, along_y, np.kron(second, one) + np.kron(one, second), conditions, darcy_source(n).reshape(-1)


@jax.jit
def _solve(permeability, along_x, along_y, laplacian, conditions, source):
    def one(field):
        k = field.reshape(-1)
        slope_x, slope_y = along_x @ k, along_y @ k
        balance = -(k[:, None] * laplacian + slope_x[:, None] * along_x + slope_y[:, None] * along_y)
        normal = balance.T @ balance + conditions.T @ conditions
        factor = jax.scipy.linalg.cho_factor(normal, lower=True)
        p = jax.scipy.linalg.cho_solve(factor, balance.T @ source)
        # What is left is computed from the equations themselves, whose condition is the root of the normal matrix's.
        left = balance.T @ (source - balance @ p) - conditions.T @ (conditions @ p)
        return (p + jax.scipy.linalg.cho_solve(factor, left)).reshape(field.shape)

    return jax.lax.map(one, permeability)
