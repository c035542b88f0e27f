"""`experiments.generate`: the clips of a file of prompts as mp4s, tables for their scorers, and a contact sheet."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.video import read_video, write_video
from jaxdiff.data.worlds.prompts import encode_all
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.flow.guidance import acting, check_solver
from jaxdiff.flow.solvers import as_solver
from jaxdiff.generation.naming import NamedClip, name_clips, tables
from jaxdiff.generation.prompts import read_prompts, world_prompts
from jaxdiff.generation.sampling import PUBLISHED, Embed, Sampling, calibrate, embed_prompts, generate, latents_shape
from jaxdiff.lamo import MotionGuidance, load_motion_field
from jaxdiff.mesh import weights_mesh
from jaxdiff.pipeline import Pipeline, load, outline
from jaxdiff.progress import progress
from jaxdiff.workdir import Workdir, command_line

NANO, WORLD = "nano", "world"
ASSETS = Path(__file__).parents[1] / "assets"
SET = ("frames", "height", "width", "fps", "steps", "guidance_scale", "dynamic", "clips_per_device")  # over --config


@dataclasses.dataclass(frozen=True)
class Generation:
    """See the flags of `experiments.generate`."""

    model: str
    prompts: str
    naming: str = "plain"
    samples: int | None = None
    limit: int | None = None
    upsampled: bool = False
    config: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    steps: int | None = None
    solver: str = "scheduler"
    guidance_scale: float | None = None
    dynamic: bool | None = None
    negative: str = ""
    guidance: str = "none"
    motion_field: Path | None = None
    guidance_scale_motion: float | None = None
    guidance_change: float | None = None
    guidance_space: Literal["noise", "velocity"] = "noise"
    guidance_share: float = 0.8
    lora: Path | None = None
    lora_scale: float = 1.0
    seed: int = 0
    clips_per_device: int | None = None
    dtype: str | None = None

    def __post_init__(self):
        name = NANO if self.config is None and self.model == NANO else self.config
        if name not in PUBLISHED:
            raise ConfigError(
                f"--config={name}: say whose sampling settings to start from, one of {', '.join(PUBLISHED)}"
            )
        object.__setattr__(self, "config", name)
        if self.solver != "scheduler":
            as_solver(self.solver)
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit={self.limit}: at least one prompt is needed")
        self._check_guidance()

    def _check_guidance(self) -> None:
        motion = ("motion_field", "guidance_scale_motion", "guidance_change")
        if self.guidance not in ("none", "motion"):
            raise ConfigError(f"--guidance={self.guidance} is unknown; choose none or motion")
        if self.guidance == "none":
            useless = [name for name in motion if getattr(self, name) is not None]
            if useless:
                raise ConfigError(f"--{useless[0]} does nothing without --guidance=motion")
        elif self.motion_field is None:
            raise ConfigError("--guidance=motion needs --motion_field=DIR, the folder of a trained motion field")
        elif (self.guidance_scale_motion is None) == (self.guidance_change is None):
            raise ConfigError(
                "--guidance=motion needs its strength, one of --guidance_change=C, the relative change of the predicted clean "
                "latent a guided step (0.005 for half a per cent), and --guidance_scale_motion=L"
            )
        elif self.guidance_change is not None and not self.guidance_change > 0:
            raise ConfigError(f"--guidance_change={self.guidance_change} must be positive")

    @property
    def folder(self) -> Path:
        """The checkpoint."""
        return ASSETS / NANO if self.model == NANO else Path(self.model)

    def sampling(self) -> Sampling:
        """The published settings with what the flags say instead."""
        said = {name: getattr(self, name) for name in SET if getattr(self, name) is not None}
        assert self.config is not None  # __post_init__
        return dataclasses.replace(
            PUBLISHED[self.config], **said, solver=self.solver, negative=self.negative, seed=self.seed
        )

    def named_clips(self) -> tuple[NamedClip, ...]:
        """Every clip that is asked for."""
        world = self.prompts == WORLD
        prompts = world_prompts(self.seed) if world else read_prompts(self.prompts, upsampled=self.upsampled)
        return name_clips(prompts[: self.limit], self.naming, self.samples)

    def guide(self) -> MotionGuidance | None:
        """The motion guidance, of scale 1 where it is still to be calibrated."""
        if self.motion_field is None:
            return None
        scale = 1.0 if self.guidance_scale_motion is None else self.guidance_scale_motion
        return MotionGuidance(load_motion_field(self.motion_field), scale, self.guidance_space, self.guidance_share)

    def embedder(self, pipeline: Pipeline) -> Embed:
        """What turns prompts into conditioning; a nano model has no text encoder, but a vector for each word of its world.

        Raises
        ------
        MissingDataError : the folder has no text encoder.
        """
        if pipeline.text_encoder is None and self.config == NANO:
            width = pipeline.transformer.config.text_dim
            return lambda texts: Conditioning(text=jnp.asarray(encode_all(texts, width)))
        if pipeline.text_encoder is None:
            raise MissingDataError(
                f"{self.folder} has no text encoder (text_encoder/ and tokenizer/), which prompts need"
            )
        return lambda texts: pipeline.condition(prompt=list(texts))


def run_generation(config: Generation, workdir: Path) -> None:
    """Make every clip that is not there yet, then the tables, result.json and the contact sheet."""
    clips, sampling, guide = config.named_clips(), config.sampling(), acting(config.guide())
    solver = _check(config, clips, sampling, guide)
    with Workdir(workdir, {**dataclasses.asdict(config), "inputs": _digests(config, clips)}) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        videos = workdir / "videos"
        todo = [i for i, clip in enumerate(clips) if not (videos / clip.file).exists()]
        if todo:
            _make(config, clips, sampling, guide, todo, work)
        if guide is not None and config.guidance_change is not None:
            guide = dataclasses.replace(guide, scale=_scale(work))
        for name, text in tables(clips, config.naming, videos).items():
            work.write(name, text.encode())
        steps = [json.loads((workdir / _steps_file(i)).read_text()) for i in range(len(clips))] if guide else []
        work.write_result(_result(clips, sampling, guide, steps))
        with work.stage("contact sheet"):
            _write_sheet(config, clips, sampling, guide, solver, steps, work)
        work.finish(("result.json",))
        print(f"{len(clips)} clips of {len({c.prompt for c in clips})} prompts -> {workdir / 'contact.html'}")


def _check(config: Generation, clips: Sequence[NamedClip], sampling: Sampling, guide: MotionGuidance | None) -> str:
    """Everything that can be wrong with the model is looked for before its weights are read; returns its solver's name."""
    known = outline(config.folder, lora=config.lora)
    embed = config.embedder(known)
    if known.text_encoder is None:  # the world's words
        embed([*(clip.prompt.told for clip in clips), sampling.negative])
    _, frames, *_, channels = latents_shape(known, sampling)
    solver = known.schedule.solver if sampling.solver == "scheduler" else as_solver(sampling.solver)
    if guide is not None:
        guide.check(frames, channels, known.transformer.config.text_dim)
        check_solver(solver)
    return solver.name


