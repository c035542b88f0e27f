"""Tiny versions of Wan's image-to-video, TI2V and two-expert checkpoints, and what they are asked: with torch and without.

The goldens are recorded by `python -m tests.parity.record_wan_variants`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.reference import random_state, write_folder

GOLDENS = Path(__file__).parent / "goldens"

TEXT_DIM = IMAGE_DIM = 16
TOKENS = 512  # the reference splits image and text tokens at 512 of the text
# A first frame beside the latents takes 4 channels of mask and 4 of latents.
BESIDE = {"in_channels": 12}
TOKENISED = {**BESIDE, "image_dim": IMAGE_DIM, "added_kv_proj_dim": 24}
BOTH_ENDS = {**TOKENISED, "pos_embed_seq_len": 10}
# Name -> configuration and whether timesteps are per frame.
TRANSFORMERS: dict[str, tuple[dict, bool]] = {
    "i2v_14b": (TOKENISED, False),
    "flf2v_14b": (BOTH_ENDS, False),
    "i2v_a14b": (BESIDE, False),
    "ti2v_5b": ({}, True),
}
# Name -> image to video, transformer, its pipeline's settings
PIPELINES: dict[str, tuple[bool, dict, dict]] = {
    "i2v_14b": (True, TOKENISED, {}),
    "flf2v_14b": (True, BOTH_ENDS, {}),
    "ti2v_5b": (False, {}, {"expand_timesteps": True}),
    "ti2v_5b_image": (True, {}, {"expand_timesteps": True}),
    "t2v_a14b": (False, {}, {"boundary_ratio": 0.875}),
    "i2v_a14b": (True, BESIDE, {"boundary_ratio": 0.9}),
}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
EDGE = 28  # of the pictures that the tiny image encoder takes
PICTURES = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": EDGE}, "crop_size": EDGE}
# Latent grid, video frames and steps of a sample.
GRID, FRAMES, STEPS = (3, 4, 6), 9, 6
SCALE, SCALE_2 = 4.0, 2.5


def transformer_inputs(name: str, batch: int = 2, grid: tuple[int, int, int] = (3, 8, 12)):
    """Latents [B, T', H', W', C], timestep [B] or [B, T'], text [B, N, 16], image tokens [B, M, 16] or None."""
    changes, expanded = TRANSFORMERS[name]
    rng = np.random.default_rng(7)
    latents = rng.standard_normal((batch, *grid, changes.get("in_channels", 4))).astype(np.float32)
    timestep = np.linspace(999.0, 250.0, batch, dtype=np.float32)
    if expanded:
        timestep = timestep[:, None] * np.array([0.0, 1.0, 1.0], np.float32)
    text = rng.standard_normal((batch, TOKENS, TEXT_DIM)).astype(np.float32)
    image = None
    if "image_dim" in changes:
        image = rng.standard_normal((batch, changes.get("pos_embed_seq_len", 5), IMAGE_DIM)).astype(np.float32)
    return latents, timestep, text, image


def sample_inputs(name: str):
    """Noise [1, *GRID, 4], texts of prompt and negative prompt [2, 1, N, 16], first and last picture or None."""
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((1, *GRID, 4)).astype(np.float32)
    texts = rng.standard_normal((2, 1, TOKENS, TEXT_DIM)).astype(np.float32)
    image = picture(0) if PIPELINES[name][0] else None
    return noise, texts, image, picture(1) if name == "flf2v_14b" else None


def picture(seed: int) -> np.ndarray:
    """uint8 [H, W, 3] in the size of a sample's video"""
    return np.random.default_rng(seed).integers(0, 256, (8 * GRID[1], 8 * GRID[2], 3), dtype=np.uint8)


def write_pipeline(folder: Path, recorded: Mapping, name: str) -> Path:
    """The checkpoint folder of a recorded pipeline, its weights rebuilt from names and shapes."""
    image_to_video, _, settings = PIPELINES[name]
    networks = recorded["networks"]
    components = {
        part: (networks[key]["config"], random_state(networks[key]["shapes"], seed))
        for part, (key, seed) in recorded["pipelines"][name].items()
    }
    write_folder(
        folder,
        pipeline="WanImageToVideoPipeline" if image_to_video else "WanPipeline",
        scheduler=SCHEDULER,
        **components,
    )
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | settings))
    (folder / "image_processor").mkdir()
    (folder / "image_processor" / "preprocessor_config.json").write_text(json.dumps(PICTURES))
    return folder
