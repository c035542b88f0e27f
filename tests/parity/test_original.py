"""Original layouts, converted by diffusers' own functions and loaded by `jaxdiff.load` as they are: equal trees."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan, LTXVideoTransformer3DModel, WanTransformer3DModel
from diffusers.loaders import single_file_utils as reference
from safetensors.torch import save_file

import jaxdiff
from jaxdiff.models.ltx.transformer import LTXTransformerConfig
from jaxdiff.models.ltx.vae_config import LTXVAEConfig
from jaxdiff.models.network import Network
from jaxdiff.models.wan.transformer import WanTransformerConfig
from jaxdiff.models.wan.vae import WanVAEConfig
from ports import original_ltx, original_wan
from ports.families import PORTS
from ports.table import expected_names, flatten
from tests.reference import LTX_PLAIN, LTX_SHIFTED, WAN_SCHEDULER, random_state, write_folder

WAN = WanTransformerConfig(
    num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=2
)
WAN_VAE = dataclasses.replace(WanVAEConfig.wan2_1(), base_dim=8)
# The published layouts; only widths are smaller.
NARROW = {"block_out_channels": (8, 16, 32, 32), "latent_channels": 16}
LTX = LTXTransformerConfig(
    in_channels=16, out_channels=16, attention_head_dim=2, cross_attention_dim=64, num_layers=2, caption_channels=24
)
LTX_VAES = {
    "0.9.0": dataclasses.replace(LTXVAEConfig.v0_9_0(), decoder_block_out_channels=(8, 16, 32, 32), **NARROW),
    "0.9.1": dataclasses.replace(LTXVAEConfig.v0_9_1(), decoder_block_out_channels=(16, 32, 64), **NARROW),
    "0.9.5": dataclasses.replace(
        LTXVAEConfig.v0_9_5(),
        decoder_block_out_channels=(16, 32, 64),
        **(NARROW | {"block_out_channels": (8, 16, 32, 64, 128)}),
    ),
}
CLASSES = {
    "WanTransformer3DModel": WanTransformer3DModel,
    "AutoencoderKLWan": AutoencoderKLWan,
    "LTXVideoTransformer3DModel": LTXVideoTransformer3DModel,
    "AutoencoderKLLTXVideo": AutoencoderKLLTXVideo,
}


def original_shapes(name, config, rename):
    """Original tensor names -> torch shapes of one network."""
    port = PORTS[name]
    params = Network.abstract(port.module, config).params
    groups, problems = expected_names(rename(port.table(config), config), params)
    assert not problems
    shapes, leaves = {}, flatten(params)
    for path, group in groups.items():
        row = leaves[path].shape[1:] if group.rule.stacked else leaves[path].shape
        shapes |= dict.fromkeys(group.names, group.rule.transform.torch_shape(row))
    return shapes


def drawn(shapes, seed):
    return {name: torch.from_numpy(value) for name, value in random_state(shapes, seed).items()}


def build(name, config):
    """The reference's model; its Wan VAE adds lists to lists."""
    values = {key: value for key, value in dataclasses.asdict(config).items() if key != "dropout"}
    if name == "AutoencoderKLWan":
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return CLASSES[name](**values)


def component(name, config, state):
    """What the reference makes of converted tensors: its config, and its state dict after a strict load."""
    model = build(name, config)
    model.load_state_dict(state, strict=True)
    values = {"_class_name": name, **dataclasses.asdict(config)}
    return values, {key: value.numpy() for key, value in model.state_dict().items()}


def equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_wans_original_folder_equals_its_conversion(tmp_path):
    transformer = drawn(original_shapes("WanTransformer3DModel", WAN, original_wan.transformer_table), 0)
    vae = drawn(original_shapes("AutoencoderKLWan", WAN_VAE, original_wan.vae_table), 1)
    path = tmp_path / "Wan2.1-T2V"
    path.mkdir()
    # As published: transformer and VAE beside each other, the VAE rewritten by ports.unpickle.
    save_file(transformer, path / "diffusion_pytorch_model.safetensors")
    save_file(vae, path / "Wan2.1_VAE.safetensors")
    config = {
        "model_type": "t2v",
        "dim": 24,
        "ffn_dim": 32,
        "freq_dim": 32,
        "in_dim": 16,
        "out_dim": 16,
        "num_heads": 2,
    }
    config |= {"_class_name": "WanModel", "num_layers": 2, "eps": 1e-6, "text_len": 512}
    (path / "config.json").write_text(json.dumps(config))
    theirs = write_folder(
        tmp_path / "diffusers",
        scheduler=WAN_SCHEDULER,
        transformer=component(
            "WanTransformer3DModel", WAN, reference.convert_wan_transformer_to_diffusers(dict(transformer))
        ),
        vae=component("AutoencoderKLWan", WAN_VAE, reference.convert_wan_vae_to_diffusers(dict(vae))),
    )
    equal(jaxdiff.load(path), jaxdiff.load(theirs))


