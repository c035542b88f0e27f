"""Fine-tune a text-to-video checkpoint on encoded clips: a LoRA or all weights, with LaMo's drift loss or without.

    python -m experiments.finetune --config=nano --model=nano --latents=world --loss=drift --workdir=runs/drift
    python -m experiments.finetune --config=cogvideox-5b --model=CogVideoX-5b --latents=runs/latents --loss=drift \\
        --mesh=data=1,fsdp=8 --workdir=runs/lamo

writes `lora/pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` and `jaxdiff.load(folder, lora=...)` read,
or with `--tune=full` the folder `pipeline/`, which both open. `--latents` is what `experiments.encode_latents` wrote, or
`world`: the generated clips that the nano model was trained on. Interrupted, the same command goes on from its newest
checkpoint to the same bits. All that does not fit is said before the weights are read. With --distributed the mesh is of the
devices of all processes.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError, MissingDataError

if TYPE_CHECKING:
    from jaxdiff.conditioning import Conditioning
    from jaxdiff.pipeline import Pipeline
    from jaxdiff.store import LatentHeader, LatentStore
    from jaxdiff.train.finetune import FineTuning

WORLD = "world"

# What a named configuration says where a flag does not. LaMo's own recipe is not public; that of CogVideoX-5B is VideoREPA's
# (arXiv 2505.23656), on which LaMo builds: rank 128, alpha 64, 1e-4, 32 clips a step, an epoch of 32,000 clips. It trains all
# weights of 2B; the learning rate there, Wan's recipe and nano's are ours.
NAMED: dict[str, dict[str, Any]] = {
    "nano": {
        "tune": "full", "rank": 8, "alpha": 8.0, "learning_rate": 5e-4, "warmup": 30, "steps": 600, "batch": 32,
        "ema": 0.998, "prompt_dropout": 0.5, "logit_mean": 0.5,
    },
    "cogvideox-2b": {
        "tune": "full", "rank": 128, "alpha": 64.0, "learning_rate": 1e-5, "warmup": 100, "steps": 1000, "batch": 32,
        "ema": 0.999, "prompt_dropout": 0.1, "logit_mean": 0.0,
    },
    "cogvideox-5b": {
        "tune": "lora", "rank": 128, "alpha": 64.0, "learning_rate": 1e-4, "warmup": 100, "steps": 1000, "batch": 32,
        "ema": 0.999, "prompt_dropout": 0.1, "logit_mean": 0.0,
    },
    "wan2.1-t2v-1.3b": {
        "tune": "lora", "rank": 128, "alpha": 64.0, "learning_rate": 1e-4, "warmup": 100, "steps": 1000, "batch": 32,
        "ema": 0.999, "prompt_dropout": 0.1, "logit_mean": 0.0,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and how. Flags that are not given are those of --config."""

    model: str = setting(help="Checkpoint folder in the diffusers layout, or nano.")
    latents: str = setting(help="Latent store, as experiments.encode_latents writes it, or world: generated clips.")
    config: Literal["nano", "cogvideox-2b", "cogvideox-5b", "wan2.1-t2v-1.3b"] = setting("nano", "Named recipe.")
    loss: Literal["denoise", "drift"] = setting("denoise", "drift: LaMo's drift loss beside the denoising loss.")
    tune: Literal["lora", "full"] | None = setting(None, "A LoRA, or all weights.")
    rank: int | None = setting(None, "Rank of the LoRA.")
    alpha: float | None = setting(None, "The LoRA is scaled by alpha / rank.")
    targets: tuple[str, ...] = setting(
        ("to_q", "to_k", "to_v", "to_out.0"), "Ends of the adapted layers' names, as diffusers has them."
    )
    learning_rate: float | None = setting(None, "Of AdamW, after the warm-up.")
    warmup: int | None = setting(None, "Steps of the linear warm-up.")
    steps: int | None = setting(None, "Optimiser steps.")
    batch: int | None = setting(None, "Clips a step, over all devices.")
    ema: float | None = setting(None, "Decay of the average of the weights, which is what is written.")
    prompt_dropout: float | None = setting(None, "Share of clips that are told the empty prompt.")
    logit_mean: float | None = setting(None, "Of flow models: centre of the noise levels, sigmoid(mean + normal).")
    remat: Literal["none", "block", "all_but_attention"] = setting(
        "all_but_attention", "What the backward pass recomputes instead of keeping it."
    )
    drift_weight: float = setting(0.4, "Weight of the drift loss.")
    drift_lag: int = setting(2, "Latent frames between the two that are compared (the paper's ablation: 1).")
    drift_floor: float = setting(1e-6, "Added to the true drift's size, by which the loss is divided.")
    drift_per_position: bool = setting(False, "The paper's ablation: compare every position instead of the mean.")
    drift_raw: bool = setting(False, "The paper's ablation: do not divide by the true drift's size.")
    drift_skip_first: bool = setting(False, "Leave out the pair of the first latent frame, which stands for one frame.")
    clips: int = setting(16384, "Generated clips of --latents=world, encoded once before the first step.")
    seed: int = setting(0, "Seed of the LoRA's start, the order of the clips, noise, and generated clips.")
    mesh: str = setting(
        "auto", "Devices as data=2,fsdp=4,seq=2, or auto: all along data. Weights are split over fsdp, tokens over seq."
    )
    dtype: str | None = setting(None, "float32 or bfloat16; default: bfloat16 on accelerators, float32 on a CPU.")
    checkpoint_every: int = setting(250, "Steps from one checkpoint to the next.")


