"""Nano video encoders: what is hidden stays hidden, a teacher is not pulled, and a run ends in a folder that loads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff
from experiments.train_encoder import Config, run
from jaxdiff.data import worlds
from jaxdiff.models.network import Network
from jaxdiff.models.vision import VJEPA2, VideoMAEConfig, VJEPA2Config
from jaxdiff.train import encoders, nano
from jaxdiff.train.loop import Recipe

GRID = (3, 4, 4)
WORLD = worlds.WorldConfig(frames=9)
SMALL = {
    "vjepa": VJEPA2Config(8, 32, 4, hidden_size=24, num_attention_heads=2, num_hidden_layers=2, mlp_ratio=1.0),
    "videomae": VideoMAEConfig(
        32, 8, num_frames=4, hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24
    ),
}


EncoderTraining = encoders.EncoderTraining


def training(method, **changes):
    fields = {
        "model": SMALL[method], "world": WORLD, "recipe": Recipe(steps=3), "batch": 4, "clips": 6, "width": 12,
        "layers": 1,
    }  # fmt: skip
    return EncoderTraining(method, **{**fields, **changes})


@pytest.fixture(scope="module")
def clips():
    return encoders.draw_clips(training("vjepa"))


@pytest.mark.parametrize("masked, hidden", [(0.75, 12), (1.0, 15)])
def test_tubes_hide_whole_places_and_every_token_is_seen_or_hidden(masked, hidden):
    seen, unseen = map(np.asarray, encoders.tubes(jax.random.key(0), 5, GRID, masked))
    assert unseen.shape == (5, 3 * hidden)
    for a, b in zip(seen, unseen, strict=True):
        assert sorted([*a, *b]) == list(range(48))
        np.testing.assert_array_equal(np.sort(b % 16), np.repeat(np.unique(b % 16), 3))
    assert len({tuple(row) for row in unseen}) > 1


def test_an_encoder_of_seen_tokens_knows_their_places_and_nothing_of_the_others():
    network = Network.init(VJEPA2, SMALL["vjepa"], 0)
    pixels = np.random.default_rng(1).standard_normal((1, 4, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda network, pixels, keep: network(pixels, keep=keep)[0])
    whole = run(network, pixels, np.arange(32)[None])
    order = np.random.default_rng(0).permutation(32)[None]
    np.testing.assert_allclose(run(network, pixels, order), whole[:, order[0]], atol=1e-5)  # sums in another order
    seen, _ = encoders.tubes(jax.random.key(3), 1, (2, 4, 4), 0.5)
    rows, columns = np.divmod(np.asarray(seen[0, :8]) % 16, 4)
    blank = np.zeros((1, 4, 32, 32, 3), np.float32)
    for r, c in zip(rows, columns, strict=True):
        where = np.s_[:, :, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
        blank[where] = pixels[where]
    np.testing.assert_array_equal(run(network, blank, seen), run(network, pixels, seen))


def losses(method):
    """Loss of random pixels, and what it is made of: (value, pixels, hidden, what is guessed, features of the teacher)."""
    config = training(method)
    encoder, teacher = (Network.init(encoders.MODULES[method], config.config, seed) for seed in (0, 1))
    head = Network.init(encoders.Guesser, encoders._guesser(config), 2)
    pixels = np.random.default_rng(1).standard_normal((2, 4, 32, 32, 3)).astype(np.float32)
    seen, hidden = encoders.tubes(jax.random.key(2), 2, (2, 4, 4), 0.75)

    @jax.jit
    def run(encoder, head, teacher):
        if method == "vjepa":
            value, _ = encoders.vjepa_loss(encoder, head, teacher, pixels, seen, hidden)
        else:
            value, _ = encoders.videomae_loss(encoder, head, pixels, seen, hidden)
        guess = head(encoder(pixels, keep=seen)[0], seen, hidden, (2, 4, 4))
        return value, guess, teacher(pixels)[0]

    return pixels, np.asarray(hidden), *(np.asarray(x) for x in run(encoder, head, teacher))


def test_v_jepa_s_loss_is_the_distance_to_the_teacher_s_normed_features_of_hidden_tokens():
    _, hidden, value, guess, features = losses("vjepa")
    features = (features - features.mean(-1, keepdims=True)) / np.sqrt(features.var(-1, keepdims=True) + 1e-5)
    targets = np.take_along_axis(features, hidden[..., None], 1)
    assert guess.shape == targets.shape == (2, 24, 24)
    np.testing.assert_allclose(value, np.abs(guess - targets).mean(), rtol=1e-5)


def test_videomae_s_loss_is_the_square_distance_to_the_hidden_tubelets_normed_pixels():
    pixels, hidden, value, guess, _ = losses("videomae")
    errors = []
    for clip, tokens in enumerate(hidden):
        for place, token in enumerate(tokens):
            t, row, column = token // 16, token % 16 // 4, token % 4
            piece = pixels[clip, 2 * t : 2 * t + 2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1, 3)
            target = (piece - piece.mean(0)) / (piece.std(0, ddof=1) + 1e-6)
            errors.append((guess[clip, place] - target.ravel()) ** 2)
    np.testing.assert_allclose(value, np.mean(errors), rtol=1e-5)


def test_a_run_ends_in_a_folder_in_the_published_layout(tmp_path, monkeypatch, clips):
    def small(method, **given):
        return training(method, **{name: given[name] for name in given if name == "recipe"})

    monkeypatch.setattr(encoders, "EncoderTraining", small)
    run(Config("vjepa", steps=3), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["event"] == "train"]
    assert np.isfinite(last["loss"]) and last["spread"] > 0.01
    encoder = jaxdiff.load_encoder(tmp_path / "run" / "encoder")
    assert encoder.network.config == SMALL["vjepa"] and encoder.frames == 4
    start = Network.init(VJEPA2, SMALL["vjepa"], 0).params
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max() > 0, encoder.network.params, start)
    assert np.mean(jax.tree.leaves(moved)) > 0.5
    # what the encoder is shown afterwards is what it was trained on
    np.testing.assert_allclose(
        encoder.prepare(clips[:1]), encoders.normalise(jnp.asarray(clips[:1, [0, 2, 5, 8]])), atol=1e-6
    )


def test_the_nano_encoders_are_as_wide_and_deep_as_the_nano_transformer():
    transformer = nano.BackboneTraining().model
    for method in encoders.METHODS:
        config = encoders.EncoderTraining(method)
        shape = config.config.shape
        assert (shape.width, shape.layers, shape.hidden) == (transformer.width, transformer.num_layers, 512)
        assert (shape.size, config.frames) == (config.world.size, config.world.frames + 1)
        assert config.recipe == nano.BackboneTraining().recipe and config.batch == nano.BackboneTraining().batch
        assert dataclasses.replace(config, structure="independent").structure == "independent"
