"""One clip's tokens over several devices: which of them a device has, and attention among all of them.

In a program that a `jax.shard_map` runs on every device, manual over the axis ``seq``, each of its n devices has S / n tokens
of a clip, in their order; the last ones are filled up with zeros where n does not divide S. Everywhere else each function here
is the identity or the plain kernel, and costs nothing. Arrays that every token needs (text, weights, modulation) are the same
on all devices, so that cross-attention is the plain kernel too.

Attention among all tokens trades tokens for heads (DeepSpeed-Ulysses, arXiv 2309.14509): four all-to-alls an attention, and in
between any kernel on whole sequences. Where n does not divide the heads, keys and values go round instead
(`jaxdiff.kernels.ring`).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxdiff.errors import ConfigError
from jaxdiff.kernels.attention import Between, attention
from jaxdiff.kernels.frame_map import attention_with_frame_map
from jaxdiff.kernels.ring import ring
from jaxdiff.mesh import DATA, FSDP, SEQ


def shards() -> int:
    """Over how many devices the tokens of a clip are spread in what is being traced."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[SEQ] if SEQ in mesh.manual_axes else 1


def own(x, axis: int = 1, prefix: int = 0):
    """This device's part of what all tokens have along `axis`, behind the first `prefix` entries, which all devices keep."""
    n = shards()
    if n == 1:
        return x
    x = jnp.asarray(x)
    axis %= x.ndim
    first, rest = jnp.split(x, [prefix], axis)
    tokens = rest.shape[axis]
    if tokens < n:
        raise ConfigError(
            f"a clip of {tokens} tokens does not split over {SEQ}={n} devices: use fewer, and data instead"
        )
    size = -(-tokens // n)
    rest = jax.lax.dynamic_slice_in_dim(_filled(rest, n * size, axis), jax.lax.axis_index(SEQ) * size, size, axis)
    return jnp.concatenate([first, rest], axis) if prefix else rest


def whole(x, tokens: int, axis: int = 1):
    """All `tokens` from every device's own: for what is narrow, such as a network's output."""
    if shards() == 1:
        return x
    return _by_clip(
        lambda x: jax.lax.slice_in_dim(jax.lax.all_gather(x, SEQ, axis=axis, tiled=True), 0, tokens, axis=axis), x
    )


def self_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    tokens: int,
    frames: int | None = None,
    prefix: int = 0,
    between: Between | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Attention of all tokens of a clip among themselves, wherever they are, and with `frames` the frame map.

    Parameters
    ----------
    q, k, v : [B, prefix + s, K, d], s of them this device's own tokens: all S, or `own`'s part of them.
    tokens : S, those of the video on all devices.
    frames : of the video; None: no map is asked for.
    prefix : tokens at the start that are of no frame and that all devices have, such as text.
    between : as in `attention`, between groups of all prefix + S tokens.

    Returns
    -------
    output : [B, prefix + s, K, d]
    frame_map : float32 [B, K, frames, frames], whole on every device, or None

    Raises
    ------
    ConfigError : the tokens are not split, or there is a prefix and the devices do not divide the heads.
    """
    n, heads = shards(), q.shape[2]
    check_split(q.shape[1] - prefix, tokens)
    if n == 1:
        return _attention(q, k, v, frames, prefix, between)
    if not heads % n:
        share = functools.partial(_ulysses, tokens=tokens, frames=frames, prefix=prefix, n=n)
        return _by_clip(share, q, k, v, between=between)
    if prefix:
        fitting = [m for m in range(2, heads + 1) if not heads % m]
        raise ConfigError(
            f"{SEQ}={n} does not divide the {heads} heads of this network. Its text and video attend in one sequence, for which "
            f"it must: use {SEQ} of {', '.join(map(str, fitting))}, and data or fsdp for the other devices"
        )
    share = functools.partial(ring, axis=SEQ, n=n, tokens=tokens, frames=frames)
    return _by_clip(share, q, k, v, between=between)


def _by_clip(share, *arrays, between=None):
    """``share(*arrays)`` of arrays [B, ...], on each device for its own clips.

    It is so where every axis is manual. In training the clips are the partitioner's, and what it does not know how to split, an
    all-to-all among them, it would do for all clips on every device.
    """
    options = {} if between is None else {"between": between}
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in (DATA, FSDP) if axis in mesh.axis_names and axis not in mesh.manual_axes)
    if not axes or between is not None or arrays[0].shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        return share(*arrays, **options)
    clips = PartitionSpec(axes)
    return jax.shard_map(share, in_specs=clips, out_specs=clips, axis_names={*axes}, check_vma=False)(*arrays)


def _attention(q, k, v, frames, prefix, between):
    if frames is None:
        return attention(q, k, v, between=between), None
    return attention_with_frame_map(q, k, v, frames=frames, prefix=prefix, between=between)


def _ulysses(q, k, v, *, tokens, frames, prefix, n, between=None):
    """Every device has all tokens of its own heads for as long as attention takes."""
    heads, size = q.shape[2], q.shape[1] - prefix
    first = jax.lax.axis_index(SEQ) * (heads // n)

    def own_heads(x, axis):
        return jax.lax.dynamic_slice_in_dim(x, first, heads // n, axis)

    def to_heads(x):
        text, video = x[:, :prefix], x[:, prefix:]
        video = jax.lax.all_to_all(video, SEQ, split_axis=2, concat_axis=1, tiled=True)[:, :tokens]
        return jnp.concatenate([own_heads(text, 2), video], 1) if prefix else video

    def to_tokens(x):
        text, video = x[:, :prefix], _filled(x[:, prefix:], n * size, 1)
        video = jax.lax.all_to_all(video, SEQ, split_axis=1, concat_axis=2, tiled=True)
        return jnp.concatenate([jax.lax.all_gather(text, SEQ, axis=2, tiled=True), video], 1) if prefix else video

    if between is not None and between.factors.shape[1] > 1:
        between = Between(own_heads(between.factors, 1), between.groups)
    out, frame_map = _attention(to_heads(q), to_heads(k), to_heads(v), frames, prefix, between)
    return to_tokens(out), None if frame_map is None else joined(frame_map, axis=1)


# ------------------------------------------------------------------------------------------- for what reduces tokens


def pooled(x: jax.Array, pools: tuple[np.ndarray, np.ndarray, np.ndarray]) -> jax.Array:
    """Sums over all tokens of x [B, s, D] with weights of their frame, row and column: [B, a, b, c, D] float32.

    `pools` are [a, T'], [b, H'] and [c, W'].
    """
    (_, rows, columns), size = (pool.shape[1] for pool in pools), x.shape[1]
    tokens = int(np.prod([pool.shape[1] for pool in pools]))
    index = jax.lax.axis_index(SEQ) * size + jnp.arange(size)
    places = index // (rows * columns), index // columns % rows, index % columns
    t, r, c = (jnp.asarray(pool, jnp.float32)[:, place] for pool, place in zip(pools, places, strict=True))
    weights = (t * (index < tokens))[:, None, None] * r[:, None] * c  # [a, b, c, s]
    sums = jnp.einsum("trcs,bsd->btrcd", weights, x.astype(jnp.float32), precision="highest")
    return jax.lax.psum(sums, SEQ)


def channels(x: jax.Array, tokens: int) -> jax.Array:
    """This device's share of the channels of all tokens: [B, s, D] -> [B, S, D / n]."""
    n = shards()
    if x.shape[-1] % n:
        raise ConfigError(
            f"a reducer over time needs {SEQ} to divide the {x.shape[-1]} channels, and {SEQ}={n} does not"
        )
    return jax.lax.all_to_all(x, SEQ, split_axis=2, concat_axis=1, tiled=True)[:, :tokens]


def joined(x: jax.Array, axis: int) -> jax.Array:
    """The parts of all devices one after the other, on every one of them: for what is small, such as a frame map."""
    n, size, axis = shards(), x.shape[axis], axis % x.ndim
    room = jnp.zeros((*x.shape[:axis], n * size, *x.shape[axis + 1 :]), x.dtype)
    return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(room, x, jax.lax.axis_index(SEQ) * size, axis), SEQ)


def check_split(size: int, tokens: int) -> None:
    """Raise a `ConfigError` where a network goes on with other tokens than its device's own."""
    n = shards()
    if n > 1 and size != -(-tokens // n):
        raise ConfigError(
            f"this network does not split its {tokens} tokens over {SEQ}={n}: give these devices to data or fsdp (networks that do "
            "call jaxdiff.kernels.sequence.own behind the patches)"
        )


def check_even(tokens: int) -> None:
    """Raise a `ConfigError` where the devices do not divide the tokens: of padding, whole tokens must not be captured."""
    n = shards()
    if tokens % n:
        fitting = [m for m in range(2, n + 1) if not tokens % m]
        raise ConfigError(
            f"the reducer full keeps {tokens} tokens, which {SEQ}={n} does not divide: use {SEQ} of "
            f"{', '.join(map(str, fitting)) or 'nothing up to it'}, or another reducer"
        )


def _filled(x: jax.Array, length: int, axis: int) -> jax.Array:
    """With zeros behind what there is along `axis`."""
    missing = length - x.shape[axis]
    return jnp.pad(x, [(0, missing if i == axis % x.ndim else 0) for i in range(x.ndim)]) if missing else x
