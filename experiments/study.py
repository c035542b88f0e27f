"""The study: is the plausibility of a clip linearly decodable from the model's states along the inverted trajectory?

    python -m experiments.study --model=nano --workdir=runs/demo
    python -m experiments.study --model=DIR --dataset=intphys --data_dir=DIR --size=256 --frames=81 --workdir=DIR

    python -m experiments.study --model=DIR --dataset=intphys --data_dir=DIR --workdir=DIR --shard=0/4    # and 1/4, 2/4, 3/4
    python -m experiments.study --model=DIR --structureless=DIR --config=nano --world_seed=100 --workdir=DIR

inverts every clip through the model and its controls, probes what was read, and writes result.json, probe.csv and report.html.
Interrupted, the same command goes on where it stopped. With --shard, several processes invert their own clips into one workdir;
the command without it then does the rest. With --distributed, processes that run at the same time do both: each inverts its
clips, and the first then does the rest.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary

NANO = {
    "frames": 17,
    "size": 32,
    "steps": 20,
    "clips_per_device": 48,
    "fidelity_clips": 2,
    "published_by_category": False,
}
REAL = {
    "frames": 81,
    "size": 256,
    "steps": 100,
    "clips_per_device": 1,
    "fidelity_clips": 4,
    "published_by_category": True,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is studied and how. Where a default depends on the model, the help line says so."""

    model: str = setting("nano", "Checkpoint folder, or nano for the model that ships with the package.")
    config: str | None = setting(
        None,
        "Which defaults the flags below have: nano, for what train_backbone --config=nano made (one zero token then is "
        "the empty prompt), or real. Default: nano for --model=nano, else real.",
    )
    dataset: str = setting(
        "world",
        "world (generated scenes, written and read as IntPhys), intphys, intphys2, inflevel_lab, inflevel_sim, grasp, "
        "phyworld (numbers instead of labels) or labelled (a folder of clips with a csv).",
    )
    data_dir: Path | None = setting(None, "Folder of the data set; generated scenes go to WORKDIR/world by default.")
    split: str | None = setting(None, "Split of the data set; default: dev of intphys, Main of intphys2.")
    subset: bool = setting(False, "Accept a part of a published data set; else its published counts are held to.")
    labels: Path | None = setting(
        None, "Csv of --dataset=labelled (clip, possible, group, category); default: labels.csv in --data_dir."
    )
    leaking_prompt: bool = setting(
        False, "phyworld: tell every clip's numbers in its prompt, as the published study did; the report says so."
    )
    structureless: Path | None = setting(None, "Checkpoint folder of a structure-less control model.")
    frames: int | None = setting(None, "Frames per clip, 4k+1 for Wan; default 17 for nano, 81 else.")
    size: int | None = setting(None, "Short side and centre crop in pixels; default 32 for nano, 256 else.")
    sampling: str = setting("linspace", "linspace: frames spread over the whole clip; stride: every n-th frame.")
    stride: int = setting(1, "n of --sampling=stride.")
    steps: int | None = setting(None, "Steps of the inversion; default 20 for nano, 100 else.")
    solver: str = setting(
        "ab2",
        "euler (the paper's), ddim_label (its released code's), heun, midpoint, fireflow, ab2, fixed_point, unipc or "
        "dpmpp_2m. ab2 ends closer to the exact flow than euler does for the same evaluations (experiments.fidelity).",
    )
    taps: tuple[str, ...] = setting(
        ("block_out.mean",),
        "What is read, site.pooling, comma-separated: block_out, self_attention_out, cross_attention_out or mlp_out with "
        "mean, frame_mean, grid, moments or semantic_moments; and self_attention_map.frame_map. Every site is a row of its "
        "own; poolings of a site are chosen among inside the folds.",
    )
    capture_sigmas: tuple[float, ...] | None = setting(
        None, "Noise levels to read at, 0 (the clean latent) among them; default: 0, 0.1, ... 0.9, or next to them."
    )
    capture_at: tuple[str, ...] | None = setting(
        None, "Instead, steps of the model's own grid, 0 among them; or published: 0, 10, ... 90, 99 of 100."
    )
    capture_log_snr: tuple[float, ...] | None = setting(
        None, "Instead, log signal-to-noise ratios 2 log((1 - sigma) / sigma); the clean latent is read as well."
    )
    prompt: str = setting("", "Prompt; needs the folder's text encoder.")
    text_embeddings: str | None = setting(None, "FILE.npy with embeddings [N, text_dim], or zeros; replaces --prompt.")
    clips_per_device: int | None = setting(None, "Clips at once on a device; default 48 for nano, 1 else.")
    dtype: str | None = setting(None, "float32 or bfloat16; default: bfloat16 on accelerators, float32 on a CPU.")
    mesh: str = setting(
        "auto", "Devices as data=4,fsdp=8,seq=2, or auto: all along data. Weights are split over fsdp, tokens over seq."
    )
    stream: bool = setting(False, "Write captures while the program runs.")
    controls: tuple[str, ...] = setting(
        ("untrained", "noised"),
        "Controls and baselines beside the model, or all: untrained, noised, shuffled_frames and reversed read every clip "
        "once more; gaussian, projections, moments, frame_bag, flow and difference cost little.",
    )
    prompt_ablation: str | None = setting(
        None, "Invert once more with another prompt: the prompt, FILE.npy with embeddings, or zeros."
    )
    encoders: tuple[Path, ...] = setting((), "Folders of video encoders to set beside the model, comma-separated.")
    fidelity_clips: int | None = setting(
        None, "Clips whose round trip and self-convergence are measured; default 2 for nano, 4 else."
    )
    error_steps: int | None = setting(
        None,
        "Steps of a second, coarser inversion whose end gives an error per clip; 0: none. Default --steps / 4, 10 at most.",
    )
    scenes: int = setting(60, "Generated scenes in each of the three categories; the least, with --time_budget.")
    time_budget: float = setting(
        0.0,
        "Seconds that the study may take: as many scenes as fit, 160 at most, chosen once per workdir. 0: --scenes.",
    )
    seed: int = setting(0, "Seed of folds, permutations, bootstraps, noise and the untrained weights.")
    world_seed: int = setting(0, "Seed of the generated scenes.")
    outer: int = setting(5, "Outer folds.")
    inner: int = setting(4, "Inner folds.")
    repeats: int = setting(1, "Times that the outer folds are redrawn.")
    protocol: str = setting(
        "both",
        "both; published: the paper's probes and its choice on the reported fold; or corrected: nested grouped folds.",
    )
    capacity: bool = setting(True, "Also measure what the states' probes could do with any labels.")
    published_seeds: int = setting(5, "Splits of the published protocol; 0: none.")
    published_batch: int = setting(32, "Its batches: 32 as in the released code, 4 as in the paper's first version.")
    published_test: float = setting(0.4, "Share of scenes that it reports: 0.4 as in the paper, 0.2 as in the code.")
    published_by_category: bool | None = setting(
        None, "Also fit its probes to each category by itself, as the paper does; default: not for nano, else yes."
    )
    skip_bad_clips: bool = setting(False, "Leave out scenes with a clip that cannot be read; count and list them.")
    shard: str = setting(
        "",
        "k/n: only invert, every n-th clip from the k-th on, k from 0; or auto: this process of jax.distributed. n processes "
        "share a study so, on one machine or many that see the same folders; the command without it then does the rest.",
    )


