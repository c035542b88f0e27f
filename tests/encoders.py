"""Tiny video encoders as transformers publishes them, and what they are asked: with torch and without.

The goldens are recorded by `python -m tests.parity.record_encoders`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.reference import random_state

GOLDENS = Path(__file__).parent / "goldens"

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VJEPA2 = {
    "crop_size": 32, "patch_size": 8, "frames_per_clip": 4, **VIT,
    # 28 channels a head: a third is 8, rounded down to even, and 4 channels do not turn
    "hidden_size": 56, "mlp_ratio": 2, "pred_hidden_size": 24, "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1, "pred_num_mask_tokens": 2, "num_pooler_layers": 1,
}  # fmt: skip
VIDEOMAE = {
    "image_size": 32, "patch_size": 8, "num_frames": 4, "intermediate_size": 40, **VIT, "use_mean_pooling": False,
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 20,
}  # fmt: skip
RESNET = {"embedding_size": 6, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 1]}
# Case -> published class and configuration.
CASES: dict[str, tuple[str, dict]] = {
    "vjepa2": ("VJEPA2Model", VJEPA2),
    "videomae": ("VideoMAEForPreTraining", VIDEOMAE),
    "resnet": ("ResNetForImageClassification", RESNET),
}
SEEDS = {"vjepa2": 3, "videomae": 4, "resnet": 5}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PROCESSORS = {
    "vjepa2": {"video_processor_type": "VJEPA2VideoProcessor", "crop_size": 32, "image_mean": MEAN, "image_std": STD},
    "videomae": {
        "image_processor_type": "VideoMAEImageProcessor", "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD,
    },
    "resnet": {
        "feature_extractor_type": "ConvNextFeatureExtractor", "size": 28, "crop_pct": 0.875, "resample": 3,
        "image_mean": MEAN, "image_std": STD,
    },
}  # fmt: skip


def video(batch: int = 1, frames: int = 7, height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """uint8 [B, T, H, W, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (batch, frames, height, width, 3), dtype=np.uint8)


def encoder_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """`random_state`, with variances that are positive and counters that are whole numbers."""
    state = random_state(shapes, seed)
    for name, value in state.items():
        if name.endswith("running_var"):
            state[name] = 0.5 + np.abs(10 * value)
        elif name.endswith("num_batches_tracked"):
            state[name] = np.zeros((), np.int64)
    return state


def write_encoder(
    folder: Path, config: Mapping, state: Mapping[str, np.ndarray], processor: Mapping | None = None
) -> Path:
    """A folder as transformers saves it, by the safetensors library."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    if processor is not None:
        name = "video_preprocessor_config.json" if "video_processor_type" in processor else "preprocessor_config.json"
        (folder / name).write_text(json.dumps(dict(processor)))
    return folder


def recorded() -> dict[str, dict]:
    """Case -> "config" and "shapes" of the recorded models."""
    return json.loads((GOLDENS / "encoders.json").read_text())


def write_recorded(folder: Path, case: str, **changes) -> Path:
    """The folder of a recorded model, its weights rebuilt from names and shapes."""
    described = recorded()[case]
    state = encoder_state(described["shapes"], SEEDS[case])
    return write_encoder(folder, described["config"] | changes, state, PROCESSORS[case])
