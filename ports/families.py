"""Which published classes can be loaded, and by what: the one place that a new backbone is entered."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from jaxdiff.models.wan.family import Wan
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from jaxdiff.models.wan.vae import WanVAE, WanVAEConfig
from ports import wan, wan_vae
from ports.table import Table


@dataclass(frozen=True)
class Port:
    """How one published network class is read: `module(config)` filled by the rules of `table(config)`.

    `keep_float32` says that the whole network stays float32 in every dtype of the pipeline.
    """

    module: type[nnx.Module]
    config: type[Any]
    table: Callable[[Any], Table]
    keep_float32: bool = False


@dataclass(frozen=True)
class Family:
    """One published pipeline class.

    Parameters
    ----------
    drive : how a `Pipeline` calls this family's network.
    ports : for each component, the classes that can fill it.
    optional : components that a pipeline works without.
    unported : components that may be in the folder and that are not read.
    options : further keys of model_index.json, and the one value of each that is supported.
    """

    drive: Any
    ports: dict[str, dict[str, Port]]
    optional: tuple[str, ...] = ("vae",)
    unported: tuple[str, ...] = ("text_encoder", "tokenizer")
    options: dict[str, Any] = field(default_factory=dict)


# A VAE stays float32: its cost is one pass a clip, and the latents it makes are where every trajectory
# starts.
FAMILIES: dict[str, Family] = {
    "WanPipeline": Family(
        drive=Wan(),
        ports={
            "transformer": {
                "WanTransformer3DModel": Port(WanTransformer, WanTransformerConfig, wan.transformer_table),
            },
            "vae": {"AutoencoderKLWan": Port(WanVAE, WanVAEConfig, wan_vae.vae_table, keep_float32=True)},
        },
        # Wan 2.2's second expert and per-token timesteps.
        options={"transformer_2": [None, None], "boundary_ratio": None, "expand_timesteps": False},
    ),
}

# Every network class that is known, whatever pipelines it belongs to.
PORTS: dict[str, Port] = {
    name: port for family in FAMILIES.values() for kind in family.ports.values() for name, port in kind.items()
}
