"""One clip of a labelled data set."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """Where a clip lies and what is known about it.

    Attributes
    ----------
    name : str
        Unique within the data set, e.g. "O1/07/3".
    path : Path
        What `jaxdiff.data.video.read_video` takes.
    group : str
        Clips of one group are renderings of one scene and must stay on one side of every split.
    category : str
        The property that is tested, e.g. "O1".
    possible : bool or None
        The label; None where the data set publishes none.
    conditions : tuple of (str, str)
        Whatever else the data set says about the clip, e.g. `(("visibility", "occluded"),)`.
    """

    name: str
    path: Path
    group: str
    category: str
    possible: bool | None
    conditions: tuple[tuple[str, str], ...] = ()
