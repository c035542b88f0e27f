"""Video VAEs of Wan 2.1 and 2.2: names of `AutoencoderKLWan` in the diffusers layout -> leaves of `WanVAE`."""

from jaxdiff.models.wan.vae import WanVAEConfig
from ports.rules import layer
from ports.table import Rule, Table
from ports.transforms import conv2d, conv3d, gain2d, gain3d, linear1x1, linear1x1x1


def vae_table(config: WanVAEConfig) -> Table:
    """The rules of one configuration: `{i}` and `{j}` run over its blocks.

    No leaf is split over a mesh: the largest tensor of the published VAEs has 28 M parameters.
    """
    return (
        *layer("quant_conv", "to_moments", linear1x1x1),
        *layer("post_quant_conv", "from_latents", linear1x1x1),
        *_ends("encoder"),
        *(_levels() if config.is_residual else _list_of_blocks()),
        *_residual("decoder.up_blocks.{i}.resnets.{j}", "decoder/up_blocks/{i}/resnets/{j}"),
        *_ends("decoder"),
    )


def _list_of_blocks() -> Table:
    """Wan 2.1: the encoder's blocks in one list, the decoder's in levels."""
    down, up = "encoder.down_blocks.{i}", "decoder.up_blocks.{i}"
    return (
        *_residual(down, "encoder/down_blocks/{i}"),
        *_resampling(down, "encoder/down_blocks/{i}"),
        *_resampling(f"{up}.upsamplers.0", "decoder/up_blocks/{i}/upsample"),
    )


def _levels() -> Table:
    """Wan 2.2: both halves in levels."""
    down, up = "encoder.down_blocks.{i}", "decoder.up_blocks.{i}"
    return (
        *_residual(f"{down}.resnets.{{j}}", "encoder/down_blocks/{i}/resnets/{j}"),
        *_resampling(f"{down}.downsampler", "encoder/down_blocks/{i}/downsample"),
        *_resampling(f"{up}.upsampler", "decoder/up_blocks/{i}/upsample"),
    )


def _resampling(source: str, leaf: str) -> Table:
    return (
        *layer(f"{source}.resample.1", f"{leaf}/conv", conv2d),
        *layer(f"{source}.time_conv", f"{leaf}/time_conv", conv3d),
    )


def _residual(source: str, leaf: str) -> Table:
    return (
        Rule(f"{source}.norm1.gamma", f"{leaf}/norm1/scale", gain3d),
        *layer(f"{source}.conv1", f"{leaf}/conv1", conv3d),
        Rule(f"{source}.norm2.gamma", f"{leaf}/norm2/scale", gain3d),
        *layer(f"{source}.conv2", f"{leaf}/conv2", conv3d),
        *layer(f"{source}.conv_shortcut", f"{leaf}/shortcut", linear1x1x1),
    )


def _ends(half: str) -> Table:
    """What the encoder and the decoder both have: the first and last layers and the middle block."""
    middle = f"{half}.mid_block.attentions.0"
    return (
        *layer(f"{half}.conv_in", f"{half}/conv_in", conv3d),
        *_residual(f"{half}.mid_block.resnets.{{i}}", f"{half}/mid_block/resnets/{{i}}"),
        Rule(f"{middle}.norm.gamma", f"{half}/mid_block/attention/norm/scale", gain2d),
        *layer(f"{middle}.to_qkv", f"{half}/mid_block/attention/qkv", linear1x1),
        *layer(f"{middle}.proj", f"{half}/mid_block/attention/out", linear1x1),
        Rule(f"{half}.norm_out.gamma", f"{half}/norm_out/scale", gain3d),
        *layer(f"{half}.conv_out", f"{half}/conv_out", conv3d),
    )
