"""Gradients through a sample: equal to finite differences, cut where they are to be, and cheap in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import Backward, integrate, sample
from tests.flow.pipelines import Toy

GRID = np.array([1.0, 0.6, 0.3, 0.0])
TARGET = np.array([0.4, -0.7])


def field(params):
    """A field of five parameters over the plane."""
    a, b, c, d, e = params
    return lambda x, sigma: jnp.stack([jnp.tanh(a * x[0] + b * x[1]) + sigma * e, c * x[0] * x[1] - d * jnp.sin(x[1])])


def reward(params, start, solver="euler", backward=None, key=None):
    end = integrate(field(params), start, GRID, solver, backward=backward, key=key)
    return -jnp.sum(jnp.square(end - TARGET))


@pytest.fixture
def doubles():
    with jax.enable_x64(True):
        yield jnp.array([0.3, -0.5, 0.7, 0.2, 0.9]), jnp.array([1.1, -0.6])


def test_the_gradient_through_three_steps_is_that_of_finite_differences(doubles):
    params, start = doubles
    value = jax.jit(lambda p: reward(p, start, "unipc", Backward()))  # a solver that remembers
    h = 1e-6
    steps = h * np.eye(5)
    expected = np.array([(value(params + step) - value(params - step)) / (2 * h) for step in steps])
    found = jax.jit(jax.grad(value))(params)
    assert found.dtype == jnp.float64 and np.abs(expected).min() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_as_many_steps_as_there_are_is_the_whole_gradient_bit_for_bit(doubles):
    params, start = doubles

    def gradient(backward):
        return jax.jit(jax.grad(lambda params: reward(params, start, backward=backward)))(params)

    full = gradient(Backward())
    for steps in (3, 9):
        np.testing.assert_array_equal(full, gradient(Backward("last", steps)))
    np.testing.assert_allclose(full, gradient(None), rtol=1e-12)
    assert np.abs(full - gradient(Backward("last", 2))).max() > 1e-3


def test_the_last_steps_are_differentiated_from_a_constant_state(doubles):
    (params, start), kept = doubles, 2
    cut = jax.lax.stop_gradient(integrate(field(params), start, GRID[: 4 - kept]))

    def by_hand(params):
        return -jnp.sum(jnp.square(integrate(field(params), cut, GRID[3 - kept :]) - TARGET))

    cut_reward = lambda params, start: reward(params, start, backward=Backward("last", kept))  # noqa: E731
    found, to_start = jax.jit(jax.grad(cut_reward, (0, 1)))(params, start)
    np.testing.assert_allclose(found, jax.jit(jax.grad(by_hand))(params), rtol=1e-12)
    assert not to_start.any()


def test_a_random_cut_is_one_of_the_fixed_ones_and_each_is_drawn(doubles):
    params, start = doubles
    each = lambda p: [jax.grad(reward)(p, start, backward=Backward("last", k)) for k in (1, 2, 3)]  # noqa: E731
    fixed = np.stack(jax.jit(each)(params))
    draw = jax.jit(jax.vmap(lambda key: jax.grad(reward)(params, start, backward=Backward("random", 2), key=key)))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 24)))
    which = np.abs(found[:, None] - fixed).max(-1)
    assert which.min(1).max() < 1e-12
    assert set(which.argmin(1)) == {0, 1}  # never three: two at most were asked for


def test_memory_grows_by_a_state_a_step_and_not_by_what_a_step_computes():
    wide = jnp.ones((8, 2048)) / 64

    def loss(weights, steps, backward):
        def velocity(x, sigma):
            return jnp.tanh(jnp.tanh(x @ weights) @ weights.T) * sigma

        return integrate(velocity, jnp.ones((16, 8)), np.linspace(1, 0, steps + 1), backward=backward).sum()

    def peak(steps, backward):
        compiled = jax.jit(lambda w: jax.grad(loss)(w, steps, backward)).lower(wide).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    step = 16 * 2048 * 4  # bytes that a step computes, at least
    assert peak(32, Backward()) - peak(8, Backward()) < step  # 24 more states are 12 kB
    assert peak(32, None) - peak(8, None) > 20 * step
    assert peak(32, Backward("last", 2)) < peak(8, Backward())  # what lies before is not even kept


def test_a_samples_end_is_the_same_and_its_gradient_reaches_the_weights():
    pipeline = Toy(jax.random.normal(jax.random.key(0), (3, 4, 4)) / 2)
    noise = jax.random.normal(jax.random.key(1), (2, 2, 2, 2, 4))
    cond = Conditioning(text=jnp.ones((2, 3, 4)))
    told = {"steps": 4, "guidance_scale": 2.0, "negative": Conditioning(text=jnp.zeros((1, 3, 4))), "solver": "euler"}
    plain = sample(pipeline, noise, cond, **told).latents

    def loss(pipeline, backward):
        made = sample(pipeline, noise, cond, backward=backward, key=jax.random.key(0), **told)
        return jnp.square(made.latents).sum(), made.latents

    grads = {}
    for backward in (None, Backward(), Backward("random", 1)):
        (_, end), found = jax.value_and_grad(loss, has_aux=True, allow_int=True)(pipeline, backward)
        np.testing.assert_allclose(end, plain, rtol=1e-6, atol=1e-6)
        grads[backward and backward.mode] = np.asarray(found.weights)
    np.testing.assert_allclose(grads["full"], grads[None], rtol=1e-4, atol=1e-5)
    assert np.abs(grads["random"] - grads["full"]).max() > 1e-3 and grads["random"].any()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="mode='lats'"):
        Backward("lats", 1)  # type: ignore[arg-type]
    for way in (("full", 2), ("last", None), ("random", 0)):
        with pytest.raises(ConfigError, match="number of steps"):
            Backward(*way)
    with pytest.raises(ConfigError, match="needs key="):
        reward(jnp.ones(5), jnp.ones(2), backward=Backward("random", 1))
