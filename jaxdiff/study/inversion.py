"""`experiments.invert`: a folder of videos through one checkpoint, with the fidelity of what was done."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.video import list_videos, read_video
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.flow import fidelity, invert
from jaxdiff.flow.solvers import as_solver
from jaxdiff.mesh import weights_mesh
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.progress import progress
from jaxdiff.report import report_run
from jaxdiff.report.study import ClipView, Curve, Fidelity, FrameAttention, Measure, Study
from jaxdiff.study.batches import Prompts, continuing
from jaxdiff.study.levels import published_steps
from jaxdiff.study.reading import Reading, invert_clips
from jaxdiff.taps import Tap
from jaxdiff.workdir import Workdir

# Clips that the model makes itself, whose trajectory is therefore known.
KNOWN = 2


@dataclasses.dataclass(frozen=True)
class InversionStudy:
    """See the flags of `experiments.invert`."""

    checkpoint: Path
    videos: Path
    frames: int = 81
    size: int | None = None
    sampling: str = "linspace"
    stride: int = 1
    steps: int = 100
    solver: str = "euler"
    taps: tuple[str, ...] = ("block_out.mean",)
    capture_at: tuple[int, ...] | None = None
    capture_sigmas: tuple[float, ...] | None = None
    prompt: str = ""
    text_embeddings: str | None = None
    clips_per_device: int = 1
    dtype: str | None = None
    stream: bool = False
    fidelity_clips: int = 4
    skip_bad_clips: bool = False

    def __post_init__(self):
        if self.capture_at is not None and self.capture_sigmas is not None:
            raise ConfigError("give --capture_at or --capture_sigmas, not both")

    def reading(self) -> Reading:
        at = self.capture_at
        if at is None and self.capture_sigmas is None:
            at = published_steps(self.steps)
        names = {f.name for f in dataclasses.fields(Reading)} - {"capture_at", "error_steps", "order", "order_seed"}
        return Reading(**{name: getattr(self, name) for name in names}, capture_at=at)


def find_clips(config: InversionStudy) -> list[Clip]:
    """The videos of the folder, in the order of their names."""
    paths = list_videos(config.videos)
    if not paths:
        raise MissingDataError(f"--videos={config.videos} holds no video (mp4 files or folders of png frames)")
    return [Clip(p.relative_to(config.videos).as_posix(), p, p.stem, "", None) for p in paths]


def load_model(config: InversionStudy) -> tuple[Pipeline, Conditioning]:
    """The checkpoint, and what every clip is told."""
    pipeline = load(config.checkpoint, dtype=config.dtype and jnp.dtype(config.dtype), mesh=weights_mesh())
    return pipeline, text_condition(pipeline, config.prompt, config.text_embeddings)


def run_part(config: InversionStudy, workdir: Path, shard: tuple[int, int]) -> None:
    """Invert every n-th video from the k-th on, of `shard` (k, n), into the store that `run_inversion` then finds."""
    clips = find_clips(config)
    with Workdir(workdir, config, primary=False) as work:
        if work.done:
            return
        pipeline, cond = load_model(config)
        skip = config.skip_bad_clips
        invert_clips(pipeline, clips, cond, config.reading(), workdir / "store", skip_bad_clips=skip, shard=shard)


def run_inversion(config: InversionStudy, workdir: Path) -> None:
    """Invert every video of the folder, measure the fidelity on a few, write the store and the report."""
    clips, reading = find_clips(config), config.reading()
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("load"):
            pipeline, cond = load_model(config)
        with work.stage("invert", clips=len(clips)):
            store, skipped = invert_clips(
                pipeline, clips, cond, reading, workdir / "store", skip_bad_clips=config.skip_bad_clips
            )
        good = sorted(store.finished())
        if not good:
            raise MissingDataError(f"none of the {len(clips)} videos could be inverted: {skipped}")
        with work.stage("fidelity"):
            measured, views, attention = measure(
                pipeline, [clips[i] for i in good[: config.fidelity_clips]], cond, reading
            )
        records = store.records()
        measured = dataclasses.replace(measured, noise=noise_measures(records)) if records else measured
        work.write_result(
            {
                "clips": len(good),
                "skipped": sorted(skipped),
                "headline": {},
                "fidelity": summary(measured),
                "sigmas": store.metadata["sigmas"],
                "walked": store.metadata["walked"],
                "text": text_note(config.prompt, config.text_embeddings),
            }
        )
        with work.stage("report"):
            report_run(
                work,
                Study(
                    title=f"Inversion of {len(good)} clips",
                    facts={
                        "clips": str(len(good)),
                        "frames": f"{config.frames} at {config.size or 'their own'} px",
                        "solver": f"{config.solver}, {config.steps} steps",
                    },
                    fidelity=measured,
                    attention=attention,
                    clips=views,
                    skipped=tuple(sorted(skipped.items())),
                    notes=(text_note(config.prompt, config.text_embeddings),),
                ),
            )
        work.finish(("result.json",))
        print(f"{len(good)} clips inverted, {len(skipped)} skipped -> {workdir / 'report.html'}")


def text_condition(pipeline: Pipeline, prompt: str, embeddings: str | None) -> Conditioning:
    """The conditioning that the flags name.

    Raises
    ------
    MissingDataError : a prompt without a text encoder, or a file that is not there.
    ConfigError : embeddings of the wrong shape.
    """
    width = pipeline.transformer.config.text_dim
    if embeddings is None:
        return pipeline.condition(prompt=prompt)
    if embeddings == "zeros":
        return Conditioning(text=jnp.zeros((1, 1, width), jnp.float32))
    try:
        text = np.load(embeddings, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MissingDataError(f"--text_embeddings={embeddings} cannot be read as .npy: {error}") from None
    if text.ndim == 2:
        text = text[None]
    if text.ndim != 3 or text.shape[0] != 1 or text.shape[-1] != width:
        raise ConfigError(f"--text_embeddings={embeddings} holds {text.shape}; expected [N, {width}]")
    return Conditioning(text=jnp.asarray(text, jnp.float32))


def text_note(prompt: str, embeddings: str | None) -> str:
    """What the network was told, in words."""
    if embeddings is None:
        return f"prompt: {prompt!r}"
    if embeddings == "zeros":
        return "text embeddings: zeros, which are not the embedding of the empty prompt"
    return f"text embeddings: {embeddings}"


def measure(
    pipeline: Pipeline, clips: Sequence[Clip], cond: Conditioning | Prompts, reading: Reading
) -> tuple[Fidelity, tuple[ClipView, ...], tuple[FrameAttention, ...]]:
    """Fidelity of the inversion on some clips, one at a time: self-convergence, round trip, autoencoder, views; and on as many
    clips that the model makes itself, `KNOWN` at most, how the inversion follows the trajectory that they were made on.

    The frame attention maps are read at the grid's middle from the same inversions.
    """
    if not clips:
        return Fidelity(), (), ()
    rows: dict[str, list[Any]] = {"convergence": [], "psnr": [], "vae": [], "latent": []}
    views, maps, sigma, grid = [], [], 0.5, np.zeros(0)
    known: list[fidelity.Known] = []
    tap = Tap("self_attention_map", name="map")
    with progress("fidelity", len(clips)) as task:
        for clip in clips:
            video = read_video(
                clip.path,
                frames=reading.frames,
                size=reading.size,
                sampling=reading.sampling,
                stride=reading.stride,
            )
            latents = pipeline.encode(jnp.asarray(video[None]))
            own = cond if isinstance(cond, Conditioning) else cond.of(pipeline, [clip])
            told = continuing(pipeline, own, video[None])
            middle = reading.steps // 2
            trajectory = invert(
                pipeline,
                latents,
                told,
                steps=reading.steps,
                solver=reading.solver,
                taps=(tap,),
                capture_at=(middle,),
            )
            sigma = float(trajectory.capture_sigmas[0])
            maps.append(np.asarray(trajectory.captured["map"])[0, :, 0])
            back = fidelity.reconstruct(pipeline, trajectory, told, fidelity.way_back(reading.solver))
            error = fidelity.round_trip(latents, back)
            rows["latent"].append(float(error["round_trip_rms"][0]) / float(jnp.sqrt(jnp.mean(latents**2))))
            decoded = np.asarray(pipeline.decode(back))[0]
            plain = np.asarray(pipeline.decode(latents))[0]
            source = video.astype(np.float32) / 127.5 - 1.0
            rows["psnr"].append(psnr(source, decoded))
            rows["vae"].append(psnr(source, plain))
            grid, errors = fidelity.convergence_curve(
                pipeline, latents, told, steps=reading.steps, solver=reading.solver
            )
            rows["convergence"].append(np.asarray(errors)[:, 0])
            views.append(ClipView(clip.name, video, decoded, psnr=rows["psnr"][-1]))
            if len(known) < KNOWN:
                known.append(_known(pipeline, latents.shape, told, reading, len(known)))
            task.advance()
    convergence = np.array(rows["convergence"], float)
    curve = Curve("median of clips", grid, np.median(convergence, 0), convergence.min(0), convergence.max(0))
    count = f"{len(clips)} clip{'s' * (len(clips) != 1)}"
    measured = Fidelity(
        self_convergence=(curve,),
        round_trip=np.array(rows["psnr"]),
        autoencoder=np.array(rows["vae"]),
        latent_error=np.array(rows["latent"]),
        known=known_curves(known),
        note=f"Self-convergence and round trip were measured on {count}; the band spans them. Round trip: inverted, then "
        f"sampled back by {as_solver(fidelity.way_back(reading.solver)).name} on the reversed grid.",
    )
    blocks = tuple(range(np.shape(maps)[1]))
    attention = FrameAttention("self-attention", np.mean(maps, 0), blocks, sigma)
    return measured, tuple(views), (attention,)


def _known(
    pipeline: Pipeline, shape: tuple[int, ...], told: Conditioning, reading: Reading, seed: int
) -> fidelity.Known:
    """`fidelity.known_trajectory` of one clip that the model makes from noise."""
    noise = jax.random.normal(jax.random.key(seed), shape)
    return fidelity.known_trajectory(pipeline, noise, told, steps=reading.steps, solver=reading.solver)


def known_curves(known: Sequence[fidelity.Known]) -> tuple[Curve, ...]:
    """Cosines with the trajectories that are known, over noise levels: means over clips, and their range."""
    curves = []
    for name, kind, rows in (
        ("state", "states", [k.state for k in known]),
        ("frame attention", "comparison", [k.attention for k in known if k.attention is not None]),
    ):
        if rows:
            values = np.concatenate([np.asarray(row, float) for row in rows], 1)
            x = known[0].sigmas[: len(values)]
            curves.append(Curve(name, x, values.mean(1), values.min(1), values.max(1), kind))
    return tuple(curves)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two videos in [-1, 1], at most 120."""
    return float(-10.0 * np.log10(max(float(np.mean((a - b) ** 2)) / 4.0, 1e-12)))


