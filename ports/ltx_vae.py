"""LTX-Video's VAE: names of `AutoencoderKLLTXVideo` in the diffusers layout -> leaves of `LTXVAE`."""

from jaxdiff.models.ltx.vae_config import PLAIN, LTXVAEConfig
from ports.rules import layer
from ports.table import Rule, Table
from ports.transforms import conv3d, gain2d, linear, linear1x1x1


def vae_table(config: LTXVAEConfig) -> Table:
    """The rules of one configuration: `{i}` and `{j}` run over its blocks.

    No leaf is split over a mesh: the whole VAE of the largest version has 1.2 G parameters.
    """
    return (
        Rule("latents_mean", "latents_mean"),
        Rule("latents_std", "latents_std"),
        *_conv("encoder.conv_in", "encoder/conv_in"),
        *_stage("encoder.down_blocks.{i}", "encoder/down_blocks/{i}/stage"),
        *(rule for i in range(len(config.down_widths)) for rule in _downsampling(config, i)),
        *_residual("encoder.down_blocks.{i}.conv_out", "encoder/down_blocks/{i}/widen"),
        *_stage("encoder.mid_block", "encoder/mid_block"),
        *_conv("encoder.conv_out", "encoder/conv_out"),
        *_conv("decoder.conv_in", "decoder/conv_in"),
        *_stage("decoder.mid_block", "decoder/mid_block"),
        *_residual("decoder.up_blocks.{i}.conv_in", "decoder/up_blocks/{i}/widen"),
        *_conv("decoder.up_blocks.{i}.upsamplers.0.conv", "decoder/up_blocks/{i}/upsample/conv"),
        *_stage("decoder.up_blocks.{i}", "decoder/up_blocks/{i}/stage"),
        *_conv("decoder.conv_out", "decoder/conv_out"),
        *_time("decoder", "decoder"),
        Rule("decoder.timestep_scale_multiplier", "decoder/time_scale"),
        Rule("decoder.scale_shift_table", "decoder/modulation"),
    )


def _conv(source: str, leaf: str) -> Table:
    return layer(f"{source}.conv", leaf, conv3d)


def _downsampling(config: LTXVAEConfig, i: int) -> Table:
    """The plain convolution is the downsampler itself, the others hold one."""
    source, leaf = f"encoder.down_blocks.{i}.downsamplers.0", f"encoder/down_blocks/{i}/downsample"
    if config.down_block_types[i] == PLAIN or config.downsample_type[i] == "conv":
        return _conv(source, leaf)
    return _conv(f"{source}.conv", f"{leaf}/conv")


def _stage(source: str, leaf: str) -> Table:
    return (*_time(source, leaf), *_residual(f"{source}.resnets.{{j}}", f"{leaf}/resnets/{{j}}"))


def _time(source: str, leaf: str) -> Table:
    embedder = f"{source}.time_embedder.timestep_embedder"
    return (
        *layer(f"{embedder}.linear_1", f"{leaf}/time/mlp/into", linear),
        *layer(f"{embedder}.linear_2", f"{leaf}/time/mlp/out", linear),
    )


def _residual(source: str, leaf: str) -> Table:
    return (
        *_conv(f"{source}.conv1", f"{leaf}/conv1"),
        *_conv(f"{source}.conv2", f"{leaf}/conv2"),
        Rule(f"{source}.norm3.weight", f"{leaf}/shortcut_norm/scale"),
        Rule(f"{source}.norm3.bias", f"{leaf}/shortcut_norm/bias"),
        *layer(f"{source}.conv_shortcut.conv", f"{leaf}/shortcut", linear1x1x1),
        Rule(f"{source}.per_channel_scale1", f"{leaf}/noise_scale1", gain2d),
        Rule(f"{source}.per_channel_scale2", f"{leaf}/noise_scale2", gain2d),
        Rule(f"{source}.scale_shift_table", f"{leaf}/modulation"),
    )
