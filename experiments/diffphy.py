"""Plan the physics of prompts, sample, let a critic judge, and tune the model on the judgements (DiffPhy, arXiv 2505.21653).

    python -m experiments.diffphy --model=nano --prompts=world --limit=36 --workdir=runs/diffphy
    python -m experiments.diffphy --model=nano --prompts=world --critic=network --tune=objective --workdir=runs/objective
    python -m experiments.diffphy --model=Wan2.1-T2V-1.3B-Diffusers --config=wan2.1-t2v-1.3b --prompts=prompts.txt \\
        --planner=endpoint --critic=endpoint --endpoint=http://localhost:8000/v1 --endpoint_model=Qwen/Qwen2.5-VL-7B-Instruct \\
        --lora_rank=64 --workdir=runs/wan

--tune=rwr is reward-weighted regression: K samples of each prompt, weighted by softmax(reward / beta), are trained on.
--tune=objective adds the paper's three terms, with weights of ours, to the denoising loss on clips of the generated world.
The reward of new samples is compared before and after, by the critic that was tuned on and by one that was held out. Writes
plans/, clips/, judgements/, result.json and the tuned weights (pipeline/ or lora/). Interrupted, the same command goes on:
nothing that was planned, generated or judged is lost. docs/diffphy.md has the start lines of servers.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Literal

from experiments._flags import setting
from experiments._main import run_binary


@dataclasses.dataclass(frozen=True)
class Config:
    """What is tuned, on whose judgement, and how."""

    model: str = setting(help="Checkpoint folder, or nano for the model that ships with the package.")
    prompts: str = setting(help="File of prompts, as experiments.generate reads them, or world.")
    config: str | None = setting(
        None,
        "Published sampling settings: nano (default of --model=nano), cogvideox-2b, cogvideox-5b or wan2.1-t2v-1.3b.",
    )
    limit: int | None = setting(None, "Only the first so many prompts.")
    samples: int = setting(8, "Of rwr: samples of each prompt that are judged and trained on.")
    scored: int = setting(2, "New samples of each prompt, before and after, by which the tuning is judged.")
    planner: Literal["rules", "endpoint"] = setting("rules", "rules: for prompts of the generated world.")
    critic: Literal["rules", "network", "endpoint"] = setting(
        "rules", "Who judges: rules on tracks or a trained network, both for the generated world, or a language model."
    )
    held_out: Literal["auto", "rules", "network", "endpoint", "none"] = setting(
        "auto",
        "A critic that nothing is tuned on, against reward hacking; auto: with --prompts=world network beside rules and rules "
        "beside others, else none.",
    )
    tune: Literal["rwr", "objective"] = setting("rwr", "Reward-weighted regression, or the paper's objective.")
    beta: float = setting(
        0.1, "Of rwr: temperature of the weights, in units of the reward (0 to 1); inf: plain fine-tuning."
    )
    phenomena: float = setting(1.0, "Weight of the facts of the plan in reward and objective. All weights are ours.")
    commonsense: float = setting(1.0, "Weight of the physical commonsense.")
    semantic: float = setting(1.0, "Weight of the semantic consistency.")
    objective_weight: float = setting(0.1, "Of objective: factor of the three terms beside the denoising loss.")
    threshold: float = setting(0.4, "Of objective: noise level sigma below which the critic is asked.")
    steps: int = setting(200, "Optimiser steps.")
    batch: int = setting(16, "Clips a step.")
    learning_rate: float = setting(1e-4, "Of AdamW, after the warm-up.")
    lora_rank: int = setting(0, "Train a LoRA of this rank; 0: all weights.")
    prompt_dropout: float = setting(0.1, "Share of clips that are told the empty prompt.")
    sampling_steps: int | None = setting(None, "Steps of the solver.")
    guidance_scale: float | None = setting(None, "Of the classifier-free guidance; 1 turns it off.")
    world_clips: int = setting(2048, "Of objective: generated clips to train on.")
    critic_file: Path | None = setting(None, "A critic.npz of an earlier run, instead of training one.")
    critic_clips: int = setting(8192, "Generated clips, possible and impossible, to train the network critic on.")
    critic_steps: int = setting(3000, "Its optimiser steps.")
    endpoint: str = setting("", "Base URL of an OpenAI-compatible server, such as http://localhost:8000/v1.")
    endpoint_model: str = setting("", "The name that the server gives the model.")
    endpoint_key: str = setting("OPENAI_API_KEY", "Environment variable that holds the key; local servers need none.")
    endpoint_timeout: float = setting(120.0, "Seconds for one request.")
    endpoint_frames: int = setting(8, "Frames of a clip that the critic is shown.")
    seed: int = setting(0, "Of noise, training and generated clips.")


def run(config: Config, workdir: Path) -> None:
    """Check, plan, sample, judge, tune, compare, write."""
    from jaxdiff.pipeline import load, outline
    from jaxdiff.study.diffphy import run_diffphy, summary
    from jaxdiff.study.diffphy_config import DiffPhyConfig
    from jaxdiff.study.models import ASSETS
    from jaxdiff.workdir import Workdir
    from ports.lora_writer import save_lora
    from ports.writer import save_pipeline

    given = DiffPhyConfig(**dataclasses.asdict(config))
    folder = ASSETS / "nano" if config.model == "nano" else Path(config.model)
    with Workdir(workdir, _recorded(given)) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        given.check(outline(folder))
        with work.stage("load"):
            pipeline = load(folder)
        tuned = run_diffphy(given, pipeline, work)
        lora = given.fine_tuning({}).lora
        if lora is not None:
            out = save_lora(tuned.transformer, workdir / "lora", lora)
        else:
            out = save_pipeline(tuned, workdir / "pipeline")
        work.finish(("result.json",))
    print(summary(json.loads((workdir / "result.json").read_bytes())) + f"\n-> {out}")


def _recorded(config) -> dict:
    """What decides the results, in what json can hold; where the server stands does not."""
    values = dataclasses.asdict(config) | {"beta": str(config.beta)}
    if config.critic_file is not None:
        values["critic_file"] = hashlib.sha256(config.critic_file.read_bytes()).hexdigest()
    values["prompts"] = list(config.captions())
    return {key: value for key, value in values.items() if key not in ("endpoint", "endpoint_key", "endpoint_timeout")}


if __name__ == "__main__":
    run_binary(run, Config)
