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
