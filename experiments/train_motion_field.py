"""Train LaMo's motion field f_phi on a latent store, and measure its skill on clips that were held out.

    python -m experiments.train_motion_field --latents=runs/latents --config=nano --workdir=runs/motion_field

writes `motion_field/` (config.json and safetensors; `jaxdiff.lamo.load_motion_field`), checkpoints/ and result.json with
skill = 1 - MSE / MSE(no motion) and the cosine, with intervals over held-out clips, beside those of the training clips' mean,
of the field that is told no prompt, and of block matching, which sees the later frame. Interrupted, the same command goes on
where it stopped. With --distributed a batch is split over the devices of all processes.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary
from experiments._training import reporter
from jaxdiff.progress import progress
from jaxdiff.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, and on what."""

    latents: Path = setting(help="Latent store, or the workdir of experiments.encode_latents.")
    config: str = setting("nano", "Whose latents: nano, cogvideox-2b, cogvideox-5b or wan2.1-t2v-1.3b.")
    steps: int = setting(2000, "Optimiser steps.")
    batch: int = setting(32, "Clips per step.")
    learning_rate: float = setting(1e-3, "Of AdamW, after the warm-up.")
    ema: float = setting(0.999, "Decay of the moving average, which is what is kept.")
    direction: float = setting(0.5, "Factor of the term in the cosine.")
    noise: float = setting(0.1, "Standard deviation of the noise on input frames.")
    noise_share: float = setting(0.5, "Share of the clips that get it.")
    prompt_dropout: float = setting(0.2, "Share of the clips that are told no prompt.")
    held_out: float = setting(0.125, "Share of the clips that are measured on, and not trained on.")
    mesh: str = setting("auto", "Devices, as data=4, or auto: all of them.")
    seed: int = setting(0, "Seed of initialisation, split, batches and noise.")


def run(config: Config, workdir: Path) -> None:
    """Split, train, measure, write."""
    import jax

    from jaxdiff.lamo import FieldLoss, save_motion_field
    from jaxdiff.mesh import parse_mesh
    from jaxdiff.processes import is_first, meet
    from jaxdiff.store import LatentStore
    from jaxdiff.train.loop import Recipe
    from jaxdiff.train.motion_field import Corpus, MotionFieldTraining, measure, split, train_motion_field

    training = MotionFieldTraining(
        config.config,
        Recipe(config.steps, config.learning_rate, warmup=50, ema=config.ema, weight_decay=1e-4, seed=config.seed),
        FieldLoss(config.direction, config.noise, config.noise_share, config.prompt_dropout),
        config.batch,
        config.held_out,
    )
    store = LatentStore.open(config.latents)
    sizes = training.model(store)
    mesh = parse_mesh(config.mesh)
    rows, aside = split(len(store), config.held_out, config.seed)
    with Workdir(workdir, {**dataclasses.asdict(config), "mesh": None}, primary=is_first()) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("read", clips=len(store)):
            clips = Corpus(store, training.in_memory)
        with progress("train motion field", config.steps, unit="steps") as task:
            network = train_motion_field(training, store, clips, rows, mesh, workdir, reporter(work, task))
        if is_first():
            save_motion_field(network, workdir / "motion_field")
            with work.stage("measure"):
                found = measure(training, network, clips, rows, aside)
            work.write_result(
                {
                    "headline": {"skill": found["field"].skill, "cosine": found["field"].cosine},
                    "skills": found,
                    "clips": {"trained_on": len(rows), "held_out": len(aside)},
                    "field": sizes,
                    "parameters": sum(leaf.size for leaf in jax.tree.leaves(network.params)),
                    "latents": store.header,
                }
            )
            work.finish(("result.json", "motion_field/diffusion_pytorch_model.safetensors"))
            for name, skill in found.items():
                low, high = skill.skill_interval
                print(f"{name:>22}: skill {skill.skill:6.3f} [{low:.3f}, {high:.3f}]  cosine {skill.cosine:6.3f}")
            print(f"{len(aside)} held-out clips -> {workdir / 'motion_field'}")
    meet("written")


if __name__ == "__main__":
    run_binary(run, Config, distributed=True)
