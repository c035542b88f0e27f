"""The files of physics benchmarks, as their own scorers read and write them: one table, one reader, one writer.

==================== ===== ==========================================================================================
name                 kind  what
==================== ===== ==========================================================================================
videophy/prompts     csv   videophy_test_public.csv
videophy/input       csv   what VideoCon-Physics is given
videophy/output      csv   what it appends, without a header: file, its prompt, P(yes)
videophy2/prompts    csv   the 590 prompts, with upsampled ones
videophy2/input      csv   what the auto-rater is given for sa and pc
videophy2/rules      csv   what it is given for rule
videophy2/output     csv   what it gives: 1 to 5 (sa, pc); a rule's 0 broken, 1 kept, 2 cannot tell
phygenbench/prompts  json  prompts.json
phygenbench/results  json  result/MODEL.json; the model's name is in three of its keys
physics-iq/prompts   csv   descriptions.csv
physics-iq/results   csv   a row a scenario; a column a metric and view, lists over frames as text
pisa/config          jsonl configs/eval/*.jsonl, a clip a line
pisa/results         jsonl what eval.py writes: the metrics of a clip a line, with its config; failed clips are left out
==================== ===== ==========================================================================================

Columns that are not in the table are kept as they are. Facts of the layouts are from the public repositories.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data.listing import listed
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.physics.physics_iq import VIEWS, ViewMetrics
from jaxdiff.physics.pisa import WORST
from jaxdiff.workdir import write_atomic

Rows = list[dict[str, Any]]
TEXT, NUMBER, LIST = "text", "number", "list"  # what a cell is

# Columns of physics-iq/results, of every view; `_v2_` are the same against take 2, and enter no score.
IQ_LISTS = {
    "v1_mse": "mse",
    "variance_mse": "mse_takes",
    "spatiotemporal_iou_v1": "spatiotemporal",
    "variance_spatiotemporal_iou": "spatiotemporal_takes",
}
IQ_NUMBERS = {
    "spatial_iou_v1": "spatial",
    "variance_spatial": "spatial_takes",
    "weighted_spatial_iou_v1": "weighted",
    "variance_weighted_spatial": "weighted_takes",
}


@dataclasses.dataclass(frozen=True)
class Format:
    """A file's layout: its `kind`, the columns it must have and what they hold, and whether they are named in it."""

    kind: str
    columns: Mapping[str, str]
    header: bool = True


FORMATS: dict[str, Format] = {
    "videophy/prompts": Format("csv", {"caption": TEXT, "states_of_matter": TEXT}),
    "videophy/input": Format("csv", {"videopath": TEXT, "caption": TEXT}),
    "videophy/output": Format("csv", {"videopath": TEXT, "prompt": TEXT, "score": NUMBER}, header=False),
    "videophy2/prompts": Format("csv", {"caption": TEXT, "upsampled_caption": TEXT}),
    "videophy2/input": Format("csv", {"caption": TEXT, "videopath": TEXT}),
    "videophy2/rules": Format("csv", {"rule": TEXT, "videopath": TEXT}),
    "videophy2/output": Format("csv", {"videopath": TEXT, "score": NUMBER}),
    "phygenbench/prompts": Format(
        "json", {"caption": TEXT, "physical_laws": TEXT, "sub_category": TEXT, "main_category": TEXT}
    ),
    "phygenbench/results": Format("json", {"caption": TEXT, "main_category": TEXT, "*_average": NUMBER}),
    "physics-iq/prompts": Format(
        "csv", {"scenario": TEXT, "description": TEXT, "category": TEXT, "generated_video_name": TEXT}
    ),
    "physics-iq/results": Format(
        "csv",
        {"scenario": TEXT}
        | {f"{name}_{view}": LIST for name in IQ_LISTS for view in VIEWS}
        | {f"{name}_{view}": NUMBER for name in IQ_NUMBERS for view in VIEWS},
    ),
    "pisa/config": Format("jsonl", {"gt_mask": TEXT, "gt_fps": NUMBER, "pd_mask": TEXT, "pd_fps": NUMBER}),
    "pisa/results": Format("jsonl", {"l2": NUMBER, "chamfer_distance": NUMBER, "iou": NUMBER}),
}


