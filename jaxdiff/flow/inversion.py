"""Running a pipeline's field over a sigma grid, clean to noise or back, and reading the network on the way.

One jitted `lax.scan` over the steps. Weights, grid, labels and capture slots are its arguments, so that
another checkpoint of the same shape, or another grid of the same length, runs the same program.
"""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxdiff.conditioning import Conditioning, as_conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import guidance
from jaxdiff.flow.backward import Backward
from jaxdiff.flow.placement import Placement, captured_specs, check_tokens, per_device, placement_of
from jaxdiff.flow.plan import Captures, Plan, make_plan, rounds
from jaxdiff.flow.solvers import Node, Solver, as_solver, is_stochastic, white_noise
from jaxdiff.flow.trajectory import Trajectory, check_end, check_start
from jaxdiff.taps import Edit, Full, Tap, is_batched

if TYPE_CHECKING:
    from jaxdiff.pipeline import Pipeline

_LOG = logging.getLogger(__name__)
_NOISE, _BACKWARD = 2**31 - 1, 2**31 - 2  # no step has these numbers, whose keys are an edit's


def invert(
    pipeline: "Pipeline",
    latents: jax.Array,
    cond: Conditioning | jax.Array,
    *,
    steps: int = 100,
    sigmas: Any = None,
    start_sigma: float | None = None,
    solver: str | Solver = "euler",
    taps: Sequence[Tap] = (),
    capture_at: Sequence[int] | None = None,
    capture_sigmas: Sequence[float] | None = None,
    edits: Sequence[Edit] = (),
    sink: Any = None,
    key: jax.Array | None = None,
    labels: str | None = None,
) -> Trajectory:
    """Run the flow backwards: from clean latents up to noise.

    Solves ``dx / dsigma = pipeline.velocity(x, sigma, cond)`` from sigma 0 to about 1 (arXiv 2606.05328,
    inversion without guidance).

    Parameters
    ----------
    pipeline : the checkpoint; see `jaxdiff.load`.
    latents : [B, T', H', W', C], as `Pipeline.encode` gives them.
    cond : `Conditioning`, or text embeddings [B or 1, N, text_dim].
    steps : steps of the checkpoint's own grid.
    sigmas : another grid, [steps + 1] ascending within [0, 1]; `steps` is then not looked at.
    start_sigma : take the latents for the state at this sigma, and leave out what the grid has before it. Some
        networks were not trained down to sigma 0 (``pipeline.schedule.sigma_min_trained``), and on some grids the first
        step from there is the longest. ``Trajectory.start_sigma`` and ``.end_sigma`` record both ends.
    solver : a name of `jaxdiff.flow.SOLVERS` or a solver object.
    taps : what to read; at every step unless told otherwise by the next two.
    capture_at : numbers of the steps at whose start to read, -1 being the last one; the number of steps
        itself stands for the end state and costs one more forward pass. Counted on the grid from
        `start_sigma` on and before insertions.
    capture_sigmas : sigmas to read at. Those the grid does not have (to within 1e-5) are put in, as further
        steps.
    edits : what to write into the network, at every evaluation.
    sink : object with ``emit(captured, slot)`` that takes captures away while the loop runs
        (`ActivationStore.sink`).
    key : `jax.random` key for the edits, default seed 0, or a key a clip, [B], which edits are then handed so. Every step
        gets its own.
    labels : "sigma": the network is told each state's own timestep, unrounded; "scheduler": the scheduler's
        integer ones where it has them. Default: "scheduler" for `ddim_label`, else "sigma".

    Returns
    -------
    `Trajectory`

    Raises
    ------
    ConfigError : arguments that do not fit together or not to this checkpoint, before anything runs.
    DivergedError (a `NonFiniteError`) : a state became NaN or infinite; names clips, step and sigma. Not
        checked under a caller's own `jit`, `vmap` or `grad`; look at ``Trajectory.failed_at`` there.
    """
    return _walk(
        pipeline, latents, cond, None, 1.0, None, up=True, steps=steps, sigmas=sigmas, start_sigma=start_sigma,
        solver=solver, taps=taps, capture_at=capture_at, capture_sigmas=capture_sigmas, edits=edits, sink=sink,
        key=key, labels=labels, backward=None,
    )  # fmt: skip


