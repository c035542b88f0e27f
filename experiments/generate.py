"""Sample videos from prompts, with or without motion guidance, named as their scorers read them.

    python -m experiments.generate --model=nano --prompts=world --limit=8 --samples=4 --workdir=DIR
    python -m experiments.generate --model=DIR --config=cogvideox-5b --prompts=VBench_full_info.json --naming=vbench --workdir=DIR
    python -m experiments.generate --model=DIR --config=cogvideox-5b --prompts=videophy_test_public.csv --naming=videophy
        --guidance=motion --motion_field=DIR --guidance_change=0.005 --workdir=DIR

writes videos/*.mp4, prompts.csv and the scorer's own table, result.json (with the guidance's energy and change in every step)
and contact.html. Interrupted, the same command goes on where it stopped; a clip that is there is not made again.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is sampled and how. What is not said comes from --config."""

    model: str = setting(help="Checkpoint folder, or nano for the model that ships with the package.")
    prompts: str = setting(
        help="File of prompts: .txt (one a line), .csv (column caption: VideoPhy, VideoPhy-2) or .json (VBench_full_info.json, "
        "PhyGenBench's prompts.json); "
        "or world, for the 72 prompts of the generated world in an order that --seed draws."
    )
    naming: Literal["plain", "videophy", "videophy2", "vbench", "phygenbench"] = setting(
        "plain", "Whose file names and tables."
    )
    samples: int | None = setting(
        None, "Clips of every prompt; default 1, of vbench 5 (25 of temporal_flickering), as its protocol has it."
    )
    limit: int | None = setting(None, "Only the first so many prompts.")
    upsampled: bool = setting(False, "Tell the model the column upsampled_caption of a csv; names keep the caption.")
    config: str | None = setting(
        None,
        "Published sampling settings, which the next flags change: nano (default of --model=nano), cogvideox-2b, cogvideox-5b "
        "or wan2.1-t2v-1.3b.",
    )
    frames: int | None = setting(None, "Frames of the video.")
    height: int | None = setting(None, "Pixels.")
    width: int | None = setting(None, "Pixels.")
    fps: float | None = setting(None, "Frames per second of the file.")
    steps: int | None = setting(None, "Steps of the solver.")
    solver: str = setting(
        "scheduler", "The steps of the folder's own scheduler, or a solver, such as euler, heun, unipc or dpmpp_2m."
    )
    guidance_scale: float | None = setting(None, "Of the classifier-free guidance; 1 turns it off.")
    dynamic: bool | None = setting(None, "Let that scale rise over the steps, as CogVideoX's use_dynamic_cfg does.")
    negative: str = setting("", "The prompt to lead away from.")
    guidance: Literal["none", "motion"] = setting("none", "motion: LaMo's guidance by a motion field.")
    motion_field: Path | None = setting(None, "Folder of the motion field, as train_motion_field writes it.")
    guidance_scale_motion: float | None = setting(None, "Scale of the motion guidance; 0 is plain sampling.")
    guidance_change: float | None = setting(
        None,
        "Instead: the mean relative change of the predicted clean latent in a guided step, 0.005 for half a per cent. The "
        "scale is found from plain samples of the first prompts.",
    )
    guidance_space: Literal["noise", "velocity"] = setting(
        "noise", "noise, as published, or velocity, which is bounded."
    )
    guidance_share: float = setting(0.8, "Share of the steps, at the lower noise levels, that are guided.")
    lora: Path | None = setting(None, "LoRA of the transformer, safetensors.")
    lora_scale: float = setting(1.0, "What it is multiplied by.")
    seed: int = setting(
        0, "Of the noise. A clip's noise depends on it, on the prompt and on the sample's number alone."
    )
    clips_per_device: int | None = setting(
        None, "Clips that a device works on at once; results depend on it in the last bits. Default 1, of nano 16."
    )
    dtype: str | None = setting(None, "float32 or bfloat16; default: bfloat16 on accelerators, float32 on a CPU.")
    mesh: str = setting(
        "auto", "Devices as data=4,fsdp=8,seq=2, or auto: all along data. Weights are split over fsdp, tokens over seq."
    )


def run(config: Config, workdir: Path) -> None:
    """Sample, write, show."""
    from jaxdiff.generation.run import Generation, run_generation
    from jaxdiff.mesh import working_on

    values = dataclasses.asdict(config)
    with working_on(values.pop("mesh")):
        run_generation(Generation(**values), workdir)


if __name__ == "__main__":
    run_binary(run, Config)
