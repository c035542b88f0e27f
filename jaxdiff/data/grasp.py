"""GRASP level 2 (Jassim et al., "GRASP: A novel benchmark for evaluating language grounding and situated physics
understanding in multimodal language models"), as it lies on disk.

    level2/P_<property>/000.mp4 ...       physically possible
           IP_<property>/000.mp4 ...      impossible

The label is in the name of the folder, and clips of one name are a pair: the published generator seeds the
scene of the clip `i` with `i`, in every folder. It writes 128 clips a folder by default, numbered from zero.

What could not be verified without the archive: that all 16 properties have 128 clips (`scenes=SCENES` demands
it), and that equal seeds make scenes that are equal up to the violation. Scenes of different properties that
share a seed are taken to be different scenes.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from jaxdiff.data.clip import Clip
from jaxdiff.data.listing import refuse_incomplete, visible
from jaxdiff.errors import ConfigError, MissingDataError

PROPERTIES = (
    "Collision",
    "Continuity",
    "Gravity",
    "GravityContinuity",
    "GravityInertia",
    "GravityInertia2",
    "GravitySupport",
    "Inertia",
    "Inertia2",
    "ObjectPermanence",
    "ObjectPermanence2",
    "ObjectPermanence3",
    "SolidityContinuity",
    "SolidityContinuity2",
    "Unchangeableness",
    "Unchangeableness2",
)
SCENES = 128  # pairs a property, as the generator writes them
POSSIBLE = {"P_": True, "IP_": False}  # what the folder's name says

_CLIP = re.compile(r"^(\d{1,4})\.mp4$")


def load_grasp(folder: str | Path, properties: Sequence[str] = PROPERTIES, *, scenes: int | None = None) -> list[Clip]:
    """List the clips of GRASP level 2, after checking that each has its partner. No video is opened.

    Parameters
    ----------
    folder : str or Path
        The folder that holds `P_Collision/`, `IP_Collision/` and so on, or the one that holds their `level2/`.
    properties : sequence of str
        Which of `PROPERTIES` to take; each must be there.
    scenes : int, optional
        Pairs that every property must have (`SCENES` for the published archive). By default they must be
        numbered without gaps from zero and be equally many in every property.

    Returns
    -------
    list of Clip
        Ordered by property and scene, the possible clip first; `group` is property and scene
        ("Gravity/007"), `category` the property.

    Raises
    ------
    MissingDataError
        If a folder or clip is missing, a clip has no partner, or something else lies among them. All problems
        found are named together.
    ConfigError
        If a property is unknown or comes twice.
    """
    if unknown := [p for p in properties if p not in PROPERTIES]:
        raise ConfigError(f"GRASP level 2 has no property {unknown[0]!r}; use some of {', '.join(PROPERTIES)}.")
    if not properties or len(set(properties)) < len(properties):
        raise ConfigError(f"properties={list(properties)}: name each property of GRASP once, and at least one.")
    root = _root(Path(folder))
    problems: list[str] = []
    clips: list[Clip] = []
    counts: dict[str, int] = {}
    for entry in visible(root):
        prefix, _, name = entry.name.partition("_")
        if entry.is_dir() and f"{prefix}_" in POSSIBLE and name not in PROPERTIES:
            problems.append(f"{entry.name}/ is of no property of GRASP level 2")
    for name in properties:
        numbers = {prefix: _numbered(root / f"{prefix}{name}", problems) for prefix in POSSIBLE}
        if any(files is None for files in numbers.values()):
            continue
        paths = {prefix: files for prefix, files in numbers.items() if files is not None}
        counts[name] = len(set().union(*paths.values()))
        clips += _pairs(name, paths, scenes, problems)
    if scenes is None and len(set(counts.values())) > 1:
        problems.append(
            "the properties differ in their number of scenes: " + ", ".join(f"{p} {n}" for p, n in counts.items())
        )
    refuse_incomplete(root, "GRASP level 2", problems, "Unpack videos.zip again, or remove the scenes named.")
    return clips


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder. --data_dir takes the folder that holds GRASP's level2/.")
    root = folder / "level2" if (folder / "level2").is_dir() else folder
    if not any((root / f"{prefix}{name}").is_dir() for prefix in POSSIBLE for name in PROPERTIES):
        held = ", ".join(entry.name for entry in visible(root)[:6]) or "nothing"
        raise MissingDataError(
            f"{root}: holds no folder P_<property>/ or IP_<property>/, such as P_{PROPERTIES[0]}/ "
            f"(it holds {held}). --data_dir takes the folder that holds GRASP's level2/."
        )
    return root


def _numbered(folder: Path, problems: list[str]) -> dict[int, Path] | None:
    """The clips of a folder by their number; None where there is no folder."""
    if not folder.is_dir():
        problems.append(f"{folder.name}/ is missing")
        return None
    numbers: dict[int, Path] = {}
    for path in visible(folder):
        where = f"{folder.name}/{path.name}"
        match = _CLIP.match(path.name)
        if match is None or not path.is_file():
            problems.append(f"{where} is not a clip (up to four digits, .mp4)")
        elif int(match[1]) in numbers:
            problems.append(f"{where} and {folder.name}/{numbers[int(match[1])].name} have the same number")
        else:
            numbers[int(match[1])] = path
    if not numbers:
        problems.append(f"{folder.name}/ holds no clips")
    return numbers


def _pairs(name: str, paths: dict[str, dict[int, Path]], scenes: int | None, problems: list[str]) -> list[Clip]:
    every = set().union(*paths.values())
    clips = []
    for number in range(max(scenes or 0, *(n + 1 for n in every), 0)):
        have = {prefix: files[number] for prefix, files in paths.items() if number in files}
        names = {path.name for path in have.values()}
        shown = min(names) if names else f"{number:03d}.mp4"
        if scenes is not None and number >= scenes:
            problems += [
                f"{prefix}{name}/{path.name} is one too many: expected {scenes}" for prefix, path in have.items()
            ]
        elif len(have) < len(POSSIBLE):
            lacking = [f"{prefix}{name}/{shown}" for prefix in POSSIBLE if prefix not in have]
            partner = f", the partner of {next(iter(have))}{name}/{shown}" if have else ""
            problems.append(f"{' and '.join(lacking)} {'are' if len(lacking) > 1 else 'is'} missing{partner}")
        elif len(names) > 1:
            problems.append(f"the clips of scene {number} of {name} differ in their names: {', '.join(sorted(names))}")
        else:
            scene = Path(shown).stem
            clips += [
                Clip(f"{prefix}{name}/{scene}", have[prefix], f"{name}/{scene}", name, possible)
                for prefix, possible in POSSIBLE.items()
            ]
    return clips