def sample(
    pipeline: "Pipeline",
    noise: jax.Array,
    cond: Conditioning | jax.Array,
    *,
    guidance_scale: float | Callable = 1.0,
    negative: Conditioning | jax.Array | None = None,
    guide: guidance.Guide | None = None,
    steps: int = 100,
    sigmas: Any = None,
    solver: str | Solver | None = None,
    taps: Sequence[Tap] = (),
    capture_at: Sequence[int] | None = None,
    capture_sigmas: Sequence[float] | None = None,
    edits: Sequence[Edit] = (),
    sink: Any = None,
    key: jax.Array | None = None,
    labels: str | None = None,
    backward: Backward | None = None,
) -> Trajectory:
    """Run the flow forwards: from noise down to clean latents.

    Parameters
    ----------
    noise : [B, T', H', W', C], standard normal.
    guidance_scale : w of classifier-free guidance ``u + w (c - u)``; 1 turns it off. A function
        ``f(timesteps [steps], steps) -> [steps]`` gives every step its own, as `jaxdiff.flow.DynamicGuidance` does.
    negative : conditioning of u, same fields and shapes as `cond`; image, fps and extra are those of `cond` where it
        has none. Both go through the network as one batch of 2B; taps read the conditional rows, edits are handed
        rows (2b, 2b + 1) = (conditional, unconditional) of clip b.
    guide : changes the mixed field at every evaluation of every step (`jaxdiff.flow.Guide`, for one
        `jaxdiff.lamo.MotionGuidance`); what it reports of the evaluation at a step's start is in ``Trajectory.metrics``.
        For solvers that evaluate there: not for `fireflow` and `fixed_point`.
    sigmas : another grid, descending within [0, 1].
    solver : as in `invert`, or "scheduler": the steps of the folder's own scheduler (``pipeline.schedule.solver``),
        for a sample as the published pipeline makes it. Default: "scheduler", and "euler" on a grid of yours.
    key : also for solvers that add noise, default seed 0. Every clip of the batch and every step has its own; for
        noise that does not depend on the clip's place in the batch give a key a clip, [B].
    labels : as in `invert`; default "scheduler".
    backward : for gradients through the sample under a caller's `jax.grad` (`jaxdiff.flow.Backward`); without it JAX keeps
        what every step computed. Its mode "random" needs `key`.
    others : as in `invert`.

    Returns
    -------
    `Trajectory`; its latents go to `Pipeline.decode`.

    Raises
    ------
    ConfigError, DivergedError : as `invert`.
    """
    if solver is None:
        solver = "scheduler" if sigmas is None else "euler"
    if isinstance(solver, str) and solver == "scheduler":
        solver = pipeline.schedule.solver
    return _walk(
        pipeline, noise, cond, negative, guidance_scale, guide, up=False, steps=steps, sigmas=sigmas, start_sigma=None,
        solver=solver, taps=taps, capture_at=capture_at, capture_sigmas=capture_sigmas, edits=edits, sink=sink,
        key=key, labels=labels, backward=backward,
    )  # fmt: skip


