"""What the loaders of benchmarks share: one way to refuse a folder, one to refuse a probe, one to check the
scores that are handed in.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxdiff.data.clip import Clip
from jaxdiff.errors import ConfigError, MissingDataError

SHOWN = 10  # problems listed in one message


def listed(problems: Sequence[str]) -> str:
    """The first problems, one a line, and how many more there are."""
    more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "".join(f"\n  {p}" for p in problems[:SHOWN]) + more


def refuse_incomplete(root: Path, what: str, problems: Sequence[str], advice: str) -> None:
    """Raise one MissingDataError that names all problems found below `root`, if there are any."""
    if problems:
        raise MissingDataError(f"{root}: this is not a complete {what}:{listed(problems)}\n{advice}")


def require_labels(root: Path, benchmark: str, split: str, unlabelled: Mapping[str, str]) -> None:
    """Refuse to probe a split that has nothing to probe.

    Called before anything is listed: a test split is the largest of all.

    Parameters
    ----------
    root : Path
        Where the split lies.
    benchmark, split : str
        What to call it.
    unlabelled : mapping of str to str
        The splits without labels of both kinds, each with the reason and with what can be done instead.

    Raises
    ------
    MissingDataError
        With that reason.
    """
    if split in unlabelled:
        raise MissingDataError(f"{root}: the {split} split of {benchmark} {unlabelled[split]}")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; hidden files are none, nor are the `._*` that AppleDouble leaves in
    archives."""
    return sorted(e for e in folder.iterdir() if not e.name.startswith("."))


def holds(folder: Path) -> str:
    """A few names of what a folder holds, for a message."""
    return ", ".join(e.name for e in visible(folder)[:6]) or "nothing"


def checked_scores(
    what: str,
    clips: Iterable[Clip],
    scores: Mapping[str, float],
    low: float = -math.inf,
    high: float = math.inf,
) -> dict[str, float]:
    """One finite score within [low, high] for each clip and none for anything else, in the order of the clips.

    Raises
    ------
    ConfigError
        If a clip comes twice or has no score, if a score belongs to no clip, or if one is out of range. All
        such clips are named together.
    """
    kept: dict[str, float] = {}
    problems: list[str] = []
    for clip in clips:
        if clip.name in kept:
            problems.append(f"{clip.name} comes twice")
        elif clip.name not in scores:
            problems.append(f"{clip.name} has no score")
        kept[clip.name] = float(scores.get(clip.name, math.nan))
    for name, score in kept.items():
        if name in scores and not (math.isfinite(score) and low <= score <= high):
            within = "a finite number" if math.isinf(low) else f"a number in [{low:g}, {high:g}]"
            problems.append(f"{name} has the score {score}, not {within}")
    problems += [f"{name} has a score but is not among the clips" for name in scores if name not in kept]
    if problems:
        raise ConfigError(f"{what} cannot be written:{listed(problems)}\nGive every clip exactly one score.")
    return kept
