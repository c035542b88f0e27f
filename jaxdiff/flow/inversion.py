"""Running a pipeline's field over a sigma grid, clean to noise or back, and reading the network on the way.

One jitted `lax.scan` over the steps. Weights, grid, labels and capture slots are its arguments, so that
another checkpoint of the same shape, or another grid of the same length, runs the same program.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxdiff.conditioning import Conditioning, as_conditioning
from jaxdiff.errors import ConfigError, NonFiniteError
from jaxdiff.flow import guidance
from jaxdiff.flow.placement import Placement, per_device, placement_of
from jaxdiff.flow.plan import Captures, Plan, make_plan, rounds
from jaxdiff.flow.solvers import Node, Solver, as_solver
from jaxdiff.taps import Edit, Full, Tap

if TYPE_CHECKING:
    from jaxdiff.pipeline import Pipeline

_LOG = logging.getLogger(__name__)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["latents", "sigmas", "captured", "capture_sigmas", "capture_labels", "failed_at"],
    meta_fields=["evaluations", "labels"],
)
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What a run leaves behind; a pytree.

    Attributes
    ----------
    latents : [B, T', H', W', C] float32, the end state.
    sigmas : [steps + 1], the grid that was walked, `capture_sigmas` included.
    captured : tap name -> [captured, rows, B, ...]; empty when a sink took them.
    capture_sigmas : [captured], the sigma of each captured state.
    capture_labels : [captured], the sigma whose timestep the network was told there.
    failed_at : int32 [B], the step whose result was first not finite, -1 for none.
    evaluations : forward passes of the network, those made only to read it included.
    labels : "sigma" or "scheduler", whose timesteps the network was told.
    """

    latents: jax.Array
    sigmas: Any
    captured: dict[str, jax.Array]
    capture_sigmas: Any
    capture_labels: Any
    failed_at: jax.Array
    evaluations: int
    labels: str


class DivergedError(NonFiniteError):
    """A state became NaN or infinite.

    Attributes
    ----------
    clips : indices into the batch, ascending
    step, sigma : where the first of them failed
    trajectory : what was computed, None if the input itself was not finite. The other clips' parts are good.
    """

    def __init__(self, message: str, clips: Sequence[int], step: int, sigma: float, trajectory: Trajectory | None):
        super().__init__(message)
        self.clips, self.step, self.sigma, self.trajectory = list(clips), step, sigma, trajectory


def invert(
    pipeline: "Pipeline",
    latents: jax.Array,
    cond: Conditioning | jax.Array,
    *,
    steps: int = 100,
    sigmas: Any = None,
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
    solver : a name of `jaxdiff.flow.SOLVERS` or a solver object.
    taps : what to read; at every step unless told otherwise by the next two.
    capture_at : numbers of the steps at whose start to read, -1 being the last one; the number of steps
        itself stands for the end state and costs one more forward pass. Counted on the grid before
        insertions.
    capture_sigmas : sigmas to read at. Those the grid does not have (to within 1e-5) are put in, as further
        steps.
    edits : what to write into the network, at every evaluation.
    sink : object with ``emit(captured, slot)`` that takes captures away while the loop runs
        (`ActivationStore.sink`).
    key : `jax.random` key for the edits, default seed 0. Every step gets its own.
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
        pipeline, latents, cond, None, 1.0, up=True, steps=steps, sigmas=sigmas, solver=solver, taps=taps,
        capture_at=capture_at, capture_sigmas=capture_sigmas, edits=edits, sink=sink, key=key, labels=labels,
    )  # fmt: skip


