"""LoRA: small matrices that are trained beside frozen ones (arXiv 2106.09685), as leaves of the network that they change."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.errors import ConfigError
from jaxdiff.models.layers import LowRank
from jaxdiff.models.network import Network, Params

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # diffusers' names of the projections of an attention

Adapters = dict[str, dict[str, jax.Array]]  # leaf path -> {"down": [..., in, r], "up": [..., r, out]}


@dataclasses.dataclass(frozen=True)
class LoRA:
    """What is adapted, and how strongly.

    Parameters
    ----------
    rank : r of the two factors.
    alpha : the product is scaled by ``alpha / rank``.
    targets : linear layers by the ends of their names in the diffusers layout: "to_q" is the query of every attention,
        "attn1.to_q" that of self-attention. Always of all blocks.
    """

    rank: int = 64
    alpha: float = 64.0
    targets: tuple[str, ...] = ATTENTION

    def __post_init__(self):
        if self.rank < 1 or not self.alpha > 0 or not self.targets:
            raise ConfigError(
                f"a LoRA needs a positive rank and alpha and at least one target, got rank={self.rank}, "
                f"alpha={self.alpha}, targets={self.targets}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def new_adapters(params: Params, leaves: Iterable[str], lora: LoRA, key: jax.Array) -> Adapters:
    """Adapters that change nothing yet: `down` uniform within ``1 / sqrt(in)`` as peft draws it, `up` zero; float32.

    Parameters
    ----------
    params : the network's, kernels [in, out] or [L, in, out]; arrays or shapes.
    leaves : paths of the kernels, keys joined with "/".
    """
    made = {}
    for number, path in enumerate(sorted(leaves)):
        *stack, inputs, outputs = leaf_at(params, path).shape
        bound, shape = 1.0 / math.sqrt(inputs), (*stack, inputs, lora.rank)
        down = jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound)
        made[path] = {"down": down, "up": jnp.zeros((*stack, lora.rank, outputs))}
    return made


def adapter_shardings(params: Params, leaves: Iterable[str]) -> dict[str, dict[str, NamedSharding]]:
    """Where adapters lie if their kernels lie on a mesh: split as these are, the rank not at all."""
    found = {}
    for path in leaves:
        kernel = leaf_at(params, path)
        mesh, axes = kernel.sharding.mesh, tuple(kernel.sharding.spec)
        *front, rows, columns = axes + (None,) * (len(kernel.shape) - len(axes))
        specs = {"down": PartitionSpec(*front, rows, None), "up": PartitionSpec(*front, None, columns)}
        found[path] = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    return found


def adapted(network: Network, adapters: Adapters, scale: float) -> Network:
    """The network with adapters beside its kernels; works wherever the plain one does."""
    params = network.params
    for path, factors in adapters.items():
        params = _with_leaf(params, path, LowRank(leaf_at(params, path), factors["down"], factors["up"], scale))
    return network.replace(params)


def adapters_of(network: Network) -> Adapters:
    """The adapters that lie in a network; empty if there are none."""
    return {path: {"down": leaf.down, "up": leaf.up} for path, leaf in _low_rank(network.params)}


def merged(network: Network) -> Network:
    """The network with its adapters added to their kernels."""
    is_pair = lambda leaf: isinstance(leaf, LowRank)  # noqa: E731
    return network.replace(
        jax.tree.map(lambda leaf: leaf.merged() if is_pair(leaf) else leaf, network.params, is_leaf=is_pair)
    )


def _low_rank(tree: Any, path: str = "") -> list[tuple[str, LowRank]]:
    if isinstance(tree, Mapping):
        return [
            found for key, value in tree.items() for found in _low_rank(value, f"{path}/{key}" if path else str(key))
        ]
    return [(path, tree)] if isinstance(tree, LowRank) else []


def leaf_at(params: Params, path: str) -> Any:
    """The leaf of this path, keys joined with "/"."""
    for key in path.split("/"):
        params = params[key]
    return params


def _with_leaf(params: Params, path: str, value: Any) -> Params:
    key, _, rest = path.partition("/")
    return {**params, key: _with_leaf(params[key], rest, value) if rest else value}
