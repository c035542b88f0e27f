"""Softmax attention without a score matrix in memory, and exact frame-to-frame attention maps from the same pass."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Implementation = Literal["dense", "blockwise", "cudnn"]

# Elements of one block of scores [B, K, block, S]: 2M float32 stay near the last-level cache of a CPU, which
# is worth a factor of two there; on accelerators the block bounds memory.
_BLOCK_ELEMENTS = 1 << 21
# A score matrix above this many elements is refused by "dense" unless the caller raises the limit.
_DENSE_LIMIT = 1 << 28


@dataclasses.dataclass(frozen=True)
class Between:
    """Factors by which attention between groups of tokens is multiplied, before each query's weights are normalised again.

    They are added to the scores as logarithms, a block of queries at a time: nothing quadratic is built. A factor of 0 cuts
    the path; of every query at least one key must be left.

    Parameters
    ----------
    factors : float32 [B or 1, K or 1, G, G], query group by key group, not negative.
    groups : int [S], static: the group of every token. Queries and keys are the same tokens.
    """

    factors: jax.Array
    groups: np.ndarray

    @classmethod
    def frames(cls, factors: jax.Array, tokens: int) -> "Between":
        """Of `tokens` tokens that lie frame by frame, as many equal frames as there are factors [..., T', T']."""
        return cls(factors, np.repeat(np.arange(factors.shape[-1]), tokens // factors.shape[-1]))

    def rows(self) -> jax.Array:
        """What is added to the scores of every query with the keys of each group: [B or 1, K or 1, S, G]."""
        return jnp.log(self.factors.astype(jnp.float32))[..., self.groups, :]

    def check(self, queries: tuple[int, ...], keys: tuple[int, ...]) -> None:
        """Raise a ValueError for q [B, S, K, d] and k of these shapes that the groups do not fit."""
        batch, tokens, heads, _ = queries
        shape, count = self.factors.shape, int(self.groups.max()) + 1
        if (
            len(shape) != 4
            or shape[0] not in (1, batch)
            or shape[1] not in (1, heads)
            or shape[2:] != (count, count)
            or self.groups.shape != (tokens,)
            or keys[1] != tokens
        ):
            raise ValueError(
                f"attention: factors {shape} between {count} groups of {len(self.groups)} tokens do not fit q {queries} and "
                f"k {keys}; expected [B or 1, K or 1, G, G] and one group a token, queries and keys the same tokens"
            )


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    between: "Between | None" = None,
    implementation: Implementation | None = None,
    dense_limit: int = _DENSE_LIMIT,
) -> jax.Array:
    """``softmax(scale q k^T + bias) v`` per head, not causal.

    Parameters
    ----------
    q : [B, Sq, K, d]
    k, v : [B, S, K, d]
    bias : [B or 1, K or 1, Sq or 1, S], added to the scores in float32. A text mask [B, S] is the bias
        ``jnp.where(mask, 0.0, -10000.0)[:, None, None]``, and costs nothing per query.
    scale : defaults to ``d ** -0.5``.
    between : factors on the attention between groups of tokens; "blockwise" or "dense".
    implementation : "blockwise" (over queries; XLA, any backend), "cudnn" (flash attention on NVIDIA GPUs, float16 or
        bfloat16), "dense" (the reference, builds the score matrix) or None: cudnn where it applies, else blockwise.
    dense_limit : "dense" raises above this many score elements B K Sq S.

    Returns
    -------
    [B, Sq, K, d] in the dtype of `q`. Scores, softmax and accumulation are float32.

    Raises
    ------
    ValueError : shapes do not agree, "dense" would build more than `dense_limit` scores, or "cudnn" is asked for factors.
    """
    _check(q, k, v, bias, between)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    match implementation or ("blockwise" if between is not None else _default(q)):
        case "cudnn":
            if between is not None:
                raise ValueError("attention: 'cudnn' knows no factors between groups; use 'blockwise'")
            if bias is not None:  # cudnn wants it at every query, in the dtype of the queries
                bias = jnp.broadcast_to(bias, (*bias.shape[:2], q.shape[1], k.shape[1])).astype(q.dtype)
            return jax.nn.dot_product_attention(q, k, v, bias, scale=scale, implementation="cudnn")
        case "dense":
            elements = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
            if elements > dense_limit:
                raise ValueError(
                    f"attention: 'dense' would build {elements:,} scores for q {q.shape}, k {k.shape} "
                    f"(limit {dense_limit:,}); use implementation='blockwise' or raise dense_limit"
                )
            return _blockwise(q, k, v, scale, None, bias, between, block=q.shape[1])[0]
        case "blockwise":
            return _blockwise(q, k, v, scale, None, bias, between)[0]
        case other:
            raise ValueError(f"attention: unknown implementation {other!r}; use dense, blockwise or cudnn")


def attention_with_frame_map(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    frames: int,
    scale: float | None = None,
    between: "Between | None" = None,
) -> tuple[jax.Array, jax.Array]:
    """`attention`, and how much of it each frame spends on each frame.

    Tokens are ordered by frame: S = frames * tokens per frame, the same for queries and keys. The map is exact and
    costs no score matrix: inside a block of queries the row sum of the softmax is formed per key frame first, and
    those partial sums are the map.

    Returns
    -------
    output : [B, S, K, d] in the dtype of `q`.
    frame_map : float32 [B, K, frames, frames], query frame by key frame: the attention mass a query of one frame
        puts on all keys of another, averaged over the queries of its frame. Rows sum to 1.
    """
    _check(q, k, v, between=between)
    if q.shape[1] != k.shape[1] or q.shape[1] % frames:
        raise ValueError(
            f"attention_with_frame_map: {q.shape[1]} queries and {k.shape[1]} keys are not {frames} equal frames"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    output, mass = _blockwise(q, k, v, scale, frames, between=between)
    return output, mass.reshape(*mass.shape[:2], frames, -1, frames).mean(3)


def _check(q, k, v, bias=None, between=None):
    if q.ndim != 4 or k.shape != v.shape or q.shape[::2] != k.shape[::2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"attention: expected q [B,Sq,K,d] and k, v [B,S,K,d], got q {q.shape}, k {k.shape}, v {v.shape}"
        )
    if bias is not None:
        full = (q.shape[0], q.shape[2], q.shape[1])
        if (
            bias.ndim != 4
            or bias.shape[3] != k.shape[1]
            or any(n not in (1, m) for n, m in zip(bias.shape[:3], full, strict=True))
        ):
            raise ValueError(
                f"attention: expected a bias [B or 1, K or 1, Sq or 1, S] for q {q.shape} and k {k.shape}, "
                f"got {bias.shape}"
            )
    if between is not None:
        between.check(q.shape, k.shape)


def _default(q) -> Implementation:
    if jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        return "cudnn"
    return "blockwise"


def _blockwise(q, k, v, scale, frames, bias=None, between=None, block=None):
    """Attention over blocks of queries; with `frames`, also each query's mass per key frame [B, K, Sq, frames]."""
    batch, queries, heads, _ = q.shape
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))  # batched matmuls run best as [B, K, S, d]
    groups = None if between is None else between.groups
    attend = functools.partial(_attend, k=k, v=v, scale=scale, frames=frames, groups=groups)
    rows = None if between is None else between.rows()
    block = block or _block_size(batch * heads * k.shape[2], queries)
    if block >= queries:
        output, mass = attend(q, bias, rows)
        return output.transpose(0, 2, 1, 3), mass
    count = math.ceil(queries / block)

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, count * block - queries), (0, 0)))
        return x.reshape(*x.shape[:2], count, block, -1).transpose(2, 0, 1, 3, 4)

    own = bias is not None and bias.shape[2] > 1  # a bias of its own for every query
    # Checkpointed: the backward pass recomputes a block's scores and never holds all of them.
    attend_block = jax.checkpoint(lambda part: attend(part[0], part[1] if own else bias, part[2]))
    parts = (split(q), split(bias) if own else None, None if rows is None else split(rows))
    outputs = jax.lax.map(attend_block, parts)

    def joined(x):
        return x.transpose(1, 2, 0, 3, 4).reshape(batch, heads, count * block, -1)[:, :, :queries]

    output, mass = jax.tree.map(joined, outputs)
    return output.transpose(0, 2, 1, 3), mass


def _block_size(scores_per_query: int, queries: int) -> int:
    if scores_per_query * queries <= _BLOCK_ELEMENTS:
        return queries
    return max(16, _BLOCK_ELEMENTS // scores_per_query // 16 * 16)


def _attend(q, bias, rows, k, v, scale, frames, groups):
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * scale if bias is None else scores * scale + bias.astype(jnp.float32)
    if rows is not None:
        scores = scores + rows[..., groups]
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    mass = None
    if frames is None:
        total = weights.sum(-1, keepdims=True)
    else:
        mass = weights.reshape(*weights.shape[:-1], frames, -1).sum(-1)
        total = mass.sum(-1, keepdims=True)
        mass = mass * (1.0 / total)
    output = jnp.einsum(
        "bkqs,bksd->bkqd", weights.astype(v.dtype), v, precision=precision, preferred_element_type=jnp.float32
    )
    # A written-out reciprocal: XLA turns x / total into one in some programs and not in others, and the last bits differ.
    return (output * (1.0 / total)).astype(q.dtype), mass
