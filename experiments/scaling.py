"""The table of docs/scaling.md: published models compiled for slices of TPUs, and what studies would cost there at best.

    python -m experiments.scaling --workdir=runs/scaling --document=docs/scaling.md

compiles each model, program and slice that no earlier start finished, one after the other and minutes each, and writes the
tables into the document after every one of them; rows that are missing are marked. --nocompile only writes. Needs
`pip install "jaxdiff[tpu]"`, and no TPU.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments._flags import setting
from experiments._main import run_binary

SLICES = {"v5e-256": "v5e:16x16", "v5p-128": "v5p:4x4x4", "v6e-256": "v6e:16x16"}  # v5p counts cores, two a chip
FRAMES = {"wan2.1-t2v-1.3b": 4, "wan2.1-t2v-14b": 4, "cogvideox-5b": 4, "ltx-13b": 8}  # model -> frames of a latent one
LATENT_FRAMES = (5, 9, 13, 21, 31)
MODELLED = "v5p-128"  # the slice whose programs are carried over to other numbers of chips


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compiled, and where the tables go."""

    models: tuple[str, ...] = setting(tuple(FRAMES), "Models, names of experiments.compile_pod.")
    programs: tuple[str, ...] = setting(("invert", "finetune"), "Programs.")
    slices: tuple[str, ...] = setting(tuple(SLICES), "Slices, of v5e-256, v5p-128, v6e-256.")
    document: Path | None = setting(None, "Markdown file with marks for the tables.")
    compile: bool = setting(True, "Compile what is missing; without it only what is there is written.")


def run(config: Config, workdir: Path) -> None:
    """Compile what is missing, write what is there."""
    import jax

    from jaxdiff.errors import ConfigError
    from jaxdiff.scaling.programs import Work
    from jaxdiff.scaling.search import search, usual
    from jaxdiff.scaling.slices import chip_of, devices_of, mesh_on
    from jaxdiff.workdir import Workdir

    jax.config.update("jax_platforms", "cpu")  # a TPU that is there must not be taken for compiling
    if unknown := set(config.slices) - set(SLICES):
        raise ConfigError(f"--slices: no slice {', '.join(sorted(unknown))}; there are {', '.join(SLICES)}")
    with Workdir(workdir, {"steps": Work("nano", "invert").steps}) as folder:
        write(config, workdir)
        for name in config.slices if config.compile else ():
            devices = devices_of(SLICES[name])

            def make(text: str, devices: list[Any] = devices) -> Any:
                return mesh_on(devices, text)

            for model in config.models:
                for program in config.programs:
                    work, chip = Work(model, program, remat="block"), chip_of(SLICES[name])  # what needs least memory
                    with folder.stage("compile", model=model, program=program, slice=name):
                        texts = usual(work, len(devices), make, chip)
                        search(work, texts, make, chip, workdir / f"{model}-{program}-{name}", enough=True)
                    jax.clear_caches()
                    write(config, workdir)
    print("\n".join(write(config, workdir)))


def write(config: Config, workdir: Path) -> list[str]:
    """Write the tables of what is there into the document; returns the first."""
    from jaxdiff.scaling.search import best
    from jaxdiff.scaling.slices import chip_of
    from jaxdiff.scaling.table import chips_table, frames_table, grid_table, replaced
    from jaxdiff.workdir import write_atomic

    rows: list[dict[str, Any]] = [
        {"model": model, "program": program, "slice": name, "found": best(workdir / f"{model}-{program}-{name}")}
        for model in config.models
        for program in config.programs
        for name in config.slices
    ]
    table, chip = grid_table(rows), chip_of(SLICES[MODELLED])
    if config.document is not None and chip is not None:
        carried = [
            row
            for row in rows
            if (row["program"], row["slice"]) == ("invert", MODELLED) and row["found"] and row["found"]["fits"]
        ]
        text = config.document.read_text()
        text = replaced(text, "slices", table)
        text = replaced(text, "chips", chips_table(carried, chip))
        text = replaced(text, "frames", frames_table(frames_of(config, workdir), chip))
        write_atomic(config.document, text.encode())
    return table


def frames_of(config: Config, workdir: Path) -> dict[str, dict[str, float]]:
    """Model -> frames -> operations of an evaluation, counted once a workdir."""
    from jaxdiff.scaling.programs import Work
    from jaxdiff.scaling.roofline import operations
    from jaxdiff.scaling.search import kept
    from jaxdiff.workdir import dump_json, write_atomic

    file = workdir / "frames.json"
    counted = kept(file) or {}
    for model in config.models:
        if model not in counted and model in FRAMES:
            frames = [1 + FRAMES[model] * (n - 1) for n in LATENT_FRAMES]
            counted[model] = {str(n): operations(Work(model, "invert", frames=n, steps=1)) for n in frames}
            write_atomic(file, dump_json(counted))
    return counted


if __name__ == "__main__":
    run_binary(run, Config)
