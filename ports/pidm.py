"""PIDM's U-Net as a component's folder, whose tensors have the published checkpoints' names.

A published .pt file, once it is safetensors (``python -m ports.unpickle``), is read by the same table. It also holds modules
that its own forward pass never calls.
"""

from jaxdiff.physics.unet import UNet, UNetConfig
from ports.families import Port
from ports.rules import layer, norm
from ports.table import Ignore, Rule, Table
from ports.transforms import Transform, linear, linear1x1, linear1x1x1, squeeze

# Convolutions of one frame: (O, I, 1, H, W) -> [H, W, I, O], transposed ones (I, O, 1, H, W) -> [H, W, I, O].
frame_conv = Transform(
    "frame_conv", lambda x: x[:, :, 0].transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)[:, :, None]
)
frame_conv_transposed = Transform(
    "frame_conv_transposed", lambda x: x[:, :, 0].transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1)[:, :, None]
)
gain = squeeze("gain", 0, 2, 3, 4)  # (1, C, 1, 1, 1) -> [C]

UNCALLED = "built and never called by the published forward pass"


def table(config: UNetConfig) -> Table:
    """The rules of `UNet`; they are the same for all sizes."""
    del config
    return (
        *layer("init_conv", "init_conv", frame_conv),
        *layer("time_mlp.1", "time_in", linear),
        *layer("time_mlp.3", "time_out", linear),
        *(rule for side in ("downs", "ups") for rule in _level(side)),
        *layer("downs.{i}.3", "downs/{i}/resample", frame_conv),
        *layer("ups.{i}.3", "ups/{i}/resample", frame_conv_transposed),
        *_block("mid_block1", "mid_block1"),
        *_attention("mid_spatial_attn.fn", "mid_spatial_attn.fn.fn.fn", "mid_attention", linear),
        *_block("mid_block2", "mid_block2"),
        *_block("final_conv.0", "final_block"),
        *layer("final_conv.1", "final_conv", linear1x1x1),
        *_uncalled(),
    )


def _level(side: str) -> Table:
    source, leaf = f"{side}.{{i}}", f"{side}/{{i}}"
    return (
        *_block(f"{source}.0", f"{leaf}/block1"),
        *_block(f"{source}.1", f"{leaf}/block2"),
        *_attention(f"{source}.2.fn", f"{source}.2.fn.fn", f"{leaf}/attention", linear1x1),
    )


def _block(source: str, leaf: str) -> Table:
    return (
        *(rule for i in "12" for rule in layer(f"{source}.block{i}.proj", f"{leaf}/conv{i}", frame_conv)),
        *(rule for i in "12" for rule in norm(f"{source}.block{i}.norm", f"{leaf}/norm{i}")),
        *layer(f"{source}.mlp.1", f"{leaf}/film", linear),
        *layer(f"{source}.res_conv", f"{leaf}/shortcut", linear1x1x1),
    )


def _attention(outer: str, inner: str, leaf: str, kind: Transform) -> Table:
    return (
        Rule(f"{outer}.norm.gamma", f"{leaf}/norm/scale", gain, keep_float32=True),
        Rule(f"{inner}.to_qkv.weight", f"{leaf}/to_qkv/kernel", kind),
        *layer(f"{inner}.to_out", f"{leaf}/to_out", kind),
        *(Ignore(f"{inner}.to_{name}.weight", UNCALLED) for name in "qkv"),
    )


def _uncalled() -> Table:
    temporal = (
        "fn.fn.fn.rotary_emb.freqs",
        "fn.norm.gamma",
        *(f"fn.fn.fn.to_{x}.weight" for x in ("q", "k", "v", "qkv", "out")),
    )
    names = [f"{place}_temporal_attn.{name}" for place in ("init", "mid") for name in temporal]
    names += [
        f"{module}.{kind}"
        for module in ("combine_conv", "emb_conv.{i}", "sign_emb_CNN.emb_model.{i}")
        for kind in ("weight", "bias")
    ]
    return tuple(Ignore(name, UNCALLED) for name in (*names, "time_rel_pos_bias.relative_attention_bias.weight"))


PORTS = {"Unet3D": Port(UNet, UNetConfig, table)}
