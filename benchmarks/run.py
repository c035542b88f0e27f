"""Time jaxdiff against named peers and print a table; see benchmarks/README.md.

    python -m benchmarks.run --only=forward --pairs=30 --save

The exit code is 3 when a bar was missed.
"""

import dataclasses
import datetime
import json
import sys
from pathlib import Path

from absl import app, flags

RESULTS = Path(__file__).parent / "results"
NAMES = (
    "forward", "captures", "inversion", "published", "compile", "program", "loading", "demo", "probes", "guidance", "drift",
)  # fmt: skip
BUSY = 0.5  # load average per core, before the first call, from which on times are not judged

_ONLY = flags.DEFINE_list("only", None, f"Cases to run, of {', '.join(NAMES)}; default: all.")
_PAIRS = flags.DEFINE_integer("pairs", 20, "Rounds of every comparison; fewer than 20 give no verdict.", lower_bound=1)
_SAVE = flags.DEFINE_boolean("save", False, "Write benchmarks/results/DATE_CASE.json.")
_TINY = flags.DEFINE_boolean("tiny", False, "A toy size, to see that everything runs; gives no verdicts.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    names = _ONLY.value or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise app.UsageError(f"--only: no case {unknown[0]!r}; there are {', '.join(NAMES)}")
    if _TINY.value and _SAVE.value:
        raise app.UsageError("--tiny times a toy; its numbers are not to be saved")

    import jax
    from rich.console import Console
    from rich.table import Table

    # Compile times are of compiling.
    jax.config.update("jax_enable_compilation_cache", False)

    from benchmarks import cases, machine, subject, timing

    console = Console(width=None if sys.stdout.isatty() else 120)
    here = machine.describe(256 if _TINY.value else 2048)
    console.print(
        f"{here['cpu']}, {here['cores']} cores, load {here['load_average'][0]:.1f}; jax {here['jax']}, torch "
        f"{here['torch']}, torch fp32 linear {here['torch_linear_gflops']} GFLOP/s",
        highlight=False,
    )
    size = subject.TINY if _TINY.value else subject.MID
    # Other programs slow the two sides of a comparison unequally (OpenMP threads wait for one another), which the
    # A/A control cannot show: on a busy machine there are no verdicts on times.
    busy = here["load_average"][0] > BUSY * here["cores"]
    if busy:
        console.print("the machine is busy: times get no verdict", style="bold")
    table = Table("case", "measured", "bar", "verdict", "A/A control")
    witnesses = []
    missed = False
    for name in names:
        rows = cases.CASES[name](size, _PAIRS.value)
        if _TINY.value:
            rows = [dataclasses.replace(row, verdict="") for row in rows]
        elif busy:
            rows = [dataclasses.replace(row, verdict=timing.UNDECIDED) if row.seconds else row for row in rows]
        missed |= any(row.verdict == timing.MISSED for row in rows)
        for row in rows:
            table.add_row(row.name, row.measured, row.bar, row.verdict, row.control)
            witnesses += [f"{row.name}: {key} {value}" for key, value in row.witness.items()]
        if _SAVE.value:
            _save(name, rows, here)
    console.print(table)
    console.print("\n".join(witnesses), highlight=False, soft_wrap=True, markup=False)
    return 3 if missed else 0


def _save(name: str, rows: list, here: dict) -> None:
    RESULTS.mkdir(exist_ok=True)
    date = datetime.date.today().isoformat()
    content = {"date": date, "case": name, "machine": here, "rows": [dataclasses.asdict(row) for row in rows]}
    (RESULTS / f"{date}_{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
