"""Benchmark files as estimates."""

import json

import numpy as np
import pytest

from experiments.benchmark import Config, run
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.physics.benchmarks import write
from jaxdiff.study.benchmarks import phygenbench_estimates, videophy_estimates


def test_shares_of_adhering_clips_come_with_intervals_over_captions(tmp_path):
    clips = [{"videopath": f"{i}.mp4", "caption": f"prompt {i % 10}"} for i in range(40)]
    semantic = [{"videopath": c["videopath"], "score": 5.0 if i % 10 < 6 else 3.0} for i, c in enumerate(clips)]
    physical = [{"videopath": c["videopath"], "score": 4.0 if i % 10 < 3 else 2.0} for i, c in enumerate(clips)]
    files = write("videophy2/output", tmp_path / "sa", semantic), write("videophy2/output", tmp_path / "pc", physical)
    found = videophy_estimates("videophy2", *files, clips)
    assert [found[name].value for name in ("sa", "pc", "joint")] == pytest.approx([0.6, 0.3, 0.3])
    assert 0 <= found["joint"].low < 0.3 < found["joint"].high <= 1
    alone = videophy_estimates("videophy2", *files)
    assert (
        alone["sa"].high - alone["sa"].low < found["sa"].high - found["sa"].low
    )  # four of a prompt are not four prompts
    with pytest.raises(ConfigError, match=r"1 judged clips.*39\.mp4"):
        videophy_estimates("videophy2", *files, clips[:-1])
    with pytest.raises(ConfigError, match="videophy, videophy2"):
        videophy_estimates("vbench", *files)


def test_phygenbench_is_told_by_category(tmp_path):
    rows = [{"caption": str(i), "main_category": "Force" if i < 6 else "Light", "m_average": i % 4} for i in range(10)]
    found = phygenbench_estimates(write("phygenbench/results", tmp_path / "m.json", rows))
    assert found["all"].value == pytest.approx(np.mean([i % 4 for i in range(10)]) / 3)
    assert set(found) == {"all", "Force", "Light"}
    assert found["Force"].value == pytest.approx((0 + 1 + 2 + 3 + 0 + 1) / 18)


def test_the_binary_says_what_the_files_say_and_which_are_missing(tmp_path, capsys):
    results = write("pisa/results", tmp_path / "r.jsonl", [{"l2": 0.1, "chamfer_distance": 0.2, "iou": 0.4}])
    clips = [{"gt_mask": "a", "gt_fps": 16, "pd_mask": "b", "pd_fps": 16}] * 2
    run(Config(name="pisa", results=results, input=write("pisa/config", tmp_path / "c.jsonl", clips)), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "result.json").read_text())["headline"]
    assert told["published l2"] == pytest.approx(0.1)
    assert told["corrected iou"] == pytest.approx(0.2)
    assert told["failed"] == 0.5
    assert "corrected l2" in capsys.readouterr().out
    with pytest.raises(MissingDataError, match="No such file"):
        run(Config(name="phygenbench", results=tmp_path / "none.json"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for wrong, message in (
        ({"name": "videophy", "sa": results}, "needs --pc"),
        ({"name": "pisa", "results": results, "real": tmp_path}, "no use for --real"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config(**wrong)
