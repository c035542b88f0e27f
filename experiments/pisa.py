"""Make a video model obey gravity (PISA, arXiv 2503.09595): simulate falls, fine-tune, optimise rewards, measure.

    python -m experiments.pisa --model=nano --rewards=flow --workdir=runs/pisa
    python -m experiments.pisa --model=nano --rewards=segmentation,flow,depth --seed=1 --workdir=runs/pisa-1
    python -m experiments.pisa --model=Wan2.2-TI2V-5B-Diffusers --frames=49 --size=256 --lora_rank=64 --reward_batch=1 \\
        --prompt="a video of an object dropping" --raft=raft_large --backward=last --backward_steps=1 --workdir=runs/wan

Things are held in the air, fall, bounce and settle; the first frame is given and the model continues it. Fine-tuning is on
simulated clips. Object reward optimisation then samples, decodes, lets a frozen network compare the clip with the simulated
one, and follows that reward's gradient back through decoder and sampler, one run a reward. PISA's L2, Chamfer distance and
IoU are measured on held-out clips of equal and of greater heights, as published and with failures counted, beside the truth
and a first frame that stands still. Writes pipelines/, clips/, clips.csv, result.json and report.html. Interrupted, the same
command goes on where it stopped.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What falls, what is trained and for how long."""

    model: str = setting(help="Checkpoint that takes its first frame in place (Wan TI2V or text-to-video), or nano.")
    frames: int = setting(17, "Frames of a clip.")
    size: int = setting(32, "Side of the frame in pixels.")
    height: tuple[float, float] = setting((0.15, 0.35), "Range of the falls in training, fractions of the frame.")
    far_height: tuple[float, float] = setting((0.4, 0.5), "Range of the other held-out falls.")
    prompt: str = setting("", "What every clip is told.")
    clips: int = setting(2048, "Simulated training clips.")
    held_out: int = setting(64, "Clips of each range that are measured.")
    steps: int = setting(1500, "Steps of fine-tuning.")
    batch: int = setting(16, "Clips per step.")
    learning_rate: float = setting(5e-4, "Of fine-tuning, AdamW after the warm-up.")
    lora_rank: int = setting(0, "Train a LoRA of this rank in both stages; 0: all weights.")
    rewards: tuple[str, ...] = setting(("flow",), "Of segmentation, flow, depth: each a run of its own.")
    reward_clips: int = setting(512, "Training clips that are sampled for the rewards.")
    reward_steps: int = setting(100, "Steps of reward optimisation.")
    reward_batch: int = setting(4, "Samples per step.")
    reward_learning_rate: float = setting(5e-5, "Of reward optimisation.")
    backward: Literal["full", "last", "random"] = setting(
        "full", "Sampling steps that the gradient goes through: all, the last ones, or a random number of last ones."
    )
    backward_steps: int | None = setting(None, "How many, at most, of last and random.")
    sampling_steps: int = setting(10, "Euler steps of a sample, in training and measuring.")
    guidance_scale: float = setting(1.0, "Of classifier-free guidance; 1 turns it off.")
    raft: Path | None = setting(
        None, "Folder of a RAFT for the flow reward; default: Lucas and Kanade's least squares."
    )
    seed: int = setting(0, "Of clips, noise and training.")


def run(config: Config, workdir: Path) -> None:
    """Check, load, train, measure, write."""
    from jaxdiff.pipeline import load, outline
    from jaxdiff.study.models import ASSETS
    from jaxdiff.study.pisa import PisaConfig, run_pisa
    from jaxdiff.workdir import Workdir
    from ports.writer import save_pipeline

    given = PisaConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    folder = ASSETS / "nano" if config.model == "nano" else Path(config.model)
    with Workdir(workdir, given) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        given.check(outline(folder))
        with work.stage("load"):
            pipeline = load(folder)
        run_pisa(given, pipeline, work, lambda tuned, name: save_pipeline(tuned, workdir / "pipelines" / name))


if __name__ == "__main__":
    run_binary(run, Config)
