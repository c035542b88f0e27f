"""Attention against a float64 softmax written out in NumPy, for every implementation that runs on this backend."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import kernels


def reference(q, k, v, bias=0.0):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqkd,bskd->bkqs", q, k) * q.shape[-1] ** -0.5 + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bkqs,bskd->bqkd", weights, v), weights


def inputs(batch=2, queries=96, keys=96, heads=3, depth=16, gain=3.0, dtype=np.float32):
    rng = np.random.default_rng(0)
    # A gain of 3 gives peaked softmax rows: with flat ones a wrong map would look right.
    q = (gain * rng.standard_normal((batch, queries, heads, depth))).astype(dtype)
    k, v = (rng.standard_normal((batch, keys, heads, depth)).astype(dtype) for _ in range(2))
    return q, k, v


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 16 queries even for small inputs, so that the blocked path and its padding really run."""
    module = importlib.import_module("jaxdiff.kernels.attention")  # the package exports a function of that name
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1)


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
@pytest.mark.parametrize("queries, keys", [(96, 96), (37, 5), (130, 96)])
def test_attention_equals_float64_softmax(small_blocks, implementation, queries, keys):
    q, k, v = inputs(queries=queries, keys=keys)
    got = kernels.attention(q, k, v, implementation=implementation)
    np.testing.assert_allclose(got, reference(q, k, v)[0], atol=5e-6)  # float32 rounding of O(1) values


def test_gradients_of_blocks_equal_those_of_the_dense_reference(small_blocks):
    q, k, v = inputs(queries=50, keys=40)

    def scalar(implementation):
        return lambda q, k, v: jnp.sum(jnp.sin(kernels.attention(q, k, v, implementation=implementation)))

    blocked = jax.grad(scalar("blockwise"), (0, 1, 2))(q, k, v)
    dense = jax.grad(scalar("dense"), (0, 1, 2))(q, k, v)
    for got, want in zip(blocked, dense, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)  # float32, sums over 50 queries


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
@pytest.mark.parametrize("shape", [(2, 3, 37, 96), (1, 3, 37, 96), (2, 1, 1, 96), (1, 1, 37, 96)])
def test_a_bias_is_added_to_the_scores_whatever_it_is_broadcast_over(small_blocks, implementation, shape):
    q, k, v = inputs(queries=37)
    bias = 2 * np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    got = kernels.attention(q, k, v, bias=bias, implementation=implementation)
    np.testing.assert_allclose(got, reference(q, k, v, bias)[0], atol=5e-6)
    assert np.abs(got - reference(q, k, v)[0]).max() > 0.1


def test_keys_under_a_text_mask_do_not_exist(small_blocks):
    q, k, v = inputs(queries=37, keys=10)
    mask = np.arange(10) < np.array([[4], [10]])
    bias = jnp.where(mask, 0.0, -10000.0)[:, None, None]
    got = kernels.attention(q, k, v, bias=bias)
    np.testing.assert_allclose(got[0], reference(q[:1], k[:1, :4], v[:1, :4])[0][0], atol=5e-6)
    np.testing.assert_allclose(got[1], reference(q[1:], k[1:], v[1:])[0][0], atol=5e-6)


def test_bfloat16_keeps_its_dtype_and_its_accuracy():
    q, k, v = inputs(gain=1.0)
    got = kernels.attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), reference(q, k, v)[0], atol=2e-2)  # 8 bits of mantissa


def test_blocked_attention_never_holds_the_score_matrix():
    q, k, v = (jax.ShapeDtypeStruct((1, 8192, 4, 16), jnp.float32) for _ in range(3))
    compiled = jax.jit(kernels.attention).lower(q, k, v).compile()
    scores = 4 * 8192 * 8192 * 4  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 8


def test_dense_refuses_a_large_score_matrix():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="would build 55,296 scores"):
        kernels.attention(q, k, v, implementation="dense", dense_limit=1000)


