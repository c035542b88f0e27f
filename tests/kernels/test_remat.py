"""What a backward pass recomputes: the forward pass of self-attention is in a step twice, or once."""

import functools
import importlib
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.kernels import tpu
from jaxdiff.models import network
from jaxdiff.scaling.operations import products
from jaxdiff.taps import Reader

LAYERS, TOKENS, HEADS, WIDTH = 2, 64, 2, 16


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """Blocks of 16 queries, as many as in long clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("jaxdiff.kernels.blockwise"), "_BLOCK_ELEMENTS", 16 * HEADS * TOKENS)
        yield


class Block(nnx.Module):
    """Self-attention, and attention to the first four tokens."""

    def __init__(self, rngs: nnx.Rngs):
        self.own, self.other = (nnx.Param(rngs.normal((3, WIDTH, WIDTH)) * WIDTH**-0.5) for _ in range(2))

    def __call__(self, x):
        for w, keys in ((self.own, TOKENS), (self.other, 4)):
            q, k, v = ((x @ m).reshape(1, -1, HEADS, WIDTH // HEADS) for m in w[...])
            x = x + jnp.tanh(kernels.attention(q, k[:, :keys], v[:, :keys]).reshape(x.shape))
        return x


def gradient(remat):
    graph, params = nnx.split(network.stack(Block, LAYERS, nnx.Rngs(0)))

    def loss(params, x):
        reader = Reader((), (), layers=LAYERS, grid=(1, 8, 8))
        return jnp.sum(
            network.scan(lambda block, x, tap: block(x), nnx.merge(graph, params), x, reader, remat=remat)[0]
        )

    return jax.grad(loss), (params, jnp.sin(jnp.arange(TOKENS * WIDTH, dtype=jnp.float32)).reshape(1, TOKENS, WIDTH))


def test_all_but_attention_saves_the_forward_pass_of_self_attention_and_nothing_else():
    block, kept = (products(step, *args) for step, args in map(gradient, ("block", "all_but_attention")))
    assert block - kept == LAYERS * 4 * TOKENS**2 * WIDTH


def test_what_is_recomputed_changes_no_gradient():
    given, *others = (jax.jit(step)(*args) for step, args in map(gradient, ("none", "block", "all_but_attention")))
    for other in others:
        for got, want in zip(jax.tree.leaves(other), jax.tree.leaves(given), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * float(jnp.abs(want).max()))


def test_the_backward_pass_of_attention_in_blocks_is_five_products():
    q, k, v = (jax.ShapeDtypeStruct((1, 256, 2, 16), jnp.float32) for _ in range(3))
    one = 2 * 2 * 256**2 * 16
    assert products(kernels.attention, q, k, v) == 2 * one
    assert products(jax.grad(lambda *x: kernels.attention(*x).sum(), (0, 1, 2)), q, k, v) == (2 + 5) * one


def test_what_may_be_recomputed_is_told_by_name():
    with pytest.raises(ConfigError, match="remat=True is unknown; choose from none, block, all_but_attention"):
        gradient(True)[0](*gradient(True)[1])


def forwards(attend, policy, keys=256) -> int:
    """How often the forward kernel stands in the gradient of a layer that attends to itself, or to fewer `keys`."""

    def layer(w, x):
        q, k, v = ((x @ m).reshape(1, 256, 2, 64) for m in w)
        return jnp.tanh(attend(q, k[:, :keys], v[:, :keys])).sum()

    args = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((3, 128, 128), (1, 256, 128)))
    found = named(jax.make_jaxpr(jax.grad(jax.checkpoint(layer, policy=policy)))(*args).jaxpr)
    return sum(
        count for name, count in found.items() if name.startswith(("dot_product_attention_fwd", "splash_mha_fwd"))
    )


def named(jaxpr) -> Counter:
    """How often each primitive or kernel gives something."""
    found: Counter = Counter()
    for equation in jaxpr.eqns:
        if equation.outvars:
            found[str(equation.params.get("name") or equation.primitive.name)] += 1
            for inside in jaxprs_in_params(equation.params):
                found += named(inside)
    return found


def test_splash_is_run_once():
    attend = functools.partial(tpu.splash, scale=0.125)
    assert forwards(attend, None) == 2
    assert forwards(attend, kernels.keep_self_attention) == 1
    assert forwards(attend, kernels.keep_self_attention, keys=128) == 2  # other tokens


def test_cudnn_is_run_once(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo  # only traced: that there is no cuDNN here must not be seen

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    attend = functools.partial(kernels.attention, implementation="cudnn")
    assert forwards(attend, None) == 2
    assert forwards(attend, kernels.keep_self_attention) == 1
    assert forwards(attend, kernels.keep_self_attention, keys=128) == 2
