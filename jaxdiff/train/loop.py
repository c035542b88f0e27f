"""The one training loop: optax updates, an exponential moving average, Orbax checkpoints, bit-identical resume."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdiff.errors import NonFiniteError


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
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    params: Any,
    recipe: Recipe,
    data: Any,
    *,
    workdir: Path | None = None,
    checkpoint_every: int = 250,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    report_every: int = 25,
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
    workdir : checkpoints go to ``workdir/checkpoints/<step>``; None keeps none.
    report : called every `report_every` steps and at the last one with the metrics of that step (host floats), "loss"
        and "seconds_per_step" among them. Only then does the host wait for the device.
    average : hand `loss` the moving average of the parameters before the step as a fourth argument.

    Raises
    ------
    NonFiniteError : the loss is NaN or infinite at a reported step.
    """
    state = TrainState.create(params, recipe)
    manager = None
    if workdir is not None:
        import orbax.checkpoint as ocp

        manager = ocp.CheckpointManager(
            Path(workdir).absolute() / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)
        )
        if manager.latest_step() is not None:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(abstract))

    optimizer, key = recipe.optimizer(), jax.random.key(recipe.seed)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, data):
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        teacher = (state.ema,) if average else ()
        (value, metrics), grads = value_and_grad(state.params, data, jax.random.fold_in(key, state.step), *teacher)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A young average follows closely, so that it does not remember the initialisation.
        decay = jnp.minimum(recipe.ema, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
        return TrainState(state.step + 1, params, ema, opt_state), dict(metrics, loss=value)

    step = int(state.step)
    since, steps_since = time.perf_counter(), 0
    try:
        while step < recipe.steps:
            state, metrics = update(state, data)
            step, steps_since = step + 1, steps_since + 1
            if step % report_every == 0 or step == recipe.steps:
                metrics = {name: float(value) for name, value in metrics.items()}
                if not jnp.isfinite(metrics["loss"]):
                    raise NonFiniteError(f"training loss is {metrics['loss']} at step {step}; lower the learning rate")
                metrics["seconds_per_step"] = (time.perf_counter() - since) / steps_since
                since, steps_since = time.perf_counter(), 0
                report(step, metrics)
            if manager is not None and (step % checkpoint_every == 0 or step == recipe.steps):
                manager.save(step, args=ocp.args.StandardSave(state))
    finally:  # a save runs in the background; what stops the run must not cut it short
        if manager is not None:
            manager.wait_until_finished()
            manager.close()
    return state
