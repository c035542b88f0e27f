"""Time jaxdiff against named peers and physical limits: a table, and json; see benchmarks/README.md.

    python -m benchmarks.run --suite=cpu --only=forward --pairs=30 --out=forward.json

The exit code is 1 when a case failed, and 3 when a bar was missed.
"""

import datetime
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.rows import PeerMissing, Row, Settings, missing
from benchmarks.suites import SUITES, case
from benchmarks.timing import MIN_PAIRS

FAILED = "failed: "  # how the reason of a case begins that came to no end
BUSY = 0.5  # load average per core, before the first call, from which on times are not judged

_SUITE = flags.DEFINE_enum("suite", "cpu", list(SUITES), "What to run.")
_ONLY = flags.DEFINE_list(
    "only", None, "Cases of the suite; default: all. " + str({k: list(v) for k, v in SUITES.items()})
)
_PAIRS = flags.DEFINE_integer(
    "pairs", MIN_PAIRS, f"Rounds of every comparison; fewer than {MIN_PAIRS} give no verdict.", lower_bound=1
)
_OUT = flags.DEFINE_string("out", None, "File for the rows as json, written after every case.")
_TINY = flags.DEFINE_boolean("tiny", False, "A toy size, to see that everything runs; gives no verdicts.")
_BUDGET = flags.DEFINE_float(
    "budget",
    Settings.budget,
    "Seconds that the suite gpu may take; the same command again measures what is missing then.",
)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    suite, names = _SUITE.value, _ONLY.value or list(SUITES[_SUITE.value])
    if unknown := [name for name in names if name not in SUITES[suite]]:
        raise app.UsageError(f"--only: {suite} has no case {unknown[0]!r}; there are {', '.join(SUITES[suite])}")
    if suite != "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")

    import jax

    # Compile times are of compiling.
    jax.config.update("jax_enable_compilation_cache", False)

    from benchmarks import machine

    here = machine.describe(256 if _TINY.value else 2048, accelerator=suite == "gpu")
    print(
        f"{here['device']}, {here['cpu']}, {here['cores']} cores, load {here['load_average'][0]:.1f}; jax {here['jax']}, "
        f"torch {here['torch']}, torch fp32 linear {here['torch_linear_gflops']} GFLOP/s",
        flush=True,
    )
    # Other programs slow the two sides of a comparison unequally (OpenMP threads wait for one another), which the
    # A/A control cannot show: on a busy machine there are no verdicts on times.
    busy = suite != "gpu" and here["load_average"][0] > BUSY * here["cores"]
    if busy:
        print("the machine is busy: times get no verdict", flush=True)
    folder = f"{_OUT.value}.parts" if suite == "gpu" and _OUT.value else None
    settings = Settings(_PAIRS.value, _TINY.value, _BUDGET.value, folder)
    rows: list[Row] = []
    for name in names:
        found = run_case(suite, name, settings)
        if _TINY.value:
            found = [row.unjudged() for row in found]
        elif busy:
            found = [row.unjudged() if row.seconds else row for row in found]
        rows += found
        if _OUT.value:
            write(Path(_OUT.value), content(suite, names, settings, here, rows))
    show(rows)
    if any(row.missing.startswith(FAILED) for row in rows):
        return 1
    return 3 if any(row.met is False for row in rows) else 0


def run_case(suite: str, name: str, settings: Settings) -> list[Row]:
    """The rows of one case; of a peer that cannot be had, or a case that fails, one that says so."""
    try:
        return list(case(suite, name)(settings))
    except PeerMissing as error:
        return [missing(name, str(error))]
    except Exception as error:  # the other cases are not to be lost with it
        traceback.print_exc()
        return [missing(name, f"{FAILED}{type(error).__name__}: {error}"[:2000])]


def content(
    suite: str, names: Sequence[str], settings: Settings, here: dict[str, Any], rows: Sequence[Row]
) -> dict[str, Any]:
    """What is written."""
    return {
        "date": datetime.date.today().isoformat(),
        "suite": suite,
        "cases": list(names),
        "tiny": settings.tiny,
        "pairs": settings.pairs,
        "machine": here,
        "bars": [row.as_bar() for row in rows if row.bar is not None],
        "missing": {row.name: row.missing for row in rows if row.missing},
        "rows": [row.as_json() for row in rows],
    }


def write(path: Path, found: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


def show(rows: Sequence[Row]) -> None:
    """Print the table, and below it the witnesses."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("what", "measured", "bar", "verdict", "A/A control")
    for row in rows:
        bar, control = row.bar or "", row.control or ""
        table.add_row(row.name, row.measured(), str(bar), row.verdict(), str(control))
    console.print(table)
    for row in rows:
        for key, value in {**row.errors, **row.witness, **({"missing": row.missing} if row.missing else {})}.items():
            console.print(f"{row.name}: {key} {value}", highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    app.run(main)
