"""Studies put together: every run listed, pooled values, and what may not differ between them."""

import csv
import json
import shutil
import sys
from dataclasses import astuple

import numpy as np
import pytest

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.probes.statistics import wilson_interval
from jaxdiff.report import Estimate
from jaxdiff.study.aggregate import Pool, Run, aggregate, read_runs, run_aggregate
from jaxdiff.study.predictions import FILE, unpack
from jaxdiff.study.summary import lineage, told
from jaxdiff.study.together import Part, exchanged, null_together
from jaxdiff.workdir import Workdir, command_line
from tests.study import fake


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("studies")
    pairs = [(t, w) for t in (0, 1) for w in (5, 6)]
    for t, w in pairs:
        fake.write_study(base / f"seed{t}-world{w}", t, w)
    return [base / f"seed{t}-world{w}" for t, w in pairs]


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("all") / "run"
    run_aggregate(folders, 0, workdir)
    return workdir


def test_headline_pools_the_runs_and_their_range_stands_beside_it(folders, done):
    result = json.loads((done / "result.json").read_bytes())
    single = [json.loads((folder / "result.json").read_bytes()) for folder in folders]
    for key, entry in result["headline"].items():
        values = [run["headline"][key]["value"] for run in single]
        assert entry["value"] == pytest.approx(np.mean(values))  # the runs have equally many clips
        if key != "chance":
            assert result["range"][key] == {"lowest": min(values), "highest": max(values)}
            assert entry["low"] <= entry["value"] <= entry["high"]
    for key, gap in result["gaps"].items():
        assert gap["value"] == pytest.approx(result["headline"]["states"]["value"] - result["headline"][key]["value"])
    assert (result["runs"], result["training_seeds"], result["worlds"]) == (4, 2, 2)
    assert "different draws" in result["intervals"]
    pairwise = [run["pairwise"]["states"] for run in single]
    assert result["pairwise"]["states"]["value"] == pytest.approx(np.mean(pairwise), abs=1e-6)


def test_where_all_scenes_agree_the_interval_is_wilsons(folders):
    pool = Pool(read_runs(folders), 0)
    scenes = sum(len(run.clips()) for run in pool.runs) / 2  # two training seeds met the same scenes
    half, differing = pool.ratio(lambda run: np.stack([run.clips() / 2, run.per_scene(run.hits("states"))]), Run.clips)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, *wilson_interval(scenes / 2, scenes)))
    assert (differing.low, differing.high) == astuple(pool.accuracy("states"))[1:]
    zero = pool.ratio(lambda run: 0 * run.clips(), Run.clips, least=-1.0)[0]
    assert zero.high == -zero.low == pytest.approx(wilson_interval(0, scenes)[1])


