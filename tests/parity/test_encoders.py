"""V-JEPA 2, VideoMAE and ResNet, and what prepares clips for them, against transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file

import jaxdiff
from jaxdiff.encoder import Tokens
from jaxdiff.models.network import Network
from jaxdiff.models.vision import (
    VJEPA2,
    PictureConfig,
    ResNet,
    ResNetConfig,
    VideoMAE,
    VideoMAEConfig,
    VJEPA2Config,
    to_pixels,
)
from ports.encoders import save_encoder
from tests import encoders
from tests.parity import encoder_reference as reference
from tests.reference import relative_error

CASES = {
    **encoders.CASES,
    # 22 channels a head, the published ViT-g's ratio, no biases, more frames than it was trained on
    "vjepa2 as ViT-g": (
        "VJEPA2ForVideoClassification",
        encoders.VJEPA2 | {"hidden_size": 44, "mlp_ratio": 48 / 11, "qkv_bias": False, "frames_per_clip": 8},
    ),
    "videomae averaged": (
        "VideoMAEForVideoClassification",
        encoders.VIDEOMAE | {"use_mean_pooling": True, "qv_bias": False, "hidden_act": "gelu_pytorch_tanh"},
    ),
    "videomae alone": ("VideoMAEModel", encoders.VIDEOMAE | {"tubelet_size": 4, "patch_size": 16}),
    "resnet basic": (
        "ResNetModel",
        encoders.RESNET | {"layer_type": "basic", "downsample_in_first_stage": True},
    ),
    "resnet 1.0": ("ResNetModel", encoders.RESNET | {"downsample_in_bottleneck": True, "hidden_sizes": [6, 16, 24],
                                                     "embedding_size": 6, "depths": [2, 1, 1]}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """(folder, reference model), saved by transformers."""
    name, config = CASES[request.param]
    made = reference.model(name, config, seed=1)
    folder = tmp_path_factory.mktemp("encoder")
    made.save_pretrained(folder)
    return folder, made


@jax.jit
def read(encoder, pixels):
    return encoder.read(pixels, (lambda x, grid: x.astype(jnp.float32),))


def test_every_state_equals_transformers(case):
    folder, made = case
    encoder = jaxdiff.load_encoder(folder, dtype="float32")
    size = getattr(made.config, "crop_size", getattr(made.config, "image_size", 32))
    frames = encoder.frames or 3
    pixels = np.random.default_rng(0).standard_normal((2, frames, size, size, 3)).astype(np.float32)
    expected = reference.states(made, pixels)
    found = list(read(encoder, pixels).values())
    ours = [row for values in found for row in values]
    assert len(ours) == len(expected) and len(ours) > 3
    if encoder.frames is not None:  # the blocks and the output come first, what enters them last
        ours = [*ours[-1:], *ours[:-1]]
    for row, (mine, theirs) in enumerate(zip(ours, expected, strict=True)):
        bound = 1e-4 if row == len(expected) - 1 else 1e-5
        assert relative_error(mine, theirs.reshape(mine.shape)) <= bound, row


def test_more_frames_than_in_training_are_extrapolated_to_as_there(tmp_path):
    made = reference.model(*encoders.CASES["vjepa2"], seed=2)
    made.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).standard_normal((1, 10, 32, 32, 3)).astype(np.float32)
    network = jaxdiff.load_encoder(tmp_path).network
    ours = jax.jit(lambda network, x: network(x)[0])(network, pixels)
    assert relative_error(ours, reference.states(made, pixels)[-1]) <= 1e-4


@pytest.mark.parametrize("case", ["vjepa2", "videomae", "resnet"])
def test_what_is_written_is_opened_by_transformers(case, tmp_path):
    name, config = encoders.CASES[case]
    reference.model(name, config, seed=1).save_pretrained(tmp_path / "theirs")
    save_encoder(jaxdiff.load_encoder(tmp_path / "theirs"), tmp_path / "ours")
    prefix = {"vjepa2": "", "videomae": "videomae.", "resnet": "resnet."}[case]
    theirs, ours = (load_file(tmp_path / which / "model.safetensors") for which in ("theirs", "ours"))
    theirs = {key.removeprefix(prefix): value for key, value in theirs.items()}
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key.replace("query.bias", "q_bias").replace("value.bias", "v_bias")]
                                      if case == "videomae" and key not in theirs else theirs[key])  # fmt: skip
    kind = {"vjepa2": "VJEPA2Model", "videomae": "VideoMAEModel", "resnet": "ResNetModel"}[case]
    opened, report = getattr(transformers, kind).from_pretrained(tmp_path / "ours", output_loading_info=True)
    missing = [key for key in report["missing_keys"] if not key.startswith("predictor") and "tracked" not in key]
    assert not missing and not report["unexpected_keys"]
    assert type(opened).__name__ == kind


# ------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("case", ["videomae", "resnet"])
@pytest.mark.parametrize("shape", [(40, 56), (71, 45), (23, 30), (32, 32)], ids=str)
def test_pixels_are_those_of_the_published_processor_bit_for_bit(case, shape):
    clip = encoders.video(frames=2, height=shape[0], width=shape[1])[0]
    ours = to_pixels(clip, PictureConfig.from_dict(encoders.PROCESSORS[case]))
    np.testing.assert_array_equal(ours, reference.processed(case, clip))


@pytest.mark.parametrize("size", [320, 384])
def test_a_convnext_processor_of_any_size_is_read_as_published(size):
    numbers = {"size": {"shortest_edge": size}, "crop_pct": 0.95, "do_rescale": False, "do_normalize": False}
    processor = reference.ConvNextImageProcessorPil(**numbers)
    clip = encoders.video(frames=1, height=400, width=500)[0]
    expected = processor([Image.fromarray(clip[0])], return_tensors="np")["pixel_values"]
    ours = to_pixels(clip, PictureConfig.from_dict(processor.to_dict()))
    np.testing.assert_array_equal(ours, expected.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("shape", [(40, 56), (71, 45), (23, 30), (32, 32), (288, 289)], ids=str)
def test_pixels_for_v_jepa_2_are_within_one_byte_of_what_torchvision_s_resize_gives(shape):
    # Both filter bytes with integer weights, of 22 and of at most 15 bits: some sums are rounded to the other side.
    clip = encoders.video(frames=2, height=shape[0], width=shape[1])[0]
    difference = np.abs(to_pixels(clip, PictureConfig.from_dict(encoders.PROCESSORS["vjepa2"]))
                        - reference.processed("vjepa2", clip)) * 255 * np.array(encoders.STD)  # fmt: skip
    assert difference.max() <= 1 + 1e-3
    assert (difference > 1e-3).mean() <= 0.06  # of clips of noise, the worst there are


# ------------------------------------------------------------------------------------------------------ presets

PRESETS = {
    "vitl": (VJEPA2, VJEPA2Config.vitl_fpc64_256(), {}),
    "vith": (VJEPA2, VJEPA2Config.vith_fpc64_256(), {"hidden_size": 1280, "num_hidden_layers": 32}),
    "vitg": (
        VJEPA2, VJEPA2Config.vitg_fpc64_256(),
        {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 22, "mlp_ratio": 48 / 11},
    ),
    "base": (VideoMAE, VideoMAEConfig.base(), {"use_mean_pooling": False}),
    "large": (
        VideoMAE, VideoMAEConfig.large(),
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
         "use_mean_pooling": False},
    ),
    "resnet 50": (ResNet, ResNetConfig.resnet_50(), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_as_many_parameters_as_transformers_model(name):
    module, config, numbers = PRESETS[name]
    kind = module.__name__
    with torch.device("meta"):
        theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**numbers))
    theirs = theirs.encoder if kind == "VJEPA2" else theirs
    leaves = jax.tree_util.tree_leaves_with_path(Network.abstract(module, config).params)
    ours = sum(leaf.size for path, leaf in leaves if "mean" not in str(path) and "variance" not in str(path))
    assert ours == sum(p.numel() for p in theirs.parameters())


def test_the_reference_folder_s_keys_are_all_understood(case):
    folder, made = case
    values = json.loads((folder / "config.json").read_text())
    encoder = jaxdiff.load_encoder(folder)
    for key, value in encoder.network.config.__dict__.items():
        theirs = values.get(key, getattr(made.config, key))
        assert value == (tuple(theirs) if isinstance(theirs, list) else theirs), key


def test_tokens_are_ordered_by_frame_row_and_column(tmp_path):
    made = reference.model(*encoders.CASES["vjepa2"], seed=2)
    made.save_pretrained(tmp_path)
    encoder = jaxdiff.load_encoder(tmp_path)
    pixels = encoder.prepare(encoders.video())
    expected = reference.states(made, pixels)[-1].reshape(1, 2, 16, 56)
    states = encoder.states(encoders.video())
    assert states.shape == (3, 1, 2, 16, 56) and states.dtype == jnp.float32
    assert relative_error(states[-1], expected) <= 1e-4
    assert Tokens()(jnp.zeros((1, 32, 5)), (2, 4, 4)).shape == (1, 2, 16, 5)
