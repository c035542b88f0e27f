"""probe.csv: one line per measured number; fixed columns and digits, so that equal runs give equal bytes."""

import csv
import difflib
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.workdir import write_atomic

PROBE_COLUMNS = (
    "protocol",  # published, corrected
    "model",  # trained, structureless, untrained, or the name of a baseline
    "source",  # what was read: states, latents, noised_latents, pixels, shuffled_labels, ...
    "site",  # block_out, self_attention_map, ...; empty for inputs
    "pooling",  # mean, frame_mean, grid, moments, ...
    "block",
    "step",
    "sigma",
    "category",  # of the data set; "all" for all together
    "repeat",  # of the cross-validation; empty for an average over repeats
    "fold",  # outer fold; empty for an average over folds
    "penalty",
    "metric",  # accuracy, pairwise, auc, ...
    "value",
    "low",  # 95 % interval; empty where there is none
    "high",
    "clips",
    "scenes",
    "given",  # what the interval is conditional on: fits, or fits and choices; result.json has it in full
)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating):
        # Nine digits carry every float32 exactly and stay readable; -0.0 and 0.0 are one number to a reader.
        return format(float(value) + 0.0, ".9g") if not math.isnan(value) else ""
    return str(value)


def probe_csv(
    path: str | os.PathLike, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = PROBE_COLUMNS
) -> None:
    """Write `rows` to `path` as csv under `columns`, atomically, in the order given.

    A row may leave columns out (empty cells). Floats are written with nine significant digits, nan and None
    as empty cells.

    Raises
    ------
    ConfigError
        A row has a column that is not one of `columns`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        for key in row:
            if key not in columns:
                close = difflib.get_close_matches(key, columns, 1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; columns are {', '.join(columns)}"
                raise ConfigError(f"{os.path.basename(path)} has no column {key!r}{hint}")
        writer.writerow([_cell(row.get(column)) for column in columns])
    write_atomic(path, text.getvalue().encode())
