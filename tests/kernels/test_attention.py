"""Every implementation of attention against a softmax written out: one list of tests, a class for each."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import kernels
from jaxdiff.kernels import gpu, tpu
from tests.kernels.reference import inputs, reference


@functools.partial(jax.jit, static_argnums=0)
def gradients(attend, q, k, v):
    return jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v))), (0, 1, 2))(q, k, v)


def written_out(q, k, v):
    scores = jnp.einsum("bqkd,bskd->bkqs", q, k, precision="highest") * q.shape[-1] ** -0.5
    return jnp.einsum("bkqs,bskd->bqkd", jax.nn.softmax(scores), v, precision="highest")


class Attention:
    """What every implementation does. A subclass says how to call it."""

    def attend(self, q, k, v, **options):
        raise AssertionError("a subclass calls its implementation here")

    # The lengths of Wan and CogVideoX at 480p and of the study; other sizes are no multiples of any tile.
    @pytest.mark.parametrize(
        "queries, keys, depth", [(37, 5, 16), (130, 300, 96), (90, 5376, 128), (72, 17776, 64), (72, 32760, 64)]
    )
    def test_it_is_the_softmax(self, queries, keys, depth):
        q, k, v = inputs(batch=1 if keys > 300 else 2, queries=queries, keys=keys, heads=2, depth=depth)
        # float32, sums of up to 32,760 terms
        np.testing.assert_allclose(self.attend(q, k, v), reference(q, k, v)[0], atol=1e-5)

    def test_its_gradients_are_those_of_the_softmax(self):
        q, k, v = inputs(queries=50, keys=140)
        for got, want in zip(gradients(self.attend, q, k, v), gradients(written_out, q, k, v), strict=True):
            np.testing.assert_allclose(got, want, atol=3e-5)  # float32, sums over 50 queries

    def test_keys_beyond_a_clips_length_do_not_exist(self):
        q, k, v = inputs(queries=37, keys=10)
        got = self.attend(q, k, v, lengths=jnp.array([4, 10]))
        np.testing.assert_allclose(got[0], reference(q[:1], k[:1, :4], v[:1, :4])[0][0], atol=1e-5)
        np.testing.assert_allclose(got[1], reference(q[1:], k[1:], v[1:])[0][0], atol=1e-5)


class Biased(Attention):
    @pytest.mark.parametrize("shape", [(2, 3, 37, 96), (1, 3, 37, 96), (2, 1, 1, 96), (1, 1, 37, 96)])
    def test_a_bias_is_added_to_the_scores_whatever_it_is_broadcast_over(self, shape):
        q, k, v = inputs(queries=37)
        bias = 2 * np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        got = self.attend(q, k, v, bias=bias)
        np.testing.assert_allclose(got, reference(q, k, v, bias)[0], atol=1e-5)
        assert np.abs(got - reference(q, k, v)[0]).max() > 0.1


class Factored(Biased):
    def test_factors_between_groups_multiply_the_weights_before_they_are_normalised(self):
        q, k, v = inputs(queries=50, keys=50)
        groups = np.repeat([0, 1, 2], [6, 20, 24])
        factors = np.random.default_rng(2).uniform(0.1, 3.0, (2, 1, 3, 3)).astype(np.float32)
        factors[:, :, 1, 2] = 0  # cut
        with np.errstate(divide="ignore"):
            bias = np.log(factors.astype(np.float64))[..., groups[:, None], groups]
        between = kernels.Between(jnp.asarray(factors), groups)
        got = self.attend(q, k, v, between=between)
        np.testing.assert_allclose(got, reference(q, k, v, bias)[0], atol=5e-6)
        other = v.copy()
        other[:, groups == 2] += 1.0
        np.testing.assert_array_equal(self.attend(q, k, other, between=between)[:, groups == 1], got[:, groups == 1])


class TestDense(Factored):
    def attend(self, q, k, v, **options):
        return kernels.attention(q, k, v, implementation="dense", **options)


class TestBlockwise(Factored):
    """Blocks of 16 queries even for small inputs, so that the blocked path and its padding really run."""

    elements = 1

    @pytest.fixture(autouse=True)
    def _small_blocks(self, monkeypatch):
        monkeypatch.setattr(importlib.import_module("jaxdiff.kernels.blockwise"), "_BLOCK_ELEMENTS", self.elements)

    def attend(self, q, k, v, **options):
        with kernels.compiling_for("gpu"):
            return kernels.attention(q, k, v, implementation="blockwise", **options)


class TestBlockwiseByHeads(TestBlockwise):
    """As on CPUs: a block is of few heads before it is of few queries."""

    elements = 2 * 96 * 40

    def attend(self, q, k, v, **options):
        return kernels.attention(q, k, v, implementation="blockwise", **options)


class TestSplash(Attention):
    def attend(self, q, k, v, **options):
        q, k, v = map(jnp.asarray, (q, k, v))
        return tpu.splash(q, k, v, q.shape[-1] ** -0.5, interpret=True, **options)


class TestCudnn(Biased):
    """What is asked of cuDNN, answered by XLA."""

    @pytest.fixture(autouse=True)
    def _without_cudnn(self, monkeypatch):
        plain = jax.nn.dot_product_attention

        def answer(q, k, v, bias, *, implementation, **options):
            assert implementation == "cudnn"
            return plain(*map(jnp.asarray, (q, k, v)), bias, implementation="xla", **options)

        monkeypatch.setattr(jax.nn, "dot_product_attention", answer)

    def attend(self, q, k, v, **options):
        return gpu.cudnn(q, k, v, q.shape[-1] ** -0.5, **options)


def test_bfloat16_keeps_its_dtype_and_its_accuracy():
    q, k, v = inputs(gain=1.0)
    got = kernels.attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), reference(q, k, v)[0], atol=2e-2)  # 8 bits of mantissa


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_blocked_attention_never_holds_the_score_matrix(platform):
    q, k, v = (jax.ShapeDtypeStruct((1, 8192, 4, 16), jnp.float32) for _ in range(3))
    with kernels.compiling_for(platform):
        compiled = jax.jit(lambda q, k, v: kernels.attention(q, k, v)).lower(q, k, v).compile()
    scores = 4 * 8192 * 8192 * 4  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 8


def test_a_flash_kernel_is_chosen_where_it_applies(monkeypatch):
    monkeypatch.setattr(gpu, "cudnn", lambda *args: jnp.zeros(1))
    monkeypatch.setattr(tpu, "splash", lambda *args: jnp.zeros(2))
    half, single = (tuple(jnp.asarray(x, dtype) for x in inputs()) for dtype in (jnp.bfloat16, jnp.float32))
    text = jnp.zeros((2, 1, 1, 96))

    def chosen(args, **options):
        shape = jax.eval_shape(lambda q, k, v: kernels.attention(q, k, v, **options), *args).shape
        return {(1,): "cudnn", (2,): "splash"}.get(shape, "blockwise")

    assert chosen(half) == "blockwise"
    with kernels.compiling_for("gpu"):
        assert (chosen(half), chosen(half, bias=text), chosen(single)) == ("cudnn", "cudnn", "blockwise")
    with kernels.compiling_for("tpu"):
        assert (chosen(half), chosen(half, bias=text), chosen(single)) == ("splash", "blockwise", "blockwise")
    with kernels.compiling_for("tpu", devices=4):  # the compiler would have to split it
        assert chosen(half) == "blockwise"
        mesh, whole = jax.make_mesh((1,), ("data",)), jax.sharding.PartitionSpec()
        each = jax.shard_map(kernels.attention, mesh=mesh, in_specs=whole, out_specs=whole)
        assert jax.eval_shape(each, *half).shape == (2,)


@pytest.mark.parametrize("length", [1, 226, 1280, 5376, 17776, 32760, 75600])
def test_tiles_are_large_and_waste_little(length):
    size = tpu.tile(length, 1024)
    assert size % 128 == 0
    assert size >= min(512, length)
    assert -length % size <= max(127, 0.02 * length)


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
    with pytest.raises(ValueError, match=r"expected lengths \[2\]"):
        kernels.attention(q, k, v, lengths=jnp.array([3]))
    with pytest.raises(ValueError, match="'splash' knows neither a bias"):
        kernels.attention(q, k, v, bias=jnp.zeros((2, 1, 1, 96)), implementation="splash")
    for shape in ((2, 96), (3, 1, 1, 96), (2, 1, 95, 96), (2, 1, 1, 1)):
        with pytest.raises(ValueError, match="expected a bias"):
            kernels.attention(q, k, v, bias=jnp.zeros(shape))


def test_factors_that_do_not_fit_are_refused():
    q, k, v = inputs()
    for factors, tokens in ((np.ones((1, 1, 4, 4)), 48), (np.ones((3, 1, 4, 4)), 96), (np.ones((1, 1, 4, 5)), 96)):
        with pytest.raises(ValueError, match="do not fit"):
            kernels.attention(q, k, v, between=kernels.Between.frames(jnp.asarray(factors, jnp.float32), tokens))
    whole = kernels.Between.frames(jnp.ones((1, 1, 4, 4)), 96)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.attention(q, k[:, :48], v[:, :48], between=whole)
    for name in ("cudnn", "splash"):
        with pytest.raises(ValueError, match=f"'{name}' knows n"):
            kernels.attention(q, k, v, between=whole, implementation=name)
