"""CogVideoX video VAE: names of `AutoencoderKLCogVideoX` in the diffusers layout -> leaves of `CogVideoXVAE`."""

from jaxdiff.models.cogvideox.vae import CogVideoXVAEConfig
from ports.rules import layer
from ports.table import Rule, Table
from ports.transforms import conv2d, conv3d, linear1x1x1


def vae_table(config: CogVideoXVAEConfig) -> Table:
    """The rules, which are the same for every configuration: `{i}` and `{j}` run over its blocks.

    No leaf is split over a mesh: the largest tensor of the published VAE has 7 M parameters.
    """
    return (
        *_ends("encoder"),
        *_residual("encoder.down_blocks.{i}.resnets.{j}", "encoder/down_blocks/{i}/resnets/{j}"),
        *layer("encoder.down_blocks.{i}.downsamplers.0.conv", "encoder/down_blocks/{i}/resample/conv", conv2d),
        *_norm("encoder.norm_out", "encoder/norm_out"),
        *_ends("decoder"),
        *_residual("decoder.up_blocks.{i}.resnets.{j}", "decoder/up_blocks/{i}/resnets/{j}"),
        *layer("decoder.up_blocks.{i}.upsamplers.0.conv", "decoder/up_blocks/{i}/resample/conv", conv2d),
        *_conditioned_norm("decoder.norm_out", "decoder/norm_out"),
    )


def _norm(source: str, leaf: str) -> Table:
    return (Rule(f"{source}.weight", f"{leaf}/scale"), Rule(f"{source}.bias", f"{leaf}/bias"))


def _conditioned_norm(source: str, leaf: str) -> Table:
    return (
        *_norm(f"{source}.norm_layer", f"{leaf}/norm"),
        *layer(f"{source}.conv_y.conv", f"{leaf}/gain", linear1x1x1),
        *layer(f"{source}.conv_b.conv", f"{leaf}/shift", linear1x1x1),
    )


def _residual(source: str, leaf: str) -> Table:
    norm = _conditioned_norm if source.startswith("decoder") else _norm
    return (
        *norm(f"{source}.norm1", f"{leaf}/norm1"),
        *layer(f"{source}.conv1.conv", f"{leaf}/conv1", conv3d),
        *norm(f"{source}.norm2", f"{leaf}/norm2"),
        *layer(f"{source}.conv2.conv", f"{leaf}/conv2", conv3d),
        *layer(f"{source}.conv_shortcut", f"{leaf}/shortcut", linear1x1x1),
    )


def _ends(half: str) -> Table:
    """What the encoder and the decoder both have: the first and last convolutions and the middle block."""
    return (
        *layer(f"{half}.conv_in.conv", f"{half}/conv_in", conv3d),
        *_residual(f"{half}.mid_block.resnets.{{i}}", f"{half}/mid_block/{{i}}"),
        *layer(f"{half}.conv_out.conv", f"{half}/conv_out", conv3d),
    )
