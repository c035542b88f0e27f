"""Several models on the same clips: paired differences, Holm's correction, and what is refused."""

import csv
import json
import shutil

import numpy as np
import pytest

from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.probes import permutation, statistics
from jaxdiff.study.compare import differences, read_models, run_compare
from jaxdiff.study.predictions import FILE, unpack
from tests.study import fake


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three models on world 5, the first hardly better than chance, and one on another world."""
    base = tmp_path_factory.mktemp("models")
    for name, training, world in (("weak", 3, 5), ("good", 0, 5), ("other", 2, 5), ("elsewhere", 0, 6)):
        strength = 0.2 if name == "weak" else None
        fake.write_study(base / name, training, world, strength, capacity=False)
    return base


@pytest.fixture(scope="module")
def done(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compared") / "run"
    run_compare([folders / name for name in ("weak", "good", "other")], "states", 0, workdir)
    return workdir


def test_differences_are_those_of_the_runs_on_the_same_scenes(folders, done):
    result = json.loads((done / "result.json").read_bytes())
    single = {name: json.loads((folders / name / "result.json").read_bytes()) for name in ("weak", "good", "other")}
    for name, run in single.items():
        assert result["accuracy"][name]["value"] == pytest.approx(run["headline"]["states"]["value"])
        for metric in ("auc", "relative_error", "absolute_error"):
            assert result[metric][name] == pytest.approx(run["statistics"][f"states.{metric}"])
        assert result["above_chance"][name]["p"] == run["statistics"]["states.permutation_p"]
    assert [*result["differences"]] == ["good - other", "weak - good", "weak - other"]  # sorted
    for pair, entry in result["differences"].items():
        first, second = pair.split(" - ")
        gap = single[first]["headline"]["states"]["value"] - single[second]["headline"]["states"]["value"]
        assert entry["accuracy"]["value"] == pytest.approx(gap)
        assert entry["auc"]["value"] == pytest.approx(result["auc"][first]["value"] - result["auc"][second]["value"])
        assert entry["pairwise"]["value"] == pytest.approx(
            single[first]["pairwise"]["states"] - single[second]["pairwise"]["states"], abs=1e-5
        )
        assert entry["accuracy"]["low"] <= gap <= entry["accuracy"]["high"]
        assert entry["p"] <= entry["p_holm"] <= 1
    assert result["differences"]["weak - good"]["p_holm"] < 0.05
    assert "same scenes are drawn for all runs" in result["intervals"]["conditional_on"]


def test_the_report_and_the_table_hold_every_model_and_every_pair(done):
    html = (done / "report.html").read_text()
    assert "good is " in html and "points ahead of weak" in html and "Holm" in html
    with open(done / "compare.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    pairs = {(line["run"], line["minus"]) for line in lines if line["minus"]}
    assert pairs == {("weak", "good"), ("weak", "other"), ("good", "other")}
    by_category = [
        line for line in lines if line["category"] != "all" and line["minus"] == "other" and line["run"] == "good"
    ]
    assert {line["category"] for line in by_category} == {"O1", "O2"}


def test_a_study_whose_clips_come_in_another_order_is_the_same_study(folders, tmp_path):
    shutil.copytree(folders / "good", tmp_path / "turned")
    data = unpack(tmp_path / "turned" / FILE)
    order = np.random.default_rng(0).permutation(len(data["names"]))
    for key, value in data.items():
        if key in ("names", "groups", "categories", "possible") or key.startswith(("margin.", "label.", "grid.")):
            data[key] = value[..., order]
    np.savez_compressed(tmp_path / "turned" / FILE, **data)
    (found,) = differences(read_models([folders / "good", tmp_path / "turned"]))
    assert found.values["accuracy"].value == 0 and found.p == 1
    assert found.values["accuracy"].low == -found.values["accuracy"].high < 0  # agreement in 12 scenes is not certainty


def test_other_clips_or_labels_are_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"not about the same clips.*in one alone"):
        read_models([folders / "good", folders / "elsewhere"])
    shutil.copytree(folders / "good", tmp_path / "relabelled")
    data = unpack(tmp_path / "relabelled" / FILE)
    data["possible"][3] ^= True
    np.savez_compressed(tmp_path / "relabelled" / FILE, **data)
    with pytest.raises(ConfigError, match="different labels: 'w5/0/3' has False and True"):
        read_models([folders / "good", tmp_path / "relabelled"])


def test_what_cannot_be_compared_is_named(folders, tmp_path):
    with pytest.raises(ConfigError, match="at least two studies, each once"):
        read_models([folders / "good"])
    with pytest.raises(ConfigError, match="at least two studies, each once"):
        read_models([folders / "good", folders / "good"])
    with pytest.raises(ConfigError, match=r"good did not probe 'flow'.*it has states"):
        read_models([folders / "good", folders / "other"], "flow")
    with pytest.raises(MissingDataError, match="no finished study"):
        read_models([folders / "good", tmp_path])


def test_a_folder_without_a_flag_is_a_run(run_python, folders, tmp_path):
    code = "import runpy, sys; sys.argv[0] = 'compare'; runpy.run_module('experiments.compare', run_name='__main__')"
    printed = run_python(
        code, str(folders / "weak"), str(folders / "good"), f"--workdir={tmp_path / 'run'}", "--compilation_cache="
    )
    assert "good is " in printed and "points ahead of weak" in printed
    assert json.loads((tmp_path / "run/config.json").read_bytes())["runs"][0][0] == str(folders / "weak")


def test_the_exchange_test_is_the_exact_share_of_sign_patterns():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 3)
    a, b = (rng.random((2, 24)) < [[0.8], [0.5]]).astype(float)
    sums = np.bincount(groups, a - b)
    signs = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9)
    found = permutation.exchange_test(a, b, groups, draws=20_000)
    assert found.p == pytest.approx(exact, abs=0.015)
    assert found.statistic == pytest.approx(a.mean() - b.mean())


def test_holm_has_the_values_of_its_definition():
    np.testing.assert_allclose(permutation.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(permutation.holm([0.6, 0.9]), [1, 1])
    assert permutation.holm([]).shape == (0,)


def test_the_auc_s_interval_is_that_of_drawing_scenes_and_its_difference_is_paired():
    rng = np.random.default_rng(1)
    groups = rng.permutation(np.repeat(np.arange(20), 4))
    y = rng.random(80) < 0.4
    margins = np.round(rng.standard_normal(80) + y, 1)  # with ties
    low, high = statistics.auc_interval(margins, y, groups, draws=400, seed=2)
    drawn = np.random.default_rng(2).integers(20, size=(400, 20))
    areas = []
    for scenes in drawn:
        clips = np.concatenate([np.flatnonzero(groups == scene) for scene in scenes])
        areas.append(statistics.auc(margins[clips], y[clips]))
    value, wider = statistics.auc(margins, y), np.sqrt(20 / 19)
    ends = value + wider * (np.quantile(areas, [0.025, 0.975]) - value)
    np.testing.assert_allclose((low, high), ends, atol=1e-5)
    difference, interval = statistics.auc_difference(margins, margins + 1e-3 * rng.standard_normal(80), y, groups)
    assert abs(difference) < 0.01 and interval.high - interval.low < 0.2 * (high - low)
