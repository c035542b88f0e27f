"""LaMo's ablation on the nano model: fine-tune with and without the drift loss, sample with and without motion guidance.

    python -m experiments.lamo_ablation --workdir=runs/lamo

encodes clips of the generated world, trains the motion field with and without its input noise, fine-tunes the nano model
for every seed plainly, with the drift loss and with the paper's variants of it, samples every prompt of the world by every
method from equal noise, and scores the clips with a tracker. Writes result.json, clips.csv, README.md (the tables) and
report.html: scores beside those of true clips, and differences from the plain fine-tune with intervals over prompts and
seeds. Interrupted, the same command goes on where it stopped.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """Budgets."""

    model: str = setting("nano", "Checkpoint folder of a nano model, or nano: the one that ships.")
    seeds: tuple[int, ...] = setting(
        (1, 2, 3), "Fine-tuning seeds: order of the clips, noise of training and of sampling."
    )
    clips: int = setting(4096, "Training clips; of seed 1 of the world, which the shipped model has not seen.")
    steps: int = setting(250, "Fine-tuning steps.")
    batch: int = setting(32, "Clips per step.")
    learning_rate: float = setting(5e-4, "Of AdamW, after the warm-up.")
    field_steps: int = setting(1000, "Steps of each motion field.")
    change: float = setting(
        0.03,
        "What guidance changes of the predicted clean latent in a guided step, relative. Of 0.01, 0.03 and 0.1 the one with "
        "the fewest violations, by less than their intervals, on the model as it ships and a seed that is not scored.",
    )
    samples: int = setting(2, "Clips of each of the 72 prompts, a method and a seed.")
    sampling_steps: int = setting(24, "Steps of the sampler.")
    guidance_scale: float = setting(2.0, "Of the classifier-free guidance.")
    scenes: int = setting(40, "Scenes in each category of the world whose true clips stand beside the scores.")
    world_seed: int = setting(0, "That world.")


def run(config: Config, workdir: Path) -> None:
    """Encode, train the fields, then seed by seed."""
    from experiments import encode_latents, train_motion_field
    from experiments._training import opened_model
    from jaxdiff.lamo import load_motion_field
    from jaxdiff.store import LatentStore
    from jaxdiff.study.lamo_ablation import BARE, FIELD, LamoAblationConfig, run_lamo_ablation

    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(LamoAblationConfig) if hasattr(config, f.name)}
    ablation = LamoAblationConfig(**given)
    latents = workdir / "latents"
    encode_latents.run(encode_latents.Config(config.model, "world", clips=config.clips, seed=1, batch=32), latents)
    fields = {}
    for name, share in ((FIELD, 0.5), (BARE, 0.0)):
        training = train_motion_field.Config(latents, steps=config.field_steps, noise_share=share)
        train_motion_field.run(training, workdir / name)
        fields[name] = load_motion_field(workdir / name / "motion_field")
    store = LatentStore.open(latents / "store")
    run_lamo_ablation(ablation, opened_model(config.model), store, fields, workdir / "ablation")


if __name__ == "__main__":
    run_binary(run, Config)
