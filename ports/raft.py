"""RAFT: names of torchvision's `raft_large` and `raft_small` -> leaves of `RAFT`."""

from pathlib import Path

import jax.numpy as jnp

from jaxdiff.models.network import Network
from jaxdiff.models.vision.raft import RAFT, RAFTConfig
from ports.families import Port
from ports.filling import load_params
from ports.folder import load_network
from ports.rules import layer
from ports.safetensors_reader import Checkpoint
from ports.table import Ignore, Rule, Table
from ports.transforms import conv2d
from ports.writer import save_network

ONLY_LARGE = "mask_predictor.conv.weight"  # tells the two published sizes apart


def table(config: RAFTConfig) -> Table:
    """The rules of `RAFT`."""
    motion, head = "update_block.motion_encoder", "update_block.flow_head"
    corr = range(len(config.motion_encoder_corr_layers))
    grus = range(len(config.recurrent_block_kernel_size))
    return (
        *_encoder("feature_encoder"),
        *_encoder("context_encoder"),
        *(
            rule
            for i in corr
            for rule in layer(f"{motion}.convcorr{i + 1}.0", f"motion_encoder/correlation/{i}", conv2d)
        ),
        *(rule for i in (0, 1) for rule in layer(f"{motion}.convflow{i + 1}.0", f"motion_encoder/flow/{i}", conv2d)),
        *layer(f"{motion}.conv.0", "motion_encoder/out", conv2d),
        *(
            rule
            for i in grus
            for gate in "zrq"
            for rule in layer(f"update_block.recurrent_block.convgru{i + 1}.conv{gate}", f"grus/{i}/{gate}", conv2d)
        ),
        *(rule for i in (0, 1) for rule in layer(f"{head}.conv{i + 1}", f"head/{i}", conv2d)),
        *layer("mask_predictor.convrelu.0", "upsampling/0", conv2d),
        *layer("mask_predictor.conv", "upsampling/1", conv2d),
    )


def _encoder(name: str) -> Table:
    rules = [*_normed(f"{name}.convnormrelu", f"{name}/stem"), *layer(f"{name}.conv", f"{name}/out", conv2d)]
    for block in range(6):
        source, leaf = f"{name}.layer{block // 2 + 1}.{block % 2}", f"{name}/blocks/{block}"
        for i in range(3):
            rules += _normed(f"{source}.convnormrelu{i + 1}", f"{leaf}/convs/{i}")
        rules += _normed(f"{source}.downsample", f"{leaf}/downsample")
    return tuple(rules)


def _normed(source: str, leaf: str) -> Table:
    """A convolution and, where there is one, its batch norm, whose statistics are frozen."""
    norm = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    return (
        *layer(f"{source}.0", leaf, conv2d),
        *(Rule(f"{source}.1.{a}", f"{leaf}/norm/{b}", keep_float32=True) for a, b in norm.items()),
        Ignore(f"{source}.1.num_batches_tracked", "how often the statistics were updated"),
    )


PORTS = {"RAFT": Port(RAFT, RAFTConfig, table)}


def open_raft(path: Path) -> Network:
    """See `jaxdiff.models.vision.raft.load_raft`."""
    if path.is_dir():
        return load_network(path, dtype=jnp.float32, ports=PORTS)
    with Checkpoint(path) as weights:
        large = ONLY_LARGE in weights.names()
        config = RAFTConfig.raft_large() if large else RAFTConfig.raft_small()
        abstract = Network.abstract(RAFT, config)
        return abstract.replace(load_params(weights, table(config), abstract.params, jnp.float32))


def save_raft(network: Network, folder: str | Path) -> Path:
    """Write a RAFT as a folder, config.json and safetensors in the published names; returns the folder."""
    save_network(network, folder, ports=PORTS)
    return Path(folder)
