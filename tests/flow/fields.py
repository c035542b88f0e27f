"""Fields whose flow is known in closed form, and grids to integrate them on."""

import jax
import jax.numpy as jnp
import numpy as np


def riccati(x, sigma):
    """x' = x^2 cos s, solved by x = 1 / (1 / x_0 + sin s_0 - sin s)."""
    return x**2 * jnp.cos(sigma)


def riccati_flow(x, a, b):
    return 1 / (1 / x + np.sin(a) - np.sin(b))


def spiral(x, sigma):
    """x' = (0.7 I + 3 s J) x: growth by e^{0.7 s} and rotation by 1.5 s^2. A pytree state, one leaf a
    coordinate.
    """
    return {"a": 0.7 * x["a"] - 3 * sigma * x["b"], "b": 0.7 * x["b"] + 3 * sigma * x["a"]}


def spiral_flow(x, a, b):
    z = (x["a"] + 1j * x["b"]) * np.exp(0.7 * (b - a) + 1.5j * (b**2 - a**2))
    return {"a": z.real, "b": z.imag}


FIELDS = {
    "riccati": (riccati, riccati_flow, np.array([0.5, 0.7])),
    "spiral": (spiral, spiral_flow, {"a": np.array([1.0, -0.3]), "b": np.array([0.2, 0.8])}),
}


def alternating(n):
    """Interval lengths 1, 3, 1, 3, ...: uneven between all neighbours, however fine."""
    return np.cumsum([0, *(1 + 2 * (np.arange(n) % 2))]) / (2 * n)


GRIDS = {
    "even": lambda n: np.linspace(0, 1, n + 1),
    "alternating": alternating,
    "shifted": lambda n: 3 * np.linspace(0, 1, n + 1) / (1 + 2 * np.linspace(0, 1, n + 1)),
}


def error(got, want):
    return max(
        float(np.abs(np.asarray(a) - b).max()) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    )


def labelled(field):
    return lambda x, sigma, label: field(x, sigma)
