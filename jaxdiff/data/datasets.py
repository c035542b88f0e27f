"""Every data set by its name: what its clips are, what may be read from them, and what a report must say about it."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxdiff.data import grasp, inflevel, intphys, intphys2, phyworld
from jaxdiff.data.clip import Clip
from jaxdiff.data.labelled import load_labelled
from jaxdiff.data.targets import MeasuredClip, target_values
from jaxdiff.errors import ConfigError, MissingDataError

_T = TypeVar("_T")

SPLITS: dict[str, tuple[str, ...]] = {
    "world": (),
    "intphys": intphys.SPLITS,
    "intphys2": ("Main", "Debug", "HeldOut"),
    "inflevel_lab": (),
    "inflevel_sim": (),
    "grasp": (),
    "phyworld": (),
    "labelled": (),
}
"""The data sets, each with its splits; the first split is the default."""

LABELS = "labels.csv"  # of `labelled`, below its folder

SUBSET = "counts were not held to (--subset): this may be a part of what was published"
SIM_COUNTS = "the published counts of InfLevel-sim are not known, so they were not held to"
MEASURED = (
    "PhyWorld: x0 and v0 are the ball's position and speed, from its trajectory; x0_published is the number that the "
    "published study regresses under the name of x0, and which PhyWorld's generator draws as the ball's radius"
)
LEAKING = (
    "LEAK, on purpose (--leaking_prompt): the prompt of every clip states two of the numbers that are probed, as in the "
    "published study. What is read then may have been told, not seen"
)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Clips of one split, and what is known about them.

    Attributes
    ----------
    name, split : str
        As `open_dataset` takes them; `split` is empty where there is none.
    clips : tuple of Clip
        `Clip.group` must stay on one side of every split of a probe.
    matched : tuple of str
        For every clip the set within which possible and impossible ones are compared in pairs. It lies inside one
        group, and is smaller than that in InfLevel.
    targets : mapping of str to numpy.ndarray
        Numbers to be read instead of a label, name -> float64 `[N]`; empty where clips are possible or impossible.
    units : mapping of str to str
        Unit of every target.
    prompt : str or None
        What a text-conditioned model is told, where the data set says so.
    prompts : tuple of str or None
        What it is told of every single clip; only where that was asked for.
    notes : tuple of str
        What every report on these clips prints.
    """

    name: str
    split: str
    clips: tuple[Clip, ...]
    matched: tuple[str, ...]
    targets: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompt: str | None = None
    prompts: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def measured(self) -> bool:
        """Whether numbers are to be read rather than a label."""
        return bool(self.targets)

    def only(self, chosen: Sequence[int]) -> "Dataset":
        """The clips of these numbers."""
        chosen = list(chosen)
        return dataclasses.replace(
            self,
            clips=tuple(self.clips[i] for i in chosen),
            matched=tuple(self.matched[i] for i in chosen),
            targets={name: values[chosen] for name, values in self.targets.items()},
            prompts=None if self.prompts is None else tuple(self.prompts[i] for i in chosen),
        )


def open_dataset(
    name: str,
    folder: str | Path | None,
    *,
    split: str | None = None,
    subset: bool = False,
    to_submit: bool = False,
    labels: str | Path | None = None,
    scenes: int | None = None,
    leaking_prompt: bool = False,
) -> Dataset:
    """List a data set, after checking that all that was published is there. No video is opened.

    Parameters
    ----------
    name : str
        One of `SPLITS`.
    folder : str or Path
        Where it lies: what `--data_dir` takes.
    split : str, optional
        One of the data set's splits; by default the first of `SPLITS`.
    subset : bool
        True accepts a part of the published data set. What is there must still be whole: every quadruplet, pair or
        matched set.
    to_submit : bool
        False: only splits that can be probed. True also lists those without labels, whose scores can be submitted.
    labels : str or Path, optional
        The csv of `labelled`; by default `labels.csv` in its folder.
    scenes : int, optional
        Scenes of each category that a generated world must have.
    leaking_prompt : bool
        PhyWorld: describe every clip by a prompt that states its numbers, as published.

    Raises
    ------
    ConfigError
        The data set, the split, or an argument of another data set; or a group that spans categories.
    MissingDataError
        Something is missing, damaged or unpaired, or the split has no labels; says what to do.
    """
    if name not in SPLITS:
        raise ConfigError(f"--dataset={name} is unknown; choose one of {', '.join(SPLITS)}")
    splits = SPLITS[name]
    if split is not None and split not in splits:
        known = "the splits " + ", ".join(splits) if splits else "no splits"
        raise ConfigError(f"--split={split}: {name} has {known}")
    if folder is None:
        raise ConfigError(f"--dataset={name} needs --data_dir=DIR, the folder that holds it")
    for flag, given, owner in (("labels", labels, "labelled"), ("leaking_prompt", leaking_prompt, "phyworld")):
        if given and name != owner:
            raise ConfigError(f"--{flag} is for --dataset={owner} alone")
    chosen = split if split is not None else (splits[0] if splits else "")
    notes = [f"{name}: {SUBSET}"] if subset else []
    if name == "phyworld":
        return _whole_or_part(lambda part: _parabola(Path(folder), part, leaking_prompt, notes), subset)
    if name == "world":
        clips = intphys.load_intphys(folder, scenes=scenes)
    elif name == "labelled":
        clips = load_labelled(folder, Path(folder) / LABELS if labels is None else labels)
    else:
        published = _PUBLISHED[name]
        clips, told = _whole_or_part(lambda part: published(Path(folder), chosen, part, to_submit), subset)
        notes += told
    matched = tuple(inflevel.matched_set(c) if name.startswith("inflevel") else c.group for c in clips)
    _one_category_a_group(clips)
    return Dataset(name, chosen, tuple(clips), matched, notes=tuple(notes))


