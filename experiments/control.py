"""Train a control branch (InterDyn, arXiv 2412.11785) beside a frozen video model: the mask of one object drives the others.

    python -m experiments.control --model=nano --workdir=runs/control
    python -m experiments.control --model=Wan2.1-T2V-1.3B-Diffusers --config=interdyn --videos=clips --masks=masks \\
        --captions=captions.csv --frames=49 --size=256,384 --fps=8 --workdir=runs/wan-control

The branch is a trainable copy of the backbone's first blocks whose links start at zero; the backbone stays as it is, bit for
bit. It is told the first frame and, in every frame, which pixels are the driver's. --videos=billiards (the default) trains on
generated elastic discs, in pairs of clips with one first frame: in one the driver hits a resting disc, in the other it misses.
A folder of one's own comes with --masks, mask videos under the same names, white where the driver is. Held-out clips are then
sampled with their own mask, an empty one, another clip's, and by the backbone alone, from the same noise. Writes branch/
(`jaxdiff.physics.control.load_branch`), clips/, result.json and report.html with a contact sheet. Interrupted, the same
command goes on: nothing that was encoded, trained or sampled is lost.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and how. Flags that are not given are those of --config."""

    model: str = setting(help="Checkpoint folder, or nano for the model that ships with the package.")
    videos: str = setting("billiards", "Folder of clips, or billiards: generated ones.")
    masks: Path | None = setting(None, "Folder of mask videos under the clips' names, white on the driver.")
    captions: Path | None = setting(None, "Prompts of the clips: a csv with the columns video,caption; default: none.")
    config: Literal["nano", "interdyn"] = setting("nano", "Named recipe; interdyn: what is known of the published one.")
    blocks: int | None = setting(None, "Blocks that are copied; default: the first half.")
    scale: float = setting(1.0, "What the branch's residuals are multiplied by in sampling.")
    pairs: int = setting(2048, "Of billiards: pairs of clips to train on.")
    discs: int = setting(2, "Of billiards: discs in a clip, the driver among them.")
    frames: int | None = setting(None, "Frames of a clip; default: 49, of billiards 17.")
    size: tuple[int, ...] | None = setting(None, "Pixels, HEIGHT,WIDTH; default: the clips' own, of billiards 32.")
    fps: float | None = setting(None, "Take the frames at this rate from the clip's start; default: evenly over it.")
    held_out: int = setting(32, "Clips, of billiards pairs, that are sampled and not trained on.")
    steps: int | None = setting(None, "Optimiser steps.")
    batch: int | None = setting(None, "Clips a step, over all devices.")
    learning_rate: float | None = setting(None, "Of AdamW, after the warm-up.")
    warmup: int | None = setting(None, "Steps of the linear warm-up.")
    ema: float | None = setting(None, "Decay of the average of the weights, which is what is written.")
    prompt_dropout: float | None = setting(None, "Share of clips that are told the empty prompt.")
    control_dropout: float = setting(0.05, "Share of clips that are told an empty mask.")
    logit_mean: float | None = setting(None, "Of flow models: centre of the noise levels, sigmoid(mean + normal).")
    remat: Literal["none", "block", "all_but_attention"] = setting(
        "all_but_attention", "What the backward pass recomputes instead of keeping it."
    )
    sampling_steps: int | None = setting(None, "Steps of the solver.")
    guidance_scale: float | None = setting(None, "Of the classifier-free guidance by the prompt; 1 turns it off.")
    clips_per_device: int | None = setting(None, "Held-out clips that a device samples at once.")
    checkpoint_every: int = setting(250, "Steps from one checkpoint to the next.")
    seed: int = setting(0, "Of initialisation, order of the clips, noise, and generated clips.")
    mesh: str = setting("auto", "Devices as data=2,fsdp=4, or auto: all along data.")
    dtype: str | None = setting(None, "float32 or bfloat16; default: bfloat16 on accelerators, float32 on a CPU.")


def run(config: Config, workdir: Path) -> None:
    """Check, read masks, load, train, sample, score, write."""
    from jaxdiff.mesh import parse_mesh
    from jaxdiff.pipeline import load, outline
    from jaxdiff.study.control import run_control, summary
    from jaxdiff.study.control_config import ControlConfig
    from jaxdiff.study.control_data import stored_masks
    from jaxdiff.study.models import ASSETS
    from jaxdiff.workdir import Workdir

    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(ControlConfig)}
    given, mesh = ControlConfig(**values), parse_mesh(config.mesh)
    folder = ASSETS / config.model if config.model == "nano" else Path(config.model)
    source, held_out = given.sources()
    given.check(outline(folder), source)
    with Workdir(workdir, dataclasses.asdict(given) | {"dtype": config.dtype}) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        masks = stored_masks(work, source)
        with work.stage("load"):
            pipeline = load(folder, dtype=config.dtype, mesh=mesh)
        result = run_control(given, pipeline, work, source, held_out, masks, mesh)
        work.finish(("result.json",))
    print(summary(result) + f"\n-> {workdir / 'report.html'}")


if __name__ == "__main__":
    run_binary(run, Config)
