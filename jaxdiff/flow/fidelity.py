"""How far a run can be trusted, clip by clip.

Round-trip error does not measure trajectory fidelity: an implicit step retraces Euler exactly while its
trajectory is only first order. So several things are reported side by side, most as dicts of arrays [B] that can be
set against the probe's mistakes.
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxdiff.conditioning import Conditioning, as_conditioning
from jaxdiff.flow.inversion import sample
from jaxdiff.flow.placement import per_device, placement_of
from jaxdiff.flow.plan import make_plan, rounds
from jaxdiff.flow.solvers import AB2, Solver, as_solver, is_stochastic
from jaxdiff.flow.trajectory import Trajectory
from jaxdiff.pipeline import tap_sites
from jaxdiff.taps import MAP_SITE, Tap

if TYPE_CHECKING:
    from jaxdiff.pipeline import Pipeline

Errors = dict[str, jax.Array]

_FINE = AB2()
_MAP = Tap(MAP_SITE)

# Below this relative mean square a float32 round trip is exact; the PSNR is capped there, at 120 dB.
_EXACT = 1e-12


def self_convergence(
    pipeline: "Pipeline",
    latents: jax.Array,
    cond: Conditioning | jax.Array,
    *,
    steps: int = 100,
    sigmas: Any = None,
    solver: str | Solver = "euler",
    labels: str | None = None,
) -> Errors:
    """How much an inversion changes when every step is halved: `convergence_curve`, reduced over the grid.

    Returns
    -------
    {"self_convergence_end", "self_convergence_mean", "self_convergence_worst"}: [B] float32, at the grid's end,
    averaged over its sigmas, and at the worst of them.

    Raises
    ------
    ConfigError : as `jaxdiff.invert`.
    """
    _, errors = convergence_curve(pipeline, latents, cond, steps=steps, sigmas=sigmas, solver=solver, labels=labels)
    return {
        "self_convergence_end": errors[-1],
        "self_convergence_mean": errors.mean(0),
        "self_convergence_worst": errors.max(0),
    }


def convergence_curve(
    pipeline: "Pipeline",
    latents: jax.Array,
    cond: Conditioning | jax.Array,
    *,
    steps: int = 100,
    sigmas: Any = None,
    solver: str | Solver = "euler",
    labels: str | None = None,
) -> tuple[np.ndarray, jax.Array]:
    """Distance between an inversion and the same one with every step halved, at all sigmas that both grids have.

    Both run side by side in one program, three times the evaluations of `jaxdiff.invert` with the same arguments. For
    a solver of order p the coarse run's distance from the exact flow is about ``2^p / (2^p - 1)`` times the result.

    Returns
    -------
    sigmas : float64 [steps], the grid without its start
    errors : float32 [steps, B], relative rms ``|x_N - x_2N| / |x_2N|``

    Raises
    ------
    ConfigError : as `jaxdiff.invert`.
    """
    solver = as_solver(solver)
    is_stochastic(solver, up=True)  # is refused: there is one trajectory to converge to, or none
    plan = functools.partial(
        make_plan, pipeline.schedule, steps=steps, tokens=math.prod(latents.shape[1:4]), up=True,
        rounded=rounds(labels, solver, up=True),
    )  # fmt: skip
    coarse = plan(sigmas=sigmas)
    fine = np.empty(2 * coarse.steps + 1)
    fine[::2], fine[1::2] = coarse.sigmas, (coarse.sigmas[:-1] + coarse.sigmas[1:]) / 2
    halved = jax.tree.map(lambda leaf: leaf.reshape(-1, 2), plan(sigmas=fine).scanned()[0])
    latents = jnp.asarray(latents, jnp.float32)
    cond = jax.tree.map(jnp.asarray, as_conditioning(cond))
    placement = placement_of(pipeline, latents)
    errors = _side_by_side(pipeline, latents, cond, coarse.scanned()[0], halved, solver=solver, placement=placement)
    return coarse.sigmas[1:], errors


@functools.partial(jax.jit, static_argnames=("solver", "placement"))
def _side_by_side(pipeline, latents, cond, coarse, halved, *, solver, placement) -> jax.Array:
    """Relative rms [steps, B] between one step and its two halves, along the trajectory."""

    def run(whole, clips):
        return _side_by_side_clips(*whole, *clips, solver=solver)

    whole, clips = (pipeline, coarse, halved), (latents, cond)
    return per_device(run, placement, whole, clips, latents.shape[0], lambda axis: PartitionSpec(None, axis))


def _side_by_side_clips(pipeline, coarse, halved, latents, cond, *, solver: Solver) -> jax.Array:

    def velocity(x, sigma, label):
        return pipeline.evaluate(x, sigma, cond, label=label)[0]

    def advance(carry, step):
        x, memory = carry
        start = velocity(x, *solver.start_node(step)) if solver.evaluates_start else None
        return solver.step(velocity, x, start, step, memory), None

    def body(carry, scanned):
        one, two = carry
        step, halves = scanned
        one, _ = advance(one, step)
        two, _ = jax.lax.scan(advance, two, halves)
        return (one, two), _rms(one[0] - two[0]) / _rms(two[0])

    first = jax.tree.map(lambda leaf: leaf[0], coarse)
    first_half = jax.tree.map(lambda leaf: leaf[0, 0], halved)
    carry = tuple((latents, solver.init(velocity, latents, step)) for step in (first, first_half))
    return jax.lax.scan(body, carry, (coarse, halved))[1]


@dataclasses.dataclass(frozen=True)
class Known:
    """How an inversion follows a trajectory that is known; arrays [steps, B] float32, a row for each of `sigmas`.

    Attributes
    ----------
    sigmas : float64 [steps], the grid without its start.
    state : cosine of the inverted state and the one that the video was made through.
    error : their distance, relative rms.
    attention : [steps - 1, B], without the last sigma: cosine of the frame attention maps of all blocks and heads at the two
        states, after the uniform map that all have in common is taken off; None where there are no such maps, or one latent
        frame.
    """

    sigmas: np.ndarray
    state: jax.Array
    error: jax.Array
    attention: jax.Array | None


def known_trajectory(
    pipeline: "Pipeline",
    noise: jax.Array,
    cond: Conditioning | jax.Array,
    *,
    steps: int = 100,
    sigmas: Any = None,
    solver: str | Solver = "euler",
    labels: str | None = None,
    refine: int = 4,
) -> Known:
    """Invert clips whose way from noise is known because they were made on it.

    From `noise` at the end of the grid `AB2`, of second order with `refine` steps for each of the grid's, goes down to clean
    latents; these are inverted on the grid, and the states compared where both have one. What an inversion of a real clip
    hides, its trajectory's own error, is measured; that the clip is one that the model itself makes is what it costs. A
    step takes ``refine + 2`` evaluations, and those of solvers that do not evaluate their start.

    Parameters
    ----------
    noise : [B, T', H', W', C], standard normal.
    others : as in `jaxdiff.invert`.

    Raises
    ------
    ConfigError : as `jaxdiff.invert`.
    """
    solver = as_solver(solver)
    is_stochastic(solver, up=True)  # is refused: it cannot go up
    plan = functools.partial(make_plan, pipeline.schedule, steps=steps, tokens=math.prod(noise.shape[1:4]))
    up = plan(sigmas=sigmas, up=True, rounded=rounds(labels, solver, up=True))
    fine = np.interp(np.arange(up.steps * refine + 1) / refine, np.arange(up.steps + 1), up.sigmas)[::-1]
    down = jax.tree.map(lambda leaf: leaf.reshape(-1, refine), plan(sigmas=fine, up=False, rounded=False).scanned()[0])
    noise = jnp.asarray(noise, jnp.float32)
    cond = jax.tree.map(jnp.asarray, as_conditioning(cond))
    taps = (_MAP,) if MAP_SITE in tap_sites(pipeline) and noise.shape[1] > 1 else ()
    placement = placement_of(pipeline, noise)
    found = _retrace(pipeline, noise, cond, down, up.scanned()[0], solver=solver, taps=taps, placement=placement)
    return Known(up.sigmas[1:], *found)


@functools.partial(jax.jit, static_argnames=("solver", "taps", "placement"))
def _retrace(pipeline, noise, cond, down, up, *, placement, **static):
    """State cosine, relative error and attention cosine, [steps, B] each."""

    def run(whole, clips):
        return _retrace_clips(*whole, *clips, **static)

    return per_device(
        run, placement, (pipeline, down, up), (noise, cond), noise.shape[0], lambda axis: PartitionSpec(None, axis)
    )


def _retrace_clips(pipeline, down, up, noise, cond, *, solver: Solver, taps):
    def velocity(x, sigma, label):
        return pipeline.evaluate(x, sigma, cond, label=label)[0]

    def fine(carry, step):
        x, memory = carry
        return _FINE.step(velocity, x, velocity(x, *step.start), step, memory), None

    def interval(carry, steps):
        carry, _ = jax.lax.scan(fine, carry, steps)
        return carry, carry[0]

    first = jax.tree.map(lambda leaf: leaf[0, 0], down)
    (clean, _), states = jax.lax.scan(interval, (noise, _FINE.init(velocity, noise, first)), down)
    known = jnp.concatenate([states[::-1], noise[None]])  # at every point of the inversion's grid, from its start

    def look(x, node):
        velocity, captured = pipeline.evaluate(x, node.sigma, cond, label=node.label, taps=taps)
        return velocity, *(
            jnp.moveaxis(maps - 1.0 / maps.shape[-1], 1, 0) for maps in captured.values()
        )  # [B, L, K, T', T']

    def body(carry, scanned):
        x, memory = carry
        step, (here, there) = scanned
        node, attention = solver.start_node(step), None
        if taps:
            both, maps = jax.vmap(look, (0, None))(jnp.stack([x, here]), node)
            start, attention = both[0], _cosine(*maps)
        elif solver.evaluates_start:
            start = velocity(x, *node)
        x, memory = solver.step(velocity, x, start if solver.evaluates_start else None, step, memory)
        return (x, memory), (_cosine(x, there), _rms(x - there) / _rms(there), attention)

    memory = solver.init(velocity, clean, jax.tree.map(lambda leaf: leaf[0], up))
    _, (state, error, attention) = jax.lax.scan(body, (clean, memory), (up, (known[:-1], known[1:])))
    return state, error, None if attention is None else attention[1:]


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    axes = tuple(range(1, a.ndim))
    return (a * b).sum(axes) / _norm((a * a).sum(axes) * (b * b).sum(axes))


def way_back(solver: str | Solver) -> str | Solver:
    """With what to sample back from an inversion by `solver`: itself if it is of second order or more, else `Euler`, whose
    steps `FixedPoint` undoes exactly and `DDIMLabel` in its first approximation."""
    solver = as_solver(solver)
    return solver if solver.order > 1 else "euler"


def reconstruct(
    pipeline: "Pipeline",
    trajectory: Trajectory,
    cond: Conditioning | jax.Array,
    solver: str | Solver = "euler",
) -> jax.Array:
    """Sample back from an inversion's end on its own grid reversed, with its kind of labels; `solver` as `way_back` has it.

    Returns
    -------
    [B, T', H', W', C] float32 latents, for `round_trip` and for `Pipeline.decode`.
    """
    grid = trajectory.sigmas[::-1]
    return sample(pipeline, trajectory.latents, cond, sigmas=grid, solver=solver, labels=trajectory.labels).latents


def round_trip(latents: jax.Array, reconstruction: jax.Array) -> Errors:
    """How well sampling returned to where the inversion started.

    Parameters
    ----------
    latents, reconstruction : [B, T', H', W', C]

    Returns
    -------
    {"round_trip_rms", "round_trip_psnr"}: [B] float32; rms of the difference in units of the latents, and
    ``10 log10(range^2 / mse)`` in dB with the range (maximum - minimum) of the clip's own latents, at most
    120.
    """
    latents, reconstruction = jnp.asarray(latents), jnp.asarray(reconstruction)
    axes = tuple(range(1, latents.ndim))
    rms = _rms(latents - reconstruction)
    peak = latents.max(axes) - latents.min(axes)
    # Constant latents have no range: a PSNR against their own size is the nearest that makes sense.
    peak = jnp.where(peak > 0, peak, jnp.maximum(jnp.abs(latents).max(axes), 1.0))
    psnr = -10 * jnp.log10(jnp.maximum((rms / peak) ** 2, _EXACT))
    return {"round_trip_rms": rms, "round_trip_psnr": psnr}


def noise_statistics(noise: jax.Array) -> Errors:
    """How close an inversion's end state is to white Gaussian noise.

    Parameters
    ----------
    noise : [B, T', H', W', C]

    Returns
    -------
    float32 [B] each; the value of white noise in brackets: "noise_mean" (0), "noise_std" (1),
    "noise_kurtosis" (excess, 0), "noise_channel_correlation" (rms over pairs of channels, about ``(T' H'
    W')^-1/2``), and the lag-1 correlations between neighbours "noise_correlation_time", "_height", "_width"
    (0). A correlation along an axis of length 1, or between fewer than two channels, is left out.
    """
    noise = jnp.asarray(noise, jnp.float32)
    axes = tuple(range(1, noise.ndim))
    mean, std = noise.mean(axes), noise.std(axes)
    centred = noise - noise.mean(axes, keepdims=True)
    variance = jnp.maximum(std**2, 1e-12)  # its square must not underflow
    result = {
        "noise_mean": mean,
        "noise_std": std,
        "noise_kurtosis": (centred**4).mean(axes) / variance**2 - 3.0,
    }
    for name, axis in (("time", 1), ("height", 2), ("width", 3)):
        size = noise.shape[axis]
        if size > 1:
            a = jax.lax.slice_in_dim(centred, 0, size - 1, axis=axis)
            b = jax.lax.slice_in_dim(centred, 1, size, axis=axis)
            result[f"noise_correlation_{name}"] = (a * b).sum(axes) / _norm((a * a).sum(axes) * (b * b).sum(axes))
    channels = noise.shape[-1]
    if channels > 1:
        flat = noise.reshape(noise.shape[0], -1, channels)
        flat = flat - flat.mean(1, keepdims=True)
        covariance = jnp.einsum("bnc,bnd->bcd", flat, flat, precision="highest")
        power = jnp.einsum("bcc->bc", covariance)
        correlation = covariance / _norm(power[:, :, None] * power[:, None, :])
        off_diagonal = correlation * (1 - jnp.eye(channels))
        result["noise_channel_correlation"] = jnp.sqrt((off_diagonal**2).sum((1, 2)) / (channels * (channels - 1)))
    return result


def _rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))


def _norm(square: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(jnp.float32).tiny))
