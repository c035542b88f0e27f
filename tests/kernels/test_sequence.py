"""Attention and reductions over tokens that are spread over devices: the numbers of one device."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxdiff import kernels
from jaxdiff.kernels import sequence

ON_FOUR = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.kernels import sequence
from jaxdiff.mesh import parse_mesh
from jaxdiff.reducers import REDUCERS, Grid
from jaxdiff.taps import Reader

mesh = parse_mesh("seq=4")

def spread(f):
    return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))

def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)

rng = np.random.default_rng(0)
for heads, grid, prefix, cut in ((8, (2, 4, 3), 0, 1.0), (4, (3, 5, 2), 3, 0.0), (3, (3, 5, 2), 0, 0.3), (6, (2, 9, 2), 0, 1.0)):
    tokens = int(np.prod(grid))
    q, k, v = (jnp.asarray(rng.normal(size=(2, prefix + tokens, heads, 8)), jnp.float32) for _ in "qkv")
    factors = jnp.asarray(rng.uniform(0.1, 2, (2, heads, grid[0] + (prefix > 0), grid[0] + (prefix > 0))), jnp.float32)
    factors = factors.at[:, 0, 0, 1].set(cut)  # with 0, a path is cut
    groups = np.repeat(np.arange(grid[0] + (prefix > 0)), ([prefix] if prefix else []) + [tokens // grid[0]] * grid[0])
    between = None if cut == 1.0 else kernels.Between(factors, groups)

    def attend(q, k, v):
        own = [sequence.own(x, 1, prefix) for x in (q, k, v)]
        size = -(-tokens // 4)
        assert own[0].shape[1] == prefix + size, own[0].shape
        out, frame_map = sequence.self_attention(*own, tokens=tokens, frames=grid[0], prefix=prefix, between=between)
        whole = sequence.whole(out[:, prefix:], tokens)
        assert out.shape[1] == prefix + size
        return jnp.concatenate([out[:, :prefix], whole], 1), frame_map

    out, frame_map = spread(attend)(q, k, v)
    close(out, kernels.attention(q, k, v, between=between, implementation="dense"))
    close(frame_map, kernels.frame_attention_map(q, k, frames=grid[0], prefix=prefix, between=between))
    assert frame_map.shape == (2, heads, grid[0], grid[0])

# Every reducer, on tokens that do not divide.
grid = (3, 5, 2)
x = jnp.asarray(rng.normal(size=(2, 30, 8)) + 1, jnp.float32)
names = [name for name in REDUCERS if name not in ("full", "frame_map")]
reducers = {name: REDUCERS[name] for name in names} | {"fine": Grid(7, 1)}

def reduced(x):
    return {name: r.of_parts(sequence.own(x), grid, sequence) for name, r in reducers.items()}

for name, value in spread(reduced)(x).items():
    want = reducers[name](x, grid)
    assert value.shape == want.shape and value.dtype == want.dtype, name
    np.testing.assert_allclose(value, want, rtol=2e-5, atol=2e-6, err_msg=name)
assert len(reducers) == 7

def refused(f, *words):
    try:
        spread(f)(x)
    except ConfigError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError("nothing was refused")

refused(lambda x: REDUCERS["full"].of_parts(sequence.own(x), grid, sequence), "30 tokens", "seq of 2, 3")
refused(lambda x: sequence.own(x[:, :3]), "3 tokens", "seq=4")
refused(lambda x: Reader((), (), layers=1, grid=grid).block({})("block_in", x), "does not split its 30 tokens", "fsdp")
refused(lambda x: REDUCERS["moments"].of_parts(sequence.own(x[..., :6]), grid, sequence), "6 channels")
q = jnp.ones((1, 34, 6, 8))
refused(lambda _: sequence.self_attention(*[sequence.own(q, 1, 4)] * 3, tokens=30, prefix=4), "6 heads", "seq of 2, 3, 6")

print("done")
"""


def test_attention_and_reducers_over_four_devices_are_those_of_one(run_with_devices):
    assert run_with_devices(4, ON_FOUR).split() == ["done"]


def test_on_one_device_everything_is_the_plain_kernel():
    q = jax.random.normal(jax.random.key(0), (1, 12, 2, 4))
    program = str(jax.make_jaxpr(lambda q: kernels.self_attention(q, q, q, tokens=12)[0])(q))
    assert program == str(jax.make_jaxpr(lambda q: kernels.attention(q, q, q))(q))
    assert sequence.own(q) is q and sequence.whole(q, 12) is q and sequence.shards() == 1
    # Also inside a shard_map without the axis.
    mesh, whole = jax.make_mesh((1,), ("data",)), PartitionSpec()
    jax.shard_map(
        lambda q: pytest.fail("split") if sequence.shards() > 1 else q, mesh=mesh, in_specs=whole, out_specs=whole
    )(q)
    np.testing.assert_array_equal(sequence.self_attention(q, q, q, tokens=12, frames=3)[1].shape, (1, 2, 3, 3))