def read(name: str, path: str | Path) -> Rows:
    """The rows of a file of the layout `name` of `FORMATS`.

    Raises
    ------
    ConfigError : no such layout.
    MissingDataError : no such file, or it is none of this layout: the columns that it lacks, or the first cells that are wrong.
    """
    layout, path = _layout(name), Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _parsed(layout, text)
    except OSError as error:
        raise MissingDataError(f"{path}: it cannot be read as {name}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, _Wrong) as error:
        raise MissingDataError(f"{path}: it cannot be read as {name}: {error}") from None
    if not rows:
        raise MissingDataError(f"{path}: it holds no row of {name}")
    problems, done = [], []
    for number, row in enumerate(rows, 1):
        done.append(dict(row))
        for column, kind in layout.columns.items():
            key = _key(column, row)
            if key is None:
                raise MissingDataError(
                    f"{path}: row {number} has no column {column!r}, which {name} needs; it has {', '.join(map(str, row)) or 'none'}"
                )
            try:
                done[-1][key] = _cell(row[key], kind)
            except (TypeError, ValueError):
                problems.append(f"row {number}: {key} is {str(row[key])[:60]!r}, no {kind}")
    if problems:
        raise MissingDataError(f"{path} is no file of {name}:{listed(problems)}")
    return done


def write(name: str, path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as `read` reads them; whole or not at all.

    Raises
    ------
    ConfigError : no such layout, no row, or a row that lacks a column.
    """
    layout, path = _layout(name), Path(path)
    if not rows:
        raise ConfigError(f"{path}: there is no row to write as {name}")
    for number, row in enumerate(rows, 1):
        if lacking := [column for column in layout.columns if _key(column, row) is None]:
            raise ConfigError(f"{path}: row {number} lacks {', '.join(lacking)}, which {name} needs")
    if layout.kind == "json":
        text = json.dumps(list(rows), indent=4, ensure_ascii=False) + "\n"
    elif layout.kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        columns = list(layout.columns) if not layout.header else list(dict.fromkeys(key for row in rows for key in row))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        lines = [[_text(row.get(column, "")) for column in columns] for row in rows]
        writer.writerows([columns, *lines] if layout.header else lines)
        text = out.getvalue()
    write_atomic(path, text.encode())
    return path


class _Wrong(Exception):
    """A file that is no table at all."""


def _layout(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"no layout {name!r}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


def _parsed(layout: Format, text: str) -> Sequence[Mapping[str, Any]]:
    if layout.kind == "csv":
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
        head = [name.strip() for name in (lines.pop(0) if layout.header and lines else layout.columns)]
        if wrong := [number for number, line in enumerate(lines, 1) if len(line) != len(head)]:
            raise _Wrong(f"row {wrong[0]} has another number of cells than {', '.join(head)}")
        return [dict(zip(head, line, strict=True)) for line in lines]
    rows = (
        json.loads(text) if layout.kind == "json" else [json.loads(line) for line in text.splitlines() if line.strip()]
    )
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _Wrong("expected a list of objects")
    return rows


def _key(column: str, row: Mapping[str, Any]) -> str | None:
    """The key of a row that stands for a column; a star stands for a model's name."""
    if not column.startswith("*"):
        return column if column in row else None
    return next((key for key in row if isinstance(key, str) and key.endswith(column[1:])), None)


def _cell(value: Any, kind: str) -> Any:
    if kind == TEXT:
        if not isinstance(value, str):
            raise TypeError
        return value
    if kind == NUMBER:
        return float(value)
    values = json.loads(value) if isinstance(value, str) else value
    return [float(v) for v in values]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return "[" + ", ".join(repr(float(v)) for v in value) + "]"
    return repr(float(value)) if isinstance(value, float | np.floating) else str(value)


# --------------------------------------------------------------------------------------------------- what the rows say


def videophy(
    semantic: Sequence[Mapping[str, Any]], physical: Sequence[Mapping[str, Any]], least: float
) -> dict[str, np.ndarray]:
    """Adherence to the caption, to physics, and both, of every clip that two outputs of a scorer judge.

    Parameters
    ----------
    semantic, physical : rows of videophy/output (`least` .5) or videophy2/output (`least` 4).

    Returns
    -------
    "videopath" [N] text; "sa", "pc", "joint" [N], 0 or 1.

    Raises
    ------
    ConfigError : a clip that is judged twice (the scorer of VideoPhy appends: delete its output before a new run), or by one
        only, or a score that is nan.
    """
    tables = []
    for told, rows in (("semantic adherence", semantic), ("physical commonsense", physical)):
        table: dict[str, float] = {}
        for row in rows:
            if row["videopath"] in table:
                raise ConfigError(
                    f"{told}: {row['videopath']} is judged twice; scorers append to old output, start from none"
                )
            if math.isnan(row["score"]):
                raise ConfigError(f"{told}: {row['videopath']} has no score")
            table[row["videopath"]] = row["score"]
        tables.append(table)
    if alone := sorted(tables[0].keys() ^ tables[1].keys()):
        raise ConfigError(f"{len(alone)} clips are judged for one of caption and physics only, {alone[0]} for one")
    paths = list(tables[0])
    sa, pc = (np.array([table[path] >= least for path in paths], np.float64) for table in tables)
    return {"videopath": np.array(paths), "sa": sa, "pc": pc, "joint": sa * pc}


def phygenbench(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Of rows of phygenbench/results: "score" [N], the average of its three stages over 3, and "category" [N]."""
    keys = [_key("*_average", row) for row in rows]
    scores = [row[key] / 3 for row, key in zip(rows, keys, strict=True) if key is not None]
    return {"score": np.array(scores), "category": np.array([row["main_category"] for row in rows])}


def iq_rows(scenarios: Mapping[str, Mapping[str, ViewMetrics]]) -> Rows:
    """Rows of physics-iq/results."""
    return [
        {"scenario": f"{name}.mp4"}
        | {
            f"{column}_{view}": getattr(views[view], field)
            for column, field in (IQ_LISTS | IQ_NUMBERS).items()
            for view in VIEWS
        }
        for name, views in scenarios.items()
    ]


def iq_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, ViewMetrics]]:
    """The inverse of `iq_rows`, for `physics_iq`."""

    def view_of(row: Mapping[str, Any], view: str) -> ViewMetrics:
        cells: dict[str, Any] = {field: row[f"{column}_{view}"] for column, field in IQ_NUMBERS.items()}
        return ViewMetrics(**cells | {field: np.array(row[f"{column}_{view}"]) for column, field in IQ_LISTS.items()})

    return {row["scenario"].removesuffix(".mp4"): {view: view_of(row, view) for view in VIEWS} for row in rows}


PISA_COLUMNS = {"l2": "l2", "chamfer_distance": "chamfer", "iou": "iou"}
"""Columns of pisa/results -> names of `jaxdiff.physics.pisa`."""


def pisa(results: Sequence[Mapping[str, Any]], config: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Of rows of pisa/results, the published mean, which leaves failed clips out, and one that does not.

    Returns
    -------
    "published", "corrected": metric -> number; "failed": share of the clips of `config` without a result, and of results that
    are nan. Without a config only the latter are known.

    Raises
    ------
    ConfigError : more results than clips.
    """
    clips = len(results) if config is None else len(config)
    if len(results) > clips:
        raise ConfigError(f"PISA: {len(results)} results of {clips} clips")
    published: dict[str, float] = {}
    corrected: dict[str, float] = {}
    bad = np.zeros(len(results), bool)
    for name in PISA_COLUMNS:
        bad |= ~np.isfinite(np.array([row[name] for row in results], np.float64))
    for name, own in PISA_COLUMNS.items():
        values = np.array([row[name] for row in results], np.float64)
        known = values[np.isfinite(values)]
        published[name] = float(known.mean()) if known.size else math.nan
        lost = clips - int((~bad).sum())
        corrected[name] = float((values[~bad].sum() + lost * WORST[own]) / clips) if clips else math.nan
    failed = (clips - int((~bad).sum())) / clips if clips else math.nan
    return {"published": published, "corrected": corrected, "failed": failed}
