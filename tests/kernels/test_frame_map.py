"""Frame maps against the dense map, pooled: one list of tests, a class for each way to compute them."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import kernels
from jaxdiff.kernels import gpu, tpu
from tests.kernels.reference import inputs, reference


def pooled(weights, frames, prefix=0):
    """Weights [B, K, S, S] -> [B, K, frames, frames]."""
    mass = weights[:, :, prefix:, prefix:]
    mass = mass.reshape(*mass.shape[:3], frames, -1).sum(-1)
    mass /= mass.sum(-1, keepdims=True)
    return mass.reshape(*mass.shape[:2], frames, -1, frames).mean(3)


class FrameMap:
    """What every way does. A subclass says how to call it."""

    def with_map(self, q, k, v, frames, prefix=0):
        raise AssertionError("a subclass calls its implementation here")

    # One frame; frames that tiles of 128 cut, a length that they do not divide, and text before the video; aligned frames.
    @pytest.mark.parametrize("frames, tokens, prefix, depth", [(1, 96, 0, 16), (6, 50, 13, 64), (3, 256, 0, 128)])
    def test_the_map_is_the_pooled_dense_map(self, frames, tokens, prefix, depth):
        length = prefix + frames * tokens
        q, k, v = inputs(queries=length, keys=length, heads=2, depth=depth)
        output, frame_map = self.with_map(q, k, v, frames, prefix)
        want, weights = reference(q, k, v)
        np.testing.assert_allclose(output, want, atol=1e-5)
        np.testing.assert_allclose(frame_map, pooled(weights, frames, prefix), atol=1e-6)
        np.testing.assert_allclose(frame_map.sum(-1), 1.0, atol=1e-6)
        assert frames == 1 or np.ptp(frame_map) > 0.02  # peaked inputs: the map must not be near uniform

    def test_gradients_flow_through_output_and_map(self):
        q, k, v = inputs(batch=1, queries=52, keys=52, heads=1)

        def scalar(with_map):
            def f(q, k, v):
                output, frame_map = with_map(q, k, v)
                return jnp.sum(jnp.sin(output)) + jnp.sum(jnp.sin(7 * frame_map))

            return jax.jit(jax.grad(f, (0, 1, 2)))

        def written_out(q, k, v):
            weights = jax.nn.softmax(jnp.einsum("bqkd,bskd->bkqs", q, k, precision="highest") * q.shape[-1] ** -0.5)
            mass = weights[:, :, 4:, 4:].reshape(1, 1, 48, 4, 12).sum(-1)
            frame_map = (mass / mass.sum(-1, keepdims=True)).reshape(1, 1, 4, 12, 4).mean(3)
            return jnp.einsum("bkqs,bskd->bqkd", weights, v, precision="highest"), frame_map

        ours = scalar(lambda q, k, v: self.with_map(q, k, v, 4, 4))(q, k, v)
        for got, want in zip(ours, scalar(written_out)(q, k, v), strict=True):
            np.testing.assert_allclose(got, want, atol=3e-5)  # float32, sums over 52 queries


class TestBlockwise(FrameMap):
    """Blocks of 16 queries, so that the blocked path and its padding really run."""

    elements, platform = 1, "gpu"

    @pytest.fixture(autouse=True)
    def _small_blocks(self, monkeypatch):
        monkeypatch.setattr(importlib.import_module("jaxdiff.kernels.blockwise"), "_BLOCK_ELEMENTS", self.elements)

    def with_map(self, q, k, v, frames, prefix=0, **options):
        with kernels.compiling_for(self.platform):
            return kernels.attention_with_frame_map(q, k, v, frames=frames, prefix=prefix, **options)

    def test_the_map_shows_factors_between_frames(self):
        q, k, v = inputs()
        factors = np.tril(np.ones((1, 1, 4, 4), np.float32))  # a frame attends to itself and to those before it
        between = kernels.Between.frames(jnp.asarray(factors), 96)
        out, got = self.with_map(q, k, v, 4, between=between)
        with np.errstate(divide="ignore"):
            bias = np.log(factors)[..., between.groups[:, None], between.groups]
        expected, weights = reference(q, k, v, bias)
        np.testing.assert_allclose(out, expected, atol=5e-6)
        np.testing.assert_allclose(got, pooled(weights, 4), atol=1e-6)


class TestBlockwiseByHeads(TestBlockwise):
    """As on CPUs: a block is of few heads before it is of few queries."""

    elements, platform = 2 * 313 * 313, "cpu"


class TestPallas(FrameMap):
    """The TPU kernel, interpreted."""

    @pytest.fixture(autouse=True)
    def _interpreted(self, monkeypatch):
        whole = tpu.with_frame_map
        monkeypatch.setattr(tpu, "with_frame_map", lambda *args: whole(*map(jnp.asarray, args[:3]), *args[3:], True))

    def with_map(self, q, k, v, frames, prefix=0):
        return kernels.attention_with_frame_map(q, k, v, frames=frames, prefix=prefix, implementation="pallas")

    def test_many_tiles_add_up(self):
        q, k, v = inputs(batch=1, queries=5376, keys=5376, heads=1, depth=64)
        output, frame_map = self.with_map(q, k, v, 21)
        np.testing.assert_allclose(output[:, ::97], reference(q[:, ::97], k, v)[0], atol=1e-5)
        np.testing.assert_allclose(frame_map.sum(-1), 1.0, atol=1e-6)
        blockwise = kernels.frame_attention_map(q, k, frames=21)
        np.testing.assert_allclose(frame_map, blockwise, atol=1e-6)

    def test_more_frames_than_it_counts_are_refused(self):
        q, k, v = inputs(queries=258, keys=258)
        with pytest.raises(ValueError, match="at most 128 frames"):
            self.with_map(q, k, v, 129)


class TestCudnnColumns(FrameMap):
    """What is asked of cuDNN, answered by XLA."""

    @pytest.fixture(autouse=True)
    def _without_cudnn(self, monkeypatch):
        plain = jax.nn.dot_product_attention

        def answer(q, k, v, bias, *, implementation, **options):
            assert implementation == "cudnn"
            assert q.shape[-1] <= 128
            assert q.shape[-1] % 8 == 0
            return plain(*map(jnp.asarray, (q, k, v)), bias, implementation="xla", **options)

        monkeypatch.setattr(jax.nn, "dot_product_attention", answer)

    def with_map(self, q, k, v, frames, prefix=0):
        return kernels.attention_with_frame_map(q, k, v, frames=frames, prefix=prefix, implementation="cudnn")

    def test_the_map_alone_is_the_same(self):
        q, k, v = inputs()
        alone = kernels.frame_attention_map(q, k, frames=4, implementation="cudnn")
        np.testing.assert_allclose(alone, self.with_map(q, k, v, 4)[1], atol=1e-6)


def test_the_map_alone_is_the_map_of_the_attention():
    q, k, v = inputs()
    both = kernels.attention_with_frame_map(q, k, v, frames=4, prefix=8)[1]
    np.testing.assert_allclose(kernels.frame_attention_map(q, k, frames=4, prefix=8), both, atol=1e-6)


def test_the_estimate_is_unbiased_and_its_error_is_the_error():
    q, k, _ = inputs(batch=1, heads=2, queries=8 + 4 * 20, keys=8 + 4 * 20)
    exact = kernels.frame_attention_map(q, k, frames=4, prefix=8)
    draw = jax.jit(jax.vmap(lambda key: kernels.sampled_frame_attention_map(q, k, key, frames=4, queries=5, prefix=8)))
    estimates, errors = draw(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(estimates.sum(-1), 1.0, atol=1e-5)
    spread = estimates.std(0)
    # 2,000 draws: means within 5 standard errors of the mean, mean variances within a tenth.
    assert np.all(np.abs(estimates.mean(0) - exact) < 5 * spread / 2000**0.5)
    np.testing.assert_allclose(np.sqrt((errors**2).mean(0)), spread, rtol=0.1)


def test_the_estimate_from_all_queries_is_exact():
    q, k, _ = inputs()
    estimate, error = kernels.sampled_frame_attention_map(q, k, jax.random.key(0), frames=4, queries=24)
    np.testing.assert_allclose(estimate, kernels.frame_attention_map(q, k, frames=4), atol=1e-6)
    np.testing.assert_array_equal(error, 0)


def test_a_kernel_is_chosen_where_it_applies(monkeypatch):
    monkeypatch.setattr(gpu, "with_frame_map", lambda *args: (None, jnp.zeros(1)))
    monkeypatch.setattr(tpu, "with_frame_map", lambda *args: (jnp.zeros(1), jnp.zeros(2)))
    q, k, _ = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    for platform, size in (("gpu", 1), ("tpu", 2)):
        with kernels.compiling_for(platform):
            assert kernels.frame_attention_map(q, k, frames=4).shape == (size,)
            ones = kernels.Between.frames(jnp.ones((1, 1, 4, 4)), 96)
            assert kernels.frame_attention_map(q, k, frames=4, between=ones).shape == (2, 3, 4, 4)
            assert kernels.frame_attention_map(*inputs()[:2], frames=4).shape == (2, 3, 4, 4)


def test_tokens_that_are_not_whole_frames_and_unknown_names_are_refused():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="not 5 equal frames"):
        kernels.attention_with_frame_map(q, k, v, frames=5)
    with pytest.raises(ValueError, match="not 4 equal frames behind 3 tokens"):
        kernels.frame_attention_map(q, k, frames=4, prefix=3)
    with pytest.raises(ValueError, match="no implementation 'flash'"):
        kernels.attention_with_frame_map(q, k, v, frames=4, implementation="flash")
    for queries in (1, 25):
        with pytest.raises(ValueError, match="expected 2 to 24"):
            kernels.sampled_frame_attention_map(q, k, jax.random.key(0), frames=4, queries=queries)


def test_the_examples_of_the_documentation_run():
    path = pathlib.Path(__file__).parents[2] / "docs" / "kernels.md"
    blocks = path.read_text().split("```python\n")[1:]
    names: dict = {}
    for block in blocks:
        exec(block.split("```")[0], names)  # the assertions are in the examples
    assert len(blocks) >= 4
