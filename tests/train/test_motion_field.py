"""Training the motion field: it learns what all clips share, is measured on clips that it has not seen, and can be read back."""

import json

import jax
import numpy as np
import pytest

from experiments.train_motion_field import Config, run
from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.lamo import MotionFieldConfig, load_motion_field, save_motion_field
from jaxdiff.store import LatentHeader, LatentStore, LatentWriter
from jaxdiff.train import motion_field
from jaxdiff.train.motion_field import Corpus, MotionFieldTraining, split

CLIPS = 128


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """Clips of noise that fades to nothing, or stays as it is, as the prompt says."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("latents") / "store"
    header = LatentHeader("wan", "x", (3, 4, 4, 16), (2, 16), True, 9, (16, 16), None, "float32", CLIPS)
    fades = np.arange(CLIPS) % 2 == 0
    text = np.full((CLIPS, 2, 16), 9.0, np.float32)  # the second token is padding
    text[:, 0] = np.where(fades, 1.0, -1.0)[:, None]
    first = rng.standard_normal((CLIPS, 1, 4, 4, 16)).astype(np.float32)
    clips = first * np.stack([np.ones(CLIPS), 1.0 - 0.5 * fades, 1.0 - fades], 1)[..., None, None, None]
    with LatentWriter.create(path, header, [str(i) for i in range(CLIPS)], [""] * CLIPS) as writer:
        writer.write(np.arange(CLIPS), clips, text, np.tile([True, False], (CLIPS, 1)))
    return path


def test_a_run_learns_what_is_there_to_learn_and_leaves_a_folder_that_loads(latents, tmp_path, monkeypatch, capsys):
    tiny = MotionFieldConfig(16, 16, width=32, blocks=1, groups=2, condition_width=16, squeeze=4)
    monkeypatch.setattr(motion_field.MotionFieldConfig, "nano", lambda channels, width: tiny)
    config = Config(latents=latents, steps=100, batch=16, learning_rate=1e-2, ema=0.9, noise=0.0, prompt_dropout=0.1)
    run(config, tmp_path)
    printed = capsys.readouterr().out
    assert "block matching" in printed and f"{CLIPS // 8} held-out clips" in printed
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["clips"] == {"held_out": CLIPS // 8, "trained_on": CLIPS - CLIPS // 8}
    field, mean = result["skills"]["field"], result["skills"]["mean"]
    assert mean["skill"] < 0.1 < 0.5 < field["skill"]  # no two clips fade alike
    assert field["cosine"] > 0.2  # half of the clips are at rest
    assert result["skills"]["field without prompt"]["skill"] < field["skill"] - 0.2
    network = load_motion_field(tmp_path / "motion_field")
    assert network.config == tiny and result["parameters"] == sum(x.size for x in jax.tree.leaves(network.params))
    run(config, tmp_path)
    assert "nothing to do" in capsys.readouterr().out

    again = load_motion_field(save_motion_field(network, tmp_path / "again"))
    jax.tree.map(np.testing.assert_array_equal, again.params, network.params)
    file = tmp_path / "again" / "config.json"
    values = json.loads(file.read_text())
    for change, message in (
        ({"widht": 3}, "did you mean 'width'"),
        ({"_class_name": "Other"}, "'Other' is not supported"),
    ):
        file.write_text(json.dumps(values | change))
        with pytest.raises((ConfigError, CheckpointError), match=message):
            load_motion_field(tmp_path / "again")
    with pytest.raises(CheckpointError, match="no such folder"):
        load_motion_field(tmp_path / "none")


def test_clips_are_the_same_from_memory_and_from_disk_with_prompts_pooled_over_real_tokens(latents):
    store = LatentStore.open(latents)
    rows = np.array([5, 0, 5])
    kept, read = Corpus(store, 1 << 30).read(rows), Corpus(store, 0).read(rows)
    for a, b in zip(kept[:2], read[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(kept.text[:, 0], store.read(rows).text[:, 0], rtol=1e-6)
    sizes = [len(batch.latents) for batch in Corpus(store, 0).batches(np.arange(7), 3)]
    assert sizes == [3, 3, 1]


def test_no_clip_is_trained_on_and_measured_on(latents):
    rows, aside = split(100, 0.25, 0)
    assert len(aside) == 25 and sorted([*rows, *aside]) == list(range(100))
    assert not np.array_equal(aside, split(100, 0.25, 1)[1])
    with pytest.raises(ConfigError, match="1 clips cannot be split"):
        split(1, 0.5, 0)
    with pytest.raises(ConfigError, match="latents of wan with 16 channels and text of width 16"):
        MotionFieldTraining("cogvideox-2b").model(LatentStore.open(latents))
    with pytest.raises(ConfigError, match="config='tiny' is unknown"):
        MotionFieldTraining("tiny")
