"""CogVideoX 1.0 and 1.5: transformer, causal video VAE and the family object that a pipeline drives them with."""

from jaxdiff.models.cogvideox.family import CogVideoX, image_latents
from jaxdiff.models.cogvideox.transformer import CogVideoXTransformer, CogVideoXTransformerConfig
from jaxdiff.models.cogvideox.vae import CogVideoXVAE, CogVideoXVAEConfig

__all__ = [
    "CogVideoX",
    "CogVideoXTransformer",
    "CogVideoXTransformerConfig",
    "CogVideoXVAE",
    "CogVideoXVAEConfig",
    "image_latents",
]
