"""IntPhys 2019 (Riochet et al., "IntPhys 2019: A Benchmark for Visual Intuitive Physics Understanding"), as
it lies on disk.

    dev/<O1|O2|O3>/<scene>/<1..4>/scene/scene_001.png ...      depth/ and masks/ beside scene/
                                  status.json                  {"header": {"is_possible": bool}, ...}
    test/ ...                                                  the same without status.json
    train/<id>/scene/ ... status.json                          flat, possible movies only

Four runs of a scene form a quadruplet, two possible and two impossible, in shuffled order: the label comes
from status.json alone, never from the number of a run. A scene is called `07`, or
`0007_O1_test_occluded_static_nobj2` in an older release, whose suffix tells its conditions. The blocks: O1
object permanence, O2 shape constancy, O3 spatio-temporal continuity.

Not verified on an archive, since none was at hand: the counts in `PUBLISHED_SCENES` (of the test split older
texts give other ones), and that status.json lies beside every training movie.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxdiff.data.clip import Clip
from jaxdiff.data.listing import checked_scores, holds, refuse_incomplete, require_labels, visible
from jaxdiff.data.video import image_files
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.workdir import write_atomic

BLOCKS = ("O1", "O2", "O3")
SPLITS = ("dev", "test", "train")
RUNS = ("1", "2", "3", "4")
PUBLISHED_SCENES = {"dev": 30, "test": 1080, "train": 15_000}
"""Quadruplets in each block of the release; for the train split, movies."""

UNLABELLED = {
    "test": "is published without labels (no status.json), so it cannot be probed. Use the dev split; scores for "
    "the test split can only be submitted: python -m experiments.submit --dataset=intphys --split=test.",
    "train": "holds possible movies only, so there is nothing to probe. Use the dev split.",
}
"""Splits that no probe can be fitted on, and why."""

_SCENE = re.compile(r"^(\d+)(_.*)?$")
_CONDITIONS = re.compile(r"_(?P<visibility>visible|occluded)_(?P<motion>static|dynamic_\d)_nobj(?P<objects>\d)")


def load_intphys(
    folder: str | Path,
    split: str = "dev",
    *,
    blocks: Sequence[str] = BLOCKS,
    scenes: int | None = None,
    labels: bool = True,
) -> list[Clip]:
    """List the clips of an IntPhys folder, after checking that every quadruplet is whole.

    Parameters
    ----------
    folder : str or Path
        The folder that holds `dev/`, `test/` or `train/`, or that folder itself.
    split : {"dev", "test", "train"}
    blocks : sequence of str
        Which of O1, O2, O3 to take; each must be there. Ignored for the train split, which has none.
    scenes : int, optional
        Scenes that every block must have, or movies that the train split must have (`PUBLISHED_SCENES` for
        the release). By default scenes must be numbered without gaps and be equally many in every block.
    labels : bool
        True: only a split that can be probed is accepted. False lists the clips of any split; `possible` is
        then None in the test split.

    Returns
    -------
    list of Clip
        Ordered by block, scene and run; `group` is block and scene ("O1/07"), `path` the run's `scene`
        folder.

    Raises
    ------
    MissingDataError
        If a folder, run, frame or status.json is missing, damaged or one too many, if a quadruplet is not two
        possible and two impossible clips of one length, if a training movie is labelled impossible or a test
        movie is labelled at all, or if labels are asked of a split without them. All problems found are named
        together.
    """
    if split not in SPLITS:
        raise ConfigError(f"IntPhys has no split {split!r}; use one of {', '.join(SPLITS)}.")
    if unknown := [b for b in blocks if b not in BLOCKS]:
        raise ConfigError(f"IntPhys has no block {unknown[0]!r}; use some of {', '.join(BLOCKS)}.")
    root = _split_folder(Path(folder), split)
    if labels:
        require_labels(root, "IntPhys", split, UNLABELLED)
    problems: list[str] = []
    if split == "train":
        clips = _train(root, scenes, problems)
    else:
        clips = _quadruplets(root, blocks, scenes, split == "dev", problems)
    advice = "Unpack the archive again, or remove what is named."
    refuse_incomplete(root, f"IntPhys {split} split", problems, advice)
    return clips


def _split_folder(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder. --data_dir takes the folder that holds IntPhys's {split}/.")
    if (folder / split).is_dir():
        return folder / split
    inside = "a run folder" if split == "train" else "O1/, O2/ or O3/"
    own = (
        any((e / "scene").is_dir() for e in folder.iterdir())
        if split == "train"
        else any((folder / b).is_dir() for b in BLOCKS)
    )
    if not own:
        raise MissingDataError(
            f"{folder}: holds neither {split}/ nor {inside} (it holds {holds(folder)}). "
            f"--data_dir takes the folder with IntPhys's {split}/."
        )
    return folder


def _folders(parent: Path) -> list[Path]:
    return [e for e in visible(parent) if e.is_dir()]


def _train(root, movies, problems):
    clips = []
    for run in _folders(root):
        if not run.name.isdigit():
            problems.append(f"{run.name} is not the number of a movie")
            continue
        before = len(problems)
        if not _label(run, root, problems) and len(problems) == before:
            problems.append(f"{run.name}/status.json says impossible, but all training movies are possible")
        if _frame_count(run, root, problems):
            clips.append(Clip(f"train/{run.name}", run / "scene", f"train/{run.name}", "train", True))
    if movies is not None and len(clips) != movies:
        problems.append(f"{len(clips)} movies are in order, expected {movies}")
    if not clips and not problems:
        problems.append("there are no movies")
    return clips


def _quadruplets(root, blocks, scenes, labels, problems):
    clips, counts = [], {}
    strays = [e.name for e in _folders(root) if e.name not in BLOCKS]
    problems += [f"{name}/ is none of the blocks {', '.join(BLOCKS)}" for name in strays]
    for block in blocks:
        if not (root / block).is_dir():
            problems.append(f"{block}/ is missing")
            continue
        numbers: dict[int, str] = {}
        for scene in _folders(root / block):
            match = _SCENE.match(scene.name)
            if match is None:
                problems.append(f"{block}/{scene.name} is not the name of a scene (digits, then perhaps _conditions)")
            elif int(match[1]) in numbers:
                problems.append(f"{block}/{scene.name} and {block}/{numbers[int(match[1])]} have the same number")
            else:
                numbers[int(match[1])] = scene.name
                clips += _quadruplet(root, block, scene, match, labels, problems)
        counts[block] = len(numbers)
        width = max((len(name.split("_")[0]) for name in numbers.values()), default=2)
        missing = sorted(set(range(1, max(scenes or 0, *numbers, 0) + 1)) - set(numbers))
        problems += [f"{block}/{n:0{width}d} is missing" for n in missing]
        if not numbers:
            problems.append(f"{block}/ holds no scenes")
        elif scenes is not None and len(numbers) > scenes:
            problems.append(f"{block}/ holds {len(numbers)} scenes, expected {scenes}")
    if scenes is None and len(set(counts.values())) > 1:
        problems.append(
            "the blocks differ in their number of scenes: " + ", ".join(f"{b} {n}" for b, n in counts.items())
        )
    return clips


def _quadruplet(root, block, scene, match, labels, problems):
    group = f"{block}/{match[1]}"
    conditions = tuple(told.groupdict().items()) if (told := _CONDITIONS.search(match[2] or "")) else ()
    present = [run for run in RUNS if (scene / run).is_dir()]
    problems += [f"{block}/{scene.name}/{run} is missing" for run in RUNS if run not in present]
    strays = [e.name for e in _folders(scene) if e.name not in RUNS]
    problems += [f"{block}/{scene.name}/{name} is none of the runs {', '.join(RUNS)}" for name in strays]
    before = len(problems)
    lengths = {run: _frame_count(scene / run, root, problems) for run in present}
    possible = {run: _label(scene / run, root, problems) if labels else None for run in present}
    if not labels:  # generated or dev scenes in the place of the test split must not be submitted as such
        labelled = [run for run in present if (scene / run / "status.json").exists()]
        problems += [
            f"{block}/{scene.name}/{run}/status.json is there, but the test split has none" for run in labelled
        ]
    if len(problems) > before or len(present) < len(RUNS):
        return []
    if len(set(lengths.values())) > 1:
        counted = ", ".join(map(str, lengths.values()))
        problems.append(f"{block}/{scene.name}: its runs have {counted} frames, not equally many")
    if labels and sum(label is True for label in possible.values()) != 2:
        right = sum(label is True for label in possible.values())
        problems.append(f"{block}/{scene.name} is unpaired: {right} of its 4 runs are possible, expected 2")
    return [Clip(f"{group}/{run}", scene / run / "scene", group, block, possible[run], conditions) for run in RUNS]


def _frame_count(run: Path, root: Path, problems: list[str]) -> int:
    """Frames in a run's scene folder; notes an empty folder and gaps in the numbering."""
    where = run.relative_to(root)
    files = image_files(run / "scene") if (run / "scene").is_dir() else []
    if not files:
        problems.append(f"{where}/scene/ is missing or holds no png frames")
        return 0
    numbered = [m for m in (re.search(r"(\d+)$", f.stem) for f in files) if m]
    if len(numbered) == len(files):  # other naming is accepted as it sorts
        found = {int(m[1]) for m in numbered}
        missing = sorted(set(range(min(min(found), 1), max(found) + 1)) - found)
        stem, digits = files[0].stem[: numbered[0].start()], len(numbered[0][1])
        problems += [f"{where}/scene/{stem}{n:0{digits}d}{files[0].suffix} is missing" for n in missing]
    return len(files)


