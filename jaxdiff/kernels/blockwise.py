"""Softmax attention in XLA, in blocks of scores: nothing quadratic is ever in memory, on any backend."""

import functools
import math

import jax
import jax.numpy as jnp

# Elements of one block of scores [B, heads, queries, S]: 2M float32 stay near the last-level cache of a CPU, which is worth
# a factor of two there; on accelerators the block bounds memory.
_BLOCK_ELEMENTS = 1 << 21


def blockwise(q, k, v, scale, *, frames=None, prefix=0, bias=None, between=None, whole=False, heads_apart=False):
    """Attention [B, Sq, K, d], or None without `v`; and with `frames` each query's mass per key frame [B, K, Sq, frames].

    The first `prefix` keys are of no frame; masses are relative to those of all frames. `whole` makes one block of
    everything. With `heads_apart`, where the scores of few heads fill a block, a block is of one head and more queries:
    better for caches, worse for machines that have more to do at once. Else it is of all heads.
    """
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    # Batched matmuls run best as [B, K, S, d].
    q, k, v = (None if x is None else x.transpose(0, 2, 1, 3) for x in (q, k, v))
    rows = None if between is None else between.rows()
    groups = None if between is None else between.groups
    attend = functools.partial(_attend, scale=scale, frames=frames, prefix=prefix, groups=groups)
    if whole or batch * heads * queries * keys <= _BLOCK_ELEMENTS:
        output, mass = attend(q, k, v, bias, rows)
        return None if output is None else output.transpose(0, 2, 1, 3), mass

    # Checkpointed: the backward pass recomputes a block's scores and never holds all of them.
    attend = jax.checkpoint(attend)
    apart = heads_apart and 4 * queries * keys > _BLOCK_ELEMENTS
    most = queries_of_a_block(keys if apart else batch * heads * keys)
    block = math.ceil(queries / math.ceil(queries / most) / 16) * 16  # as equal as multiples of 16 can be

    def all_queries(q, k, v, bias, rows):
        return in_parts(lambda q, bias, rows: attend(q, k, v, bias, rows), (q, bias, rows), 2, block)

    def flat(x):
        if x is None or x.shape[:2] == (1, 1):
            return x
        return jnp.broadcast_to(x, (batch, heads, *x.shape[2:])).reshape(batch * heads, 1, *x.shape[2:])

    if apart:
        outputs = in_parts(all_queries, [flat(x) for x in (q, k, v, bias, rows)], 0, 1)
        output, mass = jax.tree.map(lambda x: x.reshape(batch, heads, *x.shape[2:]), outputs)
    else:
        output, mass = all_queries(q, k, v, bias, rows)
    return None if output is None else output.transpose(0, 2, 1, 3), mass


def queries_of_a_block(scores: int) -> int:
    """How many queries with so many scores each fit into a block."""
    return max(16, _BLOCK_ELEMENTS // scores // 16 * 16)


def in_parts(f, arrays, axis, size):
    """``f(*arrays)`` of `size` entries along `axis` at a time, one part after the other, and what it returns joined there.

    Arrays that have one entry along the axis, and None, are the same for all parts.
    """
    length = arrays[0].shape[axis]
    count = math.ceil(length / size)
    if count == 1:
        return f(*arrays)
    split = [x is not None and x.shape[axis] > 1 for x in arrays]

    def parts(x):
        x = jnp.pad(x, [(0, count * size - length if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)

    def one(part):
        part = iter(part)
        return f(*(next(part) if own else x for own, x in zip(split, arrays, strict=True)))

    def joined(x):
        x = jnp.moveaxis(x, 0, axis)
        x = x.reshape(*x.shape[:axis], count * size, *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(x, 0, length, axis=axis)

    outputs = jax.lax.map(one, [parts(x) for own, x in zip(split, arrays, strict=True) if own])
    return jax.tree.map(joined, outputs)


def _attend(q, k, v, bias, rows, *, scale, frames, prefix, groups):
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * scale if bias is None else scores * scale + bias.astype(jnp.float32)
    if rows is not None:
        scores = scores + rows[..., groups]
    # No weight depends on what is subtracted, and so no gradient does.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mass = output = None
    if frames is None:
        total = weights.sum(-1, keepdims=True)
    else:
        mass = weights[..., prefix:].reshape(*weights.shape[:-1], frames, -1).sum(-1)
        total = among = mass.sum(-1, keepdims=True)
        if prefix:
            total = among + weights[..., :prefix].sum(-1, keepdims=True)
        # Next to what it spends on the prefix, a query's mass on all frames may vanish in float32.
        mass = mass * (1.0 / jnp.maximum(among, jnp.finfo(jnp.float32).tiny))
    if v is not None:
        output = _mixed(weights, total, v, precision).astype(q.dtype)
    return output, mass


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _mixed(weights, total, v, precision):
    """``weights v / total``, float32 [B, K, Sq, d]."""
    output = jnp.einsum(
        "bkqs,bksd->bkqd", weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
    )
    # A written-out reciprocal: XLA turns x / total into one in some programs and not in others, and the last bits differ.
    return output * (1.0 / total)


@_mixed.defjvp
def _mixed_jvp(precision, primals, tangents):
    # By itself the derivative of 1 / total reads weights v, and the backward pass would make that product again to have it.
    (weights, total, v), (weights_dot, total_dot, v_dot) = primals, tangents
    share = 1.0 / total
    weights_dot = (weights_dot - weights * (total_dot * share)) * share
    product = functools.partial(jnp.einsum, "bkqs,bksd->bkqd", precision=precision, preferred_element_type=jnp.float32)
    output_dot = product(weights_dot.astype(v.dtype), v) + product(weights.astype(v.dtype), v_dot) * share
    return _mixed(weights, total, v, precision), output_dot
