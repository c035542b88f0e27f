"""The video encoders against recordings of transformers, their folders, and what is refused.

The recording is made by `python -m tests.parity.record_encoders`.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxdiff
from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.vision import VJEPA2, PictureConfig, ResNet, ResNetConfig, VideoMAE, VideoMAEConfig, VJEPA2Config
from ports.encoders import default_pictures, save_encoder
from tests import encoders
from tests.reference import relative_error


@pytest.fixture(scope="module")
def golden():
    with np.load(encoders.GOLDENS / "encoders.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {case: encoders.write_recorded(root / case, case) for case in encoders.CASES}


@pytest.mark.parametrize("case", ["videomae", "vjepa2"])
def test_states_of_a_clip_are_the_recorded_ones_block_by_block(case, folders, golden):
    states = jaxdiff.load_encoder(folders[case], dtype="float32").states(encoders.video())
    expected = golden[f"{case}/states"]
    assert states.shape[:3] == (3, 1, 2)  # two blocks and the output; a clip; two tubelets of two frames
    ours = np.asarray(states).reshape(expected.shape)
    for row in range(len(expected)):
        assert relative_error(ours[row], expected[row]) <= 1e-5, row


def test_frame_features_of_a_clip_are_the_recorded_ones_stage_by_stage(folders, golden):
    features = jaxdiff.load_encoder(folders["resnet"], dtype="float32").states(encoders.video())
    assert [x.shape for x in features] == [(1, 7, 8), (1, 7, 16), (1, 7, 24)]
    for i, values in enumerate(features):
        assert relative_error(values, golden[f"resnet/{i}"]) <= 1e-5, i


@pytest.mark.parametrize("case", encoders.CASES)
def test_pixels_are_the_recorded_ones(case, folders, golden):
    pixels = jaxdiff.load_encoder(folders[case]).prepare(encoders.video())
    assert pixels.shape[:2] == (1, {"resnet": 7}.get(case, 4))
    # V-JEPA 2's processor does not resize with Pillow: a byte may be rounded to the other side.
    atol = 1.01 / 255 / min(encoders.STD) if case == "vjepa2" else 1e-6
    np.testing.assert_allclose(pixels[:, :1], golden[f"{case}/pixels"], atol=atol)


def test_several_readings_of_one_pass_are_the_poolings_of_every_token(folders):
    encoder = jaxdiff.load_encoder(folders["videomae"])
    pixels = encoder.prepare(encoders.video())
    found = jax.jit(lambda encoder, x: encoder.read(x, ("mean", "frame_mean")))(encoder, pixels)
    states = np.asarray(encoder.states(encoders.video()))
    assert {name: x.shape for name, x in found.items()} == {
        "block_out.mean": (3, 1, 24), "input.mean": (1, 1, 24),
        "block_out.frame_mean": (3, 1, 2, 24), "input.frame_mean": (1, 1, 2, 24),
    }  # fmt: skip
    np.testing.assert_allclose(found["block_out.mean"], states.mean((2, 3)), atol=1e-5)  # float32 sums of 32 terms
    np.testing.assert_allclose(found["block_out.frame_mean"], states.mean(3), atol=1e-5)


def test_a_clip_is_brought_to_the_frames_and_the_size_of_the_encoder():
    encoder = jaxdiff.Encoder(Network(VJEPA2, VJEPA2Config(), {}), PictureConfig(8, 2, (8, 8), None, None, None), 4)
    clip = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (1, 10, 12, 16, 3))
    np.testing.assert_array_equal(encoder.prepare(clip)[0, :, 0, 0, 0], [0, 3, 6, 9])
    np.testing.assert_array_equal(encoder.prepare(clip[:, :3])[0, :, 0, 0, 0], [0, 1, 2, 2])
    assert dataclasses.replace(encoder, frames=None).prepare(clip).shape == (1, 10, 8, 8, 3)


# ------------------------------------------------------------------------------------------------------ folders


def rewritten(source, folder, change, **config):
    """The same folder with other names of tensors, or with other tensors."""
    state = change(load_file(source / "model.safetensors"))
    values = json.loads((source / "config.json").read_text())
    return encoders.write_encoder(folder, {**values, **config}, state)


def old_names(state):
    pairs = {"query.bias": "q_bias", "value.bias": "v_bias"}
    for new, old in pairs.items():
        state = {
            name.replace(f"attention.attention.{new}", f"attention.attention.{old}"): x for name, x in state.items()
        }
    return state


V2_NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj", "encoder.layer": "blocks",
    "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "attention.attention": "attn", "layernorm": "norm",
}  # fmt: skip


def v2_names(state):
    """As OpenGVLab's code names and joins them."""
    made = {}
    for name, value in old_names(state).items():
        if name.startswith("videomae."):
            name = name.removeprefix("videomae.")
            for old, new in V2_NAMES.items():
                name = name.replace(old, new)
            made[f"model.{name}"] = value
    for name in [name for name in made if name.endswith("attn.query.weight")]:
        parts = [made.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        made[name.replace("query", "qkv")] = np.concatenate(parts)
    return made


V2_CONFIG = {
    "model_type": "VideoMAEv2_Base", "architectures": ["VideoMAEv2_Base"], "auto_map": {"AutoModel": "x"},
    "model_config": {
        "img_size": 32, "patch_size": 8, "in_chans": 3, "num_classes": 0, "embed_dim": 24, "depth": 2, "num_heads": 2,
        "mlp_ratio": 40 / 24, "qkv_bias": True, "qk_scale": None, "drop_rate": 0.0, "attn_drop_rate": 0.0,
        "drop_path_rate": 0.0, "norm_layer": "nn.LayerNorm", "layer_norm_eps": 1e-12, "init_values": 0.0,
        "use_learnable_pos_emb": False, "tubelet_size": 2, "use_mean_pooling": False, "with_cp": False,
        "num_frames": 4, "cos_attn": False,
    },
}  # fmt: skip


def write_v2(source, folder, state=None, **changes):
    state = v2_names(load_file(source / "model.safetensors")) if state is None else state
    config = V2_CONFIG | {"model_config": V2_CONFIG["model_config"] | changes}
    return encoders.write_encoder(folder, config, state, encoders.PROCESSORS["videomae"])


def test_one_videomae_under_the_names_of_every_release_is_one_pytree(folders, tmp_path):
    source = folders["videomae"]
    encoder = jaxdiff.load_encoder(source)
    bare = {name.removeprefix("model."): x for name, x in v2_names(load_file(source / "model.safetensors")).items()}
    others = [
        rewritten(source, tmp_path / "old", old_names),
        write_v2(source, tmp_path / "v2"),
        write_v2(source, tmp_path / "v2 bare", bare),
        save_encoder(encoder, tmp_path / "ours"),
    ]
    for other in others:
        loaded = jaxdiff.load_encoder(other)
        assert loaded.network.config == encoder.network.config and loaded.frames == encoder.frames == 4
        assert loaded.pictures == encoder.pictures
        jax.tree.map(np.testing.assert_array_equal, loaded.network.params, encoder.network.params)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init_values": 1e-5}, "layer scale"),
        ({"cos_attn": True}, "cos_attn=True is not supported"),
        ({"use_learnable_pos_emb": True}, "use_learnable_pos_emb"),
        ({"dept": 3}, "unknown configuration key 'dept'"),
    ],
)
def test_a_videomae_v2_with_parts_that_are_not_ported_is_refused(changes, says, folders, tmp_path):
    with pytest.raises(ConfigError, match=says):
        jaxdiff.load_encoder(write_v2(folders["videomae"], tmp_path / "v2", **changes))


