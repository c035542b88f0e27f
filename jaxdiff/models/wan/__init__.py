"""Wan 2.1 and 2.2: transformer, causal video VAE and the family object that a pipeline drives them with."""

from jaxdiff.models.wan.family import Wan
from jaxdiff.models.wan.transformer import WanTransformer, WanTransformerConfig
from jaxdiff.models.wan.vae import WanVAE, WanVAEConfig

__all__ = ["Wan", "WanTransformer", "WanTransformerConfig", "WanVAE", "WanVAEConfig"]