def _digests(config: Generation, clips: Sequence[NamedClip]) -> dict[str, str]:
    """Of what the flags name by its place: another content there is another run."""
    found = {"prompts": hashlib.sha256(repr([(c.prompt, c.file) for c in clips]).encode()).hexdigest()}
    for name in ("motion_field", "lora"):
        path = getattr(config, name)
        if path is not None:
            files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
            found[name] = hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in files)).hexdigest()
    return found


def _make(config, clips, sampling, guide, todo, work) -> None:
    """Sample and write the clips `todo`."""
    with work.stage("load"):
        dtype = None if config.dtype is None else jnp.dtype(config.dtype)
        pipeline = load(config.folder, dtype=dtype, mesh=weights_mesh(), lora=config.lora, lora_scale=config.lora_scale)
    texts, samples = [clip.prompt.told for clip in clips], [clip.sample for clip in clips]
    with work.stage("prompts"):
        told = embed_prompts([*texts, sampling.negative], config.embedder(pipeline))
    if config.guidance_change is not None and not (work.path / "calibration.json").exists():
        with work.stage("calibrate"):
            change = config.guidance_change
            guide = calibrate(pipeline, texts, sampling, guide, change, samples=samples, told=told)
        work.write("calibration.json", json.dumps({"scale": guide.scale}).encode())
    if config.guidance_change is not None:
        guide = dataclasses.replace(guide, scale=_scale(work))

    def report(index: int, metrics: dict[str, np.ndarray]) -> None:
        if metrics:
            work.write(_steps_file(index), json.dumps({k: _digits(v) for k, v in metrics.items()}).encode())

    with work.stage("generate", clips=len(todo)), progress("generate", len(clips), done=len(clips) - len(todo)) as task:
        made = generate(pipeline, texts, sampling, samples=samples, todo=todo, guide=guide, told=told, report=report)
        with task.compiling():
            first = next(made)
        for index, video in itertools.chain((first,), made):
            _commit(work.path / "videos" / clips[index].file, video, sampling.fps)
            task.advance()


