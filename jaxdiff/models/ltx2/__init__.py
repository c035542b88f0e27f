"""LTX-2 (video and audio): transformer, text connectors, video VAE and the family object that a pipeline drives them
with."""

from jaxdiff.models.ltx2.config import LTX2ConnectorsConfig, LTX2TransformerConfig
from jaxdiff.models.ltx2.connectors import LTX2Connectors
from jaxdiff.models.ltx2.family import LTX2
from jaxdiff.models.ltx2.transformer import LTX2Transformer
from jaxdiff.models.ltx2.vae import LTX2VAE, LTX2VAEConfig

__all__ = [
    "LTX2",
    "LTX2VAE",
    "LTX2Connectors",
    "LTX2ConnectorsConfig",
    "LTX2Transformer",
    "LTX2TransformerConfig",
    "LTX2VAEConfig",
]
