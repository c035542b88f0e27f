"""File names and tables as the official scorers read them.

=========== ================================================================================= ====================
naming      a clip's file                                                                     tables
=========== ================================================================================= ====================
plain       0012-0.mp4: number of the prompt, number of the sample                            prompts.csv
videophy    the caption's words joined by _, without its full stop (VideoREPA's convention;   + videophy.csv:
            the scorer goes by the table)                                                     videopath,caption
videophy2   the same                                                                          + videophy2.csv:
                                                                                              caption,videopath
vbench      the exact prompt-0.mp4, -1, ...                                                   prompts.csv
phygenbench output_video_1.mp4: number of the prompt, from 1                                  prompts.csv
=========== ================================================================================= ====================
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from jaxdiff.errors import ConfigError
from jaxdiff.generation.prompts import Prompt

NAMINGS = ("plain", "videophy", "videophy2", "vbench", "phygenbench")
LONGEST = 255  # bytes of a file's name on the usual file systems
# VBench's protocol: videos of a prompt, and of the one dimension that compares more of them.
VBENCH_SAMPLES, FLICKERING, FLICKERING_SAMPLES = 5, "temporal_flickering", 25


@dataclasses.dataclass(frozen=True)
class NamedClip:
    """A clip that is to be made: which sample of which prompt, and the name of its file."""

    prompt: Prompt
    sample: int
    file: str


def name_clips(prompts: Sequence[Prompt], naming: str, samples: int | None = None) -> tuple[NamedClip, ...]:
    """Every clip of a run, prompt by prompt.

    Parameters
    ----------
    naming : one of `NAMINGS`.
    samples : of every prompt. None: what the scorer asks for, which is 1; of VBench 5, and 25 for temporal_flickering.

    Raises
    ------
    ConfigError : an unknown naming, no samples, two clips of one name, or a prompt that cannot be a file's name.
    """
    if naming not in NAMINGS:
        raise ConfigError(f"--naming={naming} is unknown; choose from {', '.join(NAMINGS)}")
    if samples is not None and samples < 1:
        raise ConfigError(f"--samples={samples}: every prompt needs at least one")
    clips = []
    for number, prompt in enumerate(prompts):
        count = samples or _wanted(prompt, naming)
        clips += [NamedClip(prompt, k, _name(prompt, number, k, naming, count) + ".mp4") for k in range(count)]
    taken: dict[str, NamedClip] = {}
    for clip in clips:
        other = taken.setdefault(clip.file, clip)
        if other is not clip:
            raise ConfigError(
                f"--naming={naming} gives {clip.prompt.caption!r} and {other.prompt.caption!r} the same file, {clip.file}; "
                "leave one out, or --naming=plain"
            )
    return tuple(clips)


def tables(clips: Sequence[NamedClip], naming: str, folder: Path) -> dict[str, str]:
    """Name -> text of the csv files that go with the clips, which lie in `folder`.

    prompts.csv (video, caption, prompt, sample, groups) is for every reader; the table of a scorer names files by their
    whole path, since the scorer opens them from elsewhere.
    """
    rows = [(c.file, c.prompt.caption, c.prompt.told, c.sample, ";".join(c.prompt.groups)) for c in clips]
    found = {"prompts.csv": _csv(("video", "caption", "prompt", "sample", "groups"), rows)}
    paths = [(str(folder.absolute() / c.file), c.prompt.caption) for c in clips]
    if naming == "videophy":
        found["videophy.csv"] = _csv(("videopath", "caption"), paths)
    elif naming == "videophy2":
        found["videophy2.csv"] = _csv(("caption", "videopath"), [pair[::-1] for pair in paths])
    return found


def _wanted(prompt: Prompt, naming: str) -> int:
    if naming != "vbench":
        return 1
    return FLICKERING_SAMPLES if FLICKERING in prompt.groups else VBENCH_SAMPLES


def _name(prompt: Prompt, number: int, sample: int, naming: str, count: int) -> str:
    if naming == "plain":
        return f"{number:04d}-{sample}"
    if naming == "phygenbench":
        return f"output_video_{number + 1}" + (f"-{sample}" if count > 1 else "")
    if naming == "vbench":
        name = f"{prompt.caption}-{sample}"
    else:
        name = "_".join(prompt.caption.rstrip(".").replace("/", " ").split())
        name += f"-{sample}" if count > 1 else ""
    if "/" in name or "\0" in name or name.startswith(".") or len(name.encode()) > LONGEST - len(".mp4"):
        raise ConfigError(
            f"--naming={naming}: the prompt {prompt.caption[:80]!r} cannot be the name of a file (a slash, a leading dot, or "
            f"more than {LONGEST} bytes); leave it out, or --naming=plain"
        )
    return name


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([head, *rows])
    return out.getvalue()