def _commit(path: Path, video: np.ndarray, fps: float) -> None:
    """A file of this name is a whole one: the next start does not make it again."""
    scratch = path.parent.parent / ".clip.mp4"
    write_video(scratch, video, fps)
    with open(scratch, "rb") as file:
        os.fsync(file.fileno())
    path.parent.mkdir(exist_ok=True)
    os.replace(scratch, path)


def _steps_file(index: int) -> str:
    """Where a guided clip's metrics of every step are kept until all clips are made."""
    return f"steps/{index:05d}.json"


def _scale(work: Workdir) -> float:
    return json.loads((work.path / "calibration.json").read_bytes())["scale"]


def _digits(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in np.asarray(values, np.float64).tolist()]


def _result(clips, sampling, guide, steps) -> dict[str, Any]:
    found: dict[str, Any] = {
        "clips": len(clips),
        "prompts": len({clip.prompt for clip in clips}),
        "sampling": dataclasses.asdict(sampling),
    }
    if steps:
        found["guidance"] = {
            "scale": float(f"{guide.scale:.6g}"),
            "space": guide.space,
            "share": guide.share,
            **{name: _digits(np.mean([one[name] for one in steps], 0)) for name in steps[0]},
        }
    return found


CURVES = {
    "energy": (
        "What the motion field makes of the predicted clean latents",
        "Squared distance from each predicted latent frame, moved as the field expects, to the one it should become; summed "
        "over channels and positions, mean over pairs of frames. Median of the clips, and from their 5th to their 95th percentile.",
    ),
    "change": (
        "What the guidance does to the predicted clean latents",
        "Root mean square of the change, relative to that of the latent, in each step. Median of the clips, and from their "
        "5th to their 95th percentile.",
    ),
}


def _write_sheet(config, clips, sampling, guide, solver, steps, work) -> None:
    from jaxdiff.generation.contact import contact_sheet  # matplotlib and pillow are only needed here
    from jaxdiff.report import Curve

    curves = []
    for name in CURVES if steps else ():
        low, middle, high = np.percentile([one[name] for one in steps], (5, 50, 95), axis=0)
        curves.append((*CURVES[name], Curve(name, np.arange(len(middle)), middle, low, high)))
    scale = f"{'dynamic, ' if sampling.dynamic else ''}{sampling.guidance_scale:g}"
    facts = {
        "clips": str(len(clips)),
        "model": config.folder.name + (f" + {config.lora.name}" if config.lora else ""),
        "size": f"{sampling.frames} frames, {sampling.width} × {sampling.height}, {sampling.fps:g} fps",
        "solver": f"{solver}, {sampling.steps} steps",
        "guidance scale": scale,
        "motion guidance": f"{guide.scale:.3g} in {guide.space} space" if guide else "none",
        "seed": str(sampling.seed),
    }
    page = contact_sheet(
        f"{len({clip.prompt for clip in clips})} prompts to {config.folder.name}",
        facts,
        clips,
        lambda clip: read_video(work.path / "videos" / clip.file),
        sampling.fps,
        curves=curves,
        command=command_line(work.sessions()[-1]),
    )
    work.write("contact.html", page.encode())