def _walk(
    pipeline, latents, cond, negative, scale, guide, *, up, steps, sigmas, start_sigma, solver, taps, capture_at,
    capture_sigmas, edits, sink, key, labels, backward,
) -> Trajectory:  # fmt: skip
    solver, taps, edits = as_solver(solver), tuple(taps), tuple(edits)
    rounded, stochastic = rounds(labels, solver, up=up), is_stochastic(solver, up=up)
    guide = guidance.acting(guide)
    if guide is not None:
        guidance.check_solver(solver)
    plan = make_plan(
        pipeline.schedule, steps=steps, sigmas=sigmas, tokens=math.prod(np.shape(latents)[1:4]), up=up,
        rounded=rounded, start_sigma=start_sigma, reads=bool(taps), capture_at=capture_at, capture_sigmas=capture_sigmas,
    )  # fmt: skip
    if sink is not None and not taps:
        raise ConfigError("a sink takes what taps read, but there are no taps=")
    latents = jnp.asarray(latents, jnp.float32)
    placement = placement_of((pipeline, guide), latents)
    check_tokens(latents, sink, taps, placement)
    cond = jax.tree.map(jnp.asarray, as_conditioning(cond))
    if guidance.is_off(scale, negative):
        negative, scale = None, None
    else:
        negative = jax.tree.map(jnp.asarray, as_conditioning(negative))
        timesteps = pipeline.schedule.timestep(plan.labels[:-1])
        scale = guidance.scales(scale, timesteps, steps if sigmas is None else len(sigmas) - 1)
    if (edits or stochastic) and key is None:
        key = jax.random.key(0)
    noise_keys = _clip_keys(key, latents.shape[0]) if stochastic else None
    edit_keys = None
    if edits and key is not None and is_batched(key):
        edit_keys = _clip_keys(key, latents.shape[0])
    backward_key = None
    if backward is not None and backward.mode == "random" and key is not None:
        backward_key = jax.random.fold_in(key[0] if is_batched(key) else key, _BACKWARD)
    _announce(pipeline, latents, cond, taps, plan)
    check_start(latents, plan.sigmas)

    end, captured, failed_at, metrics = _run(
        pipeline, latents, cond, negative, scale, plan.scanned(), key if edits and edit_keys is None else None, edits, sink,
        noise_keys, edit_keys, guide, backward_key, solver=solver, taps=taps, captures=plan.captures, backward=backward,
        placement=placement,
    )  # fmt: skip
    capture_sigmas, capture_labels = plan.captured_places(solver)
    trajectory = Trajectory(
        latents=end,
        sigmas=plan.sigmas,
        captured=captured,
        capture_sigmas=capture_sigmas,
        capture_labels=capture_labels,
        failed_at=failed_at,
        evaluations=plan.evaluations(solver),
        labels="scheduler" if rounded else "sigma",
        metrics=metrics,
    )
    check_end(trajectory)
    return trajectory


@functools.partial(jax.jit, static_argnames=("solver", "taps", "captures", "backward", "placement"))
def _run(
    pipeline, latents, cond, negative, scale, scanned, key, edits, sink, noise_keys, edit_keys, guide, backward_key, *,
    placement: Placement | None, **static,
):  # fmt: skip
    """The whole run as one program; see the module's docstring."""

    def run(whole, clips):
        pipeline, scale, scanned, key, edits, guide, backward_key = whole
        latents, cond, negative, sink, noise_keys, edit_keys = clips
        key = key if edit_keys is None else edit_keys
        return _run_clips(
            pipeline, latents, cond, negative, scale, scanned, key, edits, sink, noise_keys, guide, backward_key, **static,
        )  # fmt: skip

    def out_specs(axis):
        captured = captured_specs(static["taps"], axis, placement) if returned else PartitionSpec()
        return PartitionSpec(axis), captured, PartitionSpec(axis), PartitionSpec(None, axis)

    whole = pipeline, scale, scanned, key, edits, guide, backward_key
    clips = latents, cond, negative, sink, noise_keys, edit_keys
    returned = sink is None and static["captures"].count > 0
    return per_device(run, placement, whole, clips, latents.shape[0], out_specs)


