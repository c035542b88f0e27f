"""Attention on NVIDIA GPUs by cuDNN, and frame maps as columns of its values."""

import jax
import jax.numpy as jnp

WIDEST = 128  # channels of a head that cuDNN takes on every GPU since Ampere, and is fastest at


def fits(q) -> bool:
    """Whether cuDNN takes queries like these."""
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= WIDEST and q.shape[-1] % 8 == 0


def cudnn(q, k, v, scale: float, bias=None, lengths=None) -> jax.Array:
    """`jaxdiff.kernels.attention` of q [B, Sq, K, d] and k, v [B, S, K, d], float16 or bfloat16."""
    if bias is not None:  # wanted at every query, in the dtype of the queries
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], q.shape[1], k.shape[1])).astype(q.dtype)
    lengths = None if lengths is None else lengths.astype(jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, bias, scale=scale, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def with_frame_map(q, k, v, frames: int, prefix: int, scale: float):
    """`jaxdiff.kernels.attention_with_frame_map` of q, k, v [B, S, K, d]; no output without `v`.

    A query's mass on a frame is attention to values that are 1 in that frame and 0 elsewhere: one column a frame, next to
    the values where both fit into 128 channels (queries and keys get zeros to the same width, since jax.nn knows one
    width only), else in a second pass. Masses have the precision of the output's dtype before they are averaged.
    """
    batch, length, heads, depth = q.shape
    if frames > WIDEST:
        raise ValueError(
            f"attention_with_frame_map: 'cudnn' has room for {WIDEST} frames, got {frames}; use implementation='blockwise'"
        )
    columns = jnp.repeat(jnp.eye(frames, dtype=q.dtype), (length - prefix) // frames, axis=0)
    columns = jnp.broadcast_to(jnp.pad(columns, ((prefix, 0), (0, 0)))[:, None], (batch, length, heads, frames))
    output = None
    if v is None:
        mass = _widened(q, k, columns, scale)
    elif depth + frames <= WIDEST:
        both = _widened(q, k, jnp.concatenate([v, columns], -1), scale)
        output, mass = both[..., :depth], both[..., depth:]
    else:
        output, mass = cudnn(q, k, v, scale), _widened(q, k, columns, scale)
    mass = mass[:, prefix:].astype(jnp.float32)
    mass = mass / jnp.maximum(mass.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return output, mass.reshape(batch, frames, -1, heads, frames).mean(2).transpose(0, 2, 1, 3)


def _widened(q, k, values, scale):
    """Attention with values of another width than queries and keys."""
    width = -(-max(q.shape[-1], values.shape[-1]) // 8) * 8

    def padded(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))

    return cudnn(padded(q), padded(k), padded(values), scale)[..., : values.shape[-1]]
