"""Train a nano video encoder on generated scenes: V-JEPA (masked features, a teacher) or VideoMAE (masked pixels).

    python -m experiments.train_encoder --method=vjepa --config=nano --workdir=runs/vjepa

writes `encoder/`, a folder in the published layout that `jaxdiff.load_encoder` opens and `experiments.study --encoders` sets
beside the model. Steps, clips a step and the clips themselves are those of `experiments.train_backbone` with equal flags.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments._flags import setting
from experiments._main import run_binary
from experiments._training import named, reporter
from jaxdiff.progress import progress
from jaxdiff.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained."""

    method: Literal["vjepa", "videomae"] = setting(help="vjepa: predict features; videomae: predict pixels.")
    config: str = setting("nano", "Named configuration; nano is the only one.")
    structure: str = setting("plausible", "plausible, or independent for clips without structure.")
    seed: int = setting(0, "Seed of initialisation, data and masks.")
    steps: int = setting(2400, "Optimiser steps.")
    batch: int = setting(32, "Clips per step.")
    clips: int = setting(16384, "Training clips, drawn once before the first step.")


def run(config: Config, workdir: Path) -> None:
    """Draw, train, write."""
    from jaxdiff.encoder import Encoder
    from jaxdiff.train.encoders import EncoderTraining, draw_clips, train_encoder
    from ports.encoders import save_encoder

    named("config", config.config)
    recipe = dataclasses.replace(EncoderTraining(config.method).recipe, seed=config.seed, steps=config.steps)
    training = EncoderTraining(
        config.method, recipe=recipe, structure=config.structure, batch=config.batch, clips=config.clips
    )
    with Workdir(workdir, training) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with progress("draw", config.clips) as task:
            clips = draw_clips(training, task.advance)
        with progress(f"train {config.method}", recipe.steps, unit="steps") as task:
            network, _ = train_encoder(training, clips, workdir, reporter(work, task))
        save_encoder(Encoder(network, training.pictures, training.frames), workdir / "encoder")
        last = [line for line in work.metrics() if line["event"] == "train"][-1]
        work.write_result({"headline": {}, "clips": config.clips, "steps": recipe.steps})
        work.finish(("result.json",))
    print(
        f"last training loss {last['loss']:.4f}, spread of the features {last['spread']:.3f} -> {workdir / 'encoder'}"
    )


if __name__ == "__main__":
    run_binary(run, Config)