@pytest.mark.parametrize("case", encoders.CASES)
def test_a_tensor_or_a_key_that_is_not_known_is_an_error(case, folders, tmp_path):
    source = folders[case]
    with pytest.raises(CheckpointError, match=r"extra +encoder\.other"):
        jaxdiff.load_encoder(rewritten(source, tmp_path / "a", lambda state: state | {"encoder.other": np.zeros(2)}))

    def without_one(state):
        return {name: value for i, (name, value) in enumerate(sorted(state.items())) if name != needed}

    needed = next(name for name in sorted(load_file(source / "model.safetensors")) if ".0." in name and "bias" in name)
    needed = {"videomae": "videomae.encoder.layer.1.output.dense.bias", "vjepa2": "encoder.layer.1.mlp.fc2.bias"}.get(
        case, needed
    )
    with pytest.raises(CheckpointError, match=f"missing +{needed}"):
        jaxdiff.load_encoder(rewritten(source, tmp_path / "b", without_one))
    with pytest.raises(ConfigError, match="unknown configuration key 'num_register_tokens'"):
        jaxdiff.load_encoder(rewritten(source, tmp_path / "c", dict, num_register_tokens=4))


def test_other_folders_are_refused_with_what_would_do(folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        jaxdiff.load_encoder(tmp_path)
    other = rewritten(folders["resnet"], tmp_path / "a", dict, model_type="dinov2", architectures=["Dinov2Model"])
    with pytest.raises(CheckpointError, match=r"'dinov2'.*VJEPA2Model"):
        jaxdiff.load_encoder(other)


def test_a_class_is_found_by_its_model_type_alone(folders, tmp_path):
    source = jaxdiff.load_encoder(folders["vjepa2"])
    folder = rewritten(folders["vjepa2"], tmp_path / "a", dict, architectures=None)
    assert jaxdiff.load_encoder(folder).network.config == source.network.config


def test_a_processor_that_does_not_fit_is_refused_and_a_missing_one_is_the_published_one(folders, tmp_path):
    folder = rewritten(folders["videomae"], tmp_path / "a", dict)
    loaded = jaxdiff.load_encoder(folder)
    assert loaded.pictures == default_pictures(loaded.network)
    assert loaded.pictures == jaxdiff.load_encoder(folders["videomae"]).pictures
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 64, "crop_size": 64}))
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json.*\(64, 64\).*takes \(32, 32\)"):
        jaxdiff.load_encoder(folder)


