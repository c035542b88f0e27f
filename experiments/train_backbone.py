"""Train a nano video diffusion transformer on generated scenes (rectified flow on the VAE's latents).

    python -m experiments.train_backbone --config=nano --vae=runs/vae/vae --structure=plausible --workdir=runs/nano

writes `pipeline/`, a checkpoint folder that `jaxdiff.load` and diffusers open. `--structure=independent` trains the
structure-less control: the same clips frame by frame, but what comes out from behind the screen is drawn anew.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary
from experiments._training import named, reporter
from jaxdiff.progress import progress
from jaxdiff.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained."""

    vae: Path = setting(help="Folder with the VAE's config.json and safetensors.")
    config: str = setting("nano", "Named configuration; nano is the only one.")
    structure: str = setting("plausible", "plausible, or independent for the structure-less control.")
    seed: int = setting(0, "Seed of initialisation, data and noise.")
    steps: int = setting(2400, "Optimiser steps.")
    batch: int = setting(32, "Clips per step.")
    clips: int = setting(16384, "Training clips, encoded once before the first step.")


def run(config: Config, workdir: Path) -> None:
    """Encode, train, write."""
    from jaxdiff.flow.schedule import UniPCFlow
    from jaxdiff.models.wan import Wan
    from jaxdiff.pipeline import Pipeline
    from jaxdiff.train.nano import BackboneTraining, encode_world, train_backbone
    from ports.folder import load_network
    from ports.writer import save_pipeline

    named("config", config.config)
    recipe = dataclasses.replace(BackboneTraining().recipe, seed=config.seed, steps=config.steps)
    training = BackboneTraining(recipe=recipe, structure=config.structure, batch=config.batch, clips=config.clips)
    vae = load_network(config.vae, dtype="float32")
    with Workdir(workdir, training) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with progress("encode", config.clips) as task:
            latents, words = encode_world(vae, training, task.advance)
        with progress(f"train {config.structure}", recipe.steps, unit="steps") as task:
            network, _ = train_backbone(training, latents, words, workdir, reporter(work, task))
        # The structure-less control is used with the trained model's VAE and ships without one.
        pipeline = Pipeline(network, Wan(), UniPCFlow(shift=1.0), vae if config.structure == "plausible" else None)
        save_pipeline(pipeline, workdir / "pipeline")
        loss = [line["loss"] for line in work.metrics() if line["event"] == "train"][-1]
        work.write_result({"headline": {}, "clips": config.clips, "steps": recipe.steps})
        work.finish(("result.json",))
    print(f"last training loss {loss:.4f} -> {workdir / 'pipeline'}")


if __name__ == "__main__":
    run_binary(run, Config)
