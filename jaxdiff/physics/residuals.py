"""Residuals of partial differential equations on grids of nodes: pure functions of fields, zero where the equation holds.

Derivatives are second-order finite differences, central inside and one-sided at the ends, with a spacing that is the same
along both axes of space. Fields are [B, n, n] or clips [B, T, H, W]; "latent fields" are the channels of latents.
Every function is differentiable and computes in the dtype that it is given (integers and half precision as float32).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import ConfigError

SMALLEST = 8  # nodes along a side of the Darcy problem: fewer leave its source no node
EDGE = {1: (-1.5, 2.0, -0.5), 2: (2.0, -5.0, 4.0, -1.0)}  # of the first node, into the grid
POISSON = 0.3
EPS = 1e-6  # of sums of weights that may all be zero


def derivative(field: jax.Array, axis: int, order: int, spacing: float) -> jax.Array:
    """First or second derivative along an axis, same shape, error O(spacing^2) everywhere.

    Inside ``(f[i+1] - f[i-1]) / 2h`` and ``(f[i+1] - 2 f[i] + f[i-1]) / h^2``; at the ends ``[-3/2, 2, -1/2] / h`` and
    ``[2, -5, 4, -1] / h^2``, mirrored with the sign of the order at the far one.

    Raises
    ------
    ConfigError : fewer than three nodes (order 1) or four (order 2) along the axis.
    """
    edge = EDGE[order]
    if field.shape[axis] < len(edge):
        raise ConfigError(
            f"a derivative of order {order} needs {len(edge)} nodes along axis {axis} of a field {field.shape}"
        )
    f = jnp.moveaxis(_floating(field), axis, 0)
    inside = (f[2:] - f[:-2]) / 2 if order == 1 else f[2:] - 2 * f[1:-1] + f[:-2]
    weights = jnp.asarray(edge, f.dtype).reshape(-1, *[1] * (f.ndim - 1))
    first = (weights * f[: len(edge)]).sum(0, keepdims=True)
    last = (-1) ** order * (weights * f[: -len(edge) - 1 : -1]).sum(0, keepdims=True)
    return jnp.moveaxis(jnp.concatenate([first, inside, last]) / spacing**order, 0, axis)


def darcy_source(n: int) -> np.ndarray:
    """The source of the Darcy problem: 10 in the corner of low indices, -10 in the opposite one, float64 [n, n].

    Both squares have a side of 1/8, measured at the centres of n x n equal cells: n // 8 nodes where 8 divides n.
    """
    inside = 4 * (2 * np.arange(n) + 1) <= n
    corner = np.outer(inside, inside).astype(np.float64)
    return 10.0 * (corner - corner[::-1, ::-1])


def darcy(pressure: jax.Array, permeability: jax.Array) -> jax.Array:
    """Darcy flow without flux through the boundary, as published with PIDM (Bastek et al., arXiv 2403.14404, section 4.1).

    ``-K (p_xx + p_yy) - K_x p_x - K_y p_y - f`` on the unit square with nodes on its boundary, and beside it the
    derivative of the pressure along the outward normal. Their mean absolute value is the published R_MAE. An all-zero pressure
    has 0.104167 = 2 / 64 * 10 / 3 of it, whatever the permeability.

    Parameters
    ----------
    pressure, permeability : [B, n, n], n at least 8; x is the first axis of space, y the second.

    Returns
    -------
    [B, n, n, 3] : the equation, and the normal derivative at the edges of x and of y, zero elsewhere.

    Raises
    ------
    ConfigError : the shapes are not those.
    """
    shape = _shape("darcy", "pressure", pressure, "[B, n, n]", square=True)
    _same("darcy", shape, permeability=permeability)
    n = shape[-1]
    if n < SMALLEST:
        raise ConfigError(
            f"darcy: pressure {shape} has {n} nodes along a side and needs {SMALLEST}: its source would be empty"
        )
    h = 1.0 / (n - 1)
    p, k = _floating(pressure), _floating(permeability)
    (p_x, p_y), (k_x, k_y) = ((derivative(f, -2, 1, h), derivative(f, -1, 1, h)) for f in (p, k))
    balance = -k * laplacian(p, h) - k_x * p_x - k_y * p_y - jnp.asarray(darcy_source(n), p.dtype)
    ends = np.zeros(n)
    ends[0], ends[-1] = -1.0, 1.0  # the outward normal
    normal = jnp.asarray(ends, p.dtype)
    return jnp.stack([balance, p_x * normal[:, None], p_y * normal], -1)


def laplacian(field: jax.Array, spacing: float) -> jax.Array:
    """Second derivatives along the last two axes, added."""
    return derivative(field, -2, 2, spacing) + derivative(field, -1, 2, spacing)


def incompressibility(velocity: jax.Array, spacing: float) -> jax.Array:
    """``u_x + v_y``: the divergence of a velocity [B, ..., H, W, 2] whose components lie along H and along W; [B, ..., H, W].

    Raises
    ------
    ConfigError : the velocity has another shape.
    """
    if velocity.ndim < 4 or velocity.shape[-1] != 2:
        raise ConfigError(f"incompressibility: velocity {velocity.shape} is not [B, ..., H, W, 2]")
    return derivative(velocity[..., 0], -2, 1, spacing) + derivative(velocity[..., 1], -1, 1, spacing)


def heat(
    temperature: jax.Array, diffusivity: float | jax.Array, step: float, spacing: float, source: float | jax.Array = 0.0
) -> jax.Array:
    """``T_t - a (T_xx + T_yy) - s`` of a clip [B, T, H, W], same shape.

    Parameters
    ----------
    diffusivity, source : numbers, or arrays that broadcast against the clip.
    step, spacing : between frames and between nodes.
    """
    _shape("heat", "temperature", temperature, "[B, T, H, W]")
    return derivative(temperature, 1, 1, step) - diffusivity * laplacian(temperature, spacing) - source


def advection_diffusion(
    concentration: jax.Array,
    velocity: jax.Array,
    diffusivity: float | jax.Array,
    step: float,
    spacing: float,
    source: float | jax.Array = 0.0,
) -> jax.Array:
    """``c_t + u c_x + v c_y - a (c_xx + c_yy) - s`` of a clip [B, T, H, W], same shape; `heat` in a medium that moves.

    Parameters
    ----------
    velocity : [B or 1, T or 1, H or 1, W or 1, 2], its components along H and along W.
    """
    shape = _shape("advection_diffusion", "concentration", concentration, "[B, T, H, W]")
    fits = velocity.ndim == 5 and velocity.shape[-1] == 2
    if not fits or any(a not in (1, b) for a, b in zip(velocity.shape[:4], shape, strict=True)):
        raise ConfigError(
            f"advection_diffusion: velocity {velocity.shape} is not [B, T, H, W, 2] for concentration {shape}; an axis but "
            "the last may be 1"
        )
    along = (derivative(concentration, axis, 1, spacing) for axis in (2, 3))
    carried = sum(velocity[..., i] * slope for i, slope in enumerate(along))
    return heat(concentration, diffusivity, step, spacing, source) + carried


def wave(height: jax.Array, speed: float | jax.Array, step: float, spacing: float) -> jax.Array:
    """``u_tt - c^2 (u_xx + u_yy)`` of a clip [B, T, H, W], same shape."""
    _shape("wave", "height", height, "[B, T, H, W]")
    return derivative(height, 1, 2, step) - jnp.square(jnp.asarray(speed)) * laplacian(height, spacing)


def uniform_motion(positions: jax.Array, weight: jax.Array) -> jax.Array:
    """``sqrt(w) (x - a - b t)``: how far positions are from the nearest motion at constant velocity; [B, T], as they are.

    The law is x_tt = 0. Second differences need three frames in a row and magnify noise; the distance from the line of least
    squares, weighted like the residual, is zero for the same motions, and bridges frames in which the thing is hidden. With
    fewer than two frames of any weight it is zero.

    Parameters
    ----------
    positions : [B, T], at equal steps of time, in any unit.
    weight : [B, T], 0 to 1: how well the position of a frame is known.
    """
    shape = _shape("uniform_motion", "positions", positions, "[B, T]")
    _same("uniform_motion", shape, weight=weight)
    x, w = _floating(positions), _floating(weight)
    total = jnp.maximum(w.sum(1, keepdims=True), EPS)
    t = jnp.broadcast_to(jnp.arange(shape[1], dtype=x.dtype), shape)
    t, x = (v - (w * v).sum(1, keepdims=True) / total for v in (t, x))
    slope = (w * t * x).sum(1, keepdims=True) / jnp.maximum((w * t * t).sum(1, keepdims=True), EPS)
    return jnp.sqrt(w) * (x - slope * t)


def elasticity(displacement: jax.Array, density: jax.Array, load: jax.Array, fixed: jax.Array) -> jax.Array:
    """``K u - f`` of plane-stress linear elasticity on square four-node elements, as PIDM's topology optimisation.

    No matrix is assembled: every element multiplies its eight displacements with ``rho K_e`` and adds the forces to its four
    nodes. K_e has unit modulus and Poisson's ratio 0.3, and does not depend on the elements' size. Rows of fixed degrees of
    freedom are ``u`` itself, as published: there the residual is how far they have moved.

    Parameters
    ----------
    displacement, load : [B, H + 1, W + 1, 2] at the nodes, components along H and along W.
    density : [B, H, W] of the elements.
    fixed : bool [B, H + 1, W + 1, 2].

    Returns
    -------
    [B, H + 1, W + 1, 2]

    Raises
    ------
    ConfigError : the shapes are not those.
    """
    batch, height, width = _shape("elasticity", "density", density, "[B, H, W]")
    _same("elasticity", (batch, height + 1, width + 1, 2), displacement=displacement, load=load, fixed=fixed)
    u = _floating(displacement)
    around = [u[:, i : i + height, j : j + width] for i, j in CORNERS]
    stiffness = jnp.asarray(_stiffness(), u.dtype)
    forces = (
        jnp.einsum("bhwc,dc->bhwd", jnp.concatenate(around, -1), stiffness, precision="highest") * density[..., None]
    )
    total = sum(
        jnp.pad(part, ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0)))
        for part, (i, j) in zip(jnp.split(forces, 4, -1), CORNERS, strict=True)
    )
    return jnp.where(fixed, u, total - load)


CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))


@functools.cache
def _stiffness() -> np.ndarray:
    """K_e [8, 8] of a bilinear square, nodes as `CORNERS`: 2 x 2 Gauss points, which are exact for it."""
    rigidity = np.array([[1, POISSON, 0], [POISSON, 1, 0], [0, 0, (1 - POISSON) / 2]]) / (1 - POISSON**2)
    signs = 2.0 * np.array(CORNERS) - 1.0
    total = np.zeros((8, 8))
    for point in signs / np.sqrt(3.0):
        slopes = signs * (1 + point * signs)[:, ::-1] / 4  # dN/dx and dN/dy of every node, on the square [-1, 1]^2
        strain = np.zeros((3, 8))
        strain[0, 0::2], strain[1, 1::2] = slopes[:, 0], slopes[:, 1]
        strain[2, 0::2], strain[2, 1::2] = slopes[:, 1], slopes[:, 0]
        total += strain.T @ rigidity @ strain
    return total


def _floating(field: jax.Array) -> jax.Array:
    field = jnp.asarray(field)
    return field if field.dtype in (jnp.float32, jnp.float64) else field.astype(jnp.float32)


def _shape(law: str, name: str, field: jax.Array, wanted: str, *, square: bool = False) -> tuple[int, ...]:
    shape = tuple(field.shape)
    if len(shape) != wanted.count(",") + 1 or (square and shape[-1] != shape[-2]):
        raise ConfigError(f"{law}: {name} {shape} is not {wanted}")
    return shape


def _same(law: str, shape: tuple[int, ...], **fields: jax.Array) -> None:
    for name, field in fields.items():
        if tuple(field.shape) != shape:
            raise ConfigError(f"{law}: {name} is {tuple(field.shape)} and must be {shape}")