def sample(
    pipeline: "Pipeline",
    noise: jax.Array,
    cond: Conditioning | jax.Array,
    *,
    guidance_scale: float = 1.0,
    negative: Conditioning | jax.Array | None = None,
    steps: int = 100,
    sigmas: Any = None,
    solver: str | Solver = "euler",
    taps: Sequence[Tap] = (),
    capture_at: Sequence[int] | None = None,
    capture_sigmas: Sequence[float] | None = None,
    edits: Sequence[Edit] = (),
    sink: Any = None,
    key: jax.Array | None = None,
    labels: str | None = None,
) -> Trajectory:
    """Run the flow forwards: from noise down to clean latents.

    Parameters
    ----------
    noise : [B, T', H', W', C], standard normal.
    guidance_scale : w of classifier-free guidance ``u + w (c - u)``; 1 turns it off.
    negative : conditioning of u, same fields and shapes as `cond`. Both go through the network as one batch
        of 2B; taps read the conditional rows, edits are handed rows (2b, 2b + 1) = (conditional,
        unconditional) of clip b.
    sigmas : another grid, descending within [0, 1].
    labels : as in `invert`; default "scheduler".
    others : as in `invert`.

    Returns
    -------
    `Trajectory`; its latents go to `Pipeline.decode`.

    Raises
    ------
    ConfigError, DivergedError : as `invert`.
    """
    return _walk(
        pipeline, noise, cond, negative, guidance_scale, up=False, steps=steps, sigmas=sigmas, solver=solver,
        taps=taps, capture_at=capture_at, capture_sigmas=capture_sigmas, edits=edits, sink=sink, key=key,
        labels=labels,
    )  # fmt: skip


def _walk(
    pipeline, latents, cond, negative, scale, *, up, steps, sigmas, solver, taps, capture_at, capture_sigmas,
    edits, sink, key, labels,
) -> Trajectory:  # fmt: skip
    solver, taps, edits = as_solver(solver), tuple(taps), tuple(edits)
    rounded = rounds(labels, solver, up=up)
    plan = make_plan(
        pipeline.schedule, steps=steps, sigmas=sigmas, tokens=math.prod(np.shape(latents)[1:4]), up=up,
        rounded=rounded, reads=bool(taps), capture_at=capture_at, capture_sigmas=capture_sigmas,
    )  # fmt: skip
    if sink is not None and not taps:
        raise ConfigError("a sink takes what taps read, but there are no taps=")
    latents = jnp.asarray(latents, jnp.float32)
    cond = jax.tree.map(jnp.asarray, as_conditioning(cond))
    if guidance.is_off(scale, negative):
        negative, scale = None, None
    else:
        negative = jax.tree.map(jnp.asarray, as_conditioning(negative))
        scale = jnp.asarray(scale, jnp.float32)
    if edits and key is None:
        key = jax.random.key(0)
    _announce(pipeline, latents, cond, taps, plan)
    _check_start(latents, plan)

    end, captured, failed_at = _run(
        pipeline, latents, cond, negative, scale, plan.scanned(), key if edits else None, sink,
        solver=solver, taps=taps, edits=edits, captures=plan.captures,
        placement=placement_of(pipeline, latents),
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
    )
    _check_end(trajectory)
    return trajectory


@functools.partial(jax.jit, static_argnames=("solver", "taps", "edits", "captures", "placement"))
def _run(pipeline, latents, cond, negative, scale, scanned, key, sink, *, placement: Placement | None, **static):
    """The whole run as one program; see the module's docstring."""

    def run(whole, clips):
        pipeline, scale, scanned, key = whole
        latents, cond, negative, sink = clips
        return _run_clips(pipeline, latents, cond, negative, scale, scanned, key, sink, **static)

    def out_specs(axis):
        return PartitionSpec(axis), PartitionSpec(None, None, axis), PartitionSpec(axis)

    whole, clips = (pipeline, scale, scanned, key), (latents, cond, negative, sink)
    return per_device(run, placement, whole, clips, latents.shape[0], out_specs)


