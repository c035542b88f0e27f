"""`experiments.diffphy`: plan, sample, judge, tune on the judgements, and ask a critic that was held out whether it helped.

Every plan, clip and judgement is a file of its own, written whole before the next is begun: nothing is made or asked twice.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import ConfigError
from jaxdiff.generation import embed_prompts, generate
from jaxdiff.physics.critic import Critic, Judgement, RuleCritic, Weights, reward
from jaxdiff.physics.endpoint import EndpointCritic, EndpointPlanner
from jaxdiff.physics.network_critic import NetworkCritic, load_critic, save_critic, train_critic
from jaxdiff.physics.objectives import PhysicsObjective, WeightedClips, effective_sample_size, reward_weights
from jaxdiff.physics.planner import Plan, Planner, WorldPlanner
from jaxdiff.physics.violations import MIXED, Clips, clips
from jaxdiff.pipeline import Pipeline
from jaxdiff.probes import statistics
from jaxdiff.progress import progress
from jaxdiff.report.video import to_uint8
from jaxdiff.store import LatentStore
from jaxdiff.study.diffphy_config import DiffPhyConfig
from jaxdiff.study.measuring import through_autoencoder
from jaxdiff.train.finetune import finetune
from jaxdiff.train.latents import WorldClips, embedder, encode_clips
from jaxdiff.train.loop import Recipe
from jaxdiff.workdir import Workdir, dump_json

SAMPLES, BEFORE, AFTER = "samples", "before", "after"
TOLD_FPS = ("ltx", "cosmos")  # families that are told the frame rate
JUDGED_AT_ONCE = 32
VALIDATED_ON = 256  # clips of which half break a law, and on which critics are scored
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # of the noise at which they are scored too
GIVEN = "the trained weights and the critics; only prompts, each with its clips, are drawn anew"


class SampledClips:
    """Generated clips as `jaxdiff.train.latents.encode_clips` reads them."""

    def __init__(self, names: Sequence[str], captions: Sequence[str], videos: np.ndarray, given: dict[str, Any]):
        self.names, self.captions, self._videos, self._given = tuple(names), tuple(captions), videos, given
        self.shape, self.fps = tuple(videos.shape[1:]), None
        self.skipped: dict[str, str] = {}

    def describe(self) -> dict[str, Any]:
        """How they were sampled."""
        return self._given

    def read(self, ids: Sequence[int], ahead: int) -> Iterator[tuple[int, np.ndarray]]:
        """See `jaxdiff.train.latents.Source`."""
        for i in ids:
            yield i, self._videos[i]


class DiffPhy:
    """The parts of a run; each keeps what it makes in the workdir and makes only what is not there."""

    def __init__(self, config: DiffPhyConfig, pipeline: Pipeline, work: Workdir):
        self.config, self.pipeline, self.work, self.captions = config, pipeline, work, config.captions()
        self.embed = embedder(pipeline, world=pipeline.text_encoder is None)

    @cached_property
    def plans(self) -> list[Plan]:
        """A plan for every prompt."""
        planner: Planner = WorldPlanner() if self.config.planner == "rules" else EndpointPlanner(self.config.server)
        found = []
        with self.work.stage("plan"), progress("plan", len(self.captions)) as task:
            for i, caption in enumerate(self.captions):
                name = f"plans/{i:04d}.json"
                if (self.work.path / name).exists():
                    plan = Plan.from_dict(_read(self.work.path / name))
                else:
                    plan = planner.plan(caption)
                    self.work.write(name, dump_json({"prompt": caption, **dataclasses.asdict(plan)}))
                found.append(plan)
                task.advance()
        return found

    @cached_property
    def told(self) -> dict[str, Any]:
        """What the video model is told, embedded."""
        negative = self.config.sampling().negative
        return embed_prompts([*(plan.enhanced_prompt for plan in self.plans), negative, ""], self.embed)

    def clips(self, kind: str, pipeline: Pipeline) -> tuple[list[str], np.ndarray]:
        """Names and videos uint8 [P K, T, H, W, 3] of a set, prompt by prompt. The clips that are scored begin at other
        noise than those that are trained on, and before and after at the same."""
        config, first = self.config, 0 if kind == SAMPLES else self.config.samples
        count = config.samples if kind == SAMPLES else config.scored
        which = [(i, first + k) for i in range(len(self.captions)) for k in range(count)]
        names = [f"{i:04d}-{k}" for i, k in which]
        paths = [self.work.path / "clips" / kind / f"{name}.npy" for name in names]
        todo = [at for at, path in enumerate(paths) if not path.exists()]
        if todo:
            texts, samples = [self.plans[i].enhanced_prompt for i, _ in which], [k for _, k in which]
            made = generate(pipeline, texts, config.sampling(), samples=samples, todo=todo, told=self.told)
            title = f"generate {kind}"
            with (
                self.work.stage(title, clips=len(todo)),
                progress(title, len(paths), done=len(paths) - len(todo)) as task,
            ):
                for at, video in made:
                    buffer = io.BytesIO()
                    np.save(buffer, video)
                    self.work.write(f"clips/{kind}/{names[at]}.npy", buffer.getvalue())
                    task.advance()
        return names, np.stack([np.load(path) for path in paths])

    @cached_property
    def network_critic(self) -> NetworkCritic:
        """The critic of --critic_file, or one that is trained on generated clips behind this checkpoint's VAE."""
        path = self.config.critic_file or self.work.path / "critic" / "critic.npz"
        if path.exists():
            return load_critic(path)
        config, sampling = self.config, self.config.sampling()
        with self.work.stage("critic"), progress("train the critic", config.critic_steps, unit="steps") as task:
            drawn = clips(WorldConfig(sampling.frames, sampling.height), config.seed, config.critic_clips, MIXED)
            drawn = drawn._replace(video=through_autoencoder(self.pipeline, drawn.video))
            recipe = Recipe(config.critic_steps, 2e-3, warmup=50, ema=0.99, seed=config.seed)

            def report(step: int, metrics: dict[str, float]) -> None:
                self.work.log("critic", step=step, **_digits(metrics))
                task.advance(step - task.done, loss=metrics["loss"])

            critic = train_critic(drawn, recipe, workdir=path.parent, report=report)
            save_critic(critic, path)
        return critic

    def critic(self, name: str) -> Critic:
        """By its name."""
        if name == "network":
            return self.network_critic
        return RuleCritic() if name == "rules" else EndpointCritic(self.config.server, self.config.endpoint_frames)

    def judgements(self, kind: str, name: str, names: Sequence[str], videos: np.ndarray) -> list[Judgement]:
        """What a critic says of a set of clips."""
        paths = [f"judgements/{kind}/{name}/{clip}.json" for clip in names]
        todo = [i for i, path in enumerate(paths) if not (self.work.path / path).exists()]
        each = len(names) // len(self.captions)
        size = 1 if name == "endpoint" else JUDGED_AT_ONCE
        if todo:
            critic, title = self.critic(name), f"judge {kind}, {name}"
            with (
                self.work.stage(title, clips=len(todo)),
                progress(title, len(names), done=len(names) - len(todo)) as task,
            ):
                for start in range(0, len(todo), size):
                    part = todo[start : start + size]
                    facts = [self.plans[i // each].facts for i in part]
                    for i, found in zip(
                        part, critic.judge(videos[part], facts, [self.captions[i // each] for i in part]), strict=True
                    ):
                        self.work.write(paths[i], dump_json(found.to_json()))
                        task.advance()
        return [Judgement.from_json(_read(self.work.path / path)) for path in paths]

    def rewards(self, kind: str, name: str, names: Sequence[str], videos: np.ndarray) -> np.ndarray:
        """[P, K], nan where nothing could be told."""
        found = [reward(one, self.config.weights) for one in self.judgements(kind, name, names, videos)]
        return np.reshape(found, (len(self.captions), -1))

    def weighted(self) -> tuple[WeightedClips, dict[str, Any]]:
        """Samples of every prompt with the weights of their rewards, and what to say of them."""
        names, videos = self.clips(SAMPLES, self.pipeline)
        rewards = self.rewards(SAMPLES, self.config.critic, names, videos)
        weights = reward_weights(rewards, self.config.beta)
        sizes = effective_sample_size(weights)
        told = [plan.enhanced_prompt for plan in self.plans for _ in range(self.config.samples)]
        source = SampledClips(names, told, videos, dataclasses.asdict(self.config.sampling()))
        with self.work.stage("encode"):
            store = encode_clips(self.pipeline, source, self.work.path / "latents", self.embed)  # type: ignore[arg-type]
        said = {
            "reward": _mean(rewards),
            "weighted_reward": _mean((weights * np.nan_to_num(rewards)).mean(1)),
            "effective_sample_size": _mean(sizes),
            "smallest_effective_sample_size": float(f"{sizes.min():.6g}"),
            "samples": self.config.samples,
            "not_judged": int(np.isnan(rewards).sum()),
        }
        self.work.log("weights", **said)
        return WeightedClips(store, weights.ravel()), said

    def world(self) -> LatentStore:
        """Clips of the generated world, on which the objective is added to the denoising loss."""
        with self.work.stage("encode"):
            source = WorldClips(self.config.world_clips, self.config.seed)
            return encode_clips(self.pipeline, source, self.work.path / "latents", self.embed, batch=64)

    def tuned(self) -> tuple[Pipeline, dict[str, Any]]:
        """The pipeline after tuning, from its checkpoints if it was tuned before, and what it was tuned on."""
        config = self.config
        said: dict[str, Any] = {}
        losses: dict[str, Any] = {}
        data: Any
        if config.tune == "rwr":
            data, said = self.weighted()
        else:
            data, weight = self.world(), config.objective_weight
            weights = Weights(*(weight * part for part in dataclasses.astuple(config.weights)))
            losses["physics"] = PhysicsObjective(self.network_critic, self.pipeline.decode, weights, config.threshold)
        name = self.pipeline.family.name
        fps = config.sampling().fps if name.startswith(TOLD_FPS) else None
        with progress(f"tune, {config.tune}", config.steps, unit="steps") as task:

            def report(step: int, metrics: dict[str, float]) -> None:
                self.work.log("train", step=step, **_digits(metrics))
                task.advance(step - task.done, loss=metrics["loss"])

            tuned = finetune(
                self.pipeline, data, config.fine_tuning(losses), self.work.path / "tune", empty=self.told[""], fps=fps,
                report=report, checkpoint_every=50,
            )  # fmt: skip
        return tuned, said

    @cached_property
    def known(self) -> Clips:
        """Clips of the world, half of which break a law, behind this checkpoint's VAE."""
        sampling = self.config.sampling()
        drawn = clips(WorldConfig(sampling.frames, sampling.height), 1_000_003 + self.config.seed, VALIDATED_ON, MIXED)
        return drawn._replace(video=through_autoencoder(self.pipeline, drawn.video))

    def validity(self, name: str) -> dict[str, Any]:
        """How well a critic tells clips that break a law from clips that break none: AUC, and AUC for shuffled labels.

        Where an objective asks the critic about predictions of the clean clip, also the AUC of these at every noise level.
        """
        right = self.known.kinds == 0
        shuffled = np.random.default_rng(0).permutation(right)
        scores = self._commonsense(name, self.known.video)
        found: dict[str, Any] = {"auc": statistics.auc(scores, right), "auc_shuffled": statistics.auc(scores, shuffled)}
        if self.config.tune == "objective":
            levels = {f"{sigma:g}": self._commonsense(name, self._predicted(sigma)) for sigma in LEVELS}
            found["auc_at_sigma"] = {sigma: statistics.auc(scores, right) for sigma, scores in levels.items()}
        return jax.tree.map(lambda value: float(f"{value:.4g}"), found)

    def _commonsense(self, name: str, videos: np.ndarray) -> np.ndarray:
        judged = self.critic(name).judge(videos, [()] * len(videos), self.known.captions)
        return np.array([one.commonsense for one in judged])

    def _predicted(self, sigma: float) -> np.ndarray:
        """The known clips as the model predicts them at a noise level, uint8."""
        parts = []
        for start in range(0, VALIDATED_ON, JUDGED_AT_ONCE):
            which = slice(start, start + JUDGED_AT_ONCE)
            latents = self.pipeline.encode(jnp.asarray(self.known.video[which]))
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(self.config.seed), start), latents.shape)
            x = (1 - sigma) * latents + sigma * noise
            velocity = self.pipeline.velocity(x, jnp.float32(sigma), self.embed(self.known.captions[which]))
            parts.append(to_uint8(np.asarray(self.pipeline.decode(x - sigma * velocity))))
        return np.concatenate(parts)


def run_diffphy(config: DiffPhyConfig, pipeline: Pipeline, work: Workdir) -> Pipeline:
    """Everything but writing the weights; result.json holds what came out. Returns the tuned pipeline."""
    run = DiffPhy(config, pipeline, work)
    before, videos = run.clips(BEFORE, pipeline)
    start = {name: run.rewards(BEFORE, name, before, videos) for name in config.critics}
    tuned, said = run.tuned()
    after, videos = run.clips(AFTER, tuned)
    end = {name: run.rewards(AFTER, name, after, videos) for name in config.critics}
    result: dict[str, Any] = {"headline": {}, "prompts": len(run.captions), "tuned_on": said, "critics": {}}
    for name in config.critics:
        role = "tuned on" if name == config.critic else "held out"
        found = {
            "role": role,
            "before": _mean(start[name]),
            "after": _mean(end[name]),
            **_difference(end[name] - start[name]),
        }
        if name != "endpoint":
            found |= run.validity(name)
        result["critics"][name] = found
    if config.held_out != "none":
        result["confirmed"] = bool((result["critics"][config.held_out]["difference"] or 0.0) > 0)
    work.write_result(result)
    return tuned


def summary(result: dict[str, Any]) -> str:
    """Result.json in lines of a terminal."""
    lines = []
    for name, found in result["critics"].items():
        valid = f"; AUC {found['auc']:.3f} on known clips" if "auc" in found else ""
        ends = f" [{found['low']:+.3f}, {found['high']:+.3f}]" if found.get("low") is not None else ""
        numbers = " -> ".join("none" if found[key] is None else f"{found[key]:.3f}" for key in (BEFORE, AFTER))
        change = "" if found["difference"] is None else f", {found['difference']:+.3f}{ends}"
        lines.append(f"reward by {name} ({found['role']}{valid}): {numbers}{change}")
    said = result["tuned_on"]
    if said:
        lines.append(
            f"effective sample size {said['effective_sample_size']:.2f} of {said['samples']} (smallest "
            f"{said['smallest_effective_sample_size']:.2f}); {said['not_judged']} clips could not be judged"
        )
    if not result.get("confirmed", True):
        lines.append("the held-out critic does not confirm the gain: this may be reward hacking")
    return "\n".join(lines)


def _difference(values: np.ndarray) -> dict[str, float | None]:
    """Mean of paired differences [P, K] and its interval over prompts; none where fewer than two can be compared, or all
    are equal."""
    there = np.isfinite(values)
    found: dict[str, float | None] = {"difference": _mean(values), "low": None, "high": None}
    groups = np.broadcast_to(np.arange(len(values))[:, None], values.shape)[there]
    if len(np.unique(groups)) > 1 and np.ptp(values[there]) > 0:
        ends = statistics.cluster_bootstrap(values[there], groups, conditional_on=GIVEN)
        found |= {"low": float(f"{ends.low:.6g}"), "high": float(f"{ends.high:.6g}")}
    return found


def _mean(values: np.ndarray) -> float | None:
    there = values[np.isfinite(values)]
    return float(f"{there.mean():.6g}") if there.size else None


def _digits(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


def _read(path: Path) -> Any:
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); remove it, and it is made again") from None
    if isinstance(values, dict):
        values.pop("prompt", None)
    return values
