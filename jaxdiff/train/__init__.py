"""Training: one loop for every model, its losses, its checkpoints, and the fine-tuning of published models."""

from jaxdiff.train.finetune import ExtraLoss, FineTuning, finetune
from jaxdiff.train.loop import Recipe, TrainState, fit
from jaxdiff.train.losses import autoencoder_loss, flow_matching_loss

__all__ = [
    "ExtraLoss",
    "FineTuning",
    "Recipe",
    "TrainState",
    "autoencoder_loss",
    "finetune",
    "fit",
    "flow_matching_loss",
]