def run(config: Config, workdir: Path) -> None:
    """Check, load, train, write."""
    from experiments._training import reporter
    from jaxdiff.mesh import parse_mesh
    from jaxdiff.models.lora import adapters_of
    from jaxdiff.pipeline import load
    from jaxdiff.processes import is_first, meet
    from jaxdiff.progress import progress
    from jaxdiff.train.finetune import finetune
    from jaxdiff.workdir import Workdir
    from ports.lora_writer import save_lora
    from ports.writer import save_pipeline

    config = named(config)
    training, mesh = plan(config), parse_mesh(config.mesh)
    folder = folder_of(config.model)
    store = None if config.latents == WORLD else opened(config.latents)
    model = check(folder, config, training, store)
    given = {**dataclasses.asdict(config), "mesh": None, "transformer": dataclasses.asdict(model.transformer.config)}
    if store is not None:
        given["header"] = dataclasses.asdict(store.header)
    with Workdir(workdir, given, primary=is_first()) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("load"):
            pipeline = load(folder, dtype=config.dtype, mesh=mesh)
        data = encoded_world(pipeline, config, workdir / "latents", mesh) if store is None else store
        told = empty_prompt(pipeline, config)
        with progress(f"fine-tune, {config.loss}", training.recipe.steps, unit="steps") as task:
            report = reporter(work, task)
            tuned = finetune(
                pipeline, data, training, workdir, empty=told, fps=fps_of(pipeline, data), mesh=mesh, report=report,
                checkpoint_every=config.checkpoint_every,
            )  # fmt: skip
        trained: Any = tuned.transformer.params if training.lora is None else adapters_of(tuned.transformer)
        out = workdir / ("pipeline" if training.lora is None else "lora")
        if is_first():
            if training.lora is None:
                save_pipeline(tuned, out)
            else:
                save_lora(tuned.transformer, out, training.lora)
        work.write_result({"headline": {}, "clips": len(data), "steps": config.steps, "trained": _count(trained)})
        work.finish(("result.json",))
    meet("written")
    if is_first():
        print(f"{_count(trained):,} parameters trained for {config.steps} steps on {len(data)} clips -> {out}")


def named(config: Config) -> Config:
    """The configuration with the named recipe in the place of flags that were not given."""
    recipe = NAMED[config.config]
    return dataclasses.replace(config, **{key: value for key, value in recipe.items() if getattr(config, key) is None})