# ----------------------------------------------------------------------------------------------- configurations

PRESETS = {
    "facebook/vjepa2-vitl-fpc64-256": (VJEPA2, VJEPA2Config.vitl_fpc64_256(), 303_885_312),
    "facebook/vjepa2-vith-fpc64-256": (VJEPA2, VJEPA2Config.vith_fpc64_256(), 631_648_000),
    "facebook/vjepa2-vitg-fpc64-256": (VJEPA2, VJEPA2Config.vitg_fpc64_256(), 1_012_173_952),
    "facebook/vjepa2-vitg-fpc64-384": (VJEPA2, VJEPA2Config.vitg_fpc64_384(), 1_012_173_952),
    "MCG-NJU/videomae-base": (VideoMAE, VideoMAEConfig.base(), 86_227_200),
    "MCG-NJU/videomae-large": (VideoMAE, VideoMAEConfig.large(), 303_860_736),
    "OpenGVLab/VideoMAEv2-giant": (VideoMAE, VideoMAEConfig.v2_giant(), 1_011_607_936),
    "microsoft/resnet-50": (ResNet, ResNetConfig.resnet_50(), 23_508_032 + 53_120),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name):
    module, config, published = PRESETS[name]
    params = Network.abstract(module, config).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published


TRANSFORMERS_4 = {
    "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "initializer_range": 0.02,
    "torch_dtype": "float32", "transformers_version": "4.53.0.dev0",
}  # fmt: skip
# config.json as the releases of transformers 4 wrote them.
FILES = {
    "vjepa2": {
        **TRANSFORMERS_4, "architectures": ["VJEPA2Model"], "attention_dropout": 0.0, "crop_size": 256,
        "drop_path_rate": 0.0, "frames_per_clip": 64, "hidden_size": 1408, "image_size": 256, "in_chans": 3,
        "layer_norm_eps": 1e-06, "mlp_ratio": 4.363636363636363, "model_type": "vjepa2", "num_attention_heads": 22,
        "num_hidden_layers": 40, "num_pooler_layers": 3, "patch_size": 16, "pred_hidden_size": 384,
        "pred_mlp_ratio": 4.0, "pred_num_attention_heads": 12, "pred_num_hidden_layers": 12,
        "pred_num_mask_tokens": 10, "pred_zero_init_mask_tokens": True, "qkv_bias": True, "tubelet_size": 2,
        "use_SiLU": False, "wide_SiLU": True,
    },
    "videomae": {
        **TRANSFORMERS_4, "architectures": ["VideoMAEForPreTraining"], "decoder_hidden_size": 512,
        "decoder_intermediate_size": 2048, "decoder_num_attention_heads": 8, "decoder_num_hidden_layers": 12,
        "hidden_size": 1024, "image_size": 224, "intermediate_size": 4096, "layer_norm_eps": 1e-12,
        "model_type": "videomae", "norm_pix_loss": True, "num_attention_heads": 16, "num_channels": 3,
        "num_frames": 16, "num_hidden_layers": 24, "patch_size": 16, "qkv_bias": True, "tubelet_size": 2,
        "use_mean_pooling": False,
    },
    "resnet": {
        "architectures": ["ResNetForImageClassification"], "depths": [3, 4, 6, 3], "downsample_in_first_stage": False,
        "embedding_size": 64, "hidden_act": "relu", "hidden_sizes": [256, 512, 1024, 2048], "id2label": {"0": "a"},
        "label2id": {"a": 0}, "layer_type": "bottleneck", "model_type": "resnet", "num_channels": 3,
        "out_features": ["stage4"], "stage_names": ["stem", "stage1"], "torch_dtype": "float32",
        "transformers_version": "4.18.0",
    },
}  # fmt: skip