def _run_clips(
    pipeline, latents, cond, negative, scale, scanned, key, sink, *, solver, taps, edits, captures: Captures
):
    """End state [B, ...], captures {name: [captured, rows, B, ...]} and the failing step [B]."""
    batch = latents.shape[0]
    both = None if negative is None else guidance.pair(cond, negative, batch)

    def evaluate(x, node: Node, step_key, taps=()):
        """Velocity [B, ...] and captures {name: [rows, B, ...]}, guided or not."""
        ask = functools.partial(
            pipeline.evaluate, sigma=node.sigma, label=node.label, taps=taps, edits=edits, key=step_key
        )
        if both is None:
            return ask(x, cond=cond)
        velocity, captured = ask(guidance.double(x), cond=both)
        captured = {name: guidance.halves(value, axis=1)[0] for name, value in captured.items()}
        return guidance.mix(velocity, scale), captured

    def record(buffers, captured, slot):
        if sink is not None:
            sink.emit(captured, slot)
            return buffers
        return {
            name: jax.lax.dynamic_update_index_in_dim(buffer, captured[name], slot, 0)
            for name, buffer in buffers.items()
        }

    def read(x, node, step_key, slot, buffers, *, needed: bool):
        """Evaluate at `node`, with the taps where there is a slot for them. Unless the velocity is `needed`,
        a step without a slot costs nothing."""

        def with_taps(buffers):
            velocity, captured = evaluate(x, node, step_key, taps)
            return velocity if needed else None, record(buffers, captured, slot)

        def without(buffers):
            return evaluate(x, node, step_key)[0] if needed else None, buffers

        if captures.every:
            return with_taps(buffers)
        if captures.count == captures.end:
            return without(buffers)
        return jax.lax.cond(slot >= 0, with_taps, without, buffers)

    def body(carry, scanned):
        x, memory, buffers, failed_at = carry
        step, slot, number = scanned
        step_key = None if key is None else jax.random.fold_in(key, number)

        def velocity(x, sigma, label):
            return evaluate(x, Node(sigma, label), step_key)[0]

        start, buffers = read(x, solver.start_node(step), step_key, slot, buffers, needed=solver.evaluates_start)
        x, memory = solver.step(velocity, x, start, step, memory)
        bad = ~jnp.isfinite(x).all(range(1, x.ndim))
        return (x, memory, buffers, jnp.where((failed_at < 0) & bad, number, failed_at)), None

    first = jax.tree.map(lambda leaf: leaf[0], scanned[0])
    last = jax.tree.map(lambda leaf: leaf[-1], scanned[0])
    first_key = None if key is None else jax.random.fold_in(key, 0)
    buffers = {}
    if captures.count and sink is None:
        shapes = jax.eval_shape(lambda: evaluate(latents, first.start, first_key, taps)[1])
        buffers = {name: jnp.zeros((captures.count, *shape.shape), shape.dtype) for name, shape in shapes.items()}
    memory = solver.init(lambda x, *node: evaluate(x, Node(*node), first_key)[0], latents, first)
    carry = (latents, memory, buffers, jnp.full(batch, -1, jnp.int32))
    (x, _, buffers, failed_at), _ = jax.lax.scan(body, carry, scanned)
    if captures.end:
        last_key = None if key is None else jax.random.fold_in(key, len(scanned[1]))
        captured = evaluate(x, last.end, last_key, taps)[1]
        buffers = record(buffers, captured, jnp.int32(captures.count - 1))
    return x, buffers, failed_at


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


def _check_start(latents: jax.Array, plan: Plan) -> None:
    finite = _finite(latents)
    if isinstance(finite, jax.core.Tracer):
        return
    clips = np.flatnonzero(~np.asarray(finite))
    if len(clips):
        sigma = _number(plan.sigmas[0])
        raise DivergedError(
            f"the latents of clip(s) {_list(clips)} of the batch are not finite before step 0, at sigma "
            f"{sigma:g}; look at the video and at its encoding",
            clips.tolist(), 0, sigma, None,
        )  # fmt: skip


def _check_end(trajectory: Trajectory) -> None:
    """The only wait for the device in a run."""
    if isinstance(trajectory.failed_at, jax.core.Tracer):
        return
    failed_at = np.asarray(trajectory.failed_at)
    clips = np.flatnonzero(failed_at >= 0)
    if len(clips):
        step = int(failed_at[clips].min())
        first = clips[failed_at[clips] == step]
        sigma, end = (_number(trajectory.sigmas[i]) for i in (step, step + 1))
        raise DivergedError(
            f"the state of clip(s) {_list(first)} of the batch became non-finite in step {step} of "
            f"{len(trajectory.sigmas) - 1}, from sigma {sigma:g} to {end:g}"
            + (f"; clip(s) {_list(clips)} in all" if len(clips) > len(first) else "")
            + "; a bfloat16 model or a large step may overflow: try dtype=float32 or more steps",
            clips.tolist(), step, sigma, trajectory,
        )  # fmt: skip


@jax.jit
def _finite(x: jax.Array) -> jax.Array:
    return jnp.isfinite(x).all(range(1, x.ndim))


def _number(sigma: Any) -> float:
    return float("nan") if isinstance(sigma, jax.core.Tracer) else float(sigma)


def _list(clips: np.ndarray) -> str:
    return ", ".join(map(str, clips[:8])) + (", ..." if len(clips) > 8 else "")
