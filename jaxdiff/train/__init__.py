"""Training: one loop for every model, its losses, and its checkpoints."""

from jaxdiff.train.loop import Recipe, TrainState, fit
from jaxdiff.train.losses import autoencoder_loss, flow_matching_loss

__all__ = ["Recipe", "TrainState", "autoencoder_loss", "fit", "flow_matching_loss"]
