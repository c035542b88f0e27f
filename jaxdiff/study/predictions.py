"""predictions.npz of a study: what was said about every clip, so that studies can be put together afterwards.

Entries (n clips, R repeats): `names`, `groups`, `categories` [n] text, `possible` [n] bool; `sources` [S] keys in the
headline's order; `matched` [n], only where pairs are compared inside sets smaller than groups; for each source `margin.<key>` [R, n] float32, out of fold, and `label.<key>` [n] bool (shuffled
labels are other ones); for each source with a heatmap `grid.<key>` [rows, sigmas, n] float16, the share of repeats that told the clip
right (nan where not measured), with `rows.<key>` its row names, `inputs.<key>` how many of them are inputs, and
`title.<key>` its title and kind;
`sigmas`; `surprise.<model>` [n, levels] with `levels.<model>`; `clip_error` [n], nan where not measured.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxdiff.data.clip import Clip
from jaxdiff.errors import MissingDataError
from jaxdiff.probes import statistics
from jaxdiff.study.analysis import Answer, Labels
from jaxdiff.study.inputs import Surprise
from jaxdiff.study.results import grid_rows

FILE = "predictions.npz"


def pack(
    answers: Mapping[str, Answer],
    labels: Labels,
    surprises: Mapping[str, Surprise],
    sigmas: Sequence[float],
    clips: Sequence[Clip],
    errors: np.ndarray,
) -> bytes:
    """The file's bytes; equal for equal content (numpy writes no times into it)."""

    def rates(answer: Answer, name: str) -> tuple[np.ndarray]:
        return (statistics.hits(answer.result.cells[name], answer.result.labels).mean(0).astype(np.float16),)

    arrays = {
        "names": np.array([clip.name for clip in clips]),
        "groups": labels.groups,
        "categories": labels.categories,
        "possible": labels.possible,
        "sigmas": np.asarray(sigmas, float),
        "clip_error": np.asarray(errors, float),
        "sources": np.array(
            [key for key, answer in answers.items() if answer.source.listed and answer.nested is not None], str
        ),
    }
    if labels.matched is not None:
        arrays["matched"] = labels.matched
    for key in arrays["sources"].tolist():
        arrays[f"margin.{key}"] = answers[key].result.predictions
        arrays[f"label.{key}"] = answers[key].result.labels
    for key, answer in answers.items():
        if answer.source.title and answer.nested is not None:
            names, inputs, (hits,) = grid_rows(answers, key, len(sigmas), rates)
            arrays |= {f"grid.{key}": hits, f"rows.{key}": np.array(names), f"inputs.{key}": np.array(inputs)}
            arrays |= {f"title.{key}": np.array([answer.source.title, answer.source.kind])}
    for model, found in surprises.items():
        arrays |= {f"surprise.{model}": found.losses, f"levels.{model}": found.sigmas}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def unpack(path: Path) -> dict[str, np.ndarray]:
    """The entries of the file.

    Raises
    ------
    MissingDataError : there is no such file, or it is damaged.
    """
    try:
        # From memory: numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MissingDataError(f"{path} cannot be read: {error}; run the study again") from None
