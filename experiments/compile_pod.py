"""Compile a program for a slice of TPUs on a machine without any, and say whether it fits.

    python -m experiments.compile_pod --model=wan2.1-t2v-14b --program=invert --topology=v5p:4x4x4 --workdir=runs/pod
    python -m experiments.compile_pod --model=cogvideox-5b --program=finetune_lora --topology=v5p:2x2x4 \\
        --mesh=data=2,fsdp=8 --workdir=runs/lora
    python -m experiments.compile_pod --model=ltx-13b --program=finetune --topology=v6e:4x4 --search --workdir=runs/search

needs `pip install "jaxdiff[tpu]"`, no TPU and no weights: only shapes are compiled, by one process at a time. Writes
result.json and prints a table: arguments, temporaries and the sum per device against the chip's memory, every kind of
collective with its bytes, operations, what these take at least, and what a study would then cost. With --search every mesh is
tried, and those that fit are ranked; one that is done is kept when the search is interrupted. `--topology=cpu` compiles for the
devices of this process, for tests.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compiled, and for what."""

    model: Literal[
        "cogvideox-2b", "cogvideox-5b", "ltx-13b", "wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "nano"
    ] = setting(help="Model.")  # fmt: skip
    program: Literal["finetune", "finetune_lora", "invert", "sample"] = setting("finetune_lora", "Program.")
    topology: str = setting("v5p:2x2x1", "Slice, as v5p:4x4x4 or v6e:4x4; cpu: the devices of this process.")
    mesh: str = setting(
        "auto",
        "Devices as data=2,fsdp=4,seq=2; auto: the first that fits of a few, from the least that devices share on.",
    )
    search: bool = setting(False, "Try every mesh, and rank those that fit.")
    clips_per_device: int = setting(1, "Clips a step, for each part that batches are split into.")
    frames: int | None = setting(None, "Frames of a clip; default: the model's published ones.")
    size: tuple[int, ...] = setting((), "Height,width of a clip in pixels; default: the model's published ones.")
    rank: int = setting(128, "Of finetune_lora.")
    steps: int = setting(100, "Of invert and sample.")
    remat: Literal["none", "block", "all_but_attention"] = setting(
        "all_but_attention", "What the backward pass recomputes instead of keeping it."
    )

    def __post_init__(self):
        if self.search and self.mesh != "auto":
            raise ConfigError(f"--search tries every mesh: give no --mesh={self.mesh} with it")


def run(config: Config, workdir: Path) -> None:
    """Compile, write, print."""
    import jax

    from jaxdiff.scaling.programs import Work
    from jaxdiff.scaling.search import meshes, search, usual
    from jaxdiff.scaling.slices import chip_of, devices_of, mesh_on
    from jaxdiff.scaling.table import described, ranking
    from jaxdiff.workdir import Workdir

    jax.config.update("jax_platforms", "cpu")  # a TPU that is there must not be taken for compiling
    names = {field.name for field in dataclasses.fields(Work)}
    work = Work(**{name: value for name, value in dataclasses.asdict(config).items() if name in names})
    devices, chip = devices_of(config.topology), chip_of(config.topology)

    def make(text: str) -> Any:
        return mesh_on(devices, text)

    if config.mesh != "auto":
        make(config.mesh)
    with Workdir(workdir, config) as folder:
        if folder.done:
            print(f"{workdir} is complete; nothing to do")
            return
        if config.search:
            texts = meshes(work, len(devices))
        else:
            texts = usual(work, len(devices), make, chip) if config.mesh == "auto" else [config.mesh]
        with folder.stage("compile"):
            found = search(work, texts, make, chip, workdir / "meshes", enough=not config.search)
        folder.write_result({"headline": {}, **found[0], "meshes": found})
        folder.finish(("result.json",))
    print(f"{config.model} {config.program} on {config.topology}, {found[0]['mesh']}, per device:")
    for name, value in described(found[0], chip).items():
        print(f"  {name:28} {value}")
    if len(found) > 1:
        print("\n" + "\n".join(ranking(found)))


if __name__ == "__main__":
    run_binary(run, Config)
