"""Gradients through a sample: every step recomputed in the backward pass, and only as many steps as are asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdiff.errors import ConfigError

Body = Callable[[Any, Any], tuple[Any, Any]]  # of `jax.lax.scan`


@dataclasses.dataclass(frozen=True)
class Backward:
    """Through which steps of a sample a gradient goes, to the weights and to the states before.

    =======  ================================================================================================
    mode     gradients go through
    =======  ================================================================================================
    full     all steps (PISA, arXiv 2503.09595)
    last     the last `steps` ones; the state that they begin with is a constant (VADER, arXiv 2407.08737)
    random   the last k ones, k drawn evenly from 1 to `steps` at every call (AlignProp, arXiv 2310.03739)
    =======  ================================================================================================

    Every step is a `jax.checkpoint`: kept is its start state alone, so that memory grows by a state a step and not by a
    step's activations, and the backward pass runs the step once more.

    Parameters
    ----------
    steps : of last and random; as many as the grid has, or more, are all.
    """

    mode: Literal["full", "last", "random"] = "full"
    steps: int | None = None

    def __post_init__(self):
        if self.mode not in ("full", "last", "random"):
            raise ConfigError(f"Backward: mode={self.mode!r}; expected full, last or random")
        if (self.steps is None) != (self.mode == "full") or (self.steps is not None and self.steps < 1):
            raise ConfigError(
                f"Backward: steps={self.steps} with mode={self.mode}; last and random need a number of steps, at least 1, and "
                "full takes none"
            )

    def scan(self, body: Body, carry: Any, scanned: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
        """``jax.lax.scan(body, carry, scanned)`` with these gradients.

        Parameters
        ----------
        key : for mode random.

        Raises
        ------
        ConfigError : mode random without a key.
        """
        length = jax.tree.leaves(scanned)[0].shape[0]
        kept = jax.checkpoint(body, prevent_cse=False)
        if self.mode == "random":
            if key is None:
                raise ConfigError("Backward: mode=random draws the number of steps anew at every call: it needs key=")
            most = min(self.steps or length, length)
            live = jnp.arange(length) >= length - jax.random.randint(key, (), 1, most + 1)

            def either(carry, both):
                return jax.lax.cond(both[1], body, _without_gradient(body), carry, both[0])

            return jax.lax.scan(jax.checkpoint(either, prevent_cse=False), carry, (scanned, live))
        cut = length - min(self.steps or length, length)
        if not cut:
            return jax.lax.scan(kept, carry, scanned)
        head, tail = (
            jax.tree.map(lambda leaf, part=part: leaf[part], scanned) for part in (slice(cut), slice(cut, None))
        )
        carry, first = _without_gradient(lambda carry, xs: jax.lax.scan(body, carry, xs))(carry, head)
        carry, second = jax.lax.scan(kept, carry, tail)
        return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def _without_gradient(f: Callable) -> Callable:
    """`f` of constants, what it closes over (weights, for one) among them: nothing is kept for a backward pass."""

    def run(*args):
        converted, closed_over = jax.closure_convert(f, *args)
        return converted(*jax.lax.stop_gradient(args), *jax.lax.stop_gradient(closed_over))

    return run
