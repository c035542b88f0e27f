"""Programs compiled ahead of time for slices of TPUs: do they fit, what do they move, what would a study cost at best."""

from jaxdiff.scaling.models import MODELS, Model, outline
from jaxdiff.scaling.programs import PROGRAMS, Program, Work, program_of
from jaxdiff.scaling.roofline import CHIPS, STUDIES, Chip, Speed, costs, measure, speed_of

__all__ = [
    "CHIPS",
    "MODELS",
    "PROGRAMS",
    "STUDIES",
    "Chip",
    "Model",
    "Program",
    "Speed",
    "Work",
    "costs",
    "measure",
    "outline",
    "program_of",
    "speed_of",
]