def _label(run: Path, root: Path, problems: list[str]) -> bool:
    status = run / "status.json"
    where = status.relative_to(root)
    try:
        label = json.loads(status.read_text())["header"]["is_possible"]
    except FileNotFoundError:
        problems.append(f"{where} is missing")
    except (ValueError, KeyError, TypeError, OSError) as error:
        problems.append(f"{where} is damaged or has no header.is_possible ({error!r})")
    else:
        if isinstance(label, bool):
            return label
        problems.append(f"{where}: header.is_possible is {label!r}, not true or false")
    return False


def answer_lines(clips: Sequence[Clip], scores: Mapping[str, float], scenes: int = PUBLISHED_SCENES["test"]) -> str:
    """The text of IntPhys's answer.txt: `<block>/<scene>/<run> <score>`, a line a movie, named as its folder is.

    Parameters
    ----------
    clips : sequence of Clip
        The whole test split, from `load_intphys(folder, "test", labels=False)`.
    scores : mapping of str to float
        By `Clip.name`: the plausibility in [0, 1], larger for what looks possible.
    scenes : int
        Quadruplets of each block.

    Raises
    ------
    ConfigError
        If the clips are labelled or are not all of the test split, or if a score is missing, superfluous, not
        finite or outside [0, 1].
    """
    if labelled := [c.name for c in clips if c.possible is not None]:
        raise ConfigError(f"answer.txt: {labelled[0]} has a label; only the test split is submitted.")
    for block in BLOCKS:
        if (held := sum(c.category == block for c in clips)) != scenes * len(RUNS):
            raise ConfigError(
                f"answer.txt: {held} movies of {block}, but the benchmark scores all {scenes * len(RUNS)} or nothing. "
                "List the whole test split and score every movie."
            )
    checked = checked_scores("answer.txt", clips, scores, 0.0, 1.0)
    # the scorer knows a scene by its folder, in the older release with the suffix that Clip.name leaves out
    return "".join(f"{'/'.join(c.path.parts[-4:-1])} {checked[c.name]!r}\n" for c in clips)


def write_answers(
    folder: str | Path, clips: Sequence[Clip], scores: Mapping[str, float], scenes: int = PUBLISHED_SCENES["test"]
) -> Path:
    """Write `answer.txt` (see `answer_lines`) and `answer.zip`, which holds it alone and is what is uploaded.

    The same scores give the same bytes.

    Returns
    -------
    Path
        The zip file.
    """
    text = answer_lines(clips, scores, scenes).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo("answer.txt")  # dated 1980, not now
        entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
        archive.writestr(entry, text)
    write_atomic(Path(folder) / "answer.txt", text)
    write_atomic(Path(folder) / "answer.zip", packed.getvalue())
    return Path(folder) / "answer.zip"
