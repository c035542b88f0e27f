"""Meshes for a program: which there are, which one to begin with, and which of those that fit is the fastest."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxdiff.errors import MissingDataError
from jaxdiff.progress import progress
from jaxdiff.scaling.models import MODELS, outline
from jaxdiff.scaling.programs import Work, program_of
from jaxdiff.scaling.roofline import Chip, measure
from jaxdiff.workdir import dump_json, write_atomic

if TYPE_CHECKING:
    from jax.sharding import Mesh

LONGEST_SEQUENCE = 8  # devices that share a clip: more only in the search for one that fits at all


def meshes(work: Work, devices: int) -> list[str]:
    """Every mesh of so many devices, as texts, from the least to the most that devices share.

    Weights are split over ``fsdp``, the tokens of a clip over ``seq``, which has to divide the heads here.
    """
    heads = outline(MODELS[work.model]).transformer.config.num_attention_heads
    found = []
    for seq in (n for n in range(1, min(devices, LONGEST_SEQUENCE) + 1) if not devices % n and not heads % n):
        for fsdp in (n for n in range(1, devices // seq + 1) if not devices // seq % n):
            sizes = {"data": devices // seq // fsdp, "fsdp": fsdp, "seq": seq}
            found.append(",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1 or axis == "data"))
    return found


def usual(work: Work, devices: int, make: Callable[[str], "Mesh"], chip: Chip | None) -> list[str]:
    """A few meshes to try in turn until one fits: weights over none, 8 or all devices, then two to eight for a clip.

    Those whose arguments alone take more than half of a chip are left out, but for the last.
    """
    every = meshes(work, devices)
    few = [text for text in every if shared(text) in (1, 8, devices)]
    half = math.inf if chip is None else chip.memory / 2
    return [text for text in few if program_of(work, make(text)).argument_bytes() <= half] or every[-1:]


def shared(text: str) -> int:
    """How many devices work together: they share weights, or a clip."""
    sizes = dict(part.split("=") for part in text.split(","))
    return int(sizes.get("fsdp", 1)) * int(sizes.get("seq", 1))


def search(
    work: Work,
    texts: Sequence[str],
    make: Callable[[str], "Mesh"],
    chip: Chip | None,
    folder: Path,
    *,
    enough: bool = False,
) -> list[dict[str, Any]]:
    """Compile for every mesh in turn, and rank what was found.

    Parameters
    ----------
    make : the mesh of a text.
    folder : each mesh that is done is kept here in a file of its own, and not compiled again by the next start.
    enough : stop at the first that fits.

    Returns
    -------
    What `measure` gives, for each mesh: first those that fit, most clips an hour first.
    """
    found: list[dict[str, Any]] = []
    # Every line is shown: minutes lie between them.
    with progress(f"compile {work.model} {work.program}", len(texts), unit="meshes", interval=0, delay=0) as task:
        for text in texts:
            task.advance(0, mesh=text)
            done = kept(folder / f"{text}.json")
            if done is None:
                done = measure(work, make(text), chip)
                write_atomic(folder / f"{text}.json", dump_json(done))
            found.append(done)
            task.advance()
            if enough and done.get("fits", True):
                break
    return _ranked(found)


def kept(file: Path) -> dict[str, Any] | None:
    """What an earlier start left in a file, None where there is none.

    Raises
    ------
    MissingDataError : it is not json; files are written whole, so something else wrote it.
    """
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise MissingDataError(f"{file} is damaged ({error}); delete it to compile that mesh again") from None


def best(folder: Path) -> dict[str, Any] | None:
    """The mesh of a folder that `search` filled that fits and makes most clips an hour; None before anything is done.

    Where none fits, the one that needed least, or the last one.
    """
    done = [entry for file in sorted(folder.glob("*.json")) if (entry := kept(file)) is not None]
    return _ranked(done)[0] if done else None


def _ranked(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(
        found,
        key=lambda entry: (
            not entry.get("fits", True),
            -entry.get("clips_per_hour", 0.0),
            entry.get("hbm_gb_per_device", math.inf),
        ),
    )
