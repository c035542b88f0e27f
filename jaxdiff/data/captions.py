"""Videos with captions: a folder of clips beside the text that describes them.

Either a csv with exactly these columns, or the pair of text files that finetrainers reads, ``prompts.txt`` beside
``videos.txt``, where line n of one belongs to line n of the other.

    video,caption
    ball/01_a.mp4,a red ball rolls behind a screen

A video is named by its path below the folder of the clips.
"""

import csv
from collections import Counter
from pathlib import Path

from jaxdiff.data.listing import listed
from jaxdiff.data.video import list_videos
from jaxdiff.errors import MissingDataError

COLUMNS = ["video", "caption"]
VIDEOS = "videos.txt"


def read_captions(path: str | Path) -> list[tuple[str, str]]:
    """Pairs (video, caption) in the order of the file: a csv, or a .txt with a ``videos.txt`` beside it.

    Raises
    ------
    MissingDataError : a file cannot be read, has other columns, other lengths or a row that does not fit.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".txt":
            prompts, videos = (_lines(file) for file in (path, path.with_name(VIDEOS)))
            if len(prompts) != len(videos):
                raise MissingDataError(
                    f"{path} has {len(prompts)} lines and {path.with_name(VIDEOS)} has {len(videos)}; line n of one belongs to "
                    "line n of the other"
                )
            return list(zip(videos, prompts, strict=True))
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MissingDataError(
            f"{path}: the captions cannot be read: {error}. Give a csv with the columns {','.join(COLUMNS)}, or prompts.txt "
            f"beside {VIDEOS}."
        ) from error
    if header != COLUMNS:
        raise MissingDataError(f"{path}: its first line is {','.join(header)!r}; expected {','.join(COLUMNS)!r}")
    if wrong := [f"{','.join(row)!r}" for row in rows if len(row) != len(COLUMNS)]:
        raise MissingDataError(
            f"{path}: these rows are no video and caption (a caption with commas needs quotes):{listed(wrong)}"
        )
    return [(video.strip(), caption.strip()) for video, caption in rows]


def captioned_videos(folder: str | Path, captions: str | Path) -> list[tuple[str, Path, str]]:
    """(name, path, caption) of every clip below a folder, in the order of `list_videos`. No video is opened.

    Raises
    ------
    MissingDataError : as `list_videos` and `read_captions`; or a clip has no caption, a caption no clip, or a clip several.
        All of them are named together.
    """
    folder = Path(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in list_videos(folder)}
    pairs = read_captions(captions)
    known = dict(pairs)
    problems = [f"{name!r} has {n} captions" for name, n in Counter(name for name, _ in pairs).items() if n > 1]
    problems += [f"{name!r} has a caption and is no clip below {folder}" for name in known if name not in paths]
    problems += [f"{name!r} lies below {folder} and has no caption" for name in paths if name not in known]
    if problems:
        raise MissingDataError(f"{captions}: every clip needs one caption, and every caption a clip:{listed(problems)}")
    return [(name, path, known[name]) for name, path in paths.items()]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")]
