"""The control models of a study."""

import jax

from jaxdiff.models.network import Network
from jaxdiff.pipeline import Pipeline

GATES = (2, 5)  # rows of a block's modulation table that scale its attention and MLP before they are added


def untrained(pipeline: Pipeline, seed: int) -> Pipeline:
    """The same pipeline with a random transformer whose gates are open.

    Fresh weights from the module's own initialisation leave the gates of adaptive layer norm near zero: every block then
    hardly changes its input, and the control would be the input again. One is added to every gate, so that all
    blocks mix tokens at full strength.
    """
    trained = pipeline.transformer
    params = Network.init(trained.module, trained.config, seed).params
    blocks = dict(params["blocks"])
    for row in GATES:
        blocks["modulation"] = blocks["modulation"].at[:, row].add(1.0)
    params = dict(params, blocks=blocks)
    params = jax.tree.map(lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding), params, trained.params)
    return Pipeline(
        transformer=trained.replace(params),
        family=pipeline.family,
        schedule=pipeline.schedule,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
    )
