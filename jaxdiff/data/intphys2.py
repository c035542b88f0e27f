"""IntPhys 2 (Bordes et al., "IntPhys 2: Benchmarking Intuitive Physics Understanding In Complex Synthetic
Environments", 2025), as it lies on disk.

    <Debug|Main|HeldOut>/Videos/<name>.mp4
    <Debug|Main>/metadata.csv                  name, SceneIndex, type, condition, env, game_name, Difficulty, Camera

Videos of one SceneIndex are matched: the types 1_Possible, 1_Impossible, 2_Possible and 2_Impossible, once each
in Main and rendered three times in Debug. HeldOut is published without metadata; it can only be submitted. The
data are licensed CC BY-NC 4.0 and for evaluation alone.

Not verified on an archive, since none was at hand: how Debug tells its three renders apart (each type once or
three times under a SceneIndex is accepted, and only the number of videos is held to), whether HeldOut has a
metadata.csv without labels (one is read for its names if it is there), and that its files are named by the row_id
that the leaderboard wants (the official README shows a line with 64 hexadecimal digits and calls it the video id).
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxdiff.data.clip import Clip
from jaxdiff.data.listing import checked_scores, holds, refuse_incomplete, require_labels, visible
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.workdir import write_atomic

SPLITS = ("Debug", "Main", "HeldOut")
PUBLISHED_VIDEOS = {"Debug": 60, "Main": 1012, "HeldOut": 344}
TYPES = ("1_Possible", "1_Impossible", "2_Possible", "2_Impossible")
RENDERS = {"Debug": (1, 3), "Main": (1,)}  # videos of one type under one SceneIndex

PROPERTIES = {
    "permanence": "permanence",
    "immutability": "immutability",
    "immutability_texture": "immutability",
    "continuity": "continuity",
    "continuity_swap": "continuity",
    "solidity": "solidity",
}
"""What each `condition` of the metadata tests."""

EVALUATION = "IntPhys 2 is published for evaluation alone (CC BY-NC 4.0)."
"""What its licence says, which every report on it prints."""

UNLABELLED = {
    "HeldOut": "is published without labels, so it cannot be probed. Use Main; answers for HeldOut can only be "
    "submitted: python -m experiments.submit --dataset=intphys2 --split=HeldOut."
}
"""Splits that no probe can be fitted on, and why."""

_COLUMNS = ("SceneIndex", "type", "condition")
_CONDITIONS = ("condition", "type", "env", "game_name", "Difficulty", "Camera", "occluder")
_ROW_ID = re.compile(r"[0-9a-f]{64}")


def load_intphys2(
    folder: str | Path, split: str = "Main", *, labels: bool = True, videos: int | None = None
) -> list[Clip]:
    """List the clips of an IntPhys 2 folder, after checking that every scene is whole. No video is opened.

    Parameters
    ----------
    folder : str or Path
        The folder that holds `Debug/`, `Main/` or `HeldOut/`, or that folder itself.
    split : {"Debug", "Main", "HeldOut"}
    labels : bool
        True: only a split that can be probed is accepted.
    videos : int, optional
        Videos that must be there (`PUBLISHED_VIDEOS` for the release). By default any number of whole scenes.

    Returns
    -------
    list of Clip
        Ordered by scene and type; HeldOut by name. `group` is "<split>/<SceneIndex>", `category` the property
        ("permanence", ...). In HeldOut the scene is not published: every clip is its own group, `category` is
        "heldout", and `name` is the row_id of a submission.

    Raises
    ------
    MissingDataError
        If a folder, metadata.csv, a column or a video is missing, a video is listed twice or not at all, a
        scene lacks a type or mixes conditions, a type or condition is unknown, or labels are asked of a split
        without them. All problems found are named together.
    """
    if split not in SPLITS:
        raise ConfigError(f"IntPhys 2 has no split {split!r}; use one of {', '.join(SPLITS)}.")
    root = _split_folder(Path(folder), split)
    if labels:
        require_labels(root, "IntPhys 2", split, UNLABELLED)
    problems: list[str] = []
    files = _videos(root, problems)
    clips = _heldout(root, files, problems) if split == "HeldOut" else _scenes(root, split, files, problems)
    if videos is not None and len(files) != videos:
        problems.append(f"Videos/ holds {len(files)} videos, expected {videos}")
    refuse_incomplete(root, f"IntPhys 2 {split} split", problems, "Unpack IntPhys2.zip again.")
    return clips


def write_heldout(
    path: str | Path,
    clips: Sequence[Clip],
    answers: Mapping[str, bool],
    videos: int = PUBLISHED_VIDEOS["HeldOut"],
) -> Path:
    """Write the answers for HeldOut as the leaderboard takes them: a json object a line, with the keys
    data_name, task, row_id and model_answer (1 possible, 0 not).

    Parameters
    ----------
    path : str or Path
        A `.jsonl` file.
    clips : sequence of Clip
        The whole split, from `load_intphys2(folder, "HeldOut", labels=False)`.
    answers : mapping of str to bool
        By `Clip.name`: whether the video is possible. The threshold under a score is the caller's, who must
        not have chosen it on these videos.
    videos : int
        How many the split has.

    Raises
    ------
    ConfigError
        If the clips are not all of HeldOut, one is not named by a row_id (64 hexadecimal digits), or an answer
        is missing, superfluous or neither true nor false.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise ConfigError(f"{path}: the leaderboard takes a .jsonl file.")
    if labelled := [c.name for c in clips if c.possible is not None]:
        raise ConfigError(f"{path}: {labelled[0]} has a label; only HeldOut is submitted.")
    if len(clips) != videos:
        raise ConfigError(f"{path}: {len(clips)} clips, but HeldOut has {videos} videos. Answer every one.")
    checked = checked_scores(str(path), clips, answers, 0.0, 1.0)
    if unclear := [name for name, answer in checked.items() if answer not in (0.0, 1.0)]:
        raise ConfigError(f"{path}: the answer for {unclear[0]} is {checked[unclear[0]]}, not true or false.")
    if odd := [name for name in checked if not _ROW_ID.fullmatch(name)]:
        raise ConfigError(
            f"{path}: {odd[0]} is no row_id, which is 64 hexadecimal digits. Are these the videos of HeldOut, under "
            "the names that they were published with?"
        )
    lines = (
        json.dumps({"data_name": "intphys2", "task": "HeldOut", "row_id": name, "model_answer": int(answer)})
        for name, answer in checked.items()
    )
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
    return path


