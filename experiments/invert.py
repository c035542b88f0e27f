"""Run a checkpoint backwards over a folder of videos and store what is read on the way.

    python -m experiments.invert --checkpoint=DIR --videos=DIR --size=256 --frames=81 --steps=100 --workdir=DIR

writes `store/` (zarr, see `jaxdiff.store`), result.json and report.html with the inversion's fidelity and
source | reconstruction | difference clips. Interrupted, the same command goes on where it stopped.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is inverted and how."""

    checkpoint: Path = setting(help="Checkpoint folder in the diffusers layout.")
    videos: Path = setting(help="Folder of videos (mp4 files or folders of png frames).")
    frames: int = setting(81, "Frames per clip; 4k+1 for Wan.")
    size: int | None = setting(None, "Short side and centre crop in pixels; default: as the videos are.")
    sampling: str = setting("linspace", "linspace: frames spread over the whole clip; stride: every n-th frame.")
    stride: int = setting(1, "n of --sampling=stride.")
    steps: int = setting(100, "Steps of the inversion.")
    solver: str = setting("euler", "euler, heun, midpoint, fireflow, ab2, fixed_point, ddim_label, unipc or dpmpp_2m.")
    taps: tuple[str, ...] = setting(("block_out.mean",), "site.reducer names, comma-separated.")
    capture_at: tuple[int, ...] | None = setting(
        None, "Step numbers to read at; default: 0, a tenth, ... and the last."
    )
    capture_sigmas: tuple[float, ...] | None = setting(None, "Noise levels to read at, instead of --capture_at.")
    prompt: str = setting("", "Prompt; needs the folder's text encoder.")
    text_embeddings: str | None = setting(
        None,
        "FILE.npy with embeddings [N, text_dim], or zeros; replaces --prompt. zeros is not the empty prompt.",
    )
    clips_per_device: int = setting(1, "Clips that a device works on at once; results depend on it in the last bits.")
    dtype: str | None = setting(None, "float32 or bfloat16; default: bfloat16 on accelerators, float32 on a CPU.")
    mesh: str = setting(
        "auto", "Devices as data=4,fsdp=8,seq=2, or auto: all along data. Weights are split over fsdp, tokens over seq."
    )
    stream: bool = setting(False, "Write captures while the program runs: memory does not grow with their number.")
    fidelity_clips: int = setting(4, "Clips whose round trip and self-convergence are measured; 0 for none.")
    skip_bad_clips: bool = setting(False, "Leave out clips that cannot be read, count and list them.")


def run(config: Config, workdir: Path) -> None:
    """Invert, measure, report."""
    from jaxdiff.mesh import working_on
    from jaxdiff.processes import divide
    from jaxdiff.study.inversion import InversionStudy, run_inversion, run_part

    values = dataclasses.asdict(config)
    with working_on(values.pop("mesh")):
        study = InversionStudy(**values)
        divide(lambda part: run_part(study, workdir, part), lambda: run_inversion(study, workdir))


if __name__ == "__main__":
    run_binary(run, Config, distributed=True)
