"""Weights and inputs of the published U-Net of PIDM that depend on names and shapes alone, for record and test."""

import zlib

import numpy as np

SIZES = {"dim": 8, "dim_mults": (1, 2), "channels": 2, "attn_heads": 2, "attn_dim_head": 32, "resnet_groups": 4}


def weights(shapes):
    """Every tensor from its name: about one for gains, of unit fan-in for the rest."""
    made = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
        gain = name.endswith(("gamma", "norm.weight"))
        made[name] = (1 + 0.2 * draw) if gain else draw / np.sqrt(max(1, np.prod(shape[1:]))).astype(np.float32)
    return made


def inputs():
    """Fields [3, 8, 8, 2] and timesteps."""
    return np.random.default_rng(0).standard_normal((3, 8, 8, 2)).astype(np.float32), np.array([0, 37, 99])