def plan(config: Config) -> "FineTuning":
    """What `jaxdiff.train.finetune` is told."""
    from jaxdiff.lamo import DriftLoss
    from jaxdiff.models.lora import LoRA
    from jaxdiff.train import FineTuning, Recipe

    drift = DriftLoss(
        lag=config.drift_lag, weight=config.drift_weight, floor=config.drift_floor,
        per_position=config.drift_per_position, normalised=not config.drift_raw, skip_first=config.drift_skip_first,
    )  # fmt: skip
    values: Any = config  # `named` has filled what may be None
    return FineTuning(
        Recipe(
            steps=values.steps,
            learning_rate=values.learning_rate,
            warmup=values.warmup,
            ema=values.ema,
            seed=config.seed,
        ),
        batch=values.batch,
        lora=LoRA(values.rank, values.alpha, config.targets) if config.tune == "lora" else None,
        losses={"drift": drift} if config.loss == "drift" else {},
        prompt_dropout=values.prompt_dropout,
        logit_mean=values.logit_mean,
        remat=config.remat,
    )


def folder_of(model: str) -> Path:
    """Folder of --model: that of the nano model, or what it says."""
    from jaxdiff.study.models import ASSETS

    return ASSETS / model if model == "nano" else Path(model)


def opened(path: str) -> "LatentStore":
    """The latent store of --latents."""
    from jaxdiff.store import LatentStore

    return LatentStore.open(path)


def check(folder: Path, config: Config, training: "FineTuning", store: "LatentStore | None") -> "Pipeline":
    """All that can be wrong without a weight of the transformer; returns the pipeline with shapes for weights.

    Raises
    ------
    ConfigError : the latents are of another model, or the checkpoint or the targets do not do.
    MissingDataError : there is no text encoder for the empty prompt.
    """
    from jaxdiff.pipeline import outline
    from jaxdiff.train.finetune import check_clips, check_pipeline
    from ports.lora_writer import find_targets

    model = outline(folder)
    check_pipeline(model)
    if training.lora is not None:
        find_targets(model.transformer, training.lora.targets)
    if training.prompt_dropout and model.text_encoder is None and config.config != "nano":
        raise MissingDataError(
            f"{folder} has no text encoder, which the empty prompt of --prompt_dropout={training.prompt_dropout} needs: add "
            "text_encoder/ and tokenizer/, or give --prompt_dropout=0"
        )
    if store is not None:
        _same_model(store.path, store.header, folder, model)
        batch = store.read([0])
        check_clips(model, training, batch, fps_of(model, store))
    return model


def _same_model(path: Path, header: "LatentHeader", folder: Path, model: "Pipeline") -> None:
    from jaxdiff.models.network import fingerprint
    from ports.folder import load_network

    if header.family != model.family.name:
        raise ConfigError(f"{path} holds latents of the family {header.family}, and {folder} is {model.family.name}")
    if (folder / "vae").is_dir() and fingerprint(load_network(folder / "vae")) != header.vae_fingerprint:
        raise ConfigError(
            f"{path} holds latents of another VAE than that of {folder}: encode the clips again, with "
            "experiments.encode_latents --model of this folder"
        )


def fps_of(model: "Pipeline", store: "LatentStore") -> float | None:
    """The clips' frames per second, for the families that are told it."""
    return store.header.fps if model.family.name.startswith(("ltx", "cosmos")) else None


def empty_prompt(pipeline: "Pipeline", config: Config) -> "Conditioning | None":
    """The empty prompt of batch 1: the folder's, or of the generated world, which has a vector for each word."""
    import jax.numpy as jnp

    from jaxdiff.conditioning import Conditioning
    from jaxdiff.data.worlds.prompts import encode_all

    if not config.prompt_dropout:
        return None
    if config.config == "nano" and pipeline.text_encoder is None:
        return Conditioning(text=jnp.asarray(encode_all([""], pipeline.transformer.config.text_dim)))
    return pipeline.condition("")


def encoded_world(pipeline: "Pipeline", config: Config, folder: Path, mesh: Any) -> "LatentStore":
    """The generated clips of --latents=world, encoded into the folder unless they are there."""
    from jaxdiff.train.latents import WorldClips, embedder, encode_clips

    source = WorldClips(config.clips, config.seed)
    return encode_clips(pipeline, source, folder, embedder(pipeline, world=True), batch=64, mesh=mesh)


def _count(params: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    run_binary(run, Config, distributed=True)
