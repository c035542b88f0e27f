"""Small VAEs for tests, with every kind of layer of the published ones."""

import jax
import numpy as np

from jaxdiff.models.cogvideox import CogVideoXVAEConfig
from jaxdiff.models.network import Network
from jaxdiff.models.wan import WanVAEConfig

# Both temporal strides, residual blocks with and without a change of width.
WAN = WanVAEConfig(
    base_dim=4,
    z_dim=4,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temperal_downsample=(True, True),
    latents_mean=(0.1, -0.2, 0.3, -0.4),
    latents_std=(1.5, 0.5, 2.0, 1.0),
)
COGVIDEOX = CogVideoXVAEConfig(
    block_out_channels=(8,) * 3,
    down_block_types=("CogVideoXDownBlock3D",) * 3,
    up_block_types=("CogVideoXUpBlock3D",) * 3,
    latent_channels=4,
    layers_per_block=1,
    norm_num_groups=2,
)


def random_vae(module, config) -> Network:
    """Every leaf drawn at random: a new network has branches that start at zero, and would hide what they do."""
    network = Network.init(module, config, seed=1)
    leaves, tree = jax.tree.flatten(network.params)
    rng = np.random.default_rng(0)
    drawn = [0.3 * rng.standard_normal(leaf.shape).astype(np.float32) + (leaf.ndim == 1) for leaf in leaves]
    return network.replace(jax.tree.unflatten(tree, drawn))


def noise(*shape):
    return np.random.default_rng(shape[1]).uniform(-1, 1, shape).astype(np.float32)