def test_files_of_earlier_releases_are_read_as_the_presets():
    assert VJEPA2Config.from_dict(FILES["vjepa2"]) == VJEPA2Config.vitg_fpc64_256()
    assert VideoMAEConfig.from_dict(FILES["videomae"]) == VideoMAEConfig.large()
    assert ResNetConfig.from_dict(FILES["resnet"]) == ResNetConfig.resnet_50()
    for case, module, config in (
        ("vjepa2", VJEPA2, VJEPA2Config()), ("videomae", VideoMAE, VideoMAEConfig.base()), ("resnet", ResNet, ResNetConfig())
    ):  # fmt: skip
        published = {
            "vjepa2": {
                "_valid_kwargs_names": ["size"], "crop_size": {"height": 256, "width": 256}, "default_to_square": True,
                "data_format": "channels_first", "device": None, "do_center_crop": True, "do_convert_rgb": None,
                "do_normalize": True, "do_pad": None, "do_rescale": True, "do_resize": True, "resample": 2,
                "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 292}, "size_divisor": None,
            },
            "videomae": {"size": 224, "resample": 2},
            "resnet": {"size": 224, "crop_pct": 0.875, "resample": 3},
        }[case]  # fmt: skip
        name = {key: value for key, value in encoders.PROCESSORS[case].items() if key.endswith("_type")}
        file = {**name, **published, "image_mean": encoders.MEAN, "image_std": encoders.STD}
        assert PictureConfig.from_dict(file) == default_pictures(Network(module, config, {}))


def test_pixels_of_another_size_or_number_are_refused():
    small = VJEPA2Config(crop_size=32, hidden_size=24, num_attention_heads=2, num_hidden_layers=2)
    network = Network.abstract(VJEPA2, small)
    with pytest.raises(ConfigError, match=r"pixels must be \[B, T, 32, 32, 3\]"):
        network(np.zeros((1, 4, 32, 16, 3), np.float32))
    with pytest.raises(ConfigError, match="3 frames are no whole number of tubelets of 2"):
        network(np.zeros((1, 3, 32, 32, 3), np.float32))
    with pytest.raises(ConfigError, match="8 frames; this checkpoint takes 16"):
        Network.abstract(VideoMAE, VideoMAEConfig(32, hidden_size=24, num_attention_heads=2))(
            np.zeros((1, 8, 32, 32, 3))
        )
    with pytest.raises(ConfigError, match="use_SiLU"):
        VJEPA2Config.from_dict({"use_SiLU": True})
    with pytest.raises(ConfigError, match="layer_type='wide'"):
        ResNetConfig(layer_type="wide")
    with pytest.raises(ConfigError, match="one number for both sides"):
        VideoMAEConfig(image_size=(32, 48))
