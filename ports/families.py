"""Which published classes can be loaded, and by what: the one place that a new backbone is entered."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from jaxdiff.models.cogvideox.family import CogVideoX
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.cogvideox.vae import CogVideoXVAE, CogVideoXVAEConfig
from jaxdiff.models.ltx.family import LTX
from jaxdiff.models.ltx.transformer import LTXTransformer, LTXTransformerConfig
from jaxdiff.models.ltx.vae import LTXVAE, LTXVAEConfig
from jaxdiff.models.text.t5 import T5Config, T5Encoder, UMT5Config, UMT5Encoder
from jaxdiff.models.wan.family import Wan
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from jaxdiff.models.wan.vae import WanVAE, WanVAEConfig
from ports import cogvideox, cogvideox_vae, ltx, ltx_vae, t5, wan, wan_vae
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
    unported : components that may be in the folder and that `load` does not open; a prompt opens the text encoder
        and the tokenizer.
    options : further keys of model_index.json, and the one value of each that is supported.
    spacing : what this pipeline hands a `FlowMatchEuler` schedule (its `spacing`).
    """

    drive: Any
    ports: dict[str, dict[str, Port]]
    optional: tuple[str, ...] = ("vae",)
    unported: tuple[str, ...] = ("text_encoder", "tokenizer")
    options: dict[str, Any] = field(default_factory=dict)
    spacing: str = "scheduler"


LTX_PORTS: dict[str, dict[str, Port]] = {
    "transformer": {"LTXVideoTransformer3DModel": Port(LTXTransformer, LTXTransformerConfig, ltx.transformer_table)},
    "vae": {"AutoencoderKLLTXVideo": Port(LTXVAE, LTXVAEConfig, ltx_vae.vae_table, keep_float32=True)},
}

COGVIDEOX_PORTS: dict[str, dict[str, Port]] = {
    "transformer": {
        "CogVideoXTransformer3DModel": Port(
            CogVideoXTransformer, CogVideoXTransformerConfig, cogvideox.transformer_table
        ),
    },
    "vae": {
        "AutoencoderKLCogVideoX": Port(CogVideoXVAE, CogVideoXVAEConfig, cogvideox_vae.vae_table, keep_float32=True),
    },
}

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
    # Of the image-to-video folders the transformer and its text-to-video use are the same.
    "LTXPipeline": Family(drive=LTX(), ports=LTX_PORTS, spacing="even"),
    "LTXImageToVideoPipeline": Family(drive=LTX(), ports=LTX_PORTS, spacing="even"),
    "LTXConditionPipeline": Family(drive=LTX.v0_9_5(), ports=LTX_PORTS, spacing="linear_quadratic"),
    "CogVideoXPipeline": Family(drive=CogVideoX(), ports=COGVIDEOX_PORTS),
    "CogVideoXImageToVideoPipeline": Family(drive=CogVideoX(image_to_video=True), ports=COGVIDEOX_PORTS),
}

# Text encoders, which any family may have.
TEXT_ENCODERS: dict[str, Port] = {
    "T5EncoderModel": Port(T5Encoder, T5Config, t5.encoder_table),
    "UMT5EncoderModel": Port(UMT5Encoder, UMT5Config, t5.encoder_table),
}

# Every network class that is known, whatever pipelines it belongs to.
PORTS: dict[str, Port] = TEXT_ENCODERS | {
    name: port for family in FAMILIES.values() for kind in family.ports.values() for name, port in kind.items()
}
