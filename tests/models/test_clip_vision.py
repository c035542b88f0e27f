"""CLIP's vision tower and its preprocessing against recordings of transformers.

The recording is made by `python -m tests.parity.record_wan_variants`.
"""

import json

import jax
import numpy as np
import pytest

from jaxdiff.errors import ConfigError
from jaxdiff.models.network import Network
from jaxdiff.models.vision import CLIPVision, CLIPVisionConfig, PictureConfig, to_pixels
from ports.folder import load_network
from tests import wan_variants as variants
from tests.reference import random_state, relative_error, write_component

SMALL = CLIPVisionConfig(16, 32, 2, 2, image_size=28, patch_size=14)


@pytest.fixture(scope="module")
def golden():
    with np.load(variants.GOLDENS / "wan_variants.npz") as file:
        return {key: file[key] for key in file.files}


def test_pixels_are_the_recorded_ones_of_the_published_processor(golden):
    ours = to_pixels(variants.picture(0)[None], PictureConfig.from_dict(variants.PICTURES))
    np.testing.assert_array_equal(ours, golden["clip/pixels"])


def test_the_tower_equals_the_recorded_one_of_transformers(golden, tmp_path):
    described = json.loads((variants.GOLDENS / "wan_variants.json").read_text())["networks"]["clip"]
    write_component(tmp_path / "c", described["config"], random_state(described["shapes"], seed=5))
    ours = load_network(tmp_path / "c")(golden["clip/pixels"])
    assert relative_error(ours.penultimate, golden["clip/penultimate"]) <= 1e-5


def test_the_published_tower_has_the_published_number_of_parameters():
    # 632,076,800 of laion's ViT-H/14, without the projection of 1280 x 1024
    network = Network.abstract(CLIPVision, CLIPVisionConfig.vit_h_14())
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == 632_076_800 - 1280 * 1024
    assert CLIPVisionConfig.vit_h_14().tokens == 257


def test_a_tower_depends_on_its_position_in_no_batch():
    network = Network.init(CLIPVision, SMALL, 0)
    pixels = np.random.default_rng(0).standard_normal((3, 28, 28, 3)).astype(np.float32)
    run = jax.jit(lambda network, x: network(x).penultimate)
    np.testing.assert_array_equal(run(network, pixels[::-1])[::-1], run(network, pixels))


@pytest.mark.parametrize(
    "config",
    [
        PictureConfig(),
        PictureConfig(size=(20, 30), crop_size=None, resample=2),
        PictureConfig(size=None, crop_size=(8, 9), rescale_factor=None, image_mean=None, image_std=None),
    ],
)
def test_a_configuration_of_pictures_survives_being_written(config):
    written = json.loads(json.dumps(config.to_dict()))
    assert PictureConfig.from_dict(written) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "'ViTImageProcessor' is not supported"),
        ({"do_flip": True}, "unknown key 'do_flip'"),
        ({"size": {"longest_edge": 28}}, "size=.* is not supported"),
        ({"crop_size": {"shortest_edge": 28}}, "crop_size=.* is not supported"),
    ],
)
def test_preprocessing_that_is_not_known_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        PictureConfig.from_dict(variants.PICTURES | changes)


def test_towers_and_pictures_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="hidden_act='relu'"):
        CLIPVisionConfig(hidden_act="relu")
    with pytest.raises(ConfigError, match="must divide"):
        CLIPVisionConfig(hidden_size=10, num_attention_heads=3)
    with pytest.raises(ConfigError, match=r"unknown configuration key 'hidden_sizes'.*'hidden_size'"):
        CLIPVisionConfig.from_dict({"hidden_sizes": 4})
    with pytest.raises(ConfigError, match=r"pixels must be \[B, 28, 28, 3\]"):
        Network.init(CLIPVision, SMALL, 0)(np.zeros((1, 28, 14, 3), np.float32))
    with pytest.raises(ConfigError, match="uint8"):
        to_pixels(np.zeros((1, 28, 28, 3), np.float32), PictureConfig())
