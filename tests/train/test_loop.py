"""The training loop: what a recipe says, and that an interruption leaves no trace in the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import NonFiniteError
from jaxdiff.train.loop import Recipe, fit

RECIPE = Recipe(steps=7, learning_rate=1e-2, warmup=2, decay=0.5, ema=0.9, weight_decay=0.01)


def regression(params, data, key):
    """Least squares on rows drawn with the step's key, so that the bits depend on it."""
    x, y = data
    rows = jax.random.randint(key, (4,), 0, len(x))
    return jnp.mean(jnp.square(x[rows] @ params["w"] + params["b"] - y[rows])), {}


def problem():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 3)).astype(np.float32)
    params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    return params, (jnp.asarray(x), jnp.asarray(x @ np.ones((3, 2), np.float32)))


class Interrupted(Exception):
    pass


def test_interrupted_training_resumes_from_its_checkpoint_to_the_same_bits(tmp_path):
    params, data = problem()
    whole = fit(regression, params, RECIPE, data, report_every=1)
    seen = []

    def stop(step, metrics):
        seen.append(step)
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(regression, params, RECIPE, data, workdir=tmp_path, checkpoint_every=2, report=stop, report_every=1)
    resumed = fit(
        regression, params, RECIPE, data, workdir=tmp_path, checkpoint_every=2, report_every=1,
        report=lambda step, metrics: seen.append(step),
    )  # fmt: skip
    assert seen == [1, 2, 3, 4, 5, 5, 6, 7], "it went on behind the checkpoint of step 4"
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    again = fit(regression, params, RECIPE, data, workdir=tmp_path)
    np.testing.assert_array_equal(again.ema["w"], whole.ema["w"])


def test_another_seed_draws_other_batches():
    params, data = problem()
    other = Recipe(steps=7, learning_rate=1e-2, warmup=2, decay=0.5, seed=1)
    base = Recipe(steps=7, learning_rate=1e-2, warmup=2, decay=0.5, seed=0)
    assert not np.array_equal(
        fit(regression, params, base, data).params["w"], fit(regression, params, other, data).params["w"]
    )


def test_the_callers_parameters_survive_training():
    params, data = problem()
    fit(regression, params, RECIPE, data)
    np.testing.assert_array_equal(params["w"], np.zeros((3, 2)))  # donated buffers would be deleted


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    params, data = problem()
    with pytest.raises(NonFiniteError, match="step 3"):
        fit(lambda p, d, k: (jnp.nan * p["w"].sum(), {}), params, RECIPE, data, report_every=3)


@pytest.mark.parametrize("step, share", [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (10, 1.0), (15, 0.5), (20, 0.0)])
def test_learning_rate_warms_up_stays_and_falls_to_zero(step, share):
    recipe = Recipe(steps=20, learning_rate=2.0, warmup=4, decay=0.5)
    assert float(recipe._learning_rate(step)) == pytest.approx(2.0 * share)


def test_batches_from_the_host_are_those_of_the_step_also_after_an_interruption(tmp_path):
    params, (x, y) = problem()
    x, y, asked = np.asarray(x), np.asarray(y), []

    def batches(step):
        asked.append(step)
        drawn = np.random.default_rng(step).integers(len(x), size=4)
        return x[drawn], y[drawn]

    def loss(params, data, key):
        scale, (x, y) = data
        return scale * jnp.mean(jnp.square(x @ params["w"] + params["b"] - y)), {}

    data = jnp.float32(1.0)
    whole = fit(loss, params, RECIPE, data, batches=batches)
    assert asked == list(range(7)), "no batch is made twice, and none beyond the last"

    def stop(step, metrics):
        if step == 5:
            raise Interrupted

    options = {"workdir": tmp_path, "batches": batches, "checkpoint_every": 2, "report_every": 1}
    with pytest.raises(Interrupted):
        fit(loss, params, RECIPE, data, report=stop, **options)
    resumed = fit(loss, params, RECIPE, data, **options)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_what_is_not_finite_between_two_reports_stops_there_and_keeps_the_state_before(tmp_path):
    params, (x, y) = problem()
    good = fit(regression, params, RECIPE, (x, y))

    def loss(params, data, key):
        value, metrics = regression(params, data[0], key)
        return value + data[1], metrics

    def batches(step):
        return np.float32(np.nan if step == 4 else 0.0)

    with pytest.raises(NonFiniteError, match=r"not finite in step 5 \(seen at step 7"):
        fit(loss, params, RECIPE, (x, y), batches=batches, workdir=tmp_path, checkpoint_every=50)
    resumed = fit(loss, params, RECIPE, (x, y), batches=lambda step: np.float32(0.0), workdir=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, good)


MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxdiff.mesh import parse_mesh
from jaxdiff.train.loop import Recipe, fit
recipe = Recipe(steps=3, learning_rate=1e-2, warmup=1)
params = {"w": jnp.ones((8, 6)), "b": jnp.zeros(6)}
def loss(params, data, key):
    return jnp.mean(jnp.square(data[1] @ params["w"] + params["b"] - data[0])), {}
def batches(step):
    return np.random.default_rng(step).standard_normal((8, 8)).astype(np.float32)
one = fit(loss, params, recipe, jnp.float32(1.0), batches=batches)
mesh = parse_mesh("data=2,fsdp=2")
split = NamedSharding(mesh, PartitionSpec("fsdp"))
placed = {"w": jax.device_put(params["w"], split), "b": params["b"]}
four = fit(loss, placed, recipe, jnp.float32(1.0), batches=batches, mesh=mesh)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, four)
halves = [leaf for leaf in jax.tree.leaves(four) if leaf.shape == (8, 6)]
assert len(halves) == 4 and all(leaf.sharding.is_equivalent_to(split, 2) for leaf in halves), halves
print("same")
"""


def test_a_mesh_gives_the_same_weights_and_splits_averages_and_optimiser_state_like_them(run_with_devices):
    assert run_with_devices(4, MESH).strip() == "same"


def test_evaluations_join_the_metrics_of_their_steps():
    params, data = problem()
    seen = {}
    state = fit(
        regression, params, RECIPE, data, report=lambda step, metrics: seen.update({step: metrics}), report_every=2,
        evaluate=lambda state: {"bias": float(jnp.sum(state.ema["b"]))}, evaluate_every=3,
    )  # fmt: skip
    assert list(seen) == [2, 3, 4, 6, 7] and [step for step in seen if "bias" in seen[step]] == [3, 6, 7]
    assert seen[7]["bias"] == float(jnp.sum(state.ema["b"])) and {"loss", "seconds_per_step"} <= seen[7].keys()
