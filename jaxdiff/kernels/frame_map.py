"""How much attention each frame pays to each frame: exact from the pass that computes attention, or estimated from few queries.

Tokens lie frame by frame: S = prefix + frames * tokens of a frame, the same for queries and keys. Where text stands before
the video in one sequence, it is the prefix.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxdiff.kernels import gpu, tpu
from jaxdiff.kernels.attention import Between, check, on_one_tpu, platform
from jaxdiff.kernels.blockwise import blockwise

Implementation = Literal["blockwise", "cudnn", "pallas"]


def attention_with_frame_map(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    frames: int,
    prefix: int = 0,
    scale: float | None = None,
    between: Between | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`attention`, and how much of it each frame spends on each frame.

    The map is exact and costs no score matrix: the row sum that a softmax needs is formed per key frame first, and those
    partial sums are the map.

    Parameters
    ----------
    q, k, v : [B, S, K, d]
    frames : of the video.
    prefix : tokens at the start that are of no frame. They attend and are attended to; the map leaves them out.
    scale, between : as in `attention`.
    implementation : "blockwise" (XLA, any backend), "pallas" (a flash kernel for TPUs), "cudnn" (one column of the values a
        frame; half precision) or None: as `attention` chooses.

    Returns
    -------
    output : [B, S, K, d] in the dtype of `q`.
    frame_map : float32 [B, K, frames, frames], query frame by key frame: of the attention mass that a query of one frame
        puts on all frames, the part on each, averaged over the queries of its frame. Rows sum to 1.

    Raises
    ------
    ValueError : shapes do not agree, tokens are not whole frames, or a kernel is asked for what it does not know.
    """
    output, frame_map = _mapped(q, k, v, frames, prefix, scale, between, implementation)
    return output, frame_map


def frame_attention_map(
    q: jax.Array,
    k: jax.Array,
    *,
    frames: int,
    prefix: int = 0,
    scale: float | None = None,
    between: Between | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """The map of `attention_with_frame_map`, float32 [B, K, frames, frames], where there are no values to mix.

    Where both are wanted, `attention_with_frame_map` has the map at next to no cost.
    """
    return _mapped(q, k, None, frames, prefix, scale, between, implementation)[1]


def sampled_frame_attention_map(
    q: jax.Array,
    k: jax.Array,
    key: jax.Array,
    *,
    frames: int,
    queries: int,
    prefix: int = 0,
    scale: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """An unbiased estimate of `frame_attention_map` from some queries of each frame, and its standard error.

    Queries are drawn without replacement within each frame (stratified sampling: Cochran 1977, eq. 5.6), the same for all
    clips and heads, and see all keys. Costs ``queries / tokens of a frame`` of the exact map.

    Parameters
    ----------
    q, k : [B, S, K, d]
    key : of `jax.random`
    queries : how many of each frame, at least 2.

    Returns
    -------
    estimate, standard_error : float32 [B, K, frames, frames]. Rows of the estimate sum to 1. The error is 0 where all
        queries were taken.

    Raises
    ------
    ValueError : shapes do not agree, tokens are not whole frames, or a frame has fewer than `queries` tokens.
    """
    tokens = _tokens(q, k, frames, prefix)
    if not 2 <= queries <= tokens:
        raise ValueError(
            f"sampled_frame_attention_map: queries={queries} of a frame's {tokens} tokens; expected 2 to {tokens}"
        )
    chosen = jax.vmap(lambda key: jax.random.permutation(key, tokens)[:queries])(jax.random.split(key, frames))
    chosen = (prefix + tokens * jnp.arange(frames)[:, None] + chosen).ravel()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    few, apart = jnp.take(q, chosen, axis=1), platform() == "cpu"
    mass = blockwise(few, k, None, scale, frames=frames, prefix=prefix, heads_apart=apart)[1]
    mass = mass.reshape(*mass.shape[:2], frames, queries, frames)
    return mass.mean(3), mass.std(3, ddof=1) * ((1 / queries - 1 / tokens) ** 0.5)


def _mapped(q, k, v, frames, prefix, scale, between, implementation):
    check(q, k, k if v is None else v, between=between)
    _tokens(q, k, frames, prefix)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    name = implementation or _default(q, frames, prefix, between)
    if between is not None and name != "blockwise":
        raise ValueError(f"attention_with_frame_map: {name!r} knows no factors between groups; use 'blockwise'")
    match name:
        case "cudnn":
            return gpu.with_frame_map(q, k, v, frames, prefix, scale)
        case "pallas":
            return _pallas(q, k, k if v is None else v, frames, prefix, scale)
        case "blockwise":
            return _blockwise(q, k, v, frames, prefix, scale, between)
        case other:
            raise ValueError(f"attention_with_frame_map: no implementation {other!r}; use blockwise, cudnn or pallas")


def _default(q, frames, prefix, between) -> Implementation:
    if between is None:
        if platform() == "gpu" and gpu.fits(q) and frames <= gpu.WIDEST:
            return "cudnn"
        if on_one_tpu() and q.dtype == jnp.bfloat16 and tpu.fits(q.shape[1], frames, prefix):
            return "pallas"
    return "blockwise"


def _tokens(q, k, frames, prefix) -> int:
    """Tokens of a frame."""
    if q.shape[1] != k.shape[1] or not 0 <= prefix < q.shape[1] or frames < 1 or (q.shape[1] - prefix) % frames:
        raise ValueError(
            f"attention_with_frame_map: {q.shape[1]} queries and {k.shape[1]} keys are not {frames} equal frames"
            + (f" behind {prefix} tokens" if prefix else "")
        )
    return (q.shape[1] - prefix) // frames


def _blockwise(q, k, v, frames, prefix, scale, between=None):
    apart = platform() == "cpu"
    output, mass = blockwise(q, k, v, scale, frames=frames, prefix=prefix, between=between, heads_apart=apart)
    return output, mass[:, :, prefix:].reshape(*mass.shape[:2], frames, -1, frames).mean(3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _pallas(q, k, v, frames, prefix, scale):
    return tpu.with_frame_map(q, k, v, frames, prefix, scale)


def _pallas_forward(q, k, v, frames, prefix, scale):
    return _pallas(q, k, v, frames, prefix, scale), (q, k, v)


def _pallas_backward(frames, prefix, scale, residual, g):
    return jax.vjp(lambda q, k, v: _blockwise(q, k, v, frames, prefix, scale), *residual)[1](g)


_pallas.defvjp(_pallas_forward, _pallas_backward)
