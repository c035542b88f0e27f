"""`experiments.lamo_ablation`: does fine-tuning with the drift loss, or sampling with motion guidance, make better physics?

For every training seed the same checkpoint is fine-tuned by each method, with equal budgets, clips, order and noise, and
each method's clips begin at the same noise. What is drawn anew in an interval is said beside it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.flow import Guide
from jaxdiff.generation import Sampling, calibrate
from jaxdiff.lamo import DriftLoss, MotionGuidance
from jaxdiff.models.network import Network
from jaxdiff.pipeline import Pipeline
from jaxdiff.progress import progress
from jaxdiff.store import LatentStore
from jaxdiff.study.methods import Comparison, check_counts
from jaxdiff.study.methods_report import Question
from jaxdiff.train.finetune import ExtraLoss, FineTuning, finetune
from jaxdiff.train.loop import Recipe
from jaxdiff.workdir import Workdir

LOSSES: dict[str, DriftLoss | None] = {
    "plain": None,
    "drift": DriftLoss(),
    "strong": DriftLoss(weight=4.0),
    "dense": DriftLoss(per_position=True),
    "raw": DriftLoss(normalised=False),
    "tau1": DriftLoss(lag=1),
}
"""What is fine-tuned: the loss beside the denoising loss.

On the nano model the gradient of the drift loss is 2 % of the denoising loss's (9 % per position, 15 % raw), so that its
published weight can hardly be seen there in few steps; ten times the weight tells a weak signal from a wrong one.
"""

FIELD, BARE = "field", "bare"  # motion fields: trained with noised input frames, and without


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to clips: what was fine-tuned (None: nothing), the field that guides, and whether it edits the state itself."""

    title: str
    trained: str | None
    field: str | None = None
    edits: bool = False


METHODS = {
    "base": Method("not fine-tuned", None),
    "plain": Method("plain fine-tune", "plain"),
    "drift": Method("+ drift loss", "drift"),
    "strong": Method("+ drift loss of ten times the weight", "strong"),
    "guidance": Method("+ guidance", "plain", FIELD),
    "both": Method("+ drift loss and guidance", "drift", FIELD),
    "dense": Method("drift per position", "dense"),
    "raw": Method("drift as raw L2", "raw"),
    "tau1": Method("drift at tau = 1", "tau1"),
    "bare": Method("both, field without augmentation", "drift", BARE),
    "edit": Method("both, editing the latent", "drift", FIELD, edits=True),
}
PLAIN = "plain"


