"""`experiments.probe`: a store of an earlier inversion, probed without running the model again."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data.clip import Clip
from jaxdiff.data.labelled import read_labels
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.report import probe_csv, write_report
from jaxdiff.store import ActivationStore
from jaxdiff.study.analysis import Labels, Protocol, Source, analyse
from jaxdiff.study.features import stored_features
from jaxdiff.study.results import csv_rows, report_study, result_json
from jaxdiff.study.sources import blocks_and_input
from jaxdiff.workdir import Workdir

CLIP_LABELS = "clip_labels"  # where a store's metadata holds its `label_table`; its "labels" are those of the slots


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """See the flags of `experiments.probe`."""

    store: Path
    labels: Path | None = None
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    seed: int = 0
    published_seeds: int = 3


def label_table(clips: Sequence[Clip]) -> list[list[Any]]:
    """Rows (clip, possible, group, category) for a store's metadata, from which it can be probed again."""
    return [[clip.name, clip.possible, clip.group, clip.category] for clip in clips]


def run_probe(config: ProbeConfig, workdir: Path) -> None:
    """Probe every array of the store under both protocols, with shuffled labels as the control."""
    store = ActivationStore.open(config.store)
    table: dict[str, tuple[bool, str, str]]
    if config.labels is not None:
        table = {name: (row.possible, row.group, row.category) for name, row in read_labels(config.labels).items()}
    else:
        stored = store.metadata.get(CLIP_LABELS)
        if not stored:
            raise ConfigError(
                f"{config.store} holds no labels; give --labels=FILE.csv (clip, possible, group, category)"
            )
        table = {name: (bool(possible), group, category) for name, possible, group, category in stored}
    names = store.names
    kept = [i for i in sorted(store.finished()) if names[i] in table]
    if not kept:
        raise MissingDataError(f"none of the {len(names)} clips of {config.store} has a label")
    found = [table[names[i]] for i in kept]
    labels = Labels(np.array([f[0] for f in found]), np.array([f[1] for f in found]), np.array([f[2] for f in found]))
    features = stored_features(store, kept)
    states, entering = blocks_and_input(features)
    sources = [
        Source("states", "stored states", "states", "trained", states, "all blocks and noise levels"),
        Source(
            "shuffled", "shuffled labels", "null", "trained", states, "labels permuted inside scenes", shuffled=True
        ),
    ]
    if entering.arrays:
        sources.append(Source("input", "what enters block 0", "comparison", "trained", entering))
    protocol = Protocol(
        outer=config.outer, inner=config.inner, repeats=config.repeats, seed=config.seed,
        published_seeds=config.published_seeds,
    )  # fmt: skip
    sigmas = store.metadata["sigmas"]
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("probe", clips=len(kept)):
            answers = analyse(sources, labels, protocol)
        probe_csv(workdir / "probe.csv", csv_rows(answers, labels, {}, config.seed))
        result = result_json(answers, labels, {}, config.seed)
        work.write_result({**result, "clips": len(kept), "scenes": len(set(labels.groups.tolist()))})
        study = dataclasses.replace(
            report_study(answers, labels, {}, sigmas, config.seed),
            title=f"Linear probes on {config.store}",
            config=work.config,
            environment=work.sessions()[-1],
            command=" ".join(map(str, work.sessions()[-1]["command"])),
        )
        write_report(workdir / "report.html", study)
        work.finish(("result.json", "probe.csv"))
    states_entry = result["headline"]["states"]
    print(f"states {100 * states_entry['value']:.1f} % -> {workdir / 'report.html'}")
