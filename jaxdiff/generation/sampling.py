"""Sampling videos of prompts, clip by clip reproducible: a clip depends on its prompt, its number and the seed alone."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.flow import DivergedError, DynamicGuidance, Trajectory, sample
from jaxdiff.flow.guidance import acting
from jaxdiff.flow.placement import Placement, per_device, placement_of
from jaxdiff.lamo import MotionGuidance
from jaxdiff.mesh import MicroBatch, micro_batches, own_mesh, replicate, shard_batch, spread_rows
from jaxdiff.pipeline import Pipeline

CALIBRATED_ON = 8  # clips
EMBEDDED_AT_ONCE = 256  # prompts whose embeddings are on the device together: 8 MB each for Wan


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How videos are sampled. All of it decides them, but for `fps`, which is written into the file.

    Parameters
    ----------
    frames, height, width : of the video, in pixels.
    fps : frames per second.
    steps : of the solver.
    guidance_scale : of the classifier-free guidance; with `dynamic`, of `jaxdiff.flow.DynamicGuidance`.
    solver : as in `jaxdiff.sample`.
    negative : the prompt to lead away from.
    seed : of the noise.
    clips_per_device : clips that a device works on at once; results depend on it in the last bits.
    """

    frames: int
    height: int
    width: int
    fps: float
    steps: int
    guidance_scale: float
    dynamic: bool = False
    solver: str = "scheduler"
    negative: str = ""
    seed: int = 0
    clips_per_device: int = 1

    def __post_init__(self):
        for name in ("frames", "height", "width", "steps", "clips_per_device"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}={getattr(self, name)} must be at least 1")
        if not self.fps > 0:
            raise ConfigError(f"--fps={self.fps} must be positive")

    @property
    def guided(self) -> bool:
        """Whether there is classifier-free guidance."""
        return self.dynamic or self.guidance_scale != 1.0


# Size, length, steps and guidance of the published pipelines' own examples: CogVideoX-5B is sampled with the DPM scheduler and
# a dynamic scale, 2B with DDIM and a constant one. Those of nano are ours: at scale 1 many of its clips show no thing.
PUBLISHED = {
    "nano": Sampling(17, 32, 32, 8, 20, 3.0, clips_per_device=16),
    "cogvideox-2b": Sampling(49, 480, 720, 8, 50, 6.0),
    "cogvideox-5b": Sampling(49, 480, 720, 8, 50, 6.0, dynamic=True),
    "wan2.1-t2v-1.3b": Sampling(81, 480, 832, 16, 50, 5.0),
}

Embed = Callable[[Sequence[str]], Conditioning]
Report = Callable[[int, dict[str, np.ndarray]], None]


def latents_shape(pipeline: Pipeline, sampling: Sampling) -> tuple[int, ...]:
    """(1, T', H', W', C) of a video. `pipeline` may hold shapes in the place of weights.

    Raises
    ------
    ConfigError : the size does not fit the VAE's strides or the transformer's patches, or the model needs an image.
    """
    if pipeline.family.needs_image(pipeline.transformer):
        raise ConfigError(
            f"{pipeline.family.name} continues an image, and there are only prompts: use a text-to-video model"
        )
    video = jax.ShapeDtypeStruct((1, sampling.frames, sampling.height, sampling.width, 3), jnp.uint8)
    shape = jax.eval_shape(lambda pipeline, video: pipeline.encode(video), pipeline, video).shape
    pipeline.family.validate(pipeline.transformer, shape, pipeline.family.example(pipeline.transformer, shape))
    return shape


