"""`experiments.probe`: stores of an earlier inversion, probed without running the model again."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data.clip import Clip
from jaxdiff.data.datasets import Dataset
from jaxdiff.data.labelled import read_labels
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.report import Study, probe_csv, report_run
from jaxdiff.store import ActivationStore
from jaxdiff.study.analysis import BOTH, Labels, Protocol, Source, analyse
from jaxdiff.study.attributes import recurring_attribute, recurs
from jaxdiff.study.features import Features, read_features
from jaxdiff.study.memory import ONE_STORE, refuse_too_large, store_bytes
from jaxdiff.study.regression import analyse_targets, target_headline, target_report, target_result, target_rows
from jaxdiff.study.results import csv_rows, report_study, result_json
from jaxdiff.study.sources import PROMPT, VARIANTS, make_sources
from jaxdiff.workdir import Workdir

CLIP_LABELS = "clip_labels"  # where a store's metadata holds its `label_table`; its "labels" are those of the slots
MATCHED = "matched"  # likewise, the set of every clip within which pairs are compared, where that is not its group
NOTES = "notes"  # and what every report on these clips must say
TARGETS = "targets"  # instead of labels: the unit and the values of every number that is probed,
GROUPS = "groups"  # and the group of every clip

MODELS = ("trained", "structureless", "untrained")  # stores of a study, the model itself first


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """See the flags of `experiments.probe`."""

    store: Path
    labels: Path | None = None
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    seed: int = 0
    which: str = BOTH  # --protocol
    capacity: bool = True
    published_seeds: int = 5
    published_batch: int = 32
    published_test: float = 0.4
    published_by_category: bool = False
    middle: float = 0.5

    def protocol(self) -> Protocol:
        same = {f.name for f in dataclasses.fields(Protocol)} & {f.name for f in dataclasses.fields(self)}
        return Protocol(**{name: getattr(self, name) for name in same})


def label_table(clips: Sequence[Clip]) -> list[list[Any]]:
    """Rows (clip, possible, group, category) for a store's metadata, from which it can be probed again; and, where the
    clips have one, the value of an attribute that recurs."""
    attribute = recurring_attribute(clips)
    rows: list[list[Any]] = [[clip.name, clip.possible, clip.group, clip.category] for clip in clips]
    return rows if attribute is None else [[*row, str(a)] for row, a in zip(rows, attribute, strict=True)]


def run_probe(config: ProbeConfig, workdir: Path) -> None:
    """Probe everything that is stored under the protocols of the flags, with shuffled labels as the control.

    Raises
    ------
    MissingDataError : there is no store, or none of its clips has a label.
    ConfigError : the stores hold no labels and none are given, or are not about the same clips.
    """
    stores, noised = open_stores(config.store)
    main = next(iter(stores.values()))
    finished = set.intersection(*(store.finished() for store in stores.values()))
    measured = TARGETS in main.metadata and config.labels is None
    told, kept = stored_targets(config, main, finished) if measured else stored_labels(config, main, finished)
    names = [main.names[i] for i in kept]
    noised = {
        name: store for name, store in noised.items() if store.names == names and len(store.finished()) == len(names)
    }
    read = {**stores, **{f"noised {name}": store for name, store in noised.items()}}
    refuse_too_large({name: store_bytes(store, len(kept)) for name, store in read.items()}, len(kept), ONE_STORE)
    models = {name: store for name, store in stores.items() if name not in (*VARIANTS, PROMPT)}
    sources = make_sources(
        models, noised, {}, kept, variants={name: store for name, store in stores.items() if name not in models},
        encoders=kept_encoders(config.store, names),
    )  # fmt: skip
    sources = [source for source in sources if source.features.arrays]  # inputs are not stored
    notes = tuple(main.metadata.get(NOTES, ()))
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("probe", clips=len(kept)):
            if isinstance(told, Dataset):
                found = _of_targets(work, config, sources, told)
            else:
                found = _of_labels(work, config, sources, told, main.metadata["sigmas"])
        result, study, groups, said = found
        work.write_result({**result, "clips": len(kept), "scenes": groups, "notes": list(notes)})
        report_run(work, dataclasses.replace(study, title=f"Linear probes on {config.store}", notes=notes))
        work.finish(("result.json", "probe.csv"))
    print(f"{said}-> {workdir / 'report.html'}")


Found = tuple[dict[str, Any], Study, int, str]  # result, report, number of groups, and what is printed


def _of_labels(
    work: Workdir, config: ProbeConfig, sources: Sequence[Source], labels: Labels, sigmas: Sequence[float]
) -> Found:
    answers = analyse(sources, labels, config.protocol())
    probe_csv(work.path / "probe.csv", csv_rows(answers, labels, {}, config.seed))
    result = result_json(answers, labels, {}, config.seed)
    entry = result["headline"].get("states")
    study = report_study(answers, labels, {}, sigmas, config.seed)
    said = f"states {100 * entry['value']:.1f} % " if entry else ""
    return result, study, len(set(labels.groups.tolist())), said


def _of_targets(work: Workdir, config: ProbeConfig, sources: Sequence[Source], data: Dataset) -> Found:
    answers = analyse_targets(sources, data, config.protocol())
    groups = len({clip.group for clip in data.clips})
    probe_csv(work.path / "probe.csv", target_rows(answers, len(data), groups))
    result = target_result(answers, data, config.seed)
    said = "\n".join([*target_headline(result["headline"]), ""])
    return result, target_report(answers, data, config.seed), groups, said


def open_stores(folder: Path) -> tuple[dict[str, ActivationStore], dict[str, ActivationStore]]:
    """The stores of a study's workdir, the model itself first, and those on noised latents; or one store, as "trained".

    Raises
    ------
    MissingDataError : `folder` is neither.
    ConfigError : the stores are not about the same clips.
    """
    if not (folder / "store").is_dir():
        return {MODELS[0]: ActivationStore.open(folder)}, {}
    found = {
        place.name: ActivationStore.open(place) for place in sorted((folder / "store").iterdir()) if place.is_dir()
    }
    if MODELS[0] not in found:
        raise MissingDataError(
            f"{folder / 'store'} has no {MODELS[0]}/, the model's own store; it holds {', '.join(found)}"
        )
    order = [*(name for name in MODELS if name in found), *(name for name in found if name not in MODELS)]
    stores = {name: found[name] for name in order}
    first = stores[MODELS[0]]
    other = next((name for name, store in stores.items() if store.names != first.names), None)
    if other is not None:
        raise ConfigError(f"{folder}: the stores {MODELS[0]} and {other} are not about the same clips")
    place = folder / "noised" / MODELS[0]
    return stores, {MODELS[0]: ActivationStore.open(place)} if place.is_dir() else {}


def kept_encoders(folder: Path, names: Sequence[str]) -> dict[str, Features]:
    """What a study's encoders made of exactly these clips, by the encoder's name."""
    found = {path.stem: read_features(path) for path in sorted((folder / "encoders").glob("*.npz"))}
    return {name: part[1] for name, part in found.items() if part is not None and part[0].endswith(str(list(names)))}


def stored_labels(config: ProbeConfig, store: ActivationStore, finished: set[int]) -> tuple[Labels, list[int]]:
    """Labels from the csv of the flags or the store's metadata, and the clips that have one and are of whole scenes."""
    rows: Mapping[str, Sequence[Any]]
    if config.labels is not None:
        rows = {name: (row.possible, row.group, row.category) for name, row in read_labels(config.labels).items()}
    elif stored := store.metadata.get(CLIP_LABELS):
        rows = {name: row for name, *row in stored}
    else:
        raise ConfigError(f"{config.store} holds no labels; give --labels=FILE.csv (clip, possible, group, category)")
    names = store.names
    broken = {rows[name][1] for i, name in enumerate(names) if name in rows and i not in finished}
    kept = [i for i in sorted(finished) if names[i] in rows and rows[names[i]][1] not in broken]
    if not kept:
        raise MissingDataError(
            f"no scene of {config.store} is whole and labelled: {len(names)} clips, {len(rows)} labels"
        )
    found = [rows[names[i]] for i in kept]
    matched = store.metadata.get(MATCHED)
    groups = np.array([row[1] for row in found])
    attribute = np.array([row[3] for row in found]) if all(len(row) > 3 for row in found) else None
    labels = Labels(
        np.array([row[0] for row in found], bool),
        groups,
        np.array([row[2] for row in found]),
        None if matched is None else np.array([matched[i] for i in kept]),
        attribute if attribute is not None and recurs(attribute, groups) else None,
    )
    return labels, kept


def stored_targets(config: ProbeConfig, store: ActivationStore, finished: set[int]) -> tuple[Dataset, list[int]]:
    """The clips of a store of measured numbers whose groups are whole, with those numbers."""
    names, groups = store.names, store.metadata[GROUPS]
    broken = {group for i, group in enumerate(groups) if i not in finished}
    kept = [i for i in sorted(finished) if groups[i] not in broken]
    if not kept:
        raise MissingDataError(f"no group of {config.store} is whole: {len(finished)} of {len(names)} clips are there")
    clips = tuple(Clip(names[i], config.store, groups[i], "", None) for i in kept)
    table = store.metadata[TARGETS]
    return (
        Dataset(
            "", "", clips, tuple(clip.group for clip in clips),
            targets={name: np.array(entry["values"])[kept] for name, entry in table.items()},
            units={name: entry["unit"] for name, entry in table.items()},
        ),
        kept,
    )  # fmt: skip