def test_unknown_implementation_and_wrong_shapes_are_errors():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="unknown implementation 'flash'"):
        kernels.attention(q, k, v, implementation="flash")
    with pytest.raises(ValueError, match="expected q"):
        kernels.attention(q, k[:, :, :2], v)
    for shape in ((2, 96), (3, 1, 1, 96), (2, 1, 95, 96), (2, 1, 1, 1)):
        with pytest.raises(ValueError, match="expected a bias"):
            kernels.attention(q, k, v, bias=jnp.zeros(shape))


@pytest.mark.parametrize("frames", [1, 4, 6])
def test_frame_map_is_the_pooled_dense_map(small_blocks, frames):
    q, k, v = inputs()
    output, frame_map = kernels.attention_with_frame_map(q, k, v, frames=frames)
    want, weights = reference(q, k, v)
    pooled = weights.reshape(2, 3, frames, 96 // frames, frames, 96 // frames).sum(-1).mean(3)
    np.testing.assert_allclose(output, want, atol=5e-6)
    np.testing.assert_allclose(frame_map, pooled, atol=1e-6)
    np.testing.assert_allclose(frame_map.sum(-1), 1.0, atol=1e-6)
    assert frames == 1 or np.ptp(frame_map) > 0.2  # peaked inputs: the map must not be near uniform


def test_frame_map_refuses_tokens_that_are_not_whole_frames():
    with pytest.raises(ValueError, match="not 5 equal frames"):
        kernels.attention_with_frame_map(*inputs(), frames=5)


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_factors_between_groups_multiply_the_weights_before_they_are_normalised(small_blocks, implementation):
    q, k, v = inputs(queries=50, keys=50)
    groups = np.repeat([0, 1, 2], [6, 20, 24])
    factors = np.random.default_rng(2).uniform(0.1, 3.0, (2, 1, 3, 3)).astype(np.float32)
    factors[:, :, 1, 2] = 0  # cut
    with np.errstate(divide="ignore"):
        bias = np.log(factors.astype(np.float64))[..., groups[:, None], groups]
    between = kernels.Between(jnp.asarray(factors), groups)
    got = kernels.attention(q, k, v, between=between, implementation=implementation)
    np.testing.assert_allclose(got, reference(q, k, v, bias)[0], atol=5e-6)
    other = v.copy()
    other[:, groups == 2] += 1.0
    again = kernels.attention(q, k, other, between=between, implementation=implementation)
    np.testing.assert_array_equal(again[:, groups == 1], got[:, groups == 1])


def test_the_frame_map_shows_the_factors(small_blocks):
    q, k, v = inputs()
    factors = np.tril(np.ones((1, 1, 4, 4), np.float32))  # a frame attends to itself and to those before it
    between = kernels.Between.frames(jnp.asarray(factors), 96)
    out, got = kernels.attention_with_frame_map(q, k, v, frames=4, between=between)
    with np.errstate(divide="ignore"):
        bias = np.log(factors)[..., between.groups[:, None], between.groups]
    expected, weights = reference(q, k, v, bias)
    np.testing.assert_allclose(out, expected, atol=5e-6)
    np.testing.assert_allclose(got, weights.reshape(2, 3, 4, 24, 4, 24).sum(-1).mean(3), atol=1e-6)


def test_factors_that_do_not_fit_are_refused():
    q, k, v = inputs()
    for factors, tokens in ((np.ones((1, 1, 4, 4)), 48), (np.ones((3, 1, 4, 4)), 96), (np.ones((1, 1, 4, 5)), 96)):
        with pytest.raises(ValueError, match="do not fit"):
            kernels.attention(q, k, v, between=kernels.Between.frames(jnp.asarray(factors, jnp.float32), tokens))
    whole = kernels.Between.frames(jnp.ones((1, 1, 4, 4)), 96)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.attention(q, k[:, :48], v[:, :48], between=whole)
    with pytest.raises(ValueError, match="'cudnn' knows no factors"):
        kernels.attention(q, k, v, between=whole, implementation="cudnn")
