"""`experiments.generate` on the nano model: what it writes, that it goes on, and what it refuses before it loads anything."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

from jaxdiff.data.video import read_video
from jaxdiff.errors import CheckpointError, ConfigError, MissingDataError
from jaxdiff.generation import embed_prompts, generate, run
from jaxdiff.generation.run import Generation, run_generation
from jaxdiff.lamo import MotionField, MotionFieldConfig, MotionGuidance, load_motion_field, save_motion_field
from jaxdiff.models.network import Network
from jaxdiff.pipeline import load

SMALL = {
    "model": "nano",
    "prompts": "world",
    "limit": 3,
    "samples": 2,
    "frames": 9,
    "steps": 3,
    "solver": "euler",
    "clips_per_device": 4,
}

TINY = MotionFieldConfig(16, 16, width=8, blocks=1, groups=2, condition_width=4, squeeze=2)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """A motion field with random weights, for the nano model."""
    made = Network.init(MotionField, TINY)
    leaves, tree = jax.tree.flatten(made.params)
    rng = np.random.default_rng(0)
    made = made.replace(
        jax.tree.unflatten(tree, [0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])
    )
    return save_motion_field(made, tmp_path_factory.mktemp("field") / "motion_field")


@pytest.fixture(scope="module")
def guided(field, tmp_path_factory):
    """A finished run with motion guidance."""
    workdir = tmp_path_factory.mktemp("guided") / "run"
    run_generation(Generation(**SMALL, guidance="motion", motion_field=field, guidance_change=0.005), workdir)
    return workdir


def test_a_guided_run_writes_its_clips_tables_metrics_and_page(guided):
    files = sorted(path.name for path in (guided / "videos").iterdir())
    assert files == [f"000{i}-{k}.mp4" for i in range(3) for k in range(2)]
    assert read_video(guided / "videos" / files[0]).shape == (9, 32, 32, 3)
    assert len((guided / "prompts.csv").read_text().splitlines()) == 7
    result = json.loads((guided / "result.json").read_text())
    assert (result["clips"], result["prompts"]) == (6, 3)
    guidance = result["guidance"]
    assert len(guidance["energy"]) == len(guidance["change"]) == 3 and guidance["scale"] > 0
    assert guidance["change"][0] == 0  # of three steps one is left alone, and the others are what was asked for
    np.testing.assert_allclose(np.mean(guidance["change"][1:]), 0.005, rtol=0.3)
    page = (guided / "contact.html").read_text()
    assert page.count("<figcaption>") >= 3 and page.count("data:image/webp") == 12 and "<svg" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "http" not in page.replace("http://www.w3.org", "")
    assert len(page) < 2_000_000


def test_a_clip_that_is_there_is_not_made_again_and_the_rest_comes_out_the_same(guided, field, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in (guided / "videos").iterdir()}
    result = (guided / "result.json").read_bytes()
    gone = [guided / "videos" / name for name in ("0002-1.mp4", "0000-1.mp4")]
    for path in (*gone, guided / "DONE"):
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in (guided / "videos").iterdir()}
    config = Generation(**SMALL, guidance="motion", motion_field=field, guidance_change=0.005)
    run_generation(config, guided)
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (guided / "result.json").read_bytes() == result
    monkeypatch.setattr(run, "load", None)
    run_generation(config, guided)
    assert "nothing to do" in capsys.readouterr().out


def test_a_clip_depends_on_its_prompt_and_number_alone(field):
    pipeline, config = load(run.ASSETS / "nano"), Generation(**SMALL)
    texts = ["red disc hops-left"] * 2 + ["blue square slides-left"]
    told = embed_prompts([*texts, ""], config.embedder(pipeline))
    make = functools.partial(
        generate, pipeline, sampling=config.sampling(), told=told, guide=MotionGuidance(load_motion_field(field), 1e-4)
    )
    first = dict(make(texts, samples=[0, 1, 0]))
    assert first[0].dtype == np.uint8 and first[0].shape == (9, 32, 32, 3)
    other = dict(make(texts[::-1], samples=[0, 1, 0], todo=[1, 2]))
    np.testing.assert_array_equal(other[1], first[1])
    np.testing.assert_array_equal(other[2], first[0])
    assert np.abs(first[0].astype(int) - first[1]).max() > 20


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"config": None, "model": "folder"}, ConfigError, "--config=None.*nano, cogvideox-2b"),
        ({"solver": "eulr"}, ConfigError, "did you mean 'euler'"),
        ({"guidance": "motion"}, ConfigError, "needs --motion_field"),
        ({"guidance": "motion", "motion_field": "FIELD"}, ConfigError, "needs its strength"),
        ({"guidance_change": 0.1}, ConfigError, "--guidance_change does nothing without --guidance=motion"),
        ({"prompts": "WORDS"}, ConfigError, "word 'pink' is unknown"),
        ({"frames": 10}, ConfigError, "10"),
        ({"height": 30}, ConfigError, "30"),
        ({"model": "/no/such/folder", "config": "nano"}, CheckpointError, "no such folder"),
        ({"model": "nano", "config": "cogvideox-5b"}, MissingDataError, "has no text encoder"),
        ({"guidance": "motion", "guidance_change": 0.1, "motion_field": "OTHER"}, ConfigError, "of 4 channels"),
        (
            {"guidance": "motion", "guidance_change": 0.1, "motion_field": "FIELD", "frames": 5},
            ConfigError,
            "at least 3",
        ),
        (
            {"guidance": "motion", "guidance_change": 0.1, "motion_field": "FIELD", "solver": "fireflow"},
            ConfigError,
            "fireflow does not evaluate",
        ),
        ({"steps": 0}, ConfigError, "--steps=0"),
    ],
)
def test_what_is_wrong_is_said_before_weights_are_read(flags, error, message, field, tmp_path, monkeypatch):
    if flags.get("motion_field") == "OTHER":
        other = save_motion_field(Network.init(MotionField, dataclasses.replace(TINY, channels=4)), tmp_path / "other")
        flags = flags | {"motion_field": other}
    elif "motion_field" in flags:
        flags = flags | {"motion_field": field}
    if flags.get("prompts") == "WORDS":
        (tmp_path / "words.txt").write_text("pink disc hops-left\n")
        flags = flags | {"prompts": str(tmp_path / "words.txt")}
    monkeypatch.setattr(run, "load", None)
    with pytest.raises(error, match=message):
        run_generation(Generation(**(SMALL | flags)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
