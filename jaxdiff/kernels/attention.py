"""Softmax attention without a score matrix in memory: one entry, and the kernel that is right for the backend behind it."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxdiff.kernels import gpu, tpu
from jaxdiff.kernels.blockwise import blockwise
from jaxdiff.kernels.remat import named
from jaxdiff.mesh import DATA, FSDP

Implementation = Literal["dense", "blockwise", "cudnn", "splash"]

# A score matrix above this many elements is refused by "dense" unless the caller raises the limit.
_DENSE_LIMIT = 1 << 28
_TARGET: contextvars.ContextVar[tuple[str, int] | None] = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(platform: str, devices: int = 1) -> Iterator[None]:
    """Choose kernels as on so many devices of "cpu", "gpu" or "tpu", and not as for the backend of this process.

    For programs that are compiled ahead of time for another machine; around the tracing (``jit(f).lower``). What was traced
    before is not traced again.
    """
    token = _TARGET.set((platform, devices))
    try:
        yield
    finally:
        _TARGET.reset(token)


def platform() -> str:
    """The backend to choose kernels for."""
    target = _TARGET.get()
    return jax.default_backend() if target is None else target[0]


def on_one_tpu() -> bool:
    """Whether the program is for a single TPU: Pallas kernels are not split over devices by the compiler.

    It is on a machine with one device, and inside a `jax.shard_map` that is manual in all axes.
    """
    if platform() != "tpu":
        return False
    target, mesh = _TARGET.get(), jax.sharding.get_abstract_mesh()
    by_hand = bool(mesh.axis_names) and set(mesh.manual_axes) == set(mesh.axis_names)
    return by_hand or (jax.device_count() if target is None else target[1]) == 1


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
    lengths: jax.Array | None = None,
    scale: float | None = None,
    between: Between | None = None,
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
    lengths : int [B], each at least 1: only so many of a clip's keys exist. What a flash kernel wants to know of padded text.
    scale : defaults to ``d ** -0.5``.
    between : factors on the attention between groups of tokens; "blockwise" or "dense".
    implementation : "blockwise" (XLA, any backend), "cudnn" (flash attention on NVIDIA GPUs, float16 or bfloat16), "splash"
        (flash attention on TPUs, no bias; sequences are padded to its tiles), "dense" (the reference, builds the score
        matrix) or None: cudnn or splash for half precision where they apply (splash on one TPU, inside a `jax.shard_map`, or
        by clip under `jax.sharding.use_abstract_mesh`: the compiler does not split it over devices), else blockwise.
    dense_limit : "dense" raises above this many score elements B K Sq S.

    Returns
    -------
    [B, Sq, K, d] in the dtype of `q`. Scores, softmax and accumulation are float32.

    Raises
    ------
    ValueError : shapes do not agree, "dense" would build more than `dense_limit` scores, or a flash kernel is asked for what it
        does not know.
    """
    check(q, k, v, bias, lengths, between)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    match implementation or _default(q, bias, between):
        case "cudnn":
            if between is not None:
                raise ValueError("attention: 'cudnn' knows no factors between groups; use 'blockwise'")
            return gpu.cudnn(q, k, v, scale, bias, lengths)
        case "splash":
            if between is not None or bias is not None:
                raise ValueError("attention: 'splash' knows neither a bias nor factors between groups; use 'blockwise'")
            clips = _clips_apart(q)
            if clips is None:
                return tpu.splash(q, k, v, scale, lengths)
            given = (q, k, v) if lengths is None else (q, k, v, lengths)
            own = jax.shard_map(
                lambda q, k, v, *lengths: tpu.splash(q, k, v, scale, *lengths),
                in_specs=(clips,) * len(given), out_specs=clips, check_vma=False,
            )  # fmt: skip
            return own(*given)
        case "dense" | "blockwise" as name:
            elements = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
            if name == "dense" and elements > dense_limit:
                raise ValueError(
                    f"attention: 'dense' would build {elements:,} scores for q {q.shape}, k {k.shape} "
                    f"(limit {dense_limit:,}); use implementation='blockwise' or raise dense_limit"
                )
            if lengths is not None:
                absent = jnp.where(jnp.arange(k.shape[1]) < lengths[:, None], 0.0, -jnp.inf)[:, None, None]
                bias = absent if bias is None else bias + absent
            output, _ = blockwise(
                q, k, v, scale, bias=bias, between=between, whole=name == "dense", heads_apart=platform() == "cpu"
            )
            return named(output, q, k)
        case other:
            raise ValueError(f"attention: unknown implementation {other!r}; use dense, blockwise, cudnn or splash")


def check(q, k, v, bias=None, lengths=None, between=None):
    """Raise a ValueError for shapes that do not agree."""
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
    if lengths is not None and lengths.shape != q.shape[:1]:
        raise ValueError(f"attention: expected lengths [{q.shape[0]}], one a clip, got {lengths.shape}")
    if between is not None:
        between.check(q.shape, k.shape)


def _default(q, bias, between) -> Implementation:
    if between is None:
        if platform() == "gpu" and gpu.fits(q):
            return "cudnn"
        alone = on_one_tpu() or _clips_apart(q) is not None
        if platform() == "tpu" and alone and q.dtype == jnp.bfloat16 and bias is None:
            return "splash"
    return "blockwise"


def _clips_apart(q) -> PartitionSpec | None:
    """How arrays [B, ...] of a program that the compiler splits over devices are split by clip, where its mesh is known
    (`jax.sharding.use_abstract_mesh`, as in training) and B divides: each device can then run a Pallas kernel on its own."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in (DATA, FSDP) if axis in mesh.axis_names)
    if not axes or mesh.manual_axes or q.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return None
    return PartitionSpec(axes)
