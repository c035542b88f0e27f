"""Train the nano VAE on generated scenes.

    python -m experiments.train_vae --workdir=runs/vae

writes `vae/` (config.json and safetensors, in the diffusers layout), loss curve and held-out PSNR. Interrupted, the same
command goes on from the newest checkpoint, to the same bits.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary
from experiments._training import named, reporter
from jaxdiff.progress import progress
from jaxdiff.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained."""

    config: str = setting("nano", "Named configuration; nano is the only one.")
    seed: int = setting(0, "Seed of initialisation and data.")


def run(config: Config, workdir: Path) -> None:
    """Train, measure, write."""
    from jaxdiff.train.nano import VAETraining, train_vae
    from ports.writer import save_network

    named("config", config.config)
    training = VAETraining(seed=config.seed)
    with Workdir(workdir, training) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with progress("train vae", training.steps, unit="steps") as task:
            network, measured = train_vae(training, workdir, reporter(work, task))
        save_network(network, workdir / "vae")
        work.write_result({"headline": {}, "clips": measured["clips"], "psnr_db": round(measured["psnr"], 3)})
        work.finish(("result.json",))
    print(f"held-out PSNR {measured['psnr']:.2f} dB on {measured['clips']} clips -> {workdir / 'vae'}")


if __name__ == "__main__":
    run_binary(run, Config)
