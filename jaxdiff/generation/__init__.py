"""Videos from prompts: prompt files, sampling clip by clip, and what the official scorers expect to find."""

from jaxdiff.generation.naming import NAMINGS, NamedClip, name_clips, tables
from jaxdiff.generation.prompts import Prompt, read_prompts, world_prompts
from jaxdiff.generation.sampling import PUBLISHED, Sampling, calibrate, embed_prompts, generate, latents_shape

__all__ = [
    "NAMINGS",
    "PUBLISHED",
    "NamedClip",
    "Prompt",
    "Sampling",
    "calibrate",
    "embed_prompts",
    "generate",
    "latents_shape",
    "name_clips",
    "read_prompts",
    "tables",
    "world_prompts",
]
