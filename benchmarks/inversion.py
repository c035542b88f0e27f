"""An inversion and what reading costs it, against the same without, bare forwards, and diffusers with hooks."""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import program, published, rows
from benchmarks.rows import Row, Settings, compared
from benchmarks.subject import Size, forward, inputs, random_pipeline, size_of
from benchmarks.timing import Bar, paired
from jaxdiff import kernels
from jaxdiff.flow import invert
from jaxdiff.pipeline import Pipeline
from jaxdiff.store import ActivationStore
from jaxdiff.study.levels import published_steps
from jaxdiff.taps import Tap

STEPS = 2  # of a round: of many short ones fewer are disturbed than of a few long ones
CLIP_STEPS = 4  # where something is paid once a clip
TIMESTEP = 700.0
PUBLISHED_TOLERANCE = 1e-3  # of a whole inversion
MAP_TOLERANCE = 1e-5
MEANS = (Tap("block_out", "mean"),)
MAPS = (Tap("self_attention_map"),)


def _subject(settings: Settings) -> tuple[Size, Pipeline, jax.Array, jax.Array]:
    size = size_of(settings)
    latents, text = map(jnp.asarray, inputs(size))
    return size, random_pipeline(size), latents, text


def captures(settings: Settings) -> list[Row]:
    """With the means of all blocks at every step returned, over the same without."""
    size, pipeline, latents, text = _subject(settings)
    costs = [program.cost(compile_inversion(pipeline, latents, text, taps)) for taps in ((), MEANS)]

    def run(taps):
        jax.block_until_ready(invert(pipeline, latents, text, steps=STEPS, taps=taps))

    witness = {key: [cost[key] for cost in costs] for key in ("flops_loops_once", "bytes_loops_once", "temp_bytes")}
    times = paired(functools.partial(run, ()), functools.partial(run, MEANS), settings.pairs)
    name = "inversion: block means returned / none"
    return [rows.ratio(name, times, Bar(1.02, at_least=False), shapes=_shapes(size), witness=witness)]


def streamed(settings: Settings) -> list[Row]:
    """With the means of all blocks handed to a TensorStore store while it runs, until they are durable, over none."""
    size, pipeline, latents, text = _subject(settings)
    shapes = pipeline.tap_shapes(MEANS, latents.shape)
    specs = {name: jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), x.dtype) for name, x in shapes.items()}
    clips = iter(range(settings.pairs + 3))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "store"
        with ActivationStore.create(place, clips=settings.pairs + 3, slots=CLIP_STEPS, specs=specs) as store:

            def read():
                clip = np.array([next(clips)])
                jax.block_until_ready(
                    invert(pipeline, latents, text, steps=CLIP_STEPS, taps=MEANS, sink=store.sink(clip))
                )
                store.finish(clip)

            def bare():
                jax.block_until_ready(invert(pipeline, latents, text, steps=CLIP_STEPS))

            read()
            returned = invert(pipeline, latents, text, steps=CLIP_STEPS, taps=MEANS).captured["block_out.mean"]
            errors = compared("stored", store.read("block_out.mean", [0])[0], np.asarray(returned)[:, :, 0], 0.0)
            witness = {"bytes_a_clip": store.clip_bytes, "callbacks": CLIP_STEPS}
            times = paired(bare, read, settings.pairs)
    name = "inversion: block means by io_callback to a store / none"
    return [
        rows.ratio(
            name, times, Bar(1.03, at_least=False), shapes=_shapes(size, CLIP_STEPS), errors=errors, witness=witness
        )
    ]


def frame_maps(settings: Settings) -> list[Row]:
    """With the exact frame attention map of every head of every block, over none: time, and peak memory of the program."""
    size, pipeline, latents, text = _subject(settings)
    bare, read = (compile_inversion(pipeline, latents, text, taps) for taps in ((), MAPS))
    heads, tokens, batch = size.config.num_attention_heads, size.tokens, size.latents[0]
    dense = 4 * batch * heads * tokens * tokens  # of one block, float32
    extra = _peak(read) - _peak(bare)

    def run(taps):
        return jax.block_until_ready(invert(pipeline, latents, text, steps=STEPS, taps=taps))

    maps = np.asarray(run(MAPS).captured["self_attention_map.frame_map"])
    errors = compared("rows sum to one", maps.sum(-1), np.ones(maps.shape[:-1]), MAP_TOLERANCE) | _dense_map(size)
    times = paired(functools.partial(run, ()), functools.partial(run, MAPS), settings.pairs)
    shapes = _shapes(size) | {"maps": maps.shape}
    witness = {"peak_bytes": [_peak(bare), _peak(read)], "one_dense_map_bytes": dense}
    return [
        rows.ratio("inversion: frame attention maps / none", times, Bar(1.05, at_least=False), shapes=shapes, errors=errors),
        rows.number("frame attention maps: extra peak memory / one dense map", extra / dense, Bar(0.01, at_least=False),
                    shapes=shapes, witness=witness),
    ]  # fmt: skip


