"""The heatmap binary: pictures and films of every clip, and a field of another model is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.motion_heatmaps import Config, run
from jaxdiff.data.video import read_video
from jaxdiff.errors import ConfigError
from jaxdiff.lamo import MotionField, MotionFieldConfig, save_motion_field
from jaxdiff.models.network import Network

SMALL = MotionFieldConfig(16, 16, width=8, blocks=1, groups=2, condition_width=8, squeeze=2)


def saved(config, folder):
    abstract = Network.abstract(MotionField, config)
    return save_motion_field(abstract.replace(jax.tree.map(lambda x: jnp.ones(x.shape), abstract.params)), folder)


def test_every_clip_gets_a_picture_and_a_film(tmp_path, capsys):
    field = saved(SMALL, tmp_path / "field")
    run(Config("nano", "world", field, frames=9, clips=1, seed=2), tmp_path / "run")
    assert "1 clips ->" in capsys.readouterr().out
    (clip,) = json.loads((tmp_path / "run" / "result.json").read_text())["clips"]
    assert clip["name"] == "world-2-000000" and clip["strongest"] == 0 and len(clip["drift"]) == 1
    assert read_video(tmp_path / "run" / "world-2-000000.mp4").shape == (9, 192, 3 * 192 + 8, 3)
    for name in ("world-2-000000.png", "grid.png"):
        assert (tmp_path / "run" / name).read_bytes()[:4] == b"\x89PNG"


def test_a_field_of_other_latents_is_refused(tmp_path):
    field = saved(dataclasses.replace(SMALL, text_dim=8), tmp_path / "field")
    with pytest.raises(ConfigError, match="text of width 8; nano makes 16 and 16"):
        run(Config("nano", "world", field, frames=9, clips=1), tmp_path / "run")