def run(config: Config, workdir: Path) -> None:
    """Fill in the model's defaults and run."""
    from jaxdiff.data.video import parse_shard
    from jaxdiff.mesh import working_on
    from jaxdiff.processes import divide
    from jaxdiff.study.config import StudyConfig
    from jaxdiff.study.levels import LEVELS, captures, nano_levels
    from jaxdiff.study.study import run_shard, run_study

    values = dataclasses.asdict(config)
    values["which"], shard = values.pop("protocol"), values.pop("shard")
    nano = config.config == "nano" or (config.config is None and config.model == "nano")
    values["config"] = config.config or ("nano" if nano else "real")
    for name, default in (NANO if nano else REAL).items():
        if values[name] is None:
            values[name] = default
    if values["error_steps"] is None:
        values["error_steps"] = min(10, values["steps"] // 4)
    values["capture_sigmas"], values["capture_at"] = captures(
        values["steps"], values["capture_sigmas"], values["capture_at"], values.pop("capture_log_snr"),
        nano_levels(values["steps"]) if nano else LEVELS,
    )  # fmt: skip
    with working_on(values.pop("mesh")):
        settings = StudyConfig(**values)
        if (own := parse_shard(shard) if shard else None) is not None:
            run_shard(settings, workdir, own)
        else:
            divide(lambda part: run_shard(settings, workdir, part), lambda: run_study(settings, workdir))


if __name__ == "__main__":
    run_binary(run, Config, distributed=True)
