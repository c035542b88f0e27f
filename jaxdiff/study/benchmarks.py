"""What a benchmark's result files say of a model: shares and means with intervals over prompts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.physics.benchmarks import iq_rows, phygenbench, pisa, read, videophy, write
from jaxdiff.physics.physics_iq import ViewMetrics, compare, physics_iq, scenarios
from jaxdiff.probes import statistics
from jaxdiff.progress import progress
from jaxdiff.report.study import Estimate
from jaxdiff.study.measures import estimate_json
from jaxdiff.workdir import Workdir

LEAST = {"videophy": 0.5, "videophy2": 4.0}
"""Scores from which on a clip adheres: P(yes) of VideoPhy, 1 to 5 of VideoPhy-2."""

GIVEN = "the sampled clips and the scorer; only prompts, each with its clips, are drawn anew"


def videophy_estimates(
    benchmark: str,
    semantic: str | Path,
    physical: str | Path,
    prompts: Sequence[Mapping[str, str]] | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """SA, PC and joint of VideoPhy or VideoPhy-2, from the scorer's outputs for both questions.

    Parameters
    ----------
    benchmark : "videophy" or "videophy2".
    prompts : rows with "videopath" and "caption" (videophy/input, videophy2/input): clips of one caption are drawn together, as
        several samples of one prompt are no several prompts. None: every clip is its own.

    Returns
    -------
    "sa", "pc", "joint", shares of the clips.

    Raises
    ------
    ConfigError : another benchmark, or a judged clip without a prompt; as `jaxdiff.physics.benchmarks.videophy`.
    MissingDataError : a file that cannot be read.
    """
    if benchmark not in LEAST:
        raise ConfigError(f"{benchmark!r} has no adherence to captions and physics; choose from {', '.join(LEAST)}")
    layout = f"{benchmark}/output"
    judged = videophy(read(layout, semantic), read(layout, physical), LEAST[benchmark])
    paths = judged["videopath"].tolist()
    groups = np.arange(len(paths))
    if prompts is not None:
        captions = {row["videopath"]: row["caption"] for row in prompts}
        if unknown := [path for path in paths if path not in captions]:
            raise ConfigError(f"{len(unknown)} judged clips are in no row of the input, {unknown[0]} for one")
        groups = np.unique([captions[path] for path in paths], return_inverse=True)[1]
    return {name: _estimate(judged[name], groups, seed) for name in ("sa", "pc", "joint")}


def phygenbench_estimates(results: str | Path, seed: int = 0) -> dict[str, Estimate]:
    """PhyGenBench's score, of 1, over all prompts ("all") and over those of each category.

    Raises
    ------
    MissingDataError : the file cannot be read.
    """
    found = phygenbench(read("phygenbench/results", results))
    parts = {"all": np.ones(len(found["score"]), bool)}
    parts |= {name: found["category"] == name for name in sorted(set(found["category"].tolist()))}
    return {name: _estimate(found["score"][part], np.arange(part.sum()), seed) for name, part in parts.items()}


def _estimate(values: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """Mean with its interval; none from fewer than two groups."""
    if len(np.unique(groups)) < 2:
        return Estimate(float(values.mean()))
    ends = statistics.cluster_bootstrap(values, groups, seed=seed, conditional_on=GIVEN)
    return Estimate(float(values.mean()), max(ends.low, 0.0), min(ends.high, 1.0))


def run_benchmark(config: Any, workdir: Path) -> None:
    """Read the files, say and write what they mean; files that are wrong make no folder.

    `config` is that of `experiments.benchmark`, which has seen to it that the benchmark's files are given.
    """
    tables: dict[str, Any] = {}
    if config.name in LEAST:
        prompts = None if config.input is None else read(f"{config.name}/input", config.input)
        found = videophy_estimates(config.name, config.sa, config.pc, prompts, config.seed)
        tables["headline"] = {name: estimate_json(value) for name, value in found.items()}
    elif config.name == "phygenbench":
        found = phygenbench_estimates(config.results, config.seed)
        tables["headline"] = {name: estimate_json(value) for name, value in found.items()}
    elif config.name == "pisa":
        told = pisa(
            read("pisa/results", config.results), None if config.input is None else read("pisa/config", config.input)
        )
        tables["headline"] = {
            **{f"{kind} {name}": _number(v) for kind in ("published", "corrected") for name, v in told[kind].items()},
            "failed": told["failed"],
        }
    else:
        pairs = scenarios(config.real, config.videos, config.fps)
        views: dict[str, dict[str, ViewMetrics]] = {}
        with progress("compare", len(pairs)) as task:
            for pair in pairs:
                views.setdefault(pair.name, {})[pair.view] = compare(pair, config.fps)
                task.advance()
        tables["headline"] = {"score": physics_iq(views), "score, not rounded": physics_iq(views, rounded=False)}
        tables["scenarios"] = len(views)
    with Workdir(workdir, config) as work:
        if config.name == "physics-iq":
            write("physics-iq/results", workdir / f"{config.videos.name}.csv", iq_rows(views))
        work.write_result(tables)
        work.finish()
    print("\n".join(f"{name:24s}{_told(value)}" for name, value in tables["headline"].items()))


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _told(value: Any) -> str:
    if not isinstance(value, dict):
        return "-" if value is None else f"{value:.4g}"
    low, high = (value.get(name) for name in ("low", "high"))
    text = "-" if value["value"] is None else f"{100 * value['value']:.1f} %"
    return text if low is None or high is None else f"{text} ({100 * low:.1f} - {100 * high:.1f})"