def converted_vae(state):
    """The reference knows 0.9.5 by 2048 channels, which a narrow one does not have while it is renamed."""
    name = "vae.encoder.conv_out.conv.weight"
    wide = state[name].shape[1] == 128
    given = dict(state) | ({name: torch.empty(1, 2048, device="meta")} if wide else {})
    made = reference.convert_ltx_vae_checkpoint_to_diffusers(given)
    return made | {name.removeprefix("vae."): state[name]}


@pytest.mark.parametrize("version", LTX_VAES)
def test_a_single_file_of_ltx_equals_its_conversion(tmp_path, version):
    prefix, config = "model.diffusion_model.", LTX_VAES[version]
    shapes = original_shapes("LTXVideoTransformer3DModel", LTX, original_ltx.transformer_table)
    transformer = drawn({prefix + name: shape for name, shape in shapes.items()}, 0)
    vae = drawn(original_shapes("AutoencoderKLLTXVideo", config, original_ltx.vae_table), 1)
    unused = {f"vae.per_channel_statistics.{name}": torch.ones(16) for name in ("channel", "mean-of-stds")}
    file = tmp_path / "ltx-video-2b.safetensors"
    save_file(transformer | vae | unused, file)
    later = version == "0.9.5"
    theirs = write_folder(
        tmp_path / "diffusers",
        pipeline="LTXConditionPipeline" if later else "LTXPipeline",
        scheduler=LTX_PLAIN if later else LTX_SHIFTED,
        transformer=component(
            "LTXVideoTransformer3DModel", LTX, reference.convert_ltx_transformer_checkpoint_to_diffusers(transformer)
        ),
        vae=component("AutoencoderKLLTXVideo", config, converted_vae(vae | unused)),
    )
    equal(jaxdiff.load(file), jaxdiff.load(theirs))


PUBLISHED = {
    "wan 1.3b": ("WanTransformer3DModel", WanTransformerConfig.t2v_1_3b(), original_wan.transformer_table),
    "wan vae": ("AutoencoderKLWan", WanVAEConfig.wan2_1(), original_wan.vae_table),
    "ltx 2b": ("LTXVideoTransformer3DModel", LTXTransformerConfig.ltx_2b(), original_ltx.transformer_table),
    "ltx vae 0.9.0": ("AutoencoderKLLTXVideo", LTXVAEConfig.v0_9_0(), original_ltx.vae_table),
    "ltx vae 0.9.1": ("AutoencoderKLLTXVideo", LTXVAEConfig.v0_9_1(), original_ltx.vae_table),
    "ltx vae 0.9.5": ("AutoencoderKLLTXVideo", LTXVAEConfig.v0_9_5(), original_ltx.vae_table),
}
CONVERTERS = {
    "WanTransformer3DModel": reference.convert_wan_transformer_to_diffusers,
    "AutoencoderKLWan": reference.convert_wan_vae_to_diffusers,
    "LTXVideoTransformer3DModel": reference.convert_ltx_transformer_checkpoint_to_diffusers,
    "AutoencoderKLLTXVideo": reference.convert_ltx_vae_checkpoint_to_diffusers,
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_sizes_have_the_names_and_shapes_that_the_converters_expect(case):
    name, config, rename = PUBLISHED[case]
    state = {key: torch.empty(shape, device="meta") for key, shape in original_shapes(name, config, rename).items()}
    with torch.device("meta"):
        model = build(name, config)
    made = {key: tuple(value.shape) for key, value in CONVERTERS[name](state).items()}
    assert made == {key: tuple(value.shape) for key, value in model.state_dict().items()}