@dataclasses.dataclass(frozen=True)
class LamoAblationConfig:
    """See the flags of `experiments.lamo_ablation`."""

    model: str
    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 250
    batch: int = 32
    learning_rate: float = 5e-4
    prompt_dropout: float = 0.2
    logit_mean: float = 0.5
    change: float = 0.03
    samples: int = 2
    sampling_steps: int = 24
    guidance_scale: float = 2.0
    clips_per_device: int = 16
    scenes: int = 40
    world_seed: int = 0

    def __post_init__(self):
        check_counts(self, "steps", "batch", "samples", "sampling_steps", "clips_per_device", "scenes")

    def sampling(self, seed: int) -> Sampling:
        """How clips are sampled; the noise of a seed is its own."""
        return Sampling(
            17, 32, 32, 8, self.sampling_steps, self.guidance_scale, seed=seed, clips_per_device=self.clips_per_device
        )

    def fine_tuning(self, seed: int, losses: Mapping[str, ExtraLoss]) -> FineTuning:
        """How a network is trained; methods differ in their losses only."""
        recipe = Recipe(self.steps, self.learning_rate, ema=0.99, seed=seed)
        return FineTuning(
            recipe, self.batch, losses=losses, prompt_dropout=self.prompt_dropout, logit_mean=self.logit_mean
        )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["guidance"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class LatentEdit:
    """The paper's ablation "direct latent edit": the guidance's gradient moves the state, not the prediction.

    A step of Euler's over ``d sigma`` adds ``d sigma (v + c g)`` with the same c at every noise level, where the guidance's
    own, in velocity space, is ``c sigma``: the state is moved by equal amounts at all of them.
    """

    guidance: MotionGuidance

    def __call__(self, x, velocity, sigma, done, cond):
        guided, metrics = self.guidance(x, velocity, sigma, done, cond)
        return velocity + (guided - velocity) / jnp.maximum(sigma, 1e-3), metrics


class Ablation(Comparison):
    """The methods' clips, each made once and kept in the workdir."""

    def __init__(
        self, config: LamoAblationConfig, pipeline: Pipeline, store: LatentStore, fields: Mapping[str, Network], work: Workdir
    ):  # fmt: skip
        super().__init__(config, pipeline, work)
        self.store, self.fields = store, fields

    @property
    def methods(self) -> Mapping[str, Method]:
        """See `METHODS`."""
        return METHODS

    def network(self, seed: int, trained: str | None) -> Pipeline:
        """The checkpoint, fine-tuned; from its own checkpoints if it was trained before."""
        if trained is None:
            return self.pipeline
        loss, name = LOSSES[trained], f"seed {seed}, {trained}"
        given = self.config.fine_tuning(seed, {} if loss is None else {"drift": loss})
        with progress(f"fine-tune {name}", given.recipe.steps, unit="steps") as task:
            return finetune(
                self.pipeline, self.store, given, self.folder(seed) / trained, empty=self.told[""],
                report=self.reporter(name, task), checkpoint_every=100,
            )  # fmt: skip

    def guide(self, method: Method, pipeline: Pipeline, sampling: Sampling) -> Guide | None:
        """The method's guide, its scale set on plain samples of the same network to the wanted change."""
        if method.field is None:
            return None
        guide = MotionGuidance(self.fields[method.field], space="velocity" if method.edits else "noise")
        guide = calibrate(pipeline, self.prompts, sampling, guide, self.config.change, told=self.told)
        return LatentEdit(guide) if method.edits else guide

    def clips(self, seed: int, name: str, pipeline: Pipeline) -> np.ndarray:
        """A method's clips uint8 [N, T, H, W, 3], in the order of `prompts`."""
        method, sampling = METHODS[name], self.config.sampling(seed)
        guide = self.guide(method, pipeline, sampling)
        changes: list[np.ndarray] = []

        def report(index: int, metrics: dict[str, np.ndarray]) -> None:
            if "change" in metrics:
                changes.append(metrics["change"])

        videos = self.sampled(f"sample seed {seed}, {name}", pipeline, sampling, guide=guide, report=report)
        if changes:
            guided = np.stack(changes)
            self.work.log("guidance", seed=seed, method=name, change=float(guided[guided > 0].mean()))
        return videos

    def facts(self) -> dict[str, str]:
        """What a reader must know of the budgets."""
        config = self.config
        seeds = ", ".join(map(str, config.seeds))
        return {
            "fine-tuning": f"{config.steps} steps of {config.batch} clips, all weights, seeds {seeds}",
            "training clips": str(len(self.store)),
            "clips of a method and seed": f"{len(self.prompts)} ({len(set(self.prompts))} prompts)",
            "sampling": f"{config.sampling_steps} steps, classifier-free guidance {config.guidance_scale:g}",
            "motion guidance": f"changes the predicted clean latent by {100 * config.change:g} % a guided step",
        }

    def question(self) -> Question:
        """What is asked."""
        return Question(
            "LaMo on the nano model: drift loss and motion guidance",
            {name: method.title for name, method in self.methods.items()},
            PLAIN,
            ("drift", "guidance", "both"),
            self.facts(),
            given="the checkpoint, the motion fields and the tracker",
            notes=(
                "Methods differ in one thing at a time; budgets, clips, their order and the noise of training and sampling are "
                "equal. A number is a mean over clips that have it: what shows no thing has no motion, and is in the empty clips.",
            ),
        )


def run_lamo_ablation(
    config: LamoAblationConfig, pipeline: Pipeline, store: LatentStore, fields: Mapping[str, Network], workdir: Path
) -> None:
    """Train, sample, score, report."""
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        ablation = Ablation(config, pipeline, store, fields, work)
        summary = ablation.conclude(ablation.run(), ablation.question())
    print(f"{summary}\n-> {workdir / 'report.html'}")
