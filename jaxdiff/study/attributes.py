"""What else is known of a clip and comes again in other scenes: the attribute that a control task is made of."""

import json
from collections.abc import Sequence

import numpy as np

from jaxdiff.data.clip import Clip

LEAST = 4  # values; fewer take no capacity to be told apart


def recurring_attribute(clips: Sequence[Clip]) -> np.ndarray | None:
    """A value for each clip, [n] of str: the finest of those known all of whose values occur in several scenes.

    Known are the colour and shape of the first object, where a status.json lies beside the frames and tells them (as in
    generated scenes and IntPhys), and the conditions that the data set names. None where no attribute with `LEAST`
    values recurs.
    """
    groups = np.array([clip.group for clip in clips])
    things = [_first_object(clip) for clip in clips]
    said = [" ".join(value for _, value in clip.conditions) for clip in clips]
    colours = [thing.split(" ")[0] for thing in things]
    for values in ([f"{a} {b}".strip() for a, b in zip(things, said, strict=True)], things, colours, said):
        if recurs(np.array(values), groups):
            return np.array(values)
    return None


def recurs(values: np.ndarray, groups: np.ndarray) -> bool:
    """Whether there are `LEAST` different `values` [n], all of them in several groups."""
    kinds, codes = np.unique(values, return_inverse=True)
    return len(kinds) >= LEAST and all(len(set(groups[codes == k].tolist())) > 1 for k in range(len(kinds)))


def _first_object(clip: Clip) -> str:
    """Colour and shape of the object that is seen first; empty where nothing tells."""
    try:
        frames = json.loads((clip.path.parent / "status.json").read_bytes())["frames"]
        objects = [frame[name] for frame in frames for name in sorted(frame) if name.startswith("object")]
        return f"{objects[0]['material']} {objects[0]['shape']}"
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ""
