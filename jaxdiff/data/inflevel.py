"""InfLevel (Weihs et al., "Benchmarking Progress to Infant-Level Physical Reasoning in AI", TMLR 2022), as it
lies on disk. There are no metadata files: everything is in the names.

    inflevel_lab/<category>/<camera>__<category>__<cover>__<object>__<event>.mp4
    inflevel_lab/continuity/<camera>__continuity__<cover>__<object>__<event>__<LR|RL>.mp4
    inflevel_sim/<category>/<camera>__<category>__<object>__<cover>__<event>.mp4

Mind the two names in the middle: Lab names the cover first, Sim the object. The four events of one camera, cover,
object (and direction) are a matched set, two plausible and two not; each is the combination of two facts of which
neither alone tells which it is:

    continuity         vv, ii plausible    vi, iv implausible    visible or invisible before, and after
    gravity, solidity  ui, cv plausible    uv, ci implausible    container uncovered or covered, object in-/visible

The Lab release holds sets that lack events (`PUBLISHED`); the official evaluator leaves them out, and so does
`load_inflevel`.

Not verified on an archive, since none was at hand: the counts of Lab (from the evaluator's expected skips, and
from sizes and pair lists that others published); all counts of Sim, of which none was found, and whether Sim has
incomplete sets. Whether the three cameras filmed the same take is not documented; they are treated as if.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxdiff.data.clip import Clip
from jaxdiff.data.listing import checked_scores, holds, refuse_incomplete, visible
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.workdir import write_atomic

NO_TRAINING = (
    "InfLevel is for evaluation only: its authors do not allow any training or fine-tuning on it, not even of a "
    "linear probe, since that would measure what a model can learn rather than what it understands. A probe fitted "
    "on it is off-protocol, and its numbers must not be compared with the benchmark's. The surprise of a model that "
    "has not been trained on it is within the rules."
)
"""The authors' rule, which every report that probes InfLevel prints."""

CATEGORIES = ("continuity", "gravity", "solidity")
VARIANTS = ("lab", "sim")
CAMERAS = ("left", "center", "right")
DIRECTIONS = ("LR", "RL")
PLAUSIBLE = {
    "continuity": {"vv": True, "ii": True, "vi": False, "iv": False},
    "gravity": {"ui": True, "cv": True, "uv": False, "ci": False},
    "solidity": {"ui": True, "cv": True, "uv": False, "ci": False},
}
"""The label of each event."""

PUBLISHED = {"continuity": (2268, 36), "gravity": (2592, 114), "solidity": (912, 6)}
"""Files of each category of Lab, and the incomplete sets among them."""


@dataclass(frozen=True)
class Event:
    """What the name of a video says.

    Attributes
    ----------
    category, camera, cover, object, event : str
    direction : str
        "LR" or "RL" for continuity in Lab, else empty.
    """

    category: str
    camera: str
    cover: str
    object: str
    event: str
    direction: str

    @property
    def matched(self) -> tuple[str, ...]:
        """Equal for the four events that the benchmark compares."""
        return (self.category, self.camera, self.cover, self.object, self.direction)


def parse_name(stem: str, category: str, variant: str = "lab") -> Event:
    """Read the name of a video, without `.mp4`.

    Raises
    ------
    ValueError
        If it is not a name of that category and variant; the message says which field is wrong.
    """
    fields = stem.split("__")
    directed = variant == "lab" and category == "continuity"
    if len(fields) != 5 + directed or not all(fields):
        raise ValueError(f"its name has {len(fields)} fields, or an empty one, instead of {5 + directed}")
    camera, named, first, second, event = fields[:5]
    cover, thing = (first, second) if variant == "lab" else (second, first)
    direction = fields[5] if directed else ""
    if camera not in CAMERAS:
        raise ValueError(f"its camera is {camera!r}, not one of {', '.join(CAMERAS)}")
    if named != category:
        raise ValueError(f"it names the category {named!r}, but lies in {category}/")
    if event not in PLAUSIBLE[category]:
        raise ValueError(f"its event is {event!r}, not one of {', '.join(PLAUSIBLE[category])}")
    if directed and direction not in DIRECTIONS:
        raise ValueError(f"its direction is {direction!r}, not one of {', '.join(DIRECTIONS)}")
    return Event(category, camera, cover, thing, event, direction)


