"""Prompts: from text files, from the files of VideoPhy, VideoPhy-2, VBench and PhyGenBench, and of the generated world."""

import csv
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from jaxdiff.data.worlds.prompts import MOTIONS
from jaxdiff.data.worlds.scene import COLOURS, SHAPES
from jaxdiff.errors import ConfigError, MissingDataError

CAPTION, UPSAMPLED, STATES = "caption", "upsampled_caption", "states_of_matter"  # columns of the VideoPhys


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Parameters
    ----------
    caption : what the clip is named after and scored against.
    told : what the model is told; the caption, or what a language model made of it.
    groups : what its scores are averaged over: the states of matter of VideoPhy, the dimensions of VBench.
    """

    caption: str
    told: str
    groups: tuple[str, ...] = ()


def read_prompts(path: str | Path, *, upsampled: bool = False) -> tuple[Prompt, ...]:
    """The prompts of a file, in its order.

    ======== =======================================================================================================
    .txt     one a line; empty lines are passed over. VBench's prompts_per_dimension and all_dimension.txt
    .csv     a column `caption`: videophy_test_public.csv, VideoPhy-2. They have a row for each scored model: a caption
             counts once. `states_of_matter` becomes the group
    .json    VBench_full_info.json: a list of {"prompt_en", "dimension": [...]}; or PhyGenBench's prompts.json, a list of
             {"caption", "main_category", "sub_category"}: the categories become groups
    ======== =======================================================================================================

    Parameters
    ----------
    upsampled : tell the model the column `upsampled_caption` of a csv instead; clips keep the caption's name.

    Raises
    ------
    MissingDataError : no such file, or one that cannot be read as what its name says.
    ConfigError : another kind of file, a column that is not there, the same line twice in a .txt, or no prompt at all.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, str], Iterable[Prompt]]] = {".txt": _lines, ".csv": _rows, ".json": _entries}
    if path.suffix not in readers:
        raise ConfigError(
            f"--prompts={path}: prompts are read from {', '.join(readers)}, or world for the generated world's"
        )
    if upsampled and path.suffix != ".csv":
        raise ConfigError(f"--upsampled asks for the column {UPSAMPLED} of a csv, and {path} is none")
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = tuple(readers[path.suffix](path, text))
    except OSError as error:
        raise MissingDataError(f"{path}: the prompts cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise MissingDataError(f"{path}: the prompts cannot be read: {error}") from None
    if upsampled:
        found = tuple(dataclasses.replace(p, told=_upsampled(path, p)) for p in found)
    else:
        found = tuple(dataclasses.replace(p, told=p.caption) for p in found)
    if not found:
        raise ConfigError(f"{path} holds no prompt")
    return found


def world_prompts(seed: int) -> tuple[Prompt, ...]:
    """The 72 prompts of the generated world (colour, shape, motion), each once, in an order that `seed` draws."""
    every = [" ".join(words) for words in itertools.product(COLOURS, SHAPES, MOTIONS)]
    order = np.random.default_rng(seed).permutation(len(every))
    return tuple(Prompt(every[i], every[i]) for i in order)


def _lines(path: Path, text: str) -> Iterable[Prompt]:
    first: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        caption = line.strip()
        if not caption:
            continue
        if caption in first:
            raise ConfigError(
                f"{path}: lines {first[caption]} and {number} are the same prompt, {caption!r}; --samples=N"
            )
        first[caption] = number
    return [Prompt(caption, caption) for caption in first]


def _rows(path: Path, text: str) -> Iterable[Prompt]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    columns = [name.strip() for name in reader.fieldnames or ()]
    if CAPTION not in columns:
        raise ConfigError(f"{path} has no column {CAPTION!r}; it has {', '.join(columns) or 'none'}")
    found: dict[str, Prompt] = {}
    for row in reader:
        row = {name.strip(): (value or "").strip() for name, value in row.items() if isinstance(name, str)}
        caption = row[CAPTION]
        if caption and caption not in found:
            group = row.get(STATES, "")
            found[caption] = Prompt(caption, row.get(UPSAMPLED, ""), (group,) if group else ())
    return found.values()


def _upsampled(path: Path, prompt: Prompt) -> str:
    if not prompt.told:
        raise ConfigError(f"--upsampled: {path} has no {UPSAMPLED} for {prompt.caption!r}")
    return prompt.told


def _entries(path: Path, text: str) -> Iterable[Prompt]:
    entries = json.loads(text)

    def all_have(key: str) -> bool:
        return isinstance(entries, list) and all(isinstance(e, dict) and isinstance(e.get(key), str) for e in entries)

    if all_have(CAPTION) and all_have("main_category"):
        # Files of PhyGenBench are numbered: none is merged, however alike two are.
        return [Prompt(e[CAPTION], e[CAPTION], (e["main_category"], e.get("sub_category", ""))) for e in entries]
    if not all_have("prompt_en"):
        raise MissingDataError(
            f'{path}: expected a list of {{"prompt_en": ..., "dimension": [...]}}, as VBench_full_info.json, or of '
            '{"caption": ..., "main_category": ...}, as PhyGenBench'
        )
    groups: dict[str, list[str]] = {}
    for entry in entries:
        own = groups.setdefault(entry["prompt_en"].strip(), [])
        own += [name for name in entry.get("dimension", ()) if name not in own]
    return [Prompt(caption, caption, tuple(own)) for caption, own in groups.items() if caption]
