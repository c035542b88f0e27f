"""What a probe can know without the network: pooled pixels, pooled latents, and the noised latents' own states.

Pixels and latents are null controls for *linear* readings of single frames; products between frames and the network on
noised latents (no inversion) are comparisons that may do as well as the inverted states.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.mesh import own_mesh, replicate
from jaxdiff.pipeline import Pipeline
from jaxdiff.progress import progress
from jaxdiff.store import ActivationStore
from jaxdiff.study.batches import Batches, Encoded, Prompts
from jaxdiff.study.reading import Reading, open_store
from jaxdiff.taps import Grid, SemanticMoments, Tap


def pooled_inputs(video: jax.Array, latents: jax.Array) -> dict[str, jax.Array]:
    """Features of the input, one vector a clip.

    Parameters
    ----------
    video : uint8 [B, T, H, W, 3]
    latents : float32 [B, T', H', W', C], normalised

    Returns
    -------
    "pixels.grid" : [B, T * 4 * 4 * 3], colours on a 4 x 4 grid per frame
    "latents.mean" : [B, C]
    "latents.frame_mean" : [B, T' * C]
    "latents.grid" : [B, T' * 4 * 4 * C]
    "latents.moments" : [B, 3 * C], mean, deviation and skewness over time, averaged over positions
    "latents.frame_products" : [B, C * T' (T' + 1) / 2], products of every two frames summed over positions, per
        channel: the quadratic statistic that sees the combination of before and after
    """

    def tokens(x):
        return x.reshape(x.shape[0], -1, x.shape[-1]), x.shape[1:4]

    def pooled(reducer, x):
        flat, grid = tokens(x)
        return Tap("block_out", reducer).reducer(flat, grid)

    frames = latents.reshape(*latents.shape[:2], -1, latents.shape[-1])
    products = jnp.einsum("btpc,bspc->bcts", frames, frames, precision="highest") / frames.shape[2]
    upper = np.triu_indices(frames.shape[1])
    features = {
        "pixels.grid": pooled(Grid(4, 4), video.astype(jnp.float32) / 255.0),
        "latents.mean": pooled("mean", latents),
        "latents.frame_mean": pooled("frame_mean", latents),
        "latents.grid": pooled(Grid(4, 4), latents),
        "latents.moments": pooled("moments", latents),
        "latents.frame_products": products[:, :, upper[0], upper[1]],
    }
    return {name: value.reshape(value.shape[0], -1) for name, value in features.items()}


def moment_inputs(video: jax.Array, latents: jax.Array) -> dict[str, jax.Array]:
    """Entry "latents.semantic_moments", [B, 3 C]: `SemanticMoments` of the latents, a strong control for its size."""
    batch, frames, height, width, channels = latents.shape
    tokens = latents.reshape(batch, -1, channels)
    return {"latents.semantic_moments": SemanticMoments()(tokens, (frames, height, width))}


Pool = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]


def read_inputs(
    pipeline: Pipeline,
    clips: Sequence[Clip],
    reading: Reading,
    *,
    pools: Sequence[Pool] = (),
    mesh: jax.sharding.Mesh | None = None,
) -> dict[str, np.ndarray]:
    """`pooled_inputs` of every clip: name -> float32 [clips, D]. Cheap next to an inversion, so it is not stored.

    `pools` are further functions (video, latents) -> features, read in the same pass over the clips.
    """
    mesh = own_mesh() if mesh is None else mesh
    pipeline = replicate(pipeline, mesh)

    @jax.jit
    def pool(video, latents):
        return {name: values for read in (pooled_inputs, *pools) for name, values in read(video, latents).items()}

    rows: dict[str, np.ndarray] = {}
    with progress("inputs", len(clips)) as task:
        for batch, video, latents in Batches(pipeline, clips, reading, mesh, range(len(clips))).with_video():
            for name, values in pool(video, latents).items():
                table = rows.setdefault(name, np.empty((len(clips), values.shape[1]), np.float32))
                table[batch.clip_ids[: batch.real]] = np.asarray(values)[: batch.real]
            task.advance(batch.real)
    return rows


def read_noised(
    pipeline: Pipeline,
    clips: Sequence[Clip],
    cond: Conditioning | Prompts,
    reading: Reading,
    sigmas: Sequence[float],
    folder: Path,
    *,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    encoded: Encoded | None = None,
    title: str = "noised latents",
) -> ActivationStore:
    """One forward pass per noise level on ``x_sigma = (1 - sigma) x0 + sigma e``: no inversion.

    The same noise e (from `seed`) serves every clip and level, so that clips of one scene are compared under one noise.
    The record of a clip holds ``surprise``, the denoising loss ``mean (v - (e - x0))^2`` per level (LikePhys, arXiv
    2510.11512), read off the same passes.

    Returns
    -------
    Store of the same taps as the inversion, slots in the order of `sigmas`.
    """
    mesh = own_mesh() if mesh is None else mesh
    pipeline, cond = replicate(pipeline, mesh), replicate(cond, mesh)
    places = {"sigmas": list(map(float, sigmas)), "labels": list(map(float, sigmas))}
    reading = dataclasses.replace(reading, stream=False)
    taps = reading.tap_objects()
    with open_store(pipeline, clips, reading, folder, places, {**(metadata or {}), "seed": seed}) as store:
        todo = [i for i in range(len(clips)) if i not in store.finished()]
        with progress(title, len(clips), done=len(clips) - len(todo)) as task:
            batches = Batches(pipeline, clips, reading, mesh, todo, encoded=encoded)
            for batch, latents, told in batches.conditioned(cond):
                captured, loss = _noised(pipeline, latents, told, sigmas, jax.random.key(seed), taps=taps)
                store.write(batch.clip_ids, captured)
                records = [{"surprise": [float(f"{v:.7g}") for v in loss[:, i]]} for i in range(loss.shape[1])]
                store.finish(batch.clip_ids, records)
                task.advance(batch.real)
    return ActivationStore.open(folder)


def _noised(pipeline, latents, cond, sigmas, key, *, taps) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Captures name -> [levels, rows, B, ...] and denoising losses [levels, B].

    One call a level: the same program then serves models that are read at different numbers of levels.
    """
    levels = [_at_level(pipeline, latents, cond, jnp.float32(sigma), key, taps=taps) for sigma in sigmas]
    captured, loss = jax.tree.map(lambda *parts: np.stack([np.asarray(p) for p in parts]), *levels)
    return captured, loss


@functools.partial(jax.jit, static_argnames="taps")
def _at_level(pipeline, latents, cond, sigma, key, *, taps):
    noise = jax.random.normal(key, latents.shape[1:])
    x = (1.0 - sigma) * latents + sigma * noise
    velocity, captured = pipeline.evaluate(x, sigma, cond, taps=taps)
    return captured, jnp.mean(jnp.square(velocity - (noise - latents)), axis=(1, 2, 3, 4))


@dataclasses.dataclass(frozen=True)
class Surprise:
    """Denoising losses of a model: `losses` [clips, levels] float64 at `sigmas` [levels]."""

    sigmas: np.ndarray
    losses: np.ndarray


def surprise(store: ActivationStore) -> Surprise:
    """Denoising loss of every clip at every level that `read_noised` read."""
    losses = np.array([record["surprise"] for _, record in sorted(store.records().items())])
    return Surprise(np.array(store.metadata["sigmas"]), losses)
