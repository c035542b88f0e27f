"""Attention on TPUs: the splash kernel of JAX, and a flash kernel that also sums every query's weights by key frame.

Both work on whole tiles: queries, keys and values are padded here, and padded keys get no weight. Operands of products are
what the arrays are (bfloat16 as a rule), scores, sums and outputs are float32 until the end. On other backends they run
with `interpret` only, for tests.
"""

import functools

import jax
import jax.numpy as jnp

from jaxdiff.kernels.remat import SELF_ATTENTION

LANES = 128
MAX_QUERIES, MAX_KEYS, MAX_PRODUCT = 1024, 2048, 1024  # of a tile: queries, keys in memory, keys in one product
_VMEM = 48 << 20  # bytes, more than the default of 16 MB and less than any chip has
_NEVER = -0.7 * float(jnp.finfo(jnp.float32).max)


def splash(q, k, v, scale: float, lengths=None, interpret: bool = False) -> jax.Array:
    """`jaxdiff.kernels.attention` of q [B, Sq, K, d] and k, v [B, S, K, d]; of clip b only the first lengths[b] keys exist."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    queries, keys, heads = q.shape[1], k.shape[1], q.shape[2]
    block, wide = tile(queries, MAX_QUERIES), tile(keys, MAX_KEYS)
    narrow, kept = _divisor(wide, MAX_PRODUCT), SELF_ATTENTION if queries == keys else None
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, k, v = _tiled(q, block), _tiled(k, wide), _tiled(v, wide)
    mask = splash_attention_mask.FullMask((q.shape[2], k.shape[2]))
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block, block_kv=wide, block_kv_compute=narrow,
            block_q_dkv=block, block_kv_dkv=wide, block_kv_dkv_compute=narrow,
            block_q_dq=block, block_kv_dq=wide,
        ),
        head_shards=1, q_seq_shards=1, residual_checkpoint_name=kept, interpret=interpret,
    )  # fmt: skip
    if lengths is None and k.shape[2] == keys:
        out = jax.vmap(kernel)(q, k, v)
    else:  # every query is of segment 0, and so are the keys that exist
        lengths = jnp.full(q.shape[0], keys) if lengths is None else lengths
        padding = (jnp.arange(k.shape[2]) >= lengths[:, None]).astype(jnp.int32)
        ids = splash_attention_kernel.SegmentIds(jnp.zeros((q.shape[0], q.shape[2]), jnp.int32), padding)
        out = jax.vmap(kernel)(q, k, v, ids)
    return out[:, :, :queries].transpose(0, 2, 1, 3)


def with_frame_map(q, k, v, frames: int, prefix: int, scale: float, interpret: bool = False):
    """`jaxdiff.kernels.attention_with_frame_map` of q, k, v [B, S, K, d]."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    batch, length, heads, depth = q.shape
    tokens = (length - prefix) // frames  # of a frame
    if not fits(length, frames, prefix):
        raise ValueError(
            f"attention_with_frame_map: 'pallas' counts at most {LANES} frames, the prefix in units of a frame included, "
            f"and got {frames} frames and a prefix of {prefix / tokens:.1f}; use implementation='blockwise'"
        )
    # To the softmax the order of keys is nothing. With the prefix behind the frames, token t is of frame t // tokens.
    block, wide = tile(length, MAX_QUERIES), tile(length, MAX_KEYS)
    narrow = _divisor(wide, min(MAX_PRODUCT, max(tokens, LANES)))
    q, k, v = (_tiled(jnp.roll(x, -prefix, 1), size) for x, size in ((q, block), (k, wide), (v, wide)))
    q, k, v = (x.reshape(batch * heads, *x.shape[2:]) for x in (q, k, v))
    kernel = functools.partial(_flash, length=length, tokens=tokens, frames=frames, narrow=narrow, scale=scale)
    out, frame_map = pl.pallas_call(
        kernel,
        grid=(batch * heads, q.shape[1] // block, k.shape[1] // wide),
        in_specs=[
            pl.BlockSpec((None, block, depth), lambda h, i, j: (h, i, 0)),
            pl.BlockSpec((None, wide, depth), lambda h, i, j: (h, j, 0)),
            pl.BlockSpec((None, wide, depth), lambda h, i, j: (h, j, 0)),
        ],
        out_specs=[
            pl.BlockSpec((None, block, depth), lambda h, i, j: (h, i, 0)),
            pl.BlockSpec((None, LANES, LANES), lambda h, i, j: (h, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch * heads, LANES, LANES), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((block, LANES), jnp.float32),
            pltpu.VMEM((block, LANES), jnp.float32),
            pltpu.VMEM((block, depth), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=_VMEM
        ),
        name="attention_with_frame_map",
        interpret=interpret,
    )(q, k, v)
    out = out.reshape(batch, heads, -1, depth)[:, :, :length].transpose(0, 2, 1, 3)
    frame_map = frame_map.reshape(batch, heads, LANES, LANES)[:, :, :frames, :frames]
    return jnp.roll(out, prefix, 1), frame_map


def fits(length: int, frames: int, prefix: int) -> bool:
    """Whether `with_frame_map` has a lane for every frame, the prefix in units of a frame included."""
    return -(-length // ((length - prefix) // frames)) <= LANES


def _flash(q, k, v, out, frame_map, top, mass, total, *, length, tokens, frames, narrow, scale):
    """One tile of queries against one tile of keys.

    Kept from tile to tile: each query's largest score so far, its weights summed by key frame, and its weighted sum of
    values, the two relative to that largest score. The sum over frames is the softmax's denominator, so that the frames
    cost what it would cost, but for products of keys that a frame's edge cuts.
    """
    from jax.experimental import pallas as pl

    i, j = pl.program_id(1), pl.program_id(2)
    rows, wide = q.shape[0], k.shape[0]
    lane = jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)

    @pl.when(j == 0)
    def _():
        top[...] = jnp.full_like(top, _NEVER)
        mass[...] = jnp.zeros_like(mass)
        total[...] = jnp.zeros_like(total)

    for part in range(0, wide, narrow):
        start = j * wide + part
        keys = pl.ds(part, narrow)
        scores = scale * _product(q[...], k[keys, :], ((1,), (1,)))
        key = start + jax.lax.broadcasted_iota(jnp.int32, (rows, narrow), 1)
        if length % wide:
            scores = jnp.where(key < length, scores, _NEVER)
        highest = jnp.maximum(top[...], scores.max(1, keepdims=True))
        fading = jnp.exp(top[...] - highest)
        weights = jnp.exp(scores - highest[:, :1])
        top[...] = highest
        mass[...] = fading * mass[...]
        total[...] = fading[:, :1] * total[...] + _product(weights.astype(v.dtype), v[keys, :], ((1,), (0,)))
        first, last = jax.lax.div(start, tokens), jax.lax.div(start + narrow - 1, tokens)  # the frames of these keys

        @pl.when(first == last)
        def _(weights=weights, first=first):
            mass[...] += jnp.where(lane == first, weights.sum(1, keepdims=True), 0.0)

        @pl.when(first != last)
        def _(weights=weights, first=first, key=key):
            for frame in (first + step for step in range((narrow - 2) // tokens + 2)):
                own = (key >= frame * tokens) & (key < (frame + 1) * tokens)
                mass[...] += jnp.where(lane == frame, jnp.where(own, weights, 0.0).sum(1, keepdims=True), 0.0)

    @pl.when(j == pl.num_programs(2) - 1)
    def _():
        out[...] = (total[...] / mass[...].sum(1, keepdims=True)).astype(out.dtype)
        among = jnp.where(lane < frames, mass[...], 0.0)
        among = among / jnp.maximum(among.sum(1, keepdims=True), jnp.finfo(jnp.float32).tiny)
        token = i * rows + jax.lax.broadcasted_iota(jnp.int32, (LANES, rows), 1)
        frame = jax.lax.broadcasted_iota(jnp.int32, (LANES, rows), 0)
        mean = jnp.where((token >= frame * tokens) & (token < (frame + 1) * tokens), 1.0 / tokens, 0.0)
        pooled = _product(mean, among, ((1,), (0,)))
        frame_map[...] = pooled + jnp.where(i == 0, 0.0, frame_map[...])


def _product(a, b, contracted):
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, (contracted, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def tile(length: int, most: int) -> int:
    """The multiple of 128, at least `most` / 2 where `length` is, that `length` is padded least by; of equals the largest."""
    longest = -(-length // LANES) * LANES
    sizes = range(min(most // 2, longest), min(most, longest) + 1, LANES)
    return min(sizes, key=lambda size: (-(-length // size) * size, -size))


def _divisor(size: int, most: int) -> int:
    return max(part for part in range(LANES, min(size, most) + 1, LANES) if size % part == 0)


def _tiled(x, size):
    """[B, S, K, d] -> [B, K, S', d] with S' a multiple of `size`."""
    x = x.transpose(0, 2, 1, 3)
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % size), (0, 0)))
