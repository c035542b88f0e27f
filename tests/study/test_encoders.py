"""A video encoder's states as the probes see them: one candidate per block and pooling, clip by clip."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdiff.data.clip import Clip
from jaxdiff.encoder import Encoder
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.models.network import Network
from jaxdiff.models.vision import VJEPA2, PictureConfig, ResNet, ResNetConfig, VJEPA2Config
from jaxdiff.study.config import StudyConfig, encoder_name
from jaxdiff.study.encoders import read_encoder
from jaxdiff.study.features import Candidate
from jaxdiff.study.models import refuse_missing_encoders
from jaxdiff.study.reading import Reading
from jaxdiff.study.sources import blocks_and_input

CONFIG = VJEPA2Config(8, 16, 4, hidden_size=24, num_attention_heads=2, num_hidden_layers=2, mlp_ratio=1.0)
PICTURES = PictureConfig(18, 2, (16, 16))
READING = Reading(frames=6, clips_per_device=2, taps=("block_out.mean", "block_out.frame_mean", "mlp_out.grid"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips that differ in length and size."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for i, (frames, height, width) in enumerate([(9, 20, 24), (3, 17, 16), (6, 30, 20)]):
        np.save(folder / f"{i}.npy", rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8))
    return [Clip(str(i), folder / f"{i}.npy", "scene", "O1", True) for i in range(3)]


@pytest.fixture(scope="module")
def encoder():
    return Encoder(Network.init(VJEPA2, CONFIG, 0), PICTURES, 4)


@pytest.fixture(scope="module")
def features(encoder, clips):
    return read_encoder(encoder, clips, READING)


def test_every_block_and_the_output_is_a_candidate_of_every_pooling(features):
    blocks, entering = blocks_and_input(features)
    assert {name: x.shape for name, x in blocks.arrays.items()} == {
        "block_out.mean": (3, 3, 24), "block_out.frame_mean": (3, 3, 48)
    }  # fmt: skip
    assert blocks.candidates["block_out.mean"] == (
        Candidate("block_out", "mean", 0, 0, 0.0), Candidate("block_out", "mean", 1, 0, 0.0),
        Candidate("output", "mean", 2, 0, 0.0),
    )  # fmt: skip
    assert {name: x.shape[0] for name, x in entering.arrays.items()} == {"input.mean": 1, "input.frame_mean": 1}
    assert entering.candidates["input.mean"] == (Candidate("input", "mean", -1, 0, 0.0),)


def test_features_are_the_encoder_s_states_of_the_whole_clip(features, encoder, clips):
    for i, clip in enumerate(clips):
        states = np.asarray(encoder.states(np.load(clip.path)[None]))  # [3, 1, 2, 4, 24]
        np.testing.assert_allclose(features.arrays["block_out.mean"][:, i], states.mean((2, 3))[:, 0], atol=2e-5)
        np.testing.assert_allclose(
            features.arrays["block_out.frame_mean"][:, i], states.mean(3).reshape(3, -1), atol=2e-5
        )


def test_a_clip_s_features_do_not_depend_on_its_neighbours(features, encoder, clips):
    turned = read_encoder(encoder, clips[::-1], READING)
    for name, values in features.arrays.items():
        np.testing.assert_array_equal(turned.arrays[name][:, ::-1], values)


def test_stages_of_a_resnet_are_arrays_of_their_own_and_see_every_frame(clips):
    config = ResNetConfig(embedding_size=4, hidden_sizes=(8, 12), depths=(1, 1))
    encoder = Encoder(Network.init(ResNet, config, 0), PICTURES)
    features = read_encoder(encoder, clips, dataclasses.replace(READING, taps=("block_out.frame_mean",)))
    assert [(name, x.shape) for name, x in features.arrays.items()] == [
        ("stage2.frame_mean", (1, 3, 6 * 12)), ("stage1.frame_mean", (1, 3, 6 * 8)), ("input.frame_mean", (1, 3, 6 * 4))
    ]  # fmt: skip
    assert features.candidates["stage2.frame_mean"] == (Candidate("stage2", "frame_mean", 1, 0, 0.0),)
    assert jax.tree.all(jax.tree.map(np.isfinite, features.arrays["stage2.frame_mean"]).all())


def test_taps_without_block_outputs_name_no_pooling(encoder, clips):
    with pytest.raises(ConfigError, match=r"taps=mlp_out\.mean read no block_out"):
        read_encoder(encoder, clips, dataclasses.replace(READING, taps=("mlp_out.mean",)))


def test_an_encoder_that_was_trained_here_is_named_after_its_run(tmp_path):
    assert encoder_name(Path("runs/seed1/vjepa/encoder")) == "vjepa"
    assert encoder_name(Path("vjepa2-vitl")) == "vjepa2-vitl" and encoder_name(Path("encoder")) == "encoder"
    with pytest.raises(ConfigError, match="one name"):
        StudyConfig("nano", encoders=(Path("a/vjepa/encoder"), Path("b/vjepa")))
    with pytest.raises(MissingDataError, match=r"config\.json"):
        refuse_missing_encoders(StudyConfig("nano", encoders=(tmp_path,)))
