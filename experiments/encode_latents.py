"""Encode a folder of videos and their captions into a latent store, from which LaMo's networks are trained.

    python -m experiments.encode_latents --model=CogVideoX-2b --videos=clips --captions=captions.csv --frames=49 \\
        --size=480,720 --fps=8 --workdir=runs/latents
    python -m experiments.encode_latents --model=nano --videos=world --clips=4096 --workdir=runs/latents

writes `store/` (zarr, see `jaxdiff.store.LatentStore`). `--captions` is a csv with the columns video,caption, or finetrainers'
prompts.txt beside videos.txt. Clips and captions are checked before the model is loaded. Interrupted, the same command goes
on where it stopped. With --distributed each of several processes encodes its share of the clips.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError
from jaxdiff.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Config:
    """What is encoded, and how."""

    model: str = setting(help="Checkpoint folder in the diffusers layout, or nano.")
    videos: str = setting(help="Folder of videos (mp4 files or folders of png frames), or world: generated clips.")
    captions: Path | None = setting(None, "csv with the columns video,caption; or prompts.txt beside videos.txt.")
    frames: int | None = setting(
        None, "Frames per clip; 4k+1 for Wan and CogVideoX. Default: 49, of generated clips 17."
    )
    size: tuple[int, ...] | None = setting(
        None,
        "HEIGHT,WIDTH, or one number: resized to cover it, centre crop. Default: as they are; of generated clips 32.",
    )
    fps: float | None = setting(None, "Frames per second, from the clip's start; default: evenly over the whole clip.")
    clips: int = setting(4096, "Number of generated clips.")
    seed: int = setting(0, "Seed of generated clips; 0 are those that the nano model was trained on.")
    structure: str = setting("plausible", "Of generated clips: plausible, or independent.")
    batch: int = setting(1, "Clips that a device encodes at once.")
    mesh: str = setting(
        "auto", "Devices of a process, as data=4, or auto: all of them. Whatever the axes, each takes clips."
    )
    dtype: str = setting("float32", "float32 or bfloat16, of the numbers on disk; bfloat16 takes half the space.")
    skip_bad_clips: bool = setting(False, "Leave out clips that cannot be read or are too short, and list them.")

    def __post_init__(self):
        if self.captions is None and self.videos != "world":
            raise ConfigError(f"--videos={self.videos} needs --captions=FILE.csv with the columns video,caption")
        if self.batch < 1 or (self.frames is not None and self.frames < 1):
            raise ConfigError(f"--batch={self.batch} and --frames={self.frames} must be at least 1")


def run(config: Config, workdir: Path) -> None:
    """Check, load, encode."""
    from experiments._training import opened_encoder
    from jaxdiff.mesh import working_on
    from jaxdiff.processes import is_first, meet
    from jaxdiff.train.latents import embedder, encode_clips, find_clips

    given = {**dataclasses.asdict(config), "mesh": None}
    with working_on(config.mesh) as mesh, Workdir(workdir, given, primary=is_first()) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        source = find_clips(
            config.videos, config.captions, frames=config.frames, size=config.size, fps=config.fps, count=config.clips,
            seed=config.seed, structure=config.structure, skip_bad_clips=config.skip_bad_clips,
        )  # fmt: skip
        with work.stage("load"):
            pipeline = opened_encoder(config.model, source.shape)
        with work.stage("encode", clips=len(source.names)):
            store = encode_clips(
                pipeline, source, workdir / "store", embedder(pipeline, world=config.model == "nano"),
                batch=config.batch, dtype=config.dtype, mesh=mesh,
            )  # fmt: skip
        header = dataclasses.asdict(store.header)
        work.write_result({"headline": {}, "header": header, "skipped": store.skipped, "gigabytes": store.nbytes / 1e9})
        work.finish(("result.json",))
    meet("written")
    if is_first():
        print(
            f"{len(store)} clips of {store.header.latent_shape} latents, {len(store.skipped)} left out -> {workdir / 'store'}"
        )


if __name__ == "__main__":
    run_binary(run, Config, distributed=True)
