"""Clips of a data set whose labels are numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxdiff.data.clip import Clip


@dataclass(frozen=True)
class Target:
    """A number that is to be read from a clip: what it is called, its value and its unit."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class MeasuredClip:
    """A clip with continuous targets.

    Attributes
    ----------
    clip : Clip
        Where it lies; its `group` must stay on one side of every split, its `possible` is None.
    targets : tuple of Target
        Equal names and units, in equal order, in all clips of a data set.
    prompt : str
        What a text-conditioned model is told about it.
    """

    clip: Clip
    targets: tuple[Target, ...]
    prompt: str


def target_values(measured: Sequence[MeasuredClip], name: str) -> np.ndarray:
    """One target of all clips, float64 `[N]`.

    Raises
    ------
    KeyError
        If a clip lacks it.
    """
    tables = [{t.name: t.value for t in m.targets} for m in measured]
    return np.array([table[name] for table in tables], np.float64)