def embed_prompts(prompts: Sequence[str], embed: Embed) -> dict[str, Conditioning]:
    """Prompt -> its conditioning in host memory, leaves [1, ...]; each prompt is embedded once.

    Parameters
    ----------
    embed : texts -> `Conditioning` with leaves [B, ...], such as `Pipeline.condition`.
    """
    every = list(dict.fromkeys(prompts))
    found: dict[str, Conditioning] = {}
    for start in range(0, len(every), EMBEDDED_AT_ONCE):
        part = every[start : start + EMBEDDED_AT_ONCE]
        rows = jax.tree.map(np.asarray, embed(part))
        found |= {text: jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], rows) for i, text in enumerate(part)}
    return found


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    samples: Sequence[int] | None = None,
    todo: Sequence[int] | None = None,
    guide: Any = None,
    told: Mapping[str, Conditioning] | None = None,
    each: Sequence[Conditioning] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    report: Report | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Sample one video for each prompt, micro-batch by micro-batch over the devices of a mesh.

    The noise of a clip comes from a key of its prompt, its number and the seed: neither the batch nor the order of the
    prompts nor an interruption changes it, and guided and plain samples of a prompt begin alike.

    Parameters
    ----------
    prompts : what the model is told, one text a clip; a prompt of several clips stands there several times.
    samples : which sample of its prompt each clip is, [clips]; default 0.
    todo : indices of the clips to make, default all.
    guide : as in `jaxdiff.sample`.
    told : prompts -> conditioning, from `embed_prompts`, the negative prompt among them; default: by `Pipeline.condition`.
    each : [clips], leaves [1, ...]: what each clip is told in the place of its prompt's conditioning, where that is more.
    mesh : default: `jaxdiff.mesh.own_mesh`.
    report : called with a clip's index and its guide's metrics, name -> [steps], before the clip is yielded.

    Yields
    ------
    index into `prompts`, and the video uint8 [T, H, W, 3]

    Raises
    ------
    ConfigError : as `latents_shape`, and as `jaxdiff.sample`.
    DivergedError : a state became NaN or infinite; names the prompt and the step.
    """
    mesh = own_mesh() if mesh is None else mesh
    pipeline = replicate(pipeline, mesh)
    for batch, trajectory in _trajectories(pipeline, prompts, sampling, samples, todo, guide, told, mesh, each):
        latents = spread_rows(trajectory.latents, mesh)
        videos = np.asarray(_pixels(pipeline, latents, placement=placement_of(pipeline, latents)))
        metrics = {name: np.asarray(value) for name, value in trajectory.metrics.items()}
        for row, index in enumerate(batch.clip_ids[: batch.real].tolist()):
            if report is not None:
                report(index, {name: value[:, row] for name, value in metrics.items()})
            yield index, videos[row]


def calibrate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    sampling: Sampling,
    guide: MotionGuidance,
    change: float,
    *,
    samples: Sequence[int] | None = None,
    told: Mapping[str, Conditioning] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> MotionGuidance:
    """The guide with the scale that changes the predicted clean latent by `change` a guided step (see
    `MotionGuidance.calibrated`), from plain samples of a few clips that are spread over the list.

    Parameters and errors are those of `generate` and of `MotionGuidance.calibrated`.
    """
    mesh = own_mesh() if mesh is None else mesh
    few = np.unique(np.linspace(0, len(prompts) - 1, CALIBRATED_ON).round().astype(int)).tolist()
    guide = guide.faint()
    runs = _trajectories(pipeline, prompts, sampling, samples, few, guide, told, mesh)
    return guide.calibrated(
        change, np.concatenate([np.asarray(run.metrics["change"])[:, : batch.real] for batch, run in runs], 1)
    )


def _trajectories(
    pipeline, prompts, sampling, samples, todo, guide, told, mesh, each=None
) -> Iterator[tuple[MicroBatch, Trajectory]]:
    """The micro-batches of the clips `todo`, sampled."""
    todo = range(len(prompts)) if todo is None else todo
    told = embed_prompts([*(prompts[i] for i in todo), sampling.negative], pipeline.condition) if told is None else told
    shape = latents_shape(pipeline, sampling)[1:]
    pipeline, guide, negative = replicate((pipeline, acting(guide), told[sampling.negative]), mesh)
    scale = DynamicGuidance(sampling.guidance_scale) if sampling.dynamic else sampling.guidance_scale
    numbered = ((i, (prompts[i], 0 if samples is None else samples[i])) for i in todo)
    for batch in micro_batches(numbered, sampling.clips_per_device, mesh):
        keys, noise = _noise(shape, jnp.stack([_key(sampling.seed, *item) for item in batch.items]))
        rows = [told[text] for text, _ in batch.items]
        if each is not None:
            rows = [each[i] for i in batch.clip_ids[: batch.real]]
            rows += rows[-1:] * (len(batch.items) - batch.real)
        cond = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
        try:
            trajectory = sample(
                pipeline, shard_batch(noise, mesh), shard_batch(cond, mesh), guide=guide, steps=sampling.steps,
                solver=sampling.solver, key=shard_batch(keys, mesh), guidance_scale=scale if sampling.guided else 1.0,
                negative=negative if sampling.guided else None,
            )  # fmt: skip
        except DivergedError as error:
            names = dict.fromkeys(batch.items[i][0] for i in error.clips)
            raise DivergedError(
                f"{', '.join(map(repr, names))}: {error}", error.clips, error.step, error.sigma, error.trajectory
            ) from error
        yield batch, trajectory


def _key(seed: int, prompt: str, number: int) -> jax.Array:
    """A clip's own key."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(prompt.encode()))
    return jax.random.fold_in(key, number)


@functools.partial(jax.jit, static_argnames="placement")
def _pixels(pipeline: Pipeline, latents: jax.Array, *, placement: Placement | None) -> jax.Array:
    """Videos uint8 [B, T, H, W, 3]; every device decodes its own clips, so that none depends on how many devices there are."""

    def run(pipeline, latents):
        return jnp.round((jnp.clip(pipeline.decode(latents), -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)

    return per_device(run, placement, pipeline, latents, latents.shape[0], lambda axis: PartitionSpec(axis))


@functools.partial(jax.jit, static_argnums=0)
def _noise(shape: tuple[int, ...], keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys [B] for what a solver draws on its way, and the noise [B, *shape] where it begins."""
    both = jax.vmap(jax.random.split)(keys)
    return both[:, 0], jax.vmap(lambda key: jax.random.normal(key, shape))(both[:, 1])
