"""Sizes, weights and pictures of small RAFTs that depend on names and shapes alone, for record and test."""

import zlib

import numpy as np

SHARED = {"corr_block_num_levels": 2, "corr_block_radius": 2}
SIZES = {
    "large": SHARED
    | {
        "feature_encoder_layers": (8, 8, 12, 16, 20),
        "context_encoder_layers": (8, 8, 12, 16, 28),
        "motion_encoder_corr_layers": (16, 12),
        "motion_encoder_flow_layers": (12, 8),
        "motion_encoder_out_channels": 14,
        "recurrent_block_hidden_state_size": 16,
        "flow_head_hidden_size": 12,
    },
    "small": SHARED
    | {
        "feature_encoder_layers": (8, 8, 12, 16, 20),
        "feature_encoder_block": "bottleneck",
        "context_encoder_layers": (8, 8, 12, 16, 28),
        "context_encoder_block": "bottleneck",
        "context_encoder_norm_layer": "none",
        "motion_encoder_corr_layers": (16,),
        "motion_encoder_flow_layers": (12, 8),
        "motion_encoder_out_channels": 14,
        "recurrent_block_hidden_state_size": 16,
        "recurrent_block_kernel_size": ((3, 3),),
        "flow_head_hidden_size": 12,
        "use_mask_predictor": False,
    },
}
UPDATES = 3


def weights(shapes):
    """Every tensor from its name: about one for gains and variances, of unit fan-in for kernels, nothing at its default."""
    made = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
        if name.endswith("num_batches_tracked"):
            made[name] = np.int64(7)
        elif name.endswith("running_var"):
            made[name] = np.exp(0.3 * draw)
        elif name.endswith(".1.weight"):
            made[name] = 1 + 0.2 * draw
        elif len(shape) <= 1:
            made[name] = 0.1 * draw
        else:
            made[name] = draw * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        if name.startswith("update_block.flow_head.conv2"):
            made[name] *= np.float32(0.1)  # steps of a pixel, as trained ones take
    return made


def pictures(n=2, height=40, width=48):
    """Two smooth pictures [n, H, W, 3] in [-1, 1], the second one moved and changed a little."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    found = []
    for moved in (0.0, 1.5):
        wave = np.random.default_rng(1)
        picture = np.zeros((n, height, width, 3))
        for _ in range(6):
            k, phase = wave.uniform(-0.5, 0.5, 2), wave.uniform(0, 6, (n, 1, 1, 3))
            picture += 0.2 * np.sin((k[0] * (x + moved) + k[1] * (y - moved))[None, ..., None] + phase)
        found.append(np.clip(picture + 0.02 * rng.standard_normal(picture.shape), -1, 1).astype(np.float32))
    return found
