"""Which published classes can be loaded, and by what: the one place that a new backbone is entered."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from jaxdiff.models.cogvideox.family import CogVideoX
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.cogvideox.vae import CogVideoXVAE, CogVideoXVAEConfig
from jaxdiff.models.cosmos.family import Cosmos
from jaxdiff.models.cosmos.transformer import CosmosTransformer, CosmosTransformerConfig
from jaxdiff.models.ltx.family import LTX
from jaxdiff.models.ltx.transformer import LTXTransformer, LTXTransformerConfig
from jaxdiff.models.ltx.vae import LTXVAE
from jaxdiff.models.ltx.vae_config import LTXVAEConfig
from jaxdiff.models.ltx2 import (
    LTX2,
    LTX2VAE,
    LTX2Connectors,
    LTX2ConnectorsConfig,
    LTX2Transformer,
    LTX2TransformerConfig,
    LTX2VAEConfig,
)
from jaxdiff.models.text.t5 import T5Config, T5Encoder, UMT5Config, UMT5Encoder
from jaxdiff.models.vision.clip import CLIPVision, CLIPVisionConfig
from jaxdiff.models.vision.resnet import ResNet, ResNetConfig
from jaxdiff.models.vision.videomae import VideoMAE, VideoMAEConfig
from jaxdiff.models.vision.vjepa2 import VJEPA2, VJEPA2Config
from jaxdiff.models.wan.family import Wan
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from jaxdiff.models.wan.vae import WanVAE, WanVAEConfig
from ports import (
    clip_vision,
    cogvideox,
    cogvideox_vae,
    cosmos,
    ltx,
    ltx2,
    ltx_vae,
    resnet,
    t5,
    videomae,
    vjepa2,
    wan,
    wan_vae,
)
from ports.safetensors_reader import Checkpoint
from ports.table import Table


@dataclass(frozen=True)
class Port:
    """How one published network class is read: `module(config)` filled by the rules of `table(config)`.

    `keep_float32` says that the whole network stays float32 in every dtype of the pipeline; `prefix` is one that all
    names of a file may have; `library` is where model_index.json says that the class is; `named` gives the tensors of other releases the
    names of the table.
    """

    module: type[nnx.Module]
    config: type[Any]
    table: Callable[[Any], Table]
    keep_float32: bool = False
    prefix: str = ""
    library: str = "diffusers"
    named: Callable[[Checkpoint], Checkpoint] = lambda weights: weights


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
    settings : further keys of model_index.json that are fields of `drive`.
    spacing : what this pipeline hands a `FlowMatchEuler` schedule (its `spacing`).
    scheduler : keys that this pipeline writes over those of its scheduler's file.
    """

    drive: Any
    ports: dict[str, dict[str, Port]]
    optional: tuple[str, ...] = ("vae",)
    unported: tuple[str, ...] = ("text_encoder", "tokenizer")
    options: dict[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    spacing: str = "scheduler"
    scheduler: dict[str, Any] = field(default_factory=dict)


LTX_PORTS: dict[str, dict[str, Port]] = {
    "transformer": {"LTXVideoTransformer3DModel": Port(LTXTransformer, LTXTransformerConfig, ltx.transformer_table)},
    "vae": {"AutoencoderKLLTXVideo": Port(LTXVAE, LTXVAEConfig, ltx_vae.vae_table, keep_float32=True)},
}

LTX2_PORTS: dict[str, dict[str, Port]] = {
    "transformer": {
        "LTX2VideoTransformer3DModel": Port(LTX2Transformer, LTX2TransformerConfig, ltx2.transformer_table)
    },
    "connectors": {
        "LTX2TextConnectors": Port(LTX2Connectors, LTX2ConnectorsConfig, ltx2.connectors_table, library="ltx2")
    },
    "vae": {"AutoencoderKLLTX2Video": Port(LTX2VAE, LTX2VAEConfig, ltx2.vae_table, keep_float32=True)},
}
# Of the audio only its latents are known here, and of the text only what a language model makes of it.
LTX2_UNPORTED = ("text_encoder", "tokenizer", "processor", "prompt_enhancer", "duration_head", "audio_vae", "vocoder")

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

COSMOS_PORTS: dict[str, dict[str, Port]] = {
    "transformer": {
        "CosmosTransformer3DModel": Port(CosmosTransformer, CosmosTransformerConfig, cosmos.transformer_table)
    },
    "vae": {"AutoencoderKLWan": Port(WanVAE, WanVAEConfig, wan_vae.vae_table, keep_float32=True)},
}
COSMOS_UNPORTED = ("text_encoder", "tokenizer", "safety_checker")
COSMOS_SCHEDULER = {"sigma_max": 80.0, "sigma_min": 0.002, "sigma_data": 1.0, "final_sigmas_type": "sigma_min"}

WAN_TRANSFORMER = {"WanTransformer3DModel": Port(WanTransformer, WanTransformerConfig, wan.transformer_table)}
WAN_PORTS: dict[str, dict[str, Port]] = {
    "transformer": WAN_TRANSFORMER,
    "transformer_2": WAN_TRANSFORMER,
    "vae": {"AutoencoderKLWan": Port(WanVAE, WanVAEConfig, wan_vae.vae_table, keep_float32=True)},
}
# The published pipeline runs it in float32.
CLIP_PORTS = {
    "CLIPVisionModel": Port(
        CLIPVision, CLIPVisionConfig, clip_vision.vision_table, keep_float32=True, prefix=clip_vision.PREFIX
    ),
    "CLIPVisionModelWithProjection": Port(
        CLIPVision, CLIPVisionConfig, clip_vision.projecting_table, keep_float32=True
    ),
}
WAN_SETTINGS = ("boundary_ratio", "expand_timesteps")

# A VAE stays float32: its cost is one pass a clip, and the latents it makes are where every trajectory starts.
FAMILIES: dict[str, Family] = {
    "WanPipeline": Family(drive=Wan(), ports=WAN_PORTS, optional=("transformer_2", "vae"), settings=WAN_SETTINGS),
    "WanImageToVideoPipeline": Family(
        drive=Wan(image_to_video=True),
        ports=WAN_PORTS | {"image_encoder": CLIP_PORTS},
        optional=("transformer_2", "vae", "image_encoder"),
        unported=("text_encoder", "tokenizer", "image_processor"),
        settings=WAN_SETTINGS,
    ),
    # Of the image-to-video folders the transformer and its text-to-video use are the same.
    "LTXPipeline": Family(drive=LTX(), ports=LTX_PORTS, spacing="even"),
    "LTXImageToVideoPipeline": Family(drive=LTX(), ports=LTX_PORTS, spacing="even"),
    "LTXConditionPipeline": Family(drive=LTX.v0_9_5(), ports=LTX_PORTS, spacing="linear_quadratic"),
    "LTX2Pipeline": Family(
        drive=LTX2(), ports=LTX2_PORTS, optional=("connectors", "vae"), unported=LTX2_UNPORTED, spacing="even"
    ),
    "CogVideoXPipeline": Family(drive=CogVideoX(), ports=COGVIDEOX_PORTS),
    "CogVideoXImageToVideoPipeline": Family(drive=CogVideoX(image_to_video=True), ports=COGVIDEOX_PORTS),
    "Cosmos2TextToImagePipeline": Family(
        drive=Cosmos(), ports=COSMOS_PORTS, unported=COSMOS_UNPORTED, scheduler=COSMOS_SCHEDULER
    ),
    "Cosmos2VideoToWorldPipeline": Family(
        drive=Cosmos.video2world(), ports=COSMOS_PORTS, unported=COSMOS_UNPORTED, scheduler=COSMOS_SCHEDULER
    ),
    "Cosmos2_5_PredictBasePipeline": Family(drive=Cosmos.predict2_5(), ports=COSMOS_PORTS, unported=COSMOS_UNPORTED),
}

# Text encoders, which any family may have.
TEXT_ENCODERS: dict[str, Port] = {
    "T5EncoderModel": Port(T5Encoder, T5Config, t5.encoder_table),
    "UMT5EncoderModel": Port(UMT5Encoder, UMT5Config, t5.encoder_table),
}

# Video encoders, which stand beside the diffusion models in a study.
ENCODERS: dict[str, Port] = {
    "VJEPA2Model": Port(VJEPA2, VJEPA2Config, vjepa2.encoder_table),
    "VJEPA2ForVideoClassification": Port(VJEPA2, VJEPA2Config, vjepa2.classifier_table),
    "VideoMAEModel": Port(VideoMAE, VideoMAEConfig, videomae.encoder_table, named=videomae.named),
    "VideoMAEForPreTraining": Port(VideoMAE, VideoMAEConfig, videomae.pretraining_table, named=videomae.named),
    "VideoMAEForVideoClassification": Port(VideoMAE, VideoMAEConfig, videomae.classifier_table, named=videomae.named),
    "VideoMAEv2": Port(VideoMAE, VideoMAEConfig, videomae.v2_table, named=videomae.v2_named),
    "ResNetModel": Port(ResNet, ResNetConfig, resnet.resnet_table),
    "ResNetForImageClassification": Port(ResNet, ResNetConfig, resnet.classifier_table),
}

# Every network class that is known, whatever pipelines it belongs to.
PORTS: dict[str, Port] = (
    TEXT_ENCODERS
    | ENCODERS
    | {name: port for family in FAMILIES.values() for kind in family.ports.values() for name, port in kind.items()}
)
