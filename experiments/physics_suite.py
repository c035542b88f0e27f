"""One table: the field's ways to put physics into a video model, on one backbone, at equal budgets, by the same tracker.

    python -m experiments.physics_suite --config=nano --workdir=runs/physics_suite
    python -m experiments.physics_suite --config=smoke --workdir=runs/smoke

For every seed the nano model is trained plainly, with the drift loss (LaMo), with a residual of motion (PIDM), on its own
samples weighted by a critic's reward (RWR), with that critic's objective (DiffPhy), on an object reward through the sampler
(ORO), and with a control branch (InterDyn): each time as many optimiser steps on as many clips. Every prompt of the generated
world is sampled from equal noise with each, and a tracker scores the clips beside true ones and ones with shuffled time.
Writes result.json, clips.csv, README.md (the tables) and report.html. Interrupted, the same command goes on where it stopped.
--config=smoke is as small as can be and shows that everything runs; its numbers say nothing. docs/physics_suite.md tells what
each variant is and what budgets mean.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from experiments._flags import setting
from experiments._main import run_binary

# What a named configuration says where a flag does not.
NAMED: dict[str, dict[str, Any]] = {
    "nano": {
        "seeds": (1, 2, 3), "clips": 4096, "steps": 120, "batch": 32, "samples": 2, "sampling_steps": 24, "scenes": 40,
        "rwr_samples": 4, "critic_clips": 4096, "critic_steps": 2000, "reward_sampling_steps": 8,
    },
    "smoke": {
        "seeds": (1,), "clips": 64, "steps": 2, "batch": 2, "samples": 1, "sampling_steps": 2, "scenes": 2, "limit": 4,
        "rwr_samples": 2, "critic_clips": 64, "critic_steps": 2, "reward_sampling_steps": 2,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Variants and budgets. Flags that are not given are those of --config."""

    config: Literal["nano", "smoke"] = setting("nano", "Named budget.")
    model: str = setting("nano", "Checkpoint folder of a nano model, or nano: the one that ships.")
    variants: tuple[str, ...] = setting(
        ("plain", "drift", "pidm", "rwr", "objective", "oro", "control"), "What is trained; plain must be among them."
    )
    seeds: tuple[int, ...] | None = setting(None, "Seeds: order of the clips, noise of training and of sampling.")
    clips: int | None = setting(None, "Training clips; of seed 1 of the world, which the shipped model has not seen.")
    steps: int | None = setting(None, "Optimiser steps of every variant.")
    batch: int | None = setting(None, "Clips a step, of every variant.")
    learning_rate: float = setting(5e-4, "Of AdamW, after the warm-up; rewards have their own.")
    prompt_dropout: float = setting(0.2, "Share of clips that are told the empty prompt.")
    logit_mean: float = setting(0.5, "Centre of the noise levels in training, sigmoid(mean + normal).")
    limit: int | None = setting(None, "Only the first so many of the 72 prompts.")
    samples: int | None = setting(None, "Clips of each prompt, a method and a seed, that are scored.")
    sampling_steps: int | None = setting(None, "Steps of the sampler.")
    guidance_scale: float = setting(2.0, "Of the classifier-free guidance.")
    clips_per_device: int = setting(16, "Clips that a device samples at once.")
    scenes: int | None = setting(None, "Scenes in each category of the world whose true clips stand beside the scores.")
    world_seed: int = setting(0, "That world; and of the true clips whose first frames and screens are told.")
    pidm_weight: float = setting(10.0, "Of pidm: c of the residual.")
    rwr_samples: int | None = setting(None, "Of rwr: samples of each prompt that are judged and trained on.")
    beta: float = setting(0.1, "Of rwr: temperature of the weights; inf: plain fine-tuning on the samples.")
    critic_file: Path | None = setting(
        None, "Of rwr and objective: a critic.npz of an earlier run, instead of training one."
    )
    critic_clips: int | None = setting(None, "Generated clips, possible and impossible, to train that critic on.")
    critic_steps: int | None = setting(None, "Its optimiser steps.")
    objective_weight: float = setting(0.1, "Of objective: factor of the three terms beside the denoising loss.")
    threshold: float = setting(0.4, "Of objective: noise level sigma below which the critic is asked.")
    reward: Literal["segmentation", "flow", "depth"] = setting(
        "segmentation", "Of oro: what is compared with true clips."
    )
    reward_learning_rate: float = setting(5e-5, "Of oro.")
    reward_sampling_steps: int | None = setting(None, "Of oro: Euler steps of a sample in training.")
    backward: Literal["full", "last", "random"] = setting(
        "last",
        "Of oro: sampling steps that the gradient goes through: all, the last ones, or a random number of last ones.",
    )
    backward_steps: int = setting(2, "How many, at most, of last and random.")
    blocks: int = setting(3, "Of control: blocks that the branch copies.")
    control_dropout: float = setting(0.05, "Of control: share of clips that are told an empty mask.")


def run(config: Config, workdir: Path) -> None:
    """Check, load, train, sample, score, write."""
    from jaxdiff.pipeline import load, outline
    from jaxdiff.scaling.operations import products
    from jaxdiff.study.models import ASSETS
    from jaxdiff.study.physics_suite import run_physics_suite
    from jaxdiff.study.physics_suite_config import PhysicsSuiteConfig
    from jaxdiff.workdir import Workdir

    named = {key: value for key, value in NAMED[config.config].items() if getattr(config, key) is None}
    values = dataclasses.asdict(dataclasses.replace(config, **named))
    values.pop("config")
    given = PhysicsSuiteConfig(**values)
    folder = ASSETS / config.model if config.model == "nano" else Path(config.model)
    given.check(outline(folder))
    with Workdir(workdir, given.recorded()) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("load"):
            pipeline = load(folder)
        summary = run_physics_suite(given, pipeline, work, products)
    print(f"{summary}\n-> {workdir / 'report.html'}")


if __name__ == "__main__":
    run_binary(run, Config)
