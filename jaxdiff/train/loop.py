"""The one training loop: optax updates, an exponential moving average, Orbax checkpoints, bit-identical resume."""

import contextlib
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxdiff.errors import CheckpointError, NonFiniteError
from jaxdiff.mesh import SEQ, replicate, shard_batch

AHEAD = 2  # batches that are made while a step runs

Loss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Optimiser and length of a run.

    The learning rate warms up linearly over `warmup` steps, is constant, and falls linearly to zero over the last
    `decay` fraction of the steps.
    """

    steps: int = 2400
    learning_rate: float = 2e-3
    warmup: int = 30
    decay: float = 0.4
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.998
    seed: int = 0

    def optimizer(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(self._learning_rate, b2=self.b2, weight_decay=self.weight_decay),
        )

    def _learning_rate(self, step):
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * jnp.minimum(jnp.minimum((step + 1) / max(1, self.warmup), 1.0), left)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "ema", "opt_state"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a run needs to continue: step (int32 scalar), weights, their moving average, optimiser state."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any

    @classmethod
    def create(cls, params, recipe: Recipe) -> "TrainState":
        # The step donates both: neither may be a second name of the other, or of what the caller still holds.
        params, ema = jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, params)
        return cls(jnp.zeros((), jnp.int32), params, ema, recipe.optimizer().init(params))


def fit(
    loss: Loss,
    params: Any,
    recipe: Recipe,
    data: Any,
    *,
    batches: Callable[[int], Any] | None = None,
    mesh: Mesh | None = None,
    workdir: Path | None = None,
    checkpoint_every: int = 250,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    report_every: int = 25,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    evaluate_every: int = 1000,
    average: bool = False,
) -> TrainState:
    """Train `params`; continue from the newest checkpoint in `workdir` if there is one.

    Every random number of step i is drawn from ``fold_in(key(seed), i)``, so an interrupted and resumed run ends in
    the same bits as an uninterrupted one.

    Parameters
    ----------
    loss : ``loss(params, data, key) -> (scalar, metrics)``; draws its own batch from `data` with `key`.
    params : nested dict of arrays, the start.
    data : pytree of arrays handed to `loss` at every step (an argument of the compiled step, not a constant).
    batches : ``batches(i)`` is the batch of step i, a pytree of host arrays [B, ...] that i alone decides; then `loss` is
        handed the pair (data, batch). A thread makes batches while steps run.
    mesh : where the step runs. Batches are split over its axes "data" and "fsdp"; `params` and `data` that lie on the mesh already
        stay as they are split, averages and optimiser state like them, and all else is replicated.
    workdir : checkpoints go to ``workdir/checkpoints/<step>``; None keeps none.
    report : called every `report_every` steps and at the last one with the metrics of that step (host floats), "loss"
        and "seconds_per_step" among them. Only then, and to save, does the host wait for the device.
    evaluate : called every `evaluate_every` steps and at the last one with the state, which it must not keep (the next step
        overwrites it); its numbers are reported with the step's own, and its time counts as the steps'.
    average : hand `loss` the moving average of the parameters before the step as a fourth argument.

    Raises
    ------
    CheckpointError : the checkpoint in `workdir` is of other parameters.
    NonFiniteError : the loss or its gradient is NaN or infinite. The state stays as it was before that step, and is the
        newest checkpoint.
    """
    state = TrainState.create(params, recipe)
    if mesh is not None:
        state, data = replicate(state, mesh), replicate(data, mesh)
    manager = None
    if workdir is not None:
        import orbax.checkpoint as ocp

        manager = ocp.CheckpointManager(
            Path(workdir).absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(max_to_keep=2),
            item_handlers=ocp.StandardCheckpointHandler(),
        )
        newest = manager.latest_step()
        if newest is not None:
            found, wanted = _shapes(manager.item_metadata(newest).tree["params"]), _shapes(state.params)
            if found != wanted:
                odd = sorted(found.items() ^ wanted.items())[0]
                raise CheckpointError(
                    f"{workdir}/checkpoints/{newest} is of other parameters than are trained here, of another model or another "
                    f"LoRA; {odd[0]} {list(odd[1])}, for one, is in one of them alone"
                )
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(newest, args=ocp.args.StandardRestore(abstract))

    def save(step: int, state: TrainState) -> None:
        if manager is not None and step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(state))

    placed = None if mesh is None else (jax.tree.map(lambda leaf: leaf.sharding, state), None)
    step_of = jax.jit(update(loss, recipe, average=average, mesh=mesh), donate_argnums=0, out_shardings=placed)

    def numbered(step: int) -> Any:
        if batches is None:
            return None
        batch = batches(step)
        return step, jax.device_put(batch) if mesh is None else shard_batch(batch, mesh)

    step = int(state.step)
    since, steps_since = time.perf_counter(), 0
    try:
        with contextlib.closing(_ahead(numbered, step, recipe.steps)) as stream:
            for batch in stream:
                state, metrics = step_of(state, data, batch)
                step, steps_since = step + 1, steps_since + 1
                evaluates = evaluate is not None and (step % evaluate_every == 0 or step == recipe.steps)
                reports = evaluates or step % report_every == 0 or step == recipe.steps
                saves = manager is not None and (step % checkpoint_every == 0 or step == recipe.steps)
                if (reports or saves) and int(state.step) != step:
                    save(int(state.step), state)
                    raise NonFiniteError(
                        f"the training loss or its gradient is not finite in step {int(state.step) + 1} (seen at step {step}; "
                        f"the loss there is {float(metrics['loss'])}); the state before it is kept. Lower the learning rate"
                    )
                if reports:
                    metrics = {name: float(value) for name, value in metrics.items()}
                    if evaluates and evaluate is not None:
                        metrics |= evaluate(state)
                    metrics["seconds_per_step"] = (time.perf_counter() - since) / steps_since
                    since, steps_since = time.perf_counter(), 0
                    report(step, metrics)
                if saves:
                    save(step, state)
    finally:  # a save runs in the background; what stops the run must not cut it short
        if manager is not None:
            manager.wait_until_finished()
            manager.close()
    return state


def update(
    loss: Loss, recipe: Recipe, *, average: bool = False, mesh: Mesh | None = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One step as a function to be jitted: (state, data, numbered batch or None) -> state, metrics.

    Of a `mesh` with the axis "fsdp", activations are split like batches (`jaxdiff.mesh.split_activations`).
    A loss or gradient that is not finite changes nothing, and neither does a batch whose number is not that of the step: a
    state that has stopped once waits for the host to see it.
    """
    optimizer, key = recipe.optimizer(), jax.random.key(recipe.seed)

    def step(state: TrainState, data, batch=None):
        teacher = (state.ema,) if average else ()
        given = data if batch is None else (data, batch[1])
        with contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            (value, metrics), grads = _differentiated(loss)(
                state.params, given, jax.random.fold_in(key, state.step), *teacher
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A young average follows closely, so that it does not remember the initialisation.
        decay = jnp.minimum(recipe.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
        good = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        if batch is not None:
            good &= batch[0] == state.step
        new = TrainState(state.step + 1, params, ema, opt_state)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state), dict(metrics, loss=value)

    return step


def _differentiated(loss: Loss) -> Callable[..., Any]:
    """`jax.value_and_grad` of a loss; where the context's mesh has ``seq``, devices along it share the tokens of each clip.

    They run the loss side by side (`jaxdiff.kernels.sequence`), each with all of the weights, and all get the same loss. What
    one of them differentiates is their sum, by its own copy of the weights: the mean of what they find is the gradient.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if jax.sharding.get_abstract_mesh().shape.get(SEQ, 1) == 1:
        return value_and_grad

    def on_device(*given):
        found, grads = value_and_grad(*given)
        return found, jax.lax.pmean(grads, SEQ)

    # Manual over this axis alone: clips and weights are the partitioner's, as they are without it.
    return jax.shard_map(
        on_device, in_specs=PartitionSpec(), out_specs=PartitionSpec(), axis_names={SEQ}, check_vma=False
    )


def _ahead(make: Callable[[int], Any], first: int, end: int) -> Generator[Any, None, None]:
    """``make(i)`` for i from `first` to `end`, in order, made by a thread a little ahead."""
    with ThreadPoolExecutor(1) as pool:
        made = deque(pool.submit(make, i) for i in range(first, min(first + AHEAD, end)))
        for i in range(first, end):
            if i + AHEAD < end:
                made.append(pool.submit(make, i + AHEAD))
            yield made.popleft().result()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
