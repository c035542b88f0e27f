"""CLIP's vision tower and its image processor against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from jaxdiff.models.vision import PictureConfig, to_pixels
from ports.folder import load_network
from tests.parity import wan_reference as reference
from tests.parity.torch_models import randomise
from tests.reference import relative_error

# Beside the tiny tower: a patch that leaves pixels over, other activations.
TOWERS = {
    "gelu": {},
    "quick gelu": {"hidden_act": "quick_gelu", "num_attention_heads": 4, "layer_norm_eps": 1e-3},
    "pixels over": {"image_size": 31, "patch_size": 7, "hidden_act": "gelu_pytorch_tanh"},
}
# Height and width of pictures, and the processor's numbers: wide, tall, square, small, and sides that do not come out even.
PICTURES = {
    "wide": ((48, 80), {}),
    "tall": ((101, 63), {}),
    "equal": ((28, 28), {}),
    "enlarged": ((17, 23), {}),
    "to a height and a width": (
        (40, 30),
        {"size": {"height": 33, "width": 21}, "crop_size": {"height": 28, "width": 20}},
    ),
    "smaller than the crop": ((40, 30), {"do_resize": False, "crop_size": {"height": 45, "width": 37}}),
    "one side smaller": ((40, 30), {"do_resize": False, "crop_size": {"height": 27, "width": 37}}),
    "bilinear, as bytes": ((40, 60), {"resample": 2, "do_rescale": False, "do_normalize": False}),
    "whole": ((40, 60), {"do_center_crop": False}),
}


@pytest.fixture(scope="module", params=TOWERS, ids=lambda name: name.replace(" ", "-"))
def case(request, tmp_path_factory):
    """(folder, reference model, pixels [B, H, W, 3])."""
    folder, model = tmp_path_factory.mktemp("clip"), reference.clip(**TOWERS[request.param])
    model.save_pretrained(folder)
    size = model.config.image_size
    pixels = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    return folder, model, pixels


@torch.no_grad()
def encode(model, pixels):
    return model(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)


def test_the_tower_equals_transformers(case):
    folder, model, pixels = case
    expected = encode(model, pixels)
    ours = jax.jit(lambda network, x: network(x))(load_network(folder), pixels)
    assert relative_error(ours.penultimate, expected.hidden_states[-2]) <= 1e-5
    assert relative_error(ours.last, expected.last_hidden_state) <= 1e-5
    assert relative_error(ours.pooled, expected.pooler_output) <= 1e-5


def test_files_of_older_releases_name_every_tensor_with_a_prefix(case, tmp_path):
    folder, _, _ = case
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = {f"vision_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    state["vision_model.embeddings.position_ids"] = np.arange(5)[None]
    save_file(state, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_network(tmp_path), load_network(folder))


def test_a_tower_with_a_projection_is_read_without_it(tmp_path):
    model = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**reference.CLIP)), 1)
    model.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).standard_normal((1, 28, 28, 3)).astype(np.float32)
    ours = load_network(tmp_path)(jnp.asarray(pixels))
    assert relative_error(ours.penultimate, encode(model, pixels).hidden_states[-2]) <= 1e-5


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_are_those_of_the_published_processor_bit_for_bit(name):
    (height, width), changes = PICTURES[name]
    edge = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = CLIPImageProcessor(**{**edge, **changes})
    pictures = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    expected = processor(images=[Image.fromarray(p) for p in pictures], return_tensors="np")["pixel_values"]
    ours = to_pixels(pictures, PictureConfig.from_dict(processor.to_dict()))
    np.testing.assert_array_equal(ours, expected.transpose(0, 2, 3, 1).astype(np.float32))
