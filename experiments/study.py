"""The study: is the plausibility of a clip linearly decodable from the model's states along the inverted trajectory?

    python -m experiments.study --model=nano --workdir=runs/demo
    python -m experiments.study --model=DIR --dataset=intphys --data_dir=DIR --size=256 --frames=81 --workdir=DIR

    python -m experiments.study --model=DIR --structureless=DIR --config=nano --world_seed=100 --workdir=DIR

inverts every clip through the model and its controls, probes what was read, and writes result.json, probe.csv and report.html.
Interrupted, the same command goes on where it stopped.
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
    "published_seeds": 3,
}
REAL = {
    "frames": 81,
    "size": 256,
    "steps": 100,
    "clips_per_device": 1,
    "fidelity_clips": 4,
    "published_seeds": 5,
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
    dataset: str = setting("world", "world (generated scenes, written and read as IntPhys) or intphys.")
    data_dir: Path | None = setting(None, "Folder of the data set; generated scenes go to WORKDIR/world by default.")
    structureless: Path | None = setting(None, "Checkpoint folder of a structure-less control model.")
    frames: int | None = setting(None, "Frames per clip, 4k+1 for Wan; default 17 for nano, 81 else.")
    size: int | None = setting(None, "Short side and centre crop in pixels; default 32 for nano, 256 else.")
    sampling: str = setting("linspace", "linspace: frames spread over the whole clip; stride: every n-th frame.")
    stride: int = setting(1, "n of --sampling=stride.")
    steps: int | None = setting(None, "Steps of the inversion; default 20 for nano, 100 else.")
    solver: str = setting("euler", "euler, heun, midpoint, fireflow, ab2, fixed_point, ddim_label, unipc or dpmpp_2m.")
    taps: tuple[str, ...] = setting(("block_out.mean",), "site.reducer names, comma-separated.")
    capture_sigmas: tuple[float, ...] | None = setting(
        None, "Noise levels to read at, 0 (the clean latent) among them; default: 0, 0.1, ... 0.9, or next to them."
    )
    prompt: str = setting("", "Prompt; needs the folder's text encoder.")
    text_embeddings: str | None = setting(None, "FILE.npy with embeddings [N, text_dim], or zeros; replaces --prompt.")
    clips_per_device: int | None = setting(None, "Clips at once on a device; default 48 for nano, 1 else.")
    dtype: str | None = setting(None, "float32 or bfloat16; default: bfloat16 on accelerators, float32 on a CPU.")
    stream: bool = setting(False, "Write captures while the program runs.")
    untrained: bool = setting(True, "Run the untrained control: the same network with random weights, gates open.")
    noised: bool = setting(True, "Run the comparison without inversion, and the surprise by denoising loss.")
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
    published_seeds: int | None = setting(
        None, "Splits of the published protocol, run beside the corrected one; 0: none. Default 3 for nano, 5 else."
    )
    skip_bad_clips: bool = setting(False, "Leave out scenes with a clip that cannot be read; count and list them.")


def run(config: Config, workdir: Path) -> None:
    """Fill in the model's defaults and run."""
    from jaxdiff.study.study import LEVELS, StudyConfig, nano_levels, run_study

    values = dataclasses.asdict(config)
    nano = config.config == "nano" or (config.config is None and config.model == "nano")
    values["config"] = config.config or ("nano" if nano else "real")
    for name, default in (NANO if nano else REAL).items():
        if values[name] is None:
            values[name] = default
    if values["error_steps"] is None:
        values["error_steps"] = min(10, values["steps"] // 4)
    if values["capture_sigmas"] is None:
        values["capture_sigmas"] = nano_levels(values["steps"]) if nano else LEVELS
    run_study(StudyConfig(**values), workdir)


if __name__ == "__main__":
    run_binary(run, Config)
