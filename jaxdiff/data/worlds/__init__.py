"""A generated world with exact ground truth: things behind screens, in IntPhys-like matched quadruplets."""

from jaxdiff.data.worlds import prompts
from jaxdiff.data.worlds.clips import Batch, Quadruplet, quadruplets, sample_batch
from jaxdiff.data.worlds.drop import DropConfig, Drops, drops
from jaxdiff.data.worlds.render import Frames, normalise, render
from jaxdiff.data.worlds.scene import CATEGORIES, CATEGORY_NAMES, COLOURS, SHAPES, Stage, Thing, WorldConfig

__all__ = [
    "CATEGORIES",
    "CATEGORY_NAMES",
    "COLOURS",
    "SHAPES",
    "Batch",
    "DropConfig",
    "Drops",
    "Frames",
    "Quadruplet",
    "Stage",
    "Thing",
    "WorldConfig",
    "drops",
    "normalise",
    "prompts",
    "quadruplets",
    "render",
    "sample_batch",
]