def test_every_run_is_listed_with_its_seeds(folders, done):
    result = json.loads((done / "result.json").read_bytes())
    listed = [(entry["run"], entry["model"], entry["world"]) for entry in result["replicates"]]
    assert listed == [(f"seed{t}-world{w}", f"model{t}", f"world {w}") for t in (0, 1) for w in (5, 6)]
    html = (done / "report.html").read_text()
    assert all(folder.name in html for folder in folders)
    assert "Every run" in html and "a bootstrap of 2 has 3 different draws" in html
    with open(done / "aggregate.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["run"] for line in lines} == {"all", *(folder.name for folder in folders)}
    states = [line for line in lines if line["source"] == "states" and line["metric"] == "accuracy"]
    assert sum(line["category"] == "all" for line in states) == 5  # four runs, and all together


def test_grid_keeps_the_single_studies_rows_and_averages_their_cells(folders):
    runs = read_runs(folders)
    grid = aggregate(runs).grids[0]
    assert grid.labels == ("latents", "x_sigma", "0", "1") and np.isnan(grid.accuracy[0, 1])
    cells = np.mean([run.data["grid.states"].astype(float).mean(-1) for run in runs], axis=0)
    np.testing.assert_allclose(grid.accuracy, cells)
    assert np.all(grid.low[1:] <= grid.accuracy[1:]) and np.all(grid.accuracy[1:] <= grid.high[1:])


def test_the_same_studies_give_the_same_bytes(folders, done, tmp_path):
    run_aggregate(folders, 0, tmp_path / "run")
    for name in ("result.json", "aggregate.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes()


def test_a_study_that_was_run_again_is_another_input(folders, done, capsys):
    run_aggregate(folders, 0, done)
    assert "nothing to do" in capsys.readouterr().out
    digest = folders[0] / "DONE"
    before = digest.read_bytes()
    digest.write_bytes(before + b"\n")
    try:
        with pytest.raises(ConfigError, match="another configuration"):
            run_aggregate(folders, 0, done)
    finally:
        digest.write_bytes(before)


def test_an_unfinished_study_is_named(folders, tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(MissingDataError, match=r"half.*DONE"):
        read_runs([folders[0], tmp_path / "half"])


def test_studies_with_other_settings_are_refused(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "other")
    config = tmp_path / "other/config.json"
    config.write_text(config.read_text().replace('"steps": 20', '"steps": 40'))
    with pytest.raises(ConfigError, match="steps: 20 and 40"):
        read_runs([folders[0], tmp_path / "other"])


def test_the_same_study_twice_is_refused(folders):
    with pytest.raises(ConfigError, match="once"):
        read_runs([folders[0], folders[0]])


def test_other_clips_of_the_same_world_are_refused(folders, tmp_path):
    shutil.copytree(folders[2], tmp_path / "other")
    data = unpack(tmp_path / "other" / FILE)
    data["names"][0] = "another"
    np.savez_compressed(tmp_path / "other" / FILE, **data)
    with pytest.raises(ConfigError, match="different clips of world 5"):
        read_runs([folders[0], tmp_path / "other"])


def test_a_damaged_file_of_predictions_is_named(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "torn")
    path = tmp_path / "torn" / FILE
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MissingDataError, match="torn"):
        read_runs([tmp_path / "torn"])


def test_what_two_networks_say_of_the_same_clips_is_no_more_evidence_than_what_one_says():
    rng = np.random.default_rng(0)
    groups, labels = np.repeat(np.arange(30), 4), np.tile([True, True, False, False], 30)
    signs = rng.choice([-1.0, 1.0], (3, 120))
    here, elsewhere = (Part(world, signs, labels, groups) for world in ("a", "b"))
    one, null = null_together([here])
    np.testing.assert_allclose(one, 0.5 + (signs * np.where(labels, 1, -1)).mean(1) / 2)
    assert np.abs(null.mean(0) - 0.5).max() < 0.005
    twice, same = null_together([here, here])
    np.testing.assert_allclose(twice, one)
    np.testing.assert_allclose(same, null, atol=1e-6)
    _, other = null_together([here, elsewhere])
    np.testing.assert_allclose(other.var(0) / null.var(0), 0.5, rtol=0.15)
    places = exchanged(groups[::-1], 5, (0, 0))
    assert np.all(groups[::-1][places] == groups[::-1]) and np.all(np.sort(places) == np.arange(120))


def test_every_source_is_tested_on_all_runs_together(folders, done):
    result = json.loads((done / "result.json").read_bytes())
    found, runs = result["statistics"], [json.loads((folder / "result.json").read_bytes()) for folder in folders]
    for key in ("states", "structureless", "shuffled", "latents", "input"):
        for metric in ("auc", "relative_error", "absolute_error"):
            values = [run["statistics"][f"{key}.{metric}"]["value"] for run in runs]
            assert found[f"{key}.{metric}"] == {
                "mean": pytest.approx(np.mean(values)), "lowest": min(values), "highest": max(values)
            }  # fmt: skip
    assert found["states.permutation_p"] < 0.001 < 0.05 < found["shuffled.permutation_p"]
    assert (found["states.cells"], found["states.cells_above_threshold"]) == (4, 2)
    assert 0.5 < found["states.max_statistic_threshold"] < 0.7
    values = [run["capacity"]["code_bits_per_clip"] for run in runs]
    assert result["capacity"]["code_bits_per_clip"]["highest"] == max(values)
    html = (done / "report.html").read_text()
    assert "Statistics of every source" in html and "2 of 4" in html and "prequential code" in html


def test_the_summary_holds_the_tables_and_where_they_come_from(folders, done):
    text = (done / "summary.md").read_text()
    result = json.loads((done / "result.json").read_bytes())
    states = result["headline"]["states"]
    assert f"| inverted states | states | {told(Estimate(**states))} |" in text
    assert all(f" {folder.name} " in text for folder in folders)
    assert "## Commands" in text and "## Machines" in text and f"numpy {np.__version__}" in text


def test_a_summary_names_the_commands_of_all_that_a_run_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {"vae": [], "seed1/model": ["--vae=vae/vae"], "study": ["--model=seed1/model/pipeline", "--seed=1"]}
    for name, flags in made.items():
        monkeypatch.setattr(sys, "argv", ["/somewhere/experiments/study.py", *flags, f"--workdir={name}"])
        with Workdir(name, {}) as work, work.stage("invert"):
            pass
    found = lineage([tmp_path / "study"])
    assert [folder.name for folder in found] == ["vae", "model", "study"]
    assert command_line(found[tmp_path / "study"]["session"]) == (
        "python -m experiments.study --model=seed1/model/pipeline --seed=1 --workdir=study"
    )
