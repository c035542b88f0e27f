"""Score a benchmark's clips and write what its leaderboard or evaluator takes.

    python -m experiments.submit --model=DIR --dataset=intphys --data_dir=DIR --workdir=DIR        answer.zip, test split
    python -m experiments.submit --model=DIR --dataset=intphys2 --data_dir=DIR --workdir=DIR       answers.jsonl, HeldOut
    python -m experiments.submit --model=DIR --dataset=inflevel_lab --data_dir=DIR --workdir=DIR   <category>.tsv

Without --store, a clip's score is its surprise: the denoising loss on noised latents, one noise for all clips, averaged
over --levels. Nothing is trained. With --store=STUDY/store/trained, it is the margin of a linear probe that was fitted on
a finished study of the labelled split. Interrupted, the same command goes on where it stopped.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary
from experiments.study import NANO, REAL

OWN = ("frames", "size", "clips_per_device")  # flags whose default depends on the model, as in the study


@dataclasses.dataclass(frozen=True)
class Config:
    """What is scored and how."""

    dataset: str = setting(help="intphys, intphys2, inflevel_lab or inflevel_sim.")
    data_dir: Path = setting(help="Folder of the data set.")
    model: str = setting("nano", "Checkpoint folder, or nano for the model that ships with the package.")
    config: str | None = setting(
        None, "nano or real, as in experiments.study. Default: nano for --model=nano, else real."
    )
    split: str | None = setting(None, "Default: test of intphys, HeldOut of intphys2.")
    subset: bool = setting(False, "Accept a part of the published split; what is written then is no valid submission.")
    levels: tuple[float, ...] = setting((0.3, 0.5, 0.7, 0.9), "Noise levels whose denoising losses are averaged.")
    threshold: float | None = setting(
        None,
        "IntPhys 2 asks for yes or no: a clip is possible below this surprise (or above this margin, with --store). "
        "Default: the best one on the Main split, which must lie in --data_dir (with --store: 0).",
    )
    store: Path | None = setting(
        None,
        "Store of a finished study of the labelled split; a probe fitted on it takes the place of the surprise. "
        "Give that study's --model and --prompt.",
    )
    frames: int | None = setting(None, "Frames per clip; default 17 for nano, 81 else. With --store: the store's.")
    size: int | None = setting(None, "Short side and centre crop in pixels; default 32 for nano, 256 else.")
    sampling: str = setting("linspace", "linspace: frames spread over the whole clip; stride: every n-th frame.")
    stride: int = setting(1, "n of --sampling=stride.")
    prompt: str = setting("", "Prompt; needs the folder's text encoder.")
    text_embeddings: str | None = setting(None, "FILE.npy with embeddings [N, text_dim], or zeros; replaces --prompt.")
    clips_per_device: int | None = setting(None, "Clips at once on a device; default 48 for nano, 1 else.")
    dtype: str | None = setting(None, "float32 or bfloat16; default: bfloat16 on accelerators, float32 on a CPU.")
    seed: int = setting(0, "Seed of the noise, and of the folds in which the probe is chosen.")


def run(config: Config, workdir: Path) -> None:
    """Fill in the model's defaults and run."""
    from jaxdiff.study.submission import SubmitConfig, run_submission

    values = dataclasses.asdict(config)
    nano = config.config == "nano" or (config.config is None and config.model == "nano")
    values["config"] = config.config or ("nano" if nano else "real")
    for name in OWN:
        if values[name] is None:
            values[name] = (NANO if nano else REAL)[name]
    run_submission(SubmitConfig(**values), workdir)


if __name__ == "__main__":
    run_binary(run, Config)