def noise_measures(records: dict[int, dict[str, Any]]) -> tuple[Measure, ...]:
    """Medians over clips of the recovered noise's statistics, beside those of white noise."""
    ideal = {"noise_std": 1.0}
    names = sorted({name for record in records.values() for name in record if name.startswith("noise_")})
    return tuple(
        Measure(
            name.replace("noise_", "noise: ").replace("_", " "),
            float(np.median([record[name] for record in records.values()])),
            None if name == "noise_channel_correlation" else ideal.get(name, 0.0),
        )
        for name in names
    )


def summary(measured: Fidelity) -> dict[str, Any]:
    """Medians for result.json."""
    arrays = {
        "round_trip_psnr_db": measured.round_trip,
        "autoencoder_psnr_db": measured.autoencoder,
        "latent_relative_rms": measured.latent_error,
        "coarse_error": measured.clip_error,
    }
    found: dict[str, Any] = {k: _digits(np.median(v)) for k, v in arrays.items() if v is not None and len(v)}
    for curve in measured.self_convergence:
        values = np.asarray(curve.y, float)
        for name, value in (("mean", values.mean()), ("worst", values.max()), ("end", values[-1])):
            found[f"self_convergence_{name}"] = _digits(value)
    for curve in measured.known:
        found[f"known_trajectory_{curve.name.replace(' ', '_')}_cosine_worst"] = _digits(np.min(curve.y))
    if measured.mistake_correlation is not None:
        ends = dataclasses.asdict(measured.mistake_correlation)
        found["mistake_correlation"] = {k: _digits(v) if np.isfinite(v) else None for k, v in ends.items()}
    return found | {m.name: _digits(m.value) for m in measured.noise}


def _digits(value: Any) -> float:
    return float(f"{float(value):.6g}")
