"""What may be read from a network while it runs, and what may be written into it.

A block offers named sites; a `Tap` reads one of them through a reducer, inside the compiled block, so that only the
reduced value leaves it. An `Edit` writes at a site. Models call `Reader.tap(site, h)` at their sites and know nothing
else about either.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import kernels
from jaxdiff.errors import ConfigError
from jaxdiff.kernels import sequence
from jaxdiff.reducers import (
    REDUCERS,
    FrameMap,
    FrameMean,
    Full,
    Grid,
    Grid3,
    Mean,
    Moments,
    Project,
    SemanticMoments,
)

__all__ = [
    "MAP_SITE",
    "REDUCERS",
    "SITES",
    "TEXT_SITE",
    "BlockReader",
    "Edit",
    "FrameMap",
    "FrameMean",
    "Full",
    "Grid",
    "Grid3",
    "Mean",
    "Moments",
    "Project",
    "Reader",
    "SemanticMoments",
    "Tap",
    "check",
    "is_batched",
]

SITES = (
    "block_in",
    "self_attention_out",
    "self_attention_map",
    "cross_attention_out",
    "mlp_out",
    "block_out",
)
MAP_SITE = "self_attention_map"
# Where text and video attend in one sequence, how much of the text the video sees; it can be written only.
TEXT_SITE = "text_attention"


# ---------------------------------------------------------------------------------------------------- declarations


@dataclasses.dataclass(frozen=True)
class Tap:
    """A reading: one site of chosen blocks, through a reducer.

    Parameters
    ----------
    site : one of `SITES`; "self_attention_map" pairs with the reducer "frame_map" only.
    reduce : a reducer's name, a reducer object (``Grid(4, 4)``, ``Project(64, seed=0)``) or a function
        ``f(x [B, S, D], grid (T', H', W')) -> [B, ...]``.
    blocks : indices of the blocks to keep (negative ones count from the end); None keeps all.
    name : key of the captured array; default ``"<site>.<reducer>"``.

    Raises
    ------
    ConfigError : unknown site or reducer, or a pairing that does not exist.
    """

    site: str
    reduce: str | Callable = "mean"
    blocks: tuple[int, ...] | None = None
    name: str | None = None

    def __post_init__(self):
        _known("site", self.site, SITES)
        if isinstance(self.reduce, str):
            if self.site == MAP_SITE and self.reduce == "mean":
                object.__setattr__(self, "reduce", "frame_map")
            _known("reducer", self.reduce, REDUCERS)
        elif not callable(self.reduce):
            raise ConfigError(f"Tap: reduce must be a name, a reducer or a function, got {self.reduce!r}")
        if (self.site == MAP_SITE) != isinstance(self.reducer, FrameMap):
            raise ConfigError(f"Tap: {MAP_SITE!r} and the reducer 'frame_map' go together, got {self}")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(int(b) for b in self.blocks))
        if self.name is None:
            label = self.reduce if isinstance(self.reduce, str) else _label(self.reduce)
            object.__setattr__(self, "name", f"{self.site}.{label}")

    @property
    def reducer(self) -> Callable:
        return REDUCERS[self.reduce] if isinstance(self.reduce, str) else self.reduce

    def rows(self, layers: int) -> tuple[int, ...]:
        """The block index of every row of the captured array."""
        return _block_indices(self.blocks, layers, f"Tap {self.name!r}")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["per_block"], meta_fields=["site", "blocks", "f"])
@dataclasses.dataclass(frozen=True)
class Edit:
    """A writing: at `site` of `blocks`, `h` becomes ``f(h, key, sigma)``, or ``f(h, key, sigma, own)`` with `per_block`.

    Two sites have no states but factors, which come to `f` as ones and leave it as what attention is multiplied by before
    the weights of each query are normalised again; zero cuts a path:

    - "self_attention_map" [B, K, T', T'], from each frame to each frame (rows: queries). The identity leaves every frame
      to itself. At least one factor of a row must stay above zero. Attention to text in the same sequence is left alone.
    - "text_attention" [B, K, 1, 1], of the video's queries to the text, in families where both are one sequence
      (`edit_sites`). Elsewhere "cross_attention_out" is what text adds.

    Parameters
    ----------
    site : one of `SITES`, or "text_attention".
    blocks : block indices (negative ones count from the end); None edits all.
    f : ``f(h [B, S, D], key, sigma) -> h`` of the same shape; `key` is a fresh `jax.random` key per step, block and
        edit, or [B] of them where the run was given one a clip; `sigma` the noise level of the state, float32 scalar or
        [B]. Compared by identity: define it once, not per call, or every call compiles anew.
    per_block : pytree of arrays [L, ...], of which `f` is handed the block's own entry, `own`. Data: with other values the
        same program runs, so that one program serves every block and every strength.
    """

    site: str
    blocks: tuple[int, ...] | None
    f: Callable
    per_block: Any = None

    def __post_init__(self):
        _known("site", self.site, (*SITES, TEXT_SITE))
        if not callable(self.f):
            raise ConfigError(f"Edit: f must be a function f(h, key, sigma), got {self.f!r}")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", tuple(int(b) for b in self.blocks))

    def apply(self, h: jax.Array, key: jax.Array, sigma: Any, own: Any) -> jax.Array:
        """`f` of h, in h's dtype; raises a ConfigError if it changed the shape."""
        new = self.f(h, key, sigma) if self.per_block is None else self.f(h, key, sigma, own)
        if new.shape != h.shape:
            raise ConfigError(f"Edit at {self.site!r}: f turned {h.shape} into {new.shape}")
        return new.astype(h.dtype)

    def rows(self, layers: int) -> tuple[int, ...]:
        return _block_indices(self.blocks, layers, f"Edit at {self.site!r}")


def check(
    taps: tuple[Tap, ...],
    edits: tuple[Edit, ...],
    sites: tuple[str, ...],
    layers: int,
    written: tuple[str, ...] = (),
) -> None:
    """Raise a `ConfigError` for anything that a network with these sites and layers cannot serve; `written` are the
    sites for edits, where they are not the same."""
    names = [tap.name for tap in taps]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two taps are named {name!r}; give one of them another name=")
    for tap in taps:
        _known("site of this backbone", tap.site, sites)
        tap.rows(layers)
    for edit in edits:
        _known("site of this backbone", edit.site, written or sites)
        edit.rows(layers)
        for leaf in jax.tree.leaves(edit.per_block):
            if jnp.shape(leaf)[:1] != (layers,):
                raise ConfigError(
                    f"Edit at {edit.site!r}: per_block holds an array {jnp.shape(leaf)}; expected [{layers}, ...], one entry a "
                    "block"
                )


def _known(kind, value, allowed):
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(allowed)}"
        raise ConfigError(f"unknown {kind} {value!r}; {hint}")


def _label(reduce) -> str:
    if dataclasses.is_dataclass(reduce) and not isinstance(reduce, type):
        numbers = "x".join(str(v) for v in dataclasses.astuple(reduce))
        return f"{type(reduce).__name__.lower()}{numbers}"
    return getattr(reduce, "__name__", type(reduce).__name__)


def _block_indices(blocks, layers, what):
    if blocks is None:
        return tuple(range(layers))
    for block in blocks:
        if not -layers <= block < layers:
            raise ConfigError(f"{what}: block {block} does not exist; this network has {layers} blocks")
    return tuple(block % layers for block in blocks)


# ---------------------------------------------------------------------------------------------------- running


class Reader:
    """Serves taps and edits inside a `lax.scan` over blocks.

    ``Reader(...)`` once per forward pass; ``reader.buffers(...)`` joins the scan's carry and ``reader.per_block`` its
    scanned inputs. In the body, ``reader.block(per_block)`` gives the `BlockReader` to call at the sites, and
    ``write(buffers)`` puts what it read into the rows that were asked for. A row is written in place, so memory grows
    with the rows kept and not with the depth of the network. With no taps and no edits everything is empty and the
    compiled program is the bare one.
    """

    def __init__(self, taps, edits, *, layers: int, grid: Grid3, sigma=None, key=None):
        self.taps, self.edits, self.grid, self.sigma = tuple(taps), tuple(edits), grid, sigma
        self.rows = {tap.name: tap.rows(layers) for tap in self.taps}
        self._all = {name: rows == tuple(range(layers)) for name, rows in self.rows.items()}
        per_block: dict[str, Any] = {}
        if self.taps:
            per_block["slots"] = {name: _slots(rows, layers) for name, rows in self.rows.items()}
        if self.edits:
            key = jax.random.key(0) if key is None else key
            shape = (layers, len(self.edits))
            per_block["keys"] = _split_each(key, shape) if is_batched(key) else jax.random.split(key, shape)
            per_block["own"] = [edit.per_block for edit in self.edits]
            per_block["edited"] = np.stack([np.isin(np.arange(layers), edit.rows(layers)) for edit in self.edits], 1)
        self.per_block = per_block

    def block(self, per_block) -> "BlockReader":
        return BlockReader(self, per_block)

    def buffers(self, block, *args) -> dict[str, jax.Array]:
        """Zeros for every tap, shaped by tracing ``block(*args) -> readings`` abstractly."""
        if not self.taps:
            return {}
        shapes = jax.eval_shape(block, *args)
        return {name: jnp.zeros((len(self.rows[name]), *shape.shape), shape.dtype) for name, shape in shapes.items()}

    def write(self, buffers, readings, per_block):
        written = dict(buffers)
        for name, value in readings.items():
            slot = per_block["slots"][name]
            if not self._all[name]:
                # A block that was not asked for writes back what is there already.
                kept = jax.lax.dynamic_index_in_dim(buffers[name], jnp.maximum(slot, 0), 0, keepdims=False)
                value = jnp.where(slot >= 0, value, kept)
            written[name] = jax.lax.dynamic_update_index_in_dim(buffers[name], value, jnp.maximum(slot, 0), 0)
        return written


class BlockReader:
    """The sites of one block: call it as ``h = tap(site, h)``; collects `readings`."""

    def __init__(self, reader: Reader, per_block):
        self._reader, self._per_block = reader, per_block
        self.readings: dict[str, jax.Array] = {}

    @property
    def grid(self) -> Grid3:
        return self._reader.grid

    @property
    def wants_map(self) -> bool:
        return any(tap.site == MAP_SITE for tap in self._reader.taps)

    @property
    def tokens(self) -> int:
        """S, of the whole video."""
        return math.prod(self.grid)

    def __call__(self, site: str, h: jax.Array) -> jax.Array:
        reader = self._reader
        sequence.check_split(h.shape[1], self.tokens)
        if any(edit.site == site for edit in reader.edits):  # an edit is a function of all tokens
            h = sequence.own(self._edited(site, sequence.whole(h, self.tokens)))
        for tap in reader.taps:
            if tap.site == site:
                self.readings[tap.name] = self._reduced(tap.reducer, h)
        return h

    def _reduced(self, reducer: Any, h: jax.Array) -> jax.Array:
        if sequence.shards() > 1 and hasattr(reducer, "of_parts"):
            return reducer.of_parts(h, self.grid, sequence)
        return reducer(sequence.whole(h, self.tokens), self.grid)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, prefix: int = 0) -> jax.Array:
        """Self-attention [B, prefix + S, K, d] of the video's tokens, behind a text of `prefix` tokens where both are one
        sequence: with what edits make of it, and its map where that is read."""
        frames = self.grid[0] if self.wants_map else None
        between = self._between(q.shape[0], q.shape[2], prefix)
        out, frame_map = kernels.self_attention(
            q, k, v, tokens=self.tokens, frames=frames, prefix=prefix, between=between
        )
        for tap in self._reader.taps:
            if tap.site == MAP_SITE:
                self.readings[tap.name] = tap.reducer(frame_map, self.grid)
        return out

    def _factors(self, site: str, shape: tuple[int, ...]) -> jax.Array | None:
        """What edits make of ones [B, K, ...] at a site of factors; None where there is no such edit.

        Without one the program is the bare one; with one, a block that is not edited multiplies by ones.
        """
        if all(edit.site != site for edit in self._reader.edits):
            return None
        return self._edited(site, jnp.ones(shape, jnp.float32))

    def _between(self, batch: int, heads: int, prefix: int) -> kernels.Between | None:
        """What edits make of self-attention. Each frame is a group, and the text in front is another, which sees
        everything."""
        frames = self.grid[0]
        factors = self._factors(MAP_SITE, (batch, heads, frames, frames))
        if not prefix:
            return None if factors is None else kernels.Between.frames(factors, self.tokens)
        text = self._factors(TEXT_SITE, (batch, heads, 1, 1))
        if factors is None and text is None:
            return None
        factors = jnp.ones((batch, heads, frames, frames), jnp.float32) if factors is None else factors
        text = jnp.ones((batch, heads, 1, 1), jnp.float32) if text is None else text
        video = jnp.concatenate([jnp.broadcast_to(text, (batch, heads, frames, 1)), factors], -1)
        every = jnp.concatenate([jnp.ones((batch, heads, 1, 1 + frames), jnp.float32), video], 2)
        return kernels.Between(every, np.repeat(np.arange(1 + frames), [prefix] + frames * [self.tokens // frames]))

    def _edited(self, site: str, h: jax.Array) -> jax.Array:
        for i, edit in enumerate(self._reader.edits):
            if edit.site == site:
                own = self._per_block["own"][i]
                new = edit.apply(h, self._per_block["keys"][i], self._reader.sigma, own)
                h = jnp.where(self._per_block["edited"][i], new, h)
        return h


def is_batched(key: jax.Array) -> bool:
    """Whether this is one key a clip, [B], and not one for all."""
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim > 0


def _split_each(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Of keys [B], one for every clip: [*shape, B]."""
    return jax.vmap(lambda key: jax.random.split(key, shape), out_axes=len(shape))(keys)


def _slots(rows, layers) -> np.ndarray:
    slots = np.full(layers, -1, np.int32)
    slots[list(rows)] = np.arange(len(rows))
    return slots
