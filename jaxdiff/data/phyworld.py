"""The parabolas of PhyWorld (Kang et al., "How far is video generation from world model: a physical law
perspective"): a ball that is thrown horizontally and falls, with the numbers that made it.

    parabola_eval.hdf5                 Hugging Face magicr/phyworld, id_ood_data/
        video_streams/<part>           N rows, each the bytes of an mp4
        init_streams/<part>            [N, 2], two numbers that the clip was made with
        position_streams/<part>        [N, 32, 2], x and y of the ball in every frame, in units of a world 10 wide

The parts are `00000` with 1,000 clips and `00001` with 56. The study of "The invisible hand of physics" (arXiv
2606.05328) takes the columns of `init_streams` for x0 and v0, and the parts for in and out of distribution.
PhyWorld's published generator says otherwise. It writes the *radius* of the ball and v0 there, draws the initial
position at random and keeps it nowhere but in the trajectory, and cuts the list of its 1,056 clips, of which only
the first 160 are in distribution, after every 1,000th. The loader therefore returns all three numbers:

    x0            m      x in the first frame, from the trajectory (10 ms after the throw)
    v0            m/s    column 1, which must be the velocity along x of the trajectory
    x0_published  m      column 0, which that study regresses under the name of x0

It was written without the file at hand. That column 0 is the radius is what the generator's code says, and is
neither assumed nor checked here; all else that the above states is checked.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data.clip import Clip
from jaxdiff.data.listing import refuse_incomplete
from jaxdiff.data.packed import VIDEOS, packed_path
from jaxdiff.data.targets import MeasuredClip, Target
from jaxdiff.errors import MissingDataError

FILE = "parabola_eval.hdf5"
INITIAL, POSITIONS = "init_streams", "position_streams"
COUNTS = {"00000": 1000, "00001": 56}
FRAMES = 32
SECONDS_A_FRAME = 0.1  # ten steps of the simulation; the mp4's own rate is another
SPEED_TOLERANCE = 1e-3  # m/s; positions near 10 in float32, divided by the time between frames, err by 1e-5

# The published template without its numbers, so that the leak is all that differs between the two.
NEUTRAL_PROMPT = "a small ball thrown into the air following a parabolic trajectory"
LEAKING_PROMPT = NEUTRAL_PROMPT + ", initial horizontal position {first:.2f} m, initial speed {second:.2f} m/s"


def load_parabola(
    path: str | Path, *, counts: Mapping[str, int] | None = COUNTS, leak_targets_in_prompt: bool = False
) -> list[MeasuredClip]:
    """List the clips of PhyWorld's parabolas with their targets. No video is opened.

    Parameters
    ----------
    path : str or Path
        The file, or the folder that holds `parabola_eval.hdf5` or `id_ood_data/parabola_eval.hdf5`.
    counts : mapping of str to int, or None
        The parts that the file must have, and the clips in each. None takes the parts that it has.
    leak_targets_in_prompt : bool
        False: every clip has `NEUTRAL_PROMPT`. True: its prompt states both columns of `init_streams` to two
        decimals, as published. A model that reads it is told the answer; only for showing what that does.

    Returns
    -------
    list of MeasuredClip
        Ordered by part and row. The targets are x0, v0 and x0_published; `category` is the part. Every clip is
        a `group` of its own, but for clips whose targets are all equal.

    Raises
    ------
    MissingDataError
        If the file or a part of it is missing, lengths or shapes disagree, a number is not finite, or a
        trajectory does not move at its v0. All problems found are named together.
    """
    import h5py

    file = _file(Path(path))
    try:
        with h5py.File(file, "r") as packed:
            problems, parts = _read(packed, counts)
    except OSError as error:
        raise MissingDataError(
            f"{file}: it cannot be read as HDF5 ({error}). Download id_ood_data/{FILE} of magicr/phyworld again."
        ) from error
    refuse_incomplete(file, "set of parabolas", problems, f"Download id_ood_data/{FILE} of magicr/phyworld again.")
    clips: list[MeasuredClip] = []
    groups: dict[tuple[float, ...], str] = {}
    for part, (initial, positions) in parts.items():
        for row in range(len(initial)):
            first, second = map(float, initial[row])
            values = (float(positions[row, 0, 0]), second, first)
            name = f"{part}/{row:05d}"
            clip = Clip(name, packed_path(file, part, row), groups.setdefault(values, name), part, None)
            targets = tuple(map(Target, ("x0", "v0", "x0_published"), values, ("m", "m/s", "m")))
            leaking = LEAKING_PROMPT.format(first=first, second=second)
            clips.append(MeasuredClip(clip, targets, leaking if leak_targets_in_prompt else NEUTRAL_PROMPT))
    return clips


def _file(path: Path) -> Path:
    for file in (path, path / FILE, path / "id_ood_data" / FILE):
        if file.is_file():
            return file
    raise MissingDataError(
        f"{path}: {'holds no' if path.is_dir() else 'no such file, nor a folder with'} {FILE}. "
        f"Download id_ood_data/{FILE} of magicr/phyworld."
    )


def _read(packed: Any, counts: Mapping[str, int] | None) -> tuple[list[str], dict[str, tuple[np.ndarray, np.ndarray]]]:
    problems: list[str] = []
    parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    rows = {VIDEOS: (), INITIAL: (2,), POSITIONS: (FRAMES, 2)}  # the shape of one
    held = {group: _datasets(packed.get(group)) for group in rows}
    if counts is None:
        counts = {part: initial.shape[0] if initial.shape else 0 for part, initial in held[INITIAL].items()}
        problems += [] if counts else [f"{INITIAL} holds no parts"]
    for group in rows:
        problems += [f"{group}/{part} is missing" for part in counts if part not in held[group]]
        extra = [part for part in held[group] if part not in counts]
        problems += [f"{group}/{part} is unexpected; known are {', '.join(counts)}" for part in extra]
    for part, count in counts.items():
        if any(part not in held[group] for group in rows):
            continue
        before = len(problems)
        for group, row in rows.items():
            shape = held[group][part].shape
            # videos of one length each are a table, others are vectors of their own
            if (shape[:1] if group == VIDEOS else shape) != (count, *row):
                problems.append(f"{group}/{part} has the shape {list(shape)}, expected {[count, *row]}")
        if len(problems) > before:
            continue
        initial, positions = (np.asarray(held[group][part][()], np.float64) for group in (INITIAL, POSITIONS))
        speeds = (positions[:, 1, 0] - positions[:, 0, 0]) / SECONDS_A_FRAME
        for i in range(count):
            if not (np.isfinite(initial[i]).all() and np.isfinite(positions[i]).all()):
                problems.append(f"{part}/{i:05d}: its numbers are not all finite")
            elif abs(speeds[i] - initial[i, 1]) > SPEED_TOLERANCE:
                problems.append(
                    f"{part}/{i:05d}: its trajectory starts at {speeds[i]:.4g} m/s, but v0 is {initial[i, 1]:.4g} m/s"
                )
        parts[part] = initial, positions
    return problems, parts


def _datasets(group: Any) -> dict[str, Any]:
    """The datasets of an HDF5 group; none if it is absent or a dataset itself."""
    members = dict(group.items()) if hasattr(group, "items") else {}
    return {name: member for name, member in members.items() if hasattr(member, "shape")}