def _run_clips(
    pipeline,
    latents,
    cond,
    negative,
    scales,
    scanned,
    key,
    edits,
    sink,
    noise_keys,
    guide,
    backward_key,
    *,
    solver,
    taps,
    captures: Captures,
    backward: Backward | None,
):
    """End state [B, ...], captures {name: [captured, rows, B, ...]}, failing step [B], metrics {name: [steps, B]}."""
    batch, steps = latents.shape[0], len(scanned[1])
    both = None if negative is None else guidance.pair(cond, negative, batch)
    told = cond if guide is None else guidance.per_clip(cond, batch)
    if both is not None and key is not None and is_batched(key):
        key = guidance.double(key)

    def evaluate(x, node: Node, scale, step_key, taps=()):
        """Velocity [B, ...] and captures {name: [rows, B, ...]}, guided or not."""
        ask = functools.partial(
            pipeline.evaluate, sigma=node.sigma, label=node.label, taps=taps, edits=edits, key=step_key
        )
        if both is None:
            return ask(x, cond=cond)
        velocity, captured = ask(guidance.double(x), cond=both)
        captured = {name: guidance.halves(value, axis=1)[0] for name, value in captured.items()}
        return guidance.mix(velocity, scale), captured

    def led(x, velocity, node: Node, number):
        """What the guide makes of the field's answer in step `number`, and what it reports."""
        if guide is None:
            return velocity, {}
        velocity, metrics = guide(x, velocity, node.sigma, number / steps, told)
        if told.image_latents is not None:  # frames that an image fixes are not the guide's
            velocity = pipeline.family.hold(velocity, x, node.sigma, told)
        return velocity, metrics

    def record(buffers, captured, slot):
        if sink is not None:
            sink.emit(captured, slot)
            return buffers
        return {
            name: jax.lax.dynamic_update_index_in_dim(buffer, captured[name], slot, 0)
            for name, buffer in buffers.items()
        }

    def read(x, node, scale, step_key, slot, buffers, *, needed: bool):
        """Evaluate at `node`, with the taps where there is a slot for them. Unless the velocity is `needed`,
        a step without a slot costs nothing."""

        def with_taps(buffers):
            velocity, captured = evaluate(x, node, scale, step_key, taps)
            return velocity if needed else None, record(buffers, captured, slot)

        def without(buffers):
            return evaluate(x, node, scale, step_key)[0] if needed else None, buffers

        if captures.every:
            return with_taps(buffers)
        if captures.count == captures.end:
            return without(buffers)
        return jax.lax.cond(slot >= 0, with_taps, without, buffers)

    def body(carry, scanned):
        x, memory, buffers, failed_at = carry
        (step, slot, number), scale = scanned
        step_key = None if key is None else _fold_in(key, number)
        if noise_keys is not None:
            step = step._replace(noise=jax.vmap(white_noise, (0, None, 0))(noise_keys, number, x))
        node, metrics = solver.start_node(step), {}

        def velocity(x, sigma, label):
            node = Node(sigma, label)
            return led(x, evaluate(x, node, scale, step_key)[0], node, number)[0]

        start, buffers = read(x, node, scale, step_key, slot, buffers, needed=solver.evaluates_start)
        if solver.evaluates_start:
            start, metrics = led(x, start, node, number)
        x, memory = solver.step(velocity, x, start, step, memory)
        bad = ~jnp.isfinite(x).all(range(1, x.ndim))
        return (x, memory, buffers, jnp.where((failed_at < 0) & bad, number, failed_at)), metrics

    first = jax.tree.map(lambda leaf: leaf[0], scanned[0])
    last = jax.tree.map(lambda leaf: leaf[-1], scanned[0])
    first_key = None if key is None else _fold_in(key, 0)
    first_scale, last_scale = (None, None) if scales is None else (scales[0], scales[-1])
    buffers = {}
    if captures.count and sink is None:
        shapes = jax.eval_shape(lambda: evaluate(latents, first.start, first_scale, first_key, taps)[1])
        buffers = {name: jnp.zeros((captures.count, *shape.shape), shape.dtype) for name, shape in shapes.items()}
    memory = solver.init(lambda x, *node: evaluate(x, Node(*node), first_scale, first_key)[0], latents, first)
    carry = (latents, memory, buffers, jnp.full(batch, -1, jnp.int32))
    if backward is None:
        (x, _, buffers, failed_at), metrics = jax.lax.scan(body, carry, (scanned, scales))
    else:
        (x, _, buffers, failed_at), metrics = backward.scan(body, carry, (scanned, scales), backward_key)
    if captures.end:
        last_key = None if key is None else _fold_in(key, steps)
        captured = evaluate(x, last.end, last_scale, last_key, taps)[1]
        buffers = record(buffers, captured, jnp.int32(captures.count - 1))
    return x, buffers, failed_at, metrics


def _fold_in(key: jax.Array, number) -> jax.Array:
    """The key, or every clip's, of step `number`."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, number) if is_batched(key) else jax.random.fold_in(key, number)


def _clip_keys(key: jax.Array, batch: int) -> jax.Array:
    """A key for each clip's noise, [batch], so that it does not depend on which device the clip is on."""
    if is_batched(key):
        if key.shape != (batch,):
            raise ConfigError(f"key must be one key or one a clip, [{batch}], got {key.shape}")
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, _NOISE), jnp.arange(batch))


def _announce(pipeline, latents: jax.Array, cond: Conditioning, taps: tuple[Tap, ...], plan: Plan) -> None:
    """Say what whole-token captures will weigh, before they are made."""
    full = tuple(tap for tap in taps if isinstance(tap.reducer, Full))
    if not full:
        return
    for name, shape in pipeline.tap_shapes(full, latents.shape, cond).items():
        size = len(plan.nodes) * shape.size * shape.dtype.itemsize
        _LOG.warning(
            "tap %s keeps every token: %d captures of %s %s, %.3f GB",
            name, len(plan.nodes), list(shape.shape), shape.dtype, size / 1e9,
        )  # fmt: skip
