"""The control branch from end to end: a run on generated billiards, a kill, and one on folders of one's own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.control import Config, run
from jaxdiff.data.worlds.billiards import BilliardConfig, billiards
from jaxdiff.errors import CheckpointError, ConfigError, MissingDataError
from jaxdiff.physics.control import controlled, load_branch, new_branch, told
from jaxdiff.study.control_scores import SETS
from tests.physics.test_control import LATENTS, VIDEO, cogvideox, inputs, ltx, randomised, wan

TINY = {"model": "nano", "steps": 2, "batch": 2, "held_out": 2, "sampling_steps": 2, "clips_per_device": 4, "blocks": 1}


@pytest.mark.parametrize("make", [wan, cogvideox, ltx])
def test_without_a_compiler_an_untrained_branch_is_the_backbone_bit_for_bit(make):  # a
    pipeline, (x, cond, signal, first) = make(), inputs()
    pipeline = dataclasses.replace(
        pipeline, transformer=pipeline.transformer.replace(randomised(pipeline.transformer.params))
    )
    whole, timestep = controlled(pipeline, new_branch(pipeline, 2, LATENTS, VIDEO)), jnp.float32(500.0)
    with jax.disable_jit():
        found, _ = whole.output(x, timestep, told(cond, signal, first))
        assert np.array_equal(found, pipeline.output(x, timestep, cond)[0])


def test_a_run_that_was_stopped_goes_on_and_leaves_scores_a_report_and_a_branch(tmp_path, capsys):
    config = Config(pairs=4, **TINY)

    class Stop(Exception):
        pass

    def stops(self, *given):
        raise Stop

    with pytest.MonkeyPatch.context() as patch:  # after training, before a clip is sampled
        patch.setattr("jaxdiff.study.control.ControlRun.clips", stops)
        with pytest.raises(Stop):
            run(config, tmp_path)
    steps = sorted(path.name for path in (tmp_path / "training" / "checkpoints").iterdir())
    branch = load_branch(tmp_path / "branch")
    run(config, tmp_path)
    assert sorted(path.name for path in (tmp_path / "training" / "checkpoints").iterdir()) == steps
    trained = load_branch(tmp_path / "branch")
    assert jax.tree.all(jax.tree.map(np.array_equal, trained.params, branch.params))
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["sets"]) == {*SETS, "true", "autoencoder", "reversed"}
    assert result["backbone_unchanged"] and result["untrained_branch"]["equal_for_any_mask"]
    assert result["untrained_branch"]["difference"] < 1e-4
    assert result["sets"]["true"]["driver"]["value"] > 0.97 and result["sets"]["autoencoder"]["driver"]["value"] > 0.7
    met = [(aim["name"][0], aim["met"]) for aim in result["aims"]]
    assert met[:4] == [("a", True), ("a", True), ("c", True), ("d", False)]  # two steps teach nothing
    first = [np.load(path) for path in sorted((tmp_path / "clips" / "control").iterdir())]
    truth = billiards(BilliardConfig(), 0, 2, start=1_000_000)
    for clip, true in zip(first, truth.video, strict=True):  # what was told, through the VAE
        assert np.abs(clip[0].astype(int) - true[0]).mean() < 12
    assert "Aims missed: d" in (tmp_path / "report.html").read_text()
    before = (tmp_path / "result.json").read_bytes()
    run(config, tmp_path)
    assert "complete" in capsys.readouterr().out and (tmp_path / "result.json").read_bytes() == before
    with pytest.raises(ConfigError, match="another configuration"):
        run(dataclasses.replace(config, seed=1), tmp_path)
    (tmp_path / "branch" / "trunk" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_branch(tmp_path / "branch")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of five clips and their masks."""
    root, drawn = tmp_path_factory.mktemp("own"), billiards(BilliardConfig(), 9, 3)
    for kind in ("clips", "masks"):
        (root / kind).mkdir()
    for i in range(5):
        np.save(root / "clips" / f"{i}.npy", drawn.video[i])
        mask = np.repeat(drawn.masks[i, :, 0, ..., None], 3, -1).astype(np.uint8) * 255
        np.save(root / "masks" / f"{i}.npy", mask)
    return root


def test_clips_of_ones_own_are_trained_on_and_sampled(folders, tmp_path):
    own = Config(videos=str(folders / "clips"), masks=folders / "masks", frames=17, **TINY)
    run(own, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["clips"] == {"trained_on": 3, "held_out": 2} and result["aims"] == []
    found = {name: values["psnr"]["value"] for name, values in result["sets"].items()}
    assert found["autoencoder"] > 25 > found["control"] and found["true"] is None


def test_bad_input_is_named_before_the_model_is_opened(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxdiff.pipeline.load", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    own = {"videos": str(folders / "clips"), "masks": folders / "masks", "frames": 17, **TINY}
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(5):
        np.save(masks / f"{i}.npy", np.load(folders / "masks" / f"{i}.npy"))
    given = own | {"masks": masks}
    np.save(masks / "3.npy", np.zeros((17, 32, 32, 3), np.uint8))
    with pytest.raises(MissingDataError, match=r"1 of 5 masks are empty[^\0]*'3.npy' shows no driver"):
        run(Config(**given), tmp_path / "run")
    np.save(masks / "3.npy", np.ones((18, 32, 24, 3), np.uint8))
    with pytest.raises(MissingDataError, match="17 frames of 32 x 32 and 18 frames of 32 x 24"):
        run(Config(**given), tmp_path / "run")
    (masks / "3.npy").unlink()
    with pytest.raises(MissingDataError, match=r"'3.npy' has no mask of its name"):
        run(Config(**given), tmp_path / "run")
    for changes, kind, message in (
        ({"masks": None}, ConfigError, "needs --masks"),
        ({"videos": "billiards"}, ConfigError, "masks of their own"),
        ({"held_out": 5}, ConfigError, "--held_out=5, and there are 5 clips"),
        ({"blocks": 6}, ConfigError, "a branch of 6 blocks; this backbone has 5"),
        ({"frames": 20}, MissingDataError, "too short"),
        ({"frames": 8}, ConfigError, "frames"),
        ({"config": "interdyn"}, MissingDataError, "no text encoder"),
        ({"steps": 0}, ConfigError, "--steps=0"),
        ({"held_out": 1}, ConfigError, "takes at least 2"),
        ({"size": (1, 2, 3)}, ConfigError, "--size=1,2,3"),
    ):
        with pytest.raises(kind, match=message):
            run(Config(**(own | changes)), tmp_path / "run")
    with pytest.raises(ConfigError, match="discs=9"):
        run(Config(discs=9, **TINY), tmp_path / "run")