def _peak(compiled: Any) -> int:
    """Bytes that a program plans for beside its arguments."""
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _dense_map(size: Size) -> dict[str, float]:
    """The map of peaked random attention, next to the one that a whole matrix of scores in float64 gives."""
    c, frames = size.config, size.latents[1]
    rng = np.random.default_rng(2)
    q, k = (2.0 * rng.standard_normal((1, size.tokens, 1, c.attention_head_dim)).astype(np.float32) for _ in "qk")
    ours = kernels.frame_attention_map(jnp.asarray(q), jnp.asarray(k), frames=frames)
    scores = q[0, :, 0].astype(np.float64) @ k[0, :, 0].T.astype(np.float64) * c.attention_head_dim**-0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    reference = weights.reshape(frames, -1, frames, size.tokens // frames).sum(3).mean(1)
    return compared("dense map", ours[0, 0], reference, MAP_TOLERANCE)


def inversion(settings: Settings) -> list[Row]:
    """An S-step Euler inversion over S forwards that are called one after the other."""
    size, pipeline, latents, text = _subject(settings)
    once = forward(pipeline, size, TIMESTEP)

    def forwards():
        for _ in range(STEPS):
            once()

    def whole():
        return jax.block_until_ready(invert(pipeline, latents, text, steps=STEPS))

    witness = {
        "evaluations": whole().evaluations,
        "flops_by_hand": STEPS * size.flops(),
        **program.cost(compile_inversion(pipeline, latents, text, ())),
    }
    times = paired(forwards, whole, settings.pairs)
    name = f"inversion of {STEPS} steps / {STEPS} forwards"
    return [rows.ratio(name, times, Bar(1.02, at_least=False), shapes=_shapes(size), witness=witness)]


def against_published(settings: Settings) -> list[Row]:
    """The released inversion on diffusers, with hooks that copy every block's tokens, over ours; results compared first."""
    size, at = size_of(settings), published_steps(CLIP_STEPS)
    pipeline, peer = published.peer(size, CLIP_STEPS, at)
    latents, text = map(jnp.asarray, inputs(size))

    def ours():
        run = invert(pipeline, latents, text, steps=CLIP_STEPS, solver="ddim_label", taps=MEANS, capture_at=at)
        return jax.block_until_ready(run)

    theirs, mine = peer(), ours()
    errors = compared("features", mine.captured["block_out.mean"], theirs.features, PUBLISHED_TOLERANCE)
    errors |= compared("end state", mine.latents, theirs.end, PUBLISHED_TOLERANCE)
    witness = {"evaluations": mine.evaluations, "captures": len(at), "flops_by_hand": CLIP_STEPS * size.flops()}
    times = paired(ours, peer, settings.pairs)
    name = "inversion with captures: diffusers + hooks + .cpu() / ours"
    return [
        rows.ratio(
            name, times, Bar(1.8, at_least=True), shapes=_shapes(size, CLIP_STEPS), errors=errors, witness=witness
        )
    ]


def compiled_program(settings: Settings) -> list[Row]:
    """What the compiled inversion with means is made of; nothing is timed."""
    size, pipeline, latents, text = _subject(settings)
    compiled = compile_inversion(pipeline, latents, text, MEANS)
    hlo = compiled.as_text()
    stacked = program.stacked_shapes(pipeline)
    if "while(" not in hlo or not stacked:
        raise AssertionError("the program has no loop or the network no stacked kernels: nothing to look at")
    copies = program.made(hlo, stacked)
    # One layer's kernels, with or without the axis that slicing leaves.
    layer = {shape[1:] for shape in stacked} | {(1, *shape[1:]) for shape in stacked}
    slices, none = program.made(hlo, layer), Bar(0, at_least=False)
    cost, weights = program.cost(compiled), sum(x.nbytes for x in jax.tree.leaves(pipeline.transformer.params))
    return [
        rows.number("stacked weights made anew", sum(copies.values()), none, witness={"stacked": copies, "one_layer": slices}),
        rows.number("host transfers inside the inversion", program.host_transfers(hlo), none),
        rows.number("temporary memory of the inversion", cost["temp_bytes"] / 1e6, unit="MB", shapes=_shapes(size),
                    witness={"weight_bytes": weights, "flops_by_hand": STEPS * size.flops(), **cost}),
    ]  # fmt: skip


def _shapes(size: Size, steps: int = STEPS) -> dict[str, Any]:
    return size.shapes() | {"steps": steps}


def compile_inversion(pipeline: Any, latents: Any, text: Any, taps: Sequence[Tap]) -> Any:
    """The inversion as one compiled program; the weights are its arguments."""
    return lower_inversion(pipeline, latents, text, taps).compile()


def lower_inversion(pipeline: Any, latents: Any, text: Any, taps: Sequence[Tap]) -> Any:
    """The same before the compiler."""

    def run(pipeline, latents, text):
        trajectory = invert(pipeline, latents, text, steps=STEPS, taps=taps)
        return trajectory.latents, trajectory.captured

    return jax.jit(run).lower(pipeline, latents, text)
