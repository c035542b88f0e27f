"""The control models of a study."""

import dataclasses

import jax

from jaxdiff.models.network import Network
from jaxdiff.pipeline import Pipeline


def untrained(pipeline: Pipeline, seed: int) -> Pipeline:
    """The same pipeline with a random transformer whose gates are open.

    Fresh weights from the module's own initialisation leave the gates of adaptive layer norm near zero: every block then
    hardly changes its input, and the control would be the input again. One is added to every gate (`Family.open_gates`), so
    that all blocks mix tokens at full strength.
    """
    second = pipeline.transformer_2
    return dataclasses.replace(
        pipeline,
        transformer=_untrained(pipeline, pipeline.transformer, seed),
        transformer_2=None if second is None else _untrained(pipeline, second, seed + 1),
    )


def _untrained(pipeline: Pipeline, trained: Network, seed: int) -> Network:
    fresh = Network.init(trained.module, trained.config, seed)
    params = pipeline.family.open_gates(fresh)
    params = jax.tree.map(lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), params, trained.params)
    return trained.replace(params)
