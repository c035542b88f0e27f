"""Show where clips drift and where a motion field expects motion, as heatmaps over their frames.

    python -m experiments.motion_heatmaps --model=nano --videos=world --clips=6 --seed=7 \\
        --motion_field=runs/motion_field/motion_field --workdir=runs/heatmaps

writes for every clip a png (maps over time) and an mp4 (video, drift and field side by side), and grid.png, all clips at the
pair of latent frames that drifts most.
"""

import dataclasses
from pathlib import Path

from experiments._flags import setting
from experiments._main import run_binary
from jaxdiff.errors import ConfigError
from jaxdiff.progress import progress
from jaxdiff.workdir import Workdir, write_atomic


@dataclasses.dataclass(frozen=True)
class Config:
    """What is shown."""

    model: str = setting(help="Checkpoint folder in the diffusers layout, or nano.")
    videos: str = setting(help="Folder of videos, or world: generated clips.")
    motion_field: Path = setting(help="Folder that experiments.train_motion_field wrote, motion_field/.")
    captions: Path | None = setting(None, "As for experiments.encode_latents; without, the field is told no prompt.")
    frames: int | None = setting(None, "Frames per clip. Default: 49, of generated clips 17.")
    size: tuple[int, ...] | None = setting(None, "HEIGHT,WIDTH, or one number. Default: as they are.")
    fps: float | None = setting(None, "Frames per second, from the clip's start; default: evenly over the whole clip.")
    clips: int = setting(8, "Clips to show, the first ones of the folder.")
    seed: int = setting(1, "Seed of generated clips.")

    def __post_init__(self):
        if self.clips < 1:
            raise ConfigError(f"--clips={self.clips} must be at least 1")


def run(config: Config, workdir: Path) -> None:
    """Encode, compute, draw."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments._training import opened_encoder
    from jaxdiff.data.video import write_video
    from jaxdiff.lamo import load_motion_field
    from jaxdiff.lamo.heatmaps import motion_maps, video_frames
    from jaxdiff.report.motion import MotionView, at_strongest, film, over_time
    from jaxdiff.report.style import png
    from jaxdiff.train.latents import embedder, find_clips, latent_shape

    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        network = load_motion_field(config.motion_field)
        source = find_clips(
            config.videos, config.captions, frames=config.frames, size=config.size, fps=config.fps, count=config.clips,
            seed=config.seed,
        )  # fmt: skip
        pipeline = opened_encoder(config.model, source.shape)
        made = latent_shape(pipeline, source.shape)
        fitting = made[-1], pipeline.transformer.config.text_dim
        if (network.config.channels, network.config.text_dim) != fitting:
            raise ConfigError(
                f"{config.motion_field} is for latents of {network.config.channels} channels and text of width "
                f"{network.config.text_dim}; {config.model} makes {fitting[0]} and {fitting[1]}"
            )
        embed = embedder(pipeline, world=config.model == "nano")
        shown = range(min(config.clips, len(source.names)))
        views = []
        with progress("draw", len(shown)) as task:
            for i, video in source.read(shown, 4):
                told = embed([source.captions[i]]) if source.captions[i] else None
                given = () if told is None else (told.text, told.text_mask)
                maps = jax.device_get(motion_maps(network, pipeline.encode(jnp.asarray(video[None])), *given))
                name = source.names[i].replace("/", "-")
                view = MotionView(
                    name, source.captions[i] or "(no prompt)", np.asarray(video), video_frames(len(video), made[0]),
                    maps.drift[0], maps.field[0], maps.drift_size[0], int(maps.strongest[0]), network.config.lag,
                )  # fmt: skip
                write_atomic(workdir / f"{name}.png", png(over_time(view)))
                write_video(workdir / f"{name}.mp4", film(view), fps=config.fps or 8.0)
                views.append(view)
                task.advance()
        write_atomic(workdir / "grid.png", png(at_strongest(views)))
        rows = [{"name": v.name, "caption": v.caption, "strongest": v.strongest, "drift": v.drift_size} for v in views]
        work.write_result({"headline": {}, "clips": rows})
        work.finish(("result.json", "grid.png"))
    print(f"{len(views)} clips -> {workdir / 'grid.png'}")


if __name__ == "__main__":
    run_binary(run, Config)
