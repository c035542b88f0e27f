"""LaMo: a latent motion prior, its drift loss in training and its guidance in sampling (arXiv 2605.23878).

The paper's body and code are not public. Official (project page): tau-lag differences of clean latents, tau = 2; the drift
as a mean over positions; scale-normalised L2 anchored on the predicted clean latent, down-weighted at high noise; guidance
after the classifier-free mix that changes the noise prediction in the lower-noise 80 % of steps. Third-party notes: weight
0.4, floor 1e-6, the network's kind of layers, its loss, prompt dropout 0.2. Ours: its sizes, input noise, per-clip
weights, the bounded form of the guidance, and its calibration.
"""

from jaxdiff.lamo.drift_loss import DriftLoss, predicted_clean, signal_share
from jaxdiff.lamo.guidance import MotionGuidance
from jaxdiff.lamo.heatmaps import MotionMaps, motion_maps
from jaxdiff.lamo.motion import differences, macro_drift, regular_pairs
from jaxdiff.lamo.motion_field import (
    FieldLoss,
    MotionField,
    MotionFieldConfig,
    load_motion_field,
    save_motion_field,
)

__all__ = [
    "DriftLoss",
    "FieldLoss",
    "MotionField",
    "MotionFieldConfig",
    "MotionGuidance",
    "MotionMaps",
    "differences",
    "load_motion_field",
    "macro_drift",
    "motion_maps",
    "predicted_clean",
    "regular_pairs",
    "save_motion_field",
    "signal_share",
]