def _whole_or_part(opened: Callable[[bool], _T], subset: bool) -> _T:
    """`opened(subset)`; where only the published counts stand in the way, the error names the flag that lifts them."""
    try:
        return opened(subset)
    except MissingDataError as error:
        refused = error
    if not subset:
        try:
            opened(True)
        except MissingDataError:
            raise refused from None
        raise MissingDataError(
            f"{refused}\nWhat is there is whole by itself: --subset takes it as a part, and the report says so."
        ) from None
    raise refused


def _intphys(folder, split, subset, to_submit):
    scenes = None if subset else intphys.PUBLISHED_SCENES[split]
    return intphys.load_intphys(folder, split, scenes=scenes, labels=not to_submit), []


def _intphys2(folder, split, subset, to_submit):
    videos = None if subset else intphys2.PUBLISHED_VIDEOS[split]
    return intphys2.load_intphys2(folder, split, videos=videos, labels=not to_submit), [intphys2.EVALUATION]


def _inflevel_lab(folder, split, subset, to_submit):
    return inflevel.load_inflevel(folder, "lab", published=not subset), [inflevel.NO_TRAINING]


def _inflevel_sim(folder, split, subset, to_submit):
    return inflevel.load_inflevel(folder, "sim"), [inflevel.NO_TRAINING, SIM_COUNTS]


def _grasp(folder, split, subset, to_submit):
    return grasp.load_grasp(folder, scenes=None if subset else grasp.SCENES), []


_Opened = tuple[list[Clip], list[str]]
_PUBLISHED: dict[str, Callable[[Path, str, bool, bool], _Opened]] = {
    "intphys": _intphys,
    "intphys2": _intphys2,
    "inflevel_lab": _inflevel_lab,
    "inflevel_sim": _inflevel_sim,
    "grasp": _grasp,
}


def _parabola(folder: Path, subset: bool, leaking: bool, notes: list[str]) -> Dataset:
    counts = None if subset else phyworld.COUNTS
    measured: list[MeasuredClip] = phyworld.load_parabola(folder, counts=counts, leak_targets_in_prompt=leaking)
    clips = tuple(m.clip for m in measured)
    units = {t.name: t.unit for t in measured[0].targets}
    return Dataset(
        "phyworld",
        "",
        clips,
        tuple(clip.group for clip in clips),
        targets={name: target_values(measured, name) for name in units},
        units=units,
        prompt=phyworld.NEUTRAL_PROMPT,
        prompts=tuple(m.prompt for m in measured) if leaking else None,
        notes=(*notes, MEASURED, *([LEAKING] if leaking else [])),
    )


def _one_category_a_group(clips: Sequence[Clip]) -> None:
    """Folds are balanced by category and never split a group, so a group can have one category only."""
    held: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        held[clip.group].add(clip.category)
    if mixed := [group for group, categories in held.items() if len(categories) > 1]:
        raise ConfigError(
            f"group {mixed[0]!r} has clips of the categories {', '.join(sorted(held[mixed[0]]))}; give every group one "
            "category"
        )
