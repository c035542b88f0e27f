"""LTX-Video: transformer, video VAE and the family object that a pipeline drives them with."""

from jaxdiff.models.ltx.family import LTX
from jaxdiff.models.ltx.transformer import LTXTransformer, LTXTransformerConfig
from jaxdiff.models.ltx.vae import LTXVAE
from jaxdiff.models.ltx.vae_config import LTXVAEConfig

__all__ = ["LTX", "LTXVAE", "LTXTransformer", "LTXTransformerConfig", "LTXVAEConfig"]
