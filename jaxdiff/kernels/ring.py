"""Attention whose keys and values go round a ring of devices (Ring Attention, arXiv 2310.01889), in XLA.

Every device keeps its queries and sees the keys and values of one device after the other; what it has summed so far is scaled
as its maximum rises (the online softmax of arXiv 1805.02867).
"""

import functools

import jax
import jax.numpy as jnp

from jaxdiff.kernels.attention import Between
from jaxdiff.kernels.blockwise import in_parts, queries_of_a_block

LOWEST = -1e30  # finite, so that a difference of two of them is no NaN


def ring(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    axis: str,
    n: int,
    tokens: int,
    frames: int | None,
    between: Between | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """`jaxdiff.kernels.sequence.self_attention` without a prefix, over the n devices along the mesh axis `axis`."""
    batch, size, heads, width = q.shape
    me = jax.lax.axis_index(axis)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))

    def place(device):
        """Numbers of the tokens of a device, and of each whether it is one."""
        index = device * size + jnp.arange(size)
        return jnp.minimum(index, tokens - 1), index < tokens

    def in_frame(device):
        """[s, frames], one where a token of the device is of the frame."""
        index, real = place(device)
        return (index[:, None] // (tokens // (frames or 1)) == jnp.arange(frames or 1)) & real[:, None]

    groups, rows = None, None
    if between is not None:
        groups = jnp.asarray(between.groups)
        rows = jnp.log(between.factors.astype(jnp.float32))[..., groups[place(me)[0]], :]
        rows = jnp.broadcast_to(rows, (rows.shape[0], rows.shape[1], size, rows.shape[-1]))
    block = min(size, queries_of_a_block(batch * heads * size))

    def more(state, k, v, device):
        index, real = place(device)
        per_frame = in_frame(device).astype(jnp.float32) if frames else None
        group = None if groups is None else groups[index]
        attend = functools.partial(_more, k=k, v=v, real=real, per_frame=per_frame, group=group, scale=width**-0.5)
        # Checkpointed, as in `blockwise`: the backward pass keeps no scores.
        return in_parts(jax.checkpoint(attend), (q, *state, rows), 2, block)

    def turn(carry, step):
        k, v, state = carry
        # Sent before they are used, so that both can happen at once.
        forward = [(i, (i + 1) % n) for i in range(n)]
        following = jax.lax.ppermute((k, v), axis, forward)
        return (*following, more(state, k, v, (me - step) % n)), None

    state = (
        jnp.full((batch, heads, size, 1), LOWEST, jnp.float32),
        jnp.zeros((batch, heads, size, 1), jnp.float32),
        jnp.zeros((batch, heads, size, width), jnp.float32),
        jnp.zeros((batch, heads, size, frames), jnp.float32) if frames else None,
    )
    (k, v, state), _ = jax.lax.scan(turn, (k, v, state), jnp.arange(n - 1))
    _, total, output, mass = more(state, k, v, (me + 1) % n)
    output = (output * (1.0 / total)).astype(q.dtype).transpose(0, 2, 1, 3)
    if frames is None:
        return output, None
    mass = mass * (1.0 / jnp.maximum(mass.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny))
    mine = in_frame(me).astype(jnp.float32) * (frames / tokens)
    return output, jax.lax.psum(jnp.einsum("bkqf,qg->bkgf", mass, mine, precision="highest"), axis)


def _more(q, highest, total, output, mass, rows, *, k, v, real, per_frame, group, scale):
    """What a block of queries has summed, and the part of these keys and values."""
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, precision=precision, preferred_element_type=jnp.float32) * scale
    if rows is not None:
        scores = scores + rows[..., group]
    scores = jnp.where(real, scores, LOWEST)
    rising = jnp.maximum(highest, scores.max(-1, keepdims=True))
    weights = jnp.where(real, jnp.exp(scores - rising), 0.0)
    kept = jnp.exp(highest - rising)
    product = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    output = output * kept + product("bkqs,bksd->bkqd", weights.astype(v.dtype), v)
    if mass is not None:
        mass = mass * kept + jnp.einsum("bkqs,sf->bkqf", weights, per_frame, precision="highest")
    return rising, total * kept + weights.sum(-1, keepdims=True), output, mass
