"""Cosmos-Predict2 and 2.5: transformer and the family object that a pipeline drives it with. The VAE is Wan 2.1's."""

from jaxdiff.models.cosmos.family import Cosmos
from jaxdiff.models.cosmos.transformer import CosmosTransformer, CosmosTransformerConfig

__all__ = ["Cosmos", "CosmosTransformer", "CosmosTransformerConfig"]