def _split_folder(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise MissingDataError(
            f"{folder}: no such folder. --data_dir takes the folder that holds IntPhys 2's {split}/."
        )
    root = folder / split if (folder / split).is_dir() else folder
    if root.name in SPLITS and root.name != split:
        raise MissingDataError(f"{folder}: this is IntPhys 2's {root.name}/, not {split}/.")
    if not (root / "Videos").is_dir():
        raise MissingDataError(
            f"{folder}: holds neither {split}/ nor Videos/ (it holds {holds(folder)}). "
            f"--data_dir takes the folder with IntPhys 2's {split}/, as unpacked from IntPhys2.zip."
        )
    return root


def _videos(root: Path, problems: list[str]) -> dict[str, Path]:
    """The videos by name."""
    files: dict[str, Path] = {}
    for entry in visible(root / "Videos"):
        if entry.suffix == ".mp4" and entry.is_file():
            files[entry.stem] = entry
        else:
            problems.append(f"Videos/{entry.name} is not an mp4 file")
    if not files:
        problems.append("Videos/ holds no mp4 files")
    return files


def _metadata(root: Path, needed: Sequence[str], problems: list[str]) -> list[dict[str, str]]:
    """The rows, each with a `name` that is the stem of its video."""
    try:
        with open(root / "metadata.csv", newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="")
            rows, columns = list(reader), reader.fieldnames or ()
    except FileNotFoundError:
        problems.append("metadata.csv is missing")
        return []
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"metadata.csv is damaged ({error})")
        return []
    key = "name" if "name" in columns else "filename"  # as older scripts call it
    if lacking := [c for c in (key, *needed) if c not in columns]:
        problems.append(f"metadata.csv has no column {', '.join(lacking)} (it has {', '.join(columns)})")
        return []
    whole = []
    for number, row in enumerate(rows, start=2):
        if "" in row or None in row.values():
            problems.append(f"metadata.csv: row {number} has not as many fields as there are columns")
        else:
            whole.append({**row, "name": row[key].removesuffix(".mp4")})
    return whole


def _matched_names(rows: Sequence[dict[str, str]], files: Mapping[str, Path], problems: list[str]) -> None:
    listed = Counter(row["name"] for row in rows)
    problems += [f"metadata.csv lists {name} {times} times" for name, times in listed.items() if times > 1]
    problems += [f"Videos/{name}.mp4 is missing; metadata.csv lists it" for name in listed if name not in files]
    problems += [f"Videos/{name}.mp4 is not listed in metadata.csv" for name in files if name not in listed]


def _scenes(root, split, files, problems):
    rows = _metadata(root, _COLUMNS, problems)
    if not rows:
        if not problems:
            problems.append("metadata.csv lists no videos")
        return []
    _matched_names(rows, files, problems)
    scenes = defaultdict(list)
    for row in rows:
        if row["type"] not in TYPES:
            problems.append(f"{row['name']}: its type is {row['type']!r}, not one of {', '.join(TYPES)}")
        if row["condition"] not in PROPERTIES:
            problems.append(f"{row['name']}: its condition is {row['condition']!r}, not one of {', '.join(PROPERTIES)}")
        if not re.fullmatch(r"\d+", row["SceneIndex"]):
            problems.append(f"{row['name']}: its SceneIndex is {row['SceneIndex']!r}, not a number")
        scenes[row["SceneIndex"]].append(row)
    for scene, members in scenes.items():
        times = Counter(row["type"] for row in members)
        if not any(all(times[t] == n for t in TYPES) for n in RENDERS[split]):
            counted = ", ".join(f"{times[t]} {t}" for t in TYPES)
            allowed = " or ".join(map(str, RENDERS[split]))
            problems.append(f"scene {scene} is unpaired: it has {counted}, expected {allowed} of each")
        if len(kinds := sorted({row["condition"] for row in members})) > 1:
            problems.append(f"scene {scene} mixes the conditions {', '.join(kinds)}")
    if problems:
        return []
    rows.sort(key=lambda row: (int(row["SceneIndex"]), TYPES.index(row["type"]), row["name"]))
    return [
        Clip(
            row["name"],
            files[row["name"]],
            f"{split}/{row['SceneIndex']}",
            PROPERTIES[row["condition"]],
            row["type"].endswith("_Possible"),
            tuple((key, row[key]) for key in _CONDITIONS if key in row),
        )
        for row in rows
    ]


def _heldout(root, files, problems):
    if (root / "metadata.csv").exists():
        rows = _metadata(root, (), problems)
        if any("type" in row for row in rows):
            problems.append("metadata.csv has a column type, but HeldOut is published without labels")
        _matched_names(rows, files, problems)
    return [Clip(name, path, f"HeldOut/{name}", "heldout", None) for name, path in files.items()]
