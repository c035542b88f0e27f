"""A Flax NNX module taken apart: what is static (class, config) and what is data (weights)."""

import dataclasses
import functools
import hashlib
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdiff.errors import ConfigError
from jaxdiff.kernels import keep_self_attention
from jaxdiff.mesh import split_activations
from jaxdiff.taps import Reader

Params = dict[str, Any]
Remat = Literal["none", "block", "all_but_attention"]
POLICIES = {"block": None, "all_but_attention": keep_self_attention}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["module", "config"])
@dataclasses.dataclass(frozen=True)
class Network:
    """A network as a pytree: its weights are the leaves, its class and configuration are static.

    Weights therefore travel into `jax.jit` as arguments, never as constants, and two networks of equal
    class and configuration share every compiled program.

    Parameters
    ----------
    module : type[nnx.Module]
        Class whose constructor is ``module(config, rngs=...)`` and that owns `nnx.Param` variables only.
    config : hashable
        Frozen dataclass with the architecture's numbers.
    params : dict
        Nested dict of arrays; keys are attribute names. Repeated blocks are stacked: leaves ``[L, ...]``.
    """

    module: Any
    config: Any
    params: Params

    @classmethod
    def init(cls, module: type[nnx.Module], config: Any, seed: int = 0, dtype=jnp.float32) -> "Network":
        """Random weights from an integer seed (the module's own initialisation)."""
        return cls(module, config, cast(_initialise(module, config, jax.random.key(seed)), dtype))

    @classmethod
    def abstract(cls, module: type[nnx.Module], config: Any, dtype=jnp.float32) -> "Network":
        """The same tree with `jax.ShapeDtypeStruct` leaves: shapes without memory."""
        return jax.eval_shape(lambda: cls.init(module, config, dtype=dtype))

    def bind(self) -> nnx.Module:
        """The module with these weights. Cheap: no array is copied; meant for inside a traced function."""
        return nnx.merge(_graphdef(self.module, self.config), self.params)

    def __call__(self, *args, method: str = "__call__", **kwargs):
        return getattr(self.bind(), method)(*args, **kwargs)

    def replace(self, params: Params) -> "Network":
        return dataclasses.replace(self, params=params)


def fingerprint(network: Network) -> str:
    """SHA-256 of a network's class, configuration and weights, in hexadecimal: equal for networks that compute the same."""
    digest = hashlib.sha256(f"{network.module.__name__} {network.config}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(network.params):
        host = np.asarray(leaf)
        digest.update(f"\0{jax.tree_util.keystr(path)} {host.dtype} {host.shape}\0".encode())
        digest.update(host.tobytes())
    return digest.hexdigest()


def cast(params: Params, dtype) -> Params:
    """Floating-point leaves in `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@functools.lru_cache(maxsize=64)
def _graphdef(module, config):
    return nnx.graphdef(nnx.eval_shape(lambda: module(config, rngs=_rngs(jax.random.key(0)))))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _initialise(module, config, key):
    return nnx.to_pure_dict(nnx.state(module(config, rngs=_rngs(key)), nnx.Param))


class _Counted(nnx.RngStream):
    """The keys of an `nnx.RngStream`, counted on the host.

    Flax asks the traced count for its sharding at every draw, and the answer, that it has none, comes with a search through
    all that was traced so far: most of the time in which a large VAE is set up.
    """

    def __init__(self, key: jax.Array):
        super().__init__(key, tag="default")
        self.count.set_raw_value(np.uint32(0))

    def __call__(self) -> jax.Array:
        drawn = self.count.get_raw_value()
        self.count.set_raw_value(drawn + np.uint32(1))
        return jax.random.fold_in(self.key[...], drawn)

    def split(self, k: int | tuple[int, ...]) -> nnx.RngStream:
        return nnx.RngStream(jax.random.split(self(), k), tag="default")


def _rngs(key: jax.Array) -> nnx.Rngs:
    rngs = nnx.Rngs(key)
    rngs.default = _Counted(key)
    return rngs


def stack(make, layers: int, rngs: nnx.Rngs) -> nnx.Module:
    """`layers` copies of the module ``make(rngs)`` as one module whose leaves have a leading axis [L, ...]."""
    return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(layers))


def scan(run, blocks: nnx.Module, x: Any, reader: Reader, *, remat: Remat = "none") -> tuple[Any, dict[str, jax.Array]]:
    """Run stacked blocks one after the other in one `lax.scan`, so that compile time does not grow with their number.

    Parameters
    ----------
    run : ``run(block, x, tap) -> x``; `tap` is the block's `jaxdiff.taps.BlockReader`.
    blocks : as `stack` makes them, leaves [L, ...].
    x : array or pytree of arrays.
    reader : the taps and edits of this evaluation.
    remat : what the backward pass recomputes instead of keeping it: "none"; "block", everything between a block's input and its
        output; "all_but_attention", the same without self-attention, whose output is kept (as large as the block's input) and
        whose forward pass, most of the operations of long clips, is then not run again.

    Returns
    -------
    x after the last block, and what was captured: tap name -> [rows, B, ...]

    Raises
    ------
    ConfigError : there is no such `remat`.
    """
    check_remat(remat)
    graphdef, stacked = nnx.split(blocks)

    def one(x, params, per_block):
        tap = reader.block(per_block)
        return run(nnx.merge(graphdef, params), split_activations(x), tap), tap.readings

    def body(carry, scanned):
        x, buffers = carry
        x, readings = one(x, *scanned)
        return (x, reader.write(buffers, readings, scanned[1])), None

    first = jax.tree.map(lambda leaf: leaf[0], (stacked, reader.per_block))
    buffers = reader.buffers(lambda *args: one(*args)[1], x, *first)
    if remat != "none":
        body = jax.checkpoint(body, policy=POLICIES[remat])
    return jax.lax.scan(body, (x, buffers), (stacked, reader.per_block))[0]


def check_remat(remat: str) -> None:
    """Raise a `ConfigError` for what `scan` does not know."""
    if remat not in get_args(Remat):
        raise ConfigError(f"remat={remat!r} is unknown; choose from {', '.join(get_args(Remat))}")
