"""Clips of one's own: a folder of videos beside a csv that labels them.

    clip,possible,group,category
    ball/01_a.mp4,1,01,ball
    ball/01_b.mp4,0,01,ball

`clip` is the path of a video file, or of a folder of png frames, below the folder of the clips.
"""

import csv
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from jaxdiff.data.clip import Clip
from jaxdiff.data.listing import listed
from jaxdiff.data.video import list_videos
from jaxdiff.errors import MissingDataError

COLUMNS = ("clip", "possible", "group", "category")


class Label(NamedTuple):
    """A row of the csv, without the name of its clip."""

    possible: bool
    group: str
    category: str


def read_labels(path: str | Path) -> dict[str, Label]:
    """Read a csv with exactly the columns clip, possible (0 or 1), group and category.

    Returns
    -------
    dict of str to Label
        By the name of the clip, in the order of the file.

    Raises
    ------
    MissingDataError
        If the file cannot be read, a column is missing, unknown or comes twice, a field is empty, a clip comes
        twice, or a label is neither 0 nor 1. All problems found are named together.
    """
    problems: list[str] = []
    labels = _read(Path(path), problems)
    _refuse(Path(path), problems)
    return labels


def load_labelled(folder: str | Path, labels: str | Path, *, matched: bool = True) -> list[Clip]:
    """List the clips of a folder with the labels of a csv. No video is opened.

    Parameters
    ----------
    folder : str or Path
        What `list_videos` takes.
    labels : str or Path
        What `read_labels` takes. Every clip of the folder must have one row, and every row a clip.
    matched : bool
        True: a group is a matched set, as many possible as impossible clips of each of its categories, so that
        neither its scenery nor its frequency tells the label. False admits groups of any composition; a probe
        may then read the scenery.

    Returns
    -------
    list of Clip
        In the order of `list_videos`; `name` is the path below the folder.

    Raises
    ------
    MissingDataError
        As `read_labels`; or if the folder is missing, a clip has no row, a row no clip, or a group is
        unbalanced. All problems found are named together.
    """
    folder, labels = Path(folder), Path(labels)
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder. --data_dir takes the folder that holds the clips.")
    problems: list[str] = []
    known: set[str] = set()
    rows = _read(labels, problems, known)
    paths = {path.relative_to(folder).as_posix(): path for path in list_videos(folder)}
    problems += [f"{name!r} is not a clip below {folder}" for name in known if name not in paths]
    problems += [f"{name!r} lies below {folder} and has no row" for name in paths if name not in known]
    if matched:
        problems += _unbalanced(rows)
    _refuse(labels, problems)
    return [Clip(n, path, rows[n].group, rows[n].category, rows[n].possible) for n, path in paths.items()]


def _unbalanced(rows: dict[str, Label]) -> list[str]:
    counts = Counter(rows.values())
    sets = dict.fromkeys((label.group, label.category) for label in rows.values())
    return [
        f"group {group!r} of category {category!r} is unpaired: {right} possible and {wrong} impossible clips"
        for group, category in sets
        if (right := counts[Label(True, group, category)]) != (wrong := counts[Label(False, group, category)])
    ]


def _read(path: Path, problems: list[str], known: set[str] | None = None) -> dict[str, Label]:
    """The rows that can be used; notes what is wrong with the others. `known` collects all clips with a row."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MissingDataError(
            f"{path}: the labels cannot be read: {error}. Give a csv with the columns {', '.join(COLUMNS)}."
        ) from error
    problems += [f"the column {c} is missing" for c in COLUMNS if c not in header]
    problems += [f"the column {c!r} is unknown" for c in dict.fromkeys(header) if c not in COLUMNS]
    problems += [f"the column {c!r} comes {n} times" for c, n in Counter(header).items() if n > 1]
    if not rows:
        problems.append("there are no rows")
    if any(c not in header for c in COLUMNS):
        _refuse(path, problems)  # no row can be judged
    first: dict[str, int] = {}
    labels: dict[str, Label] = {}
    for line, row in rows:
        if len(row) != len(header):
            problems.append(f"line {line} has {len(row)} fields, not {len(header)}")
            continue
        clip, possible, group, category = (row[header.index(c)] for c in COLUMNS)
        empty = [c for c, value in zip(COLUMNS, (clip, possible, group, category), strict=True) if not value.strip()]
        if empty:
            problems.append(f"line {line}: {', '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty")
        elif possible not in ("0", "1"):
            problems.append(f"line {line}: possible is {possible!r} for {clip!r}; use 0 or 1")
        elif clip in first:
            problems.append(f"line {line}: {clip!r} has a row already, line {first[clip]}")
        else:
            labels[clip] = Label(possible == "1", group, category)
        if clip:
            first.setdefault(clip, line)
    if known is not None:
        known.update(first)
    return labels


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise MissingDataError(
            f"{path}: these labels cannot be used:{listed(problems)}\n"
            f"Give one row a clip, with the columns {', '.join(COLUMNS)}."
        )