def load_inflevel(
    folder: str | Path,
    variant: str = "lab",
    *,
    categories: Sequence[str] = CATEGORIES,
    published: bool = False,
) -> list[Clip]:
    """List the clips of the complete matched sets of an InfLevel folder. No video is opened.

    A report that probes these clips prints `NO_TRAINING`.

    Parameters
    ----------
    folder : str or Path
        The folder that holds `inflevel_lab/` or `inflevel_sim/`, or that folder itself.
    variant : {"lab", "sim"}
    categories : sequence of str
        Which of continuity, gravity and solidity to take; each must be there.
    published : bool
        True holds Lab to the counts of the release and leaves out the incomplete sets that it is known to have.
        False takes any part of either variant, but every set in it must be complete.

    Returns
    -------
    list of Clip
        Ordered by category and name. `group` is category, cover and object across cameras and directions: what
        may be one event must stay on one side of every split. The set that the benchmark compares is smaller;
        `matched_set` tells it. `conditions` holds camera, cover, object, event and, in Lab's continuity,
        direction.

    Raises
    ------
    MissingDataError
        If a folder is missing, a file is no video of its category, a set lacks events (with `published`: where
        another camera has them all), or a count is not that of the release. All problems found are named
        together.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"InfLevel has no variant {variant!r}; use one of {', '.join(VARIANTS)}.")
    if unknown := [c for c in categories if c not in CATEGORIES]:
        raise ConfigError(f"InfLevel has no category {unknown[0]!r}; use some of {', '.join(CATEGORIES)}.")
    if published and variant == "sim":
        raise ConfigError("published=True: the counts of InfLevel-sim are not known; they cannot be held to.")
    root = _variant_folder(Path(folder), variant)
    problems: list[str] = []
    clips: list[Clip] = []
    for category in categories:
        if not (root / category).is_dir():
            problems.append(f"{category}/ is missing")
            continue
        sets = _matched_sets(root / category, category, variant, problems)
        if not sets:
            problems.append(f"{category}/ holds no videos")
        whole = {key: members for key, members in sets.items() if len(members) == 4}
        problems += _lacking(sets, whole, variant, published)
        if published:
            problems += _miscounted(category, sets, whole)
        clips += sorted((c for members in whole.values() for c in members.values()), key=lambda c: c.name)
    advice = f"Unpack inflevel_{variant}.tar.gz again, or remove what is named."
    refuse_incomplete(root, f"InfLevel-{variant}", problems, advice)
    return clips


def matched_set(clip: Clip) -> str:
    """The set of four that the benchmark compares a clip within: its category, camera, cover, object and
    direction."""
    told = dict(clip.conditions)
    direction = told.get("direction", "")
    return "/".join(filter(None, (clip.category, told["camera"], told["cover"], told["object"], direction)))


def write_scores(folder: str | Path, clips: Iterable[Clip], scores: Mapping[str, float]) -> list[Path]:
    """Write what the official evaluator reads: `<category>.tsv`, one for each category among the clips.

    Columns camera_loc, cover, obj, trial_type, then dir (Lab's continuity only), then score.

    Parameters
    ----------
    folder : str or Path
        Where to write; created if it is missing.
    clips : iterable of Clip
        From `load_inflevel`.
    scores : mapping of str to float
        By `Clip.name`: LARGE for what looks plausible. A surprise must be negated first.

    Returns
    -------
    list of Path
        For each: `python evaluator.py --scores_df_path <path> --event_category <category> --score_key score`.

    Raises
    ------
    ConfigError
        If a score is missing, superfluous or not finite, or if a matched set is not whole: the evaluator would
        leave its clips out and say so in passing.
    """
    clips = list(clips)
    checked = checked_scores("the score table of InfLevel", clips, scores)
    tables: dict[str, list[Clip]] = defaultdict(list)
    sets: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        tables[clip.category].append(clip)
        sets[matched_set(clip)].add(dict(clip.conditions)["event"])
    if broken := [name for name, events in sets.items() if len(events) != 4]:
        raise ConfigError(f"The score table of InfLevel needs all four events of {broken[0]}; leave out whole sets.")
    written = []
    for category, members in tables.items():
        directed = any("direction" in dict(c.conditions) for c in members)
        names = ["camera", "cover", "object", "event", *(["direction"] if directed else [])]
        header = ["camera_loc", "cover", "obj", "trial_type", *(["dir"] if directed else []), "score"]
        rows = [[*(dict(c.conditions)[n] for n in names), repr(checked[c.name])] for c in members]
        path = Path(folder) / f"{category}.tsv"
        write_atomic(path, "".join("\t".join(row) + "\n" for row in [header, *rows]).encode())
        written.append(path)
    return written


def _variant_folder(folder: Path, variant: str) -> Path:
    name = f"inflevel_{variant}"
    if not folder.is_dir():
        raise MissingDataError(f"{folder}: no such folder. --data_dir takes the folder that holds {name}/.")
    root = folder / name if (folder / name).is_dir() else folder
    # the fields in the middle of a name are swapped between the variants, which nothing else would reveal
    if root.name in {f"inflevel_{v}" for v in VARIANTS} - {name}:
        raise MissingDataError(f"{folder}: this is {root.name}/, not {name}/.")
    if not any((root / c).is_dir() for c in CATEGORIES):
        raise MissingDataError(
            f"{folder}: holds neither {name}/ nor any of {', '.join(f'{c}/' for c in CATEGORIES)} "
            f"(it holds {holds(folder)}). --data_dir takes the folder with {name}/."
        )
    return root


def _matched_sets(folder, category, variant, problems):
    """The clips of a category by set and event."""
    sets: dict[tuple[str, ...], dict[str, Clip]] = defaultdict(dict)
    for entry in visible(folder):
        where = f"{category}/{entry.name}"
        if entry.suffix != ".mp4" or not entry.is_file():
            problems.append(f"{where} is not an mp4 file")
            continue
        try:
            event = parse_name(entry.stem, category, variant)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        told = [("camera", event.camera), ("cover", event.cover), ("object", event.object), ("event", event.event)]
        told += [("direction", event.direction)] if event.direction else []
        sets[event.matched][event.event] = Clip(
            f"{category}/{entry.stem}",
            entry,
            f"{category}/{event.cover}/{event.object}",
            category,
            PLAUSIBLE[category][event.event],
            tuple(told),
        )
    return sets


def _lacking(sets, whole, variant, published):
    """The missing videos, by name. In the release, a set that one camera has whole, every camera has."""
    for category, camera, *rest in sorted({(key[0], c, *key[2:]) for key in sets for c in CAMERAS}):
        members = sets.get((category, camera, *rest), {})
        elsewhere = any((category, other, *rest) in whole for other in CAMERAS)
        if elsewhere if published else members:
            absent = [event for event in PLAUSIBLE[category] if event not in members]
            yield from (f"{category}/{_name((category, camera, *rest), e, variant)}.mp4 is missing" for e in absent)


def _name(key, event, variant):
    category, camera, cover, thing, direction = key
    named = (cover, thing) if variant == "lab" else (thing, cover)
    return "__".join(filter(None, (camera, category, *named, event, direction)))


def _miscounted(category, sets, whole):
    files, incomplete = PUBLISHED[category]
    held = sum(map(len, sets.values()))
    if held != files:
        yield f"{category}/ holds {held} videos, the release {files}"
    if len(sets) - len(whole) != incomplete:
        yield f"{category}/ holds {len(sets) - len(whole)} incomplete sets, the release {incomplete}"
