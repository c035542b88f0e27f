"""The cases: each returns rows of a table, with the seconds behind them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import demo, depth, drift, guided, loading, probes, program, published
from benchmarks.subject import (
    MID,
    Size,
    diffusers_peer,
    forward,
    inputs,
    products,
    random_pipeline,
)
from benchmarks.timing import MET, MIN_PAIRS, MISSED, Bar, paired
from jaxdiff.flow import invert
from jaxdiff.study.levels import published_steps
from jaxdiff.taps import Tap

STEPS = 4
TIMESTEP = 700.0
TOLERANCE = 1e-4  # both are fp32 with sums in another order
PUBLISHED_TOLERANCE = 1e-3  # of a whole inversion
MEANS = (Tap("block_out", "mean"),)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. `witness` holds what noise cannot move."""

    name: str
    measured: str
    bar: str
    verdict: str
    control: str = ""
    witness: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: dict[str, Any] = dataclasses.field(default_factory=dict)


def compare(name: str, a: Callable, b: Callable, bar: Bar, pairs: int, witness: dict[str, Any], **options) -> Row:
    """A row for the ratio B over A."""
    times = paired(a, b, pairs, **options)
    ratio = times.ratio()
    return Row(
        name, str(ratio), str(bar), bar.verdict(ratio, pairs), str(times.control_ratio()), witness, times.as_json()
    )


def forward_case(size: Size, pairs: int) -> list[Row]:
    """One forward: diffusers eager over ours, same weights, outputs compared first; ours over its matrix products."""
    pipeline, peer, to_numpy = diffusers_peer(size, TIMESTEP)
    ours = forward(pipeline, size, TIMESTEP)
    reference = to_numpy(peer())
    error = float(np.abs(np.asarray(ours()) - reference).max() / np.abs(reference).max())
    if not error <= TOLERANCE:
        raise AssertionError(f"the outputs differ by {error:.2e} of the largest value, more than {TOLERANCE:g}")
    latents, text = map(jnp.asarray, inputs(size))
    compiled = jax.jit(lambda p, x, c: p.denoise(x, TIMESTEP, c)).lower(pipeline, latents, text).compile()
    witness = {"relative_error": float(f"{error:.3g}"), "flops_by_hand": size.flops(), **program.cost(compiled)}
    return [
        compare("forward: diffusers / ours", ours, peer, Bar(1.6, at_least=True), pairs, witness),
        compare("forward / its products alone", products(size), ours, Bar(1.5, at_least=False), pairs, {}),
    ]


def captures_case(size: Size, pairs: int) -> list[Row]:
    """Inversion with the means of all blocks at every step, over the same without."""
    pipeline = random_pipeline(size)
    latents, text = map(jnp.asarray, inputs(size))
    costs = {taps: program.cost(compile_inversion(pipeline, latents, text, taps)) for taps in ((), MEANS)}

    def run(taps):
        jax.block_until_ready(invert(pipeline, latents, text, steps=STEPS, taps=taps))

    witness = {
        "flops_loops_once": [costs[()]["flops_loops_once"], costs[MEANS]["flops_loops_once"]],
        "temp_bytes": [costs[()]["temp_bytes"], costs[MEANS]["temp_bytes"]],
    }
    bare, read = functools.partial(run, ()), functools.partial(run, MEANS)
    return [compare("inversion: with / without means", bare, read, Bar(1.03, at_least=False), pairs, witness)]


def inversion_case(size: Size, pairs: int) -> list[Row]:
    """An S-step Euler inversion over S forwards that are called one after the other."""
    pipeline = random_pipeline(size)
    latents, text = map(jnp.asarray, inputs(size))
    once = forward(pipeline, size, TIMESTEP)

    def forwards():
        for _ in range(STEPS):
            once()

    def inversion():
        jax.block_until_ready(invert(pipeline, latents, text, steps=STEPS))

    evaluations = invert(pipeline, latents, text, steps=STEPS).evaluations
    witness = {
        "evaluations": evaluations,
        "flops_by_hand": STEPS * size.flops(),
        **program.cost(compile_inversion(pipeline, latents, text, ())),
    }
    name = f"inversion of {STEPS} steps / {STEPS} forwards"
    return [compare(name, forwards, inversion, Bar(1.05, at_least=False), pairs, witness)]


def published_case(size: Size, pairs: int) -> list[Row]:
    """The released inversion with its captures, on diffusers with forward hooks, over ours; same weights, results compared."""
    at = published_steps(STEPS)
    pipeline, peer = published.peer(size, STEPS, at)
    latents, text = map(jnp.asarray, inputs(size))

    def ours():
        run = invert(pipeline, latents, text, steps=STEPS, solver="ddim_label", taps=MEANS, capture_at=at)
        return jax.block_until_ready(run)

    theirs, mine = peer(), ours()
    pairs_of = (theirs.features, mine.captured["block_out.mean"]), (theirs.end, mine.latents)
    errors = [float(np.abs(a - np.asarray(b)).max() / np.abs(a).max()) for a, b in pairs_of]
    if not max(errors) <= PUBLISHED_TOLERANCE:
        raise AssertionError(
            f"features and end state differ by {errors} of the largest value, more than {PUBLISHED_TOLERANCE:g}"
        )
    witness = {
        "relative_errors": [float(f"{error:.3g}") for error in errors],
        "evaluations": mine.evaluations,
        "captures": len(at),
        "flops_by_hand": STEPS * size.flops(),
    }
    name = f"published inversion, {STEPS} steps: diffusers / ours"
    return [compare(name, ours, peer, Bar(1.6, at_least=True), pairs, witness)]


def compile_case(size: Size, pairs: int) -> list[Row]:
    """Trace, lower and compile an inversion with means of 40 layers, over the same of 2, for every family; no cache."""
    if depth.uncovered():
        raise AssertionError(
            f"no pipeline here has {', '.join(sorted(depth.uncovered()))}: add it to benchmarks/depth.py"
        )
    return [_compile_row(name, pairs) for name in depth.DEPTHS]


def _compile_row(name: str, pairs: int) -> Row:
    subjects = {layers: depth.abstract(name, layers) for layers in (2, 40)}

    def build(layers):
        jax.clear_caches()  # traces of the last call too
        return compile_inversion(*subjects[layers], MEANS)

    witness = {"hlo_instructions": [program.instructions(build(layers).as_text()) for layers in (2, 40)]}
    few, many = functools.partial(build, 2), functools.partial(build, 40)
    bar = Bar(1.2 if name == "WanPipeline" else 1.3, at_least=False)
    title = f"compile {name.removesuffix('Pipeline')}: 40 / 2 layers"
    return compare(title, few, many, bar, pairs, witness, warmup=1)


def loading_case(size: Size, pairs: int) -> list[Row]:
    """`jaxdiff.load` of a generated sharded checkpoint: memory beyond the result, and bytes a second beside a raw read."""
    gigabytes = loading.GIGABYTES if size is MID else 0.02
    found = loading.in_a_folder(int(gigabytes * 1e9))
    beyond = found["beyond_bytes"] / found["largest_bytes"]
    rates = [found["checkpoint_bytes"] / found[f"{kind}_seconds"] / 1e9 for kind in ("load", "raw")]
    name = f"loading {found['checkpoint_bytes'] / 1e9:.2g} GB"
    return [
        Row(
            f"{name}: peak beyond the result / largest leaf", f"{beyond:.3f}", "<= 1.2", MET if beyond <= 1.2 else MISSED,
            witness=found,
        ),
        Row(f"{name}: throughput", f"{rates[0]:.2f} GB/s, raw read {rates[1]:.2f} GB/s", "", ""),
    ]  # fmt: skip


def demo_case(size: Size, pairs: int) -> list[Row]:
    """The demo, once: a limit on time and memory, not a ratio."""
    found = demo.measure(toy=size is not MID)
    seconds, gigabytes = found["seconds"], found["peak_bytes"] / 1e9
    return [
        Row(
            "demo, nothing compiled before", f"{seconds:.0f} s", "<= 180 s", MET if seconds <= 180 else MISSED,
            seconds={"wall": [seconds]},
        ),
        Row("demo, peak memory", f"{gigabytes:.2f} GB", "<= 4 GB", MET if gigabytes <= 4 else MISSED),
    ]  # fmt: skip


def probes_case(size: Size, pairs: int) -> list[Row]:
    """The whole grid of probes once, against scikit-learn on some of its sets."""
    grid = probes.Grid() if size is MID else probes.TOY
    found = probes.measure(grid)
    fits = grid.sets * grid.repeats * grid.folds * len(probes.PENALTIES)
    seconds = {"a_set_ours": [round(float(s), 5) for s in found.ours]}
    rows = [
        Row(
            f"probes: {fits:,} fits, ours", f"{found.ours.mean() * grid.sets:.1f} s", "", "",
            witness={"largest_gap_by_penalty": dict(zip(map(str, probes.PENALTIES), [f"{g:.1e}" for g in found.gaps], strict=True))},
            seconds=seconds,
        )
    ]  # fmt: skip
    for (name, took), bar in zip(found.peers.items(), (Bar(25, at_least=True), Bar(10, at_least=True)), strict=True):
        ratio = found.ratio(name)
        witness = {
            "peer_sets_timed": len(took),
            "peer_seconds_scaled_to_all_sets": round(float(took.mean() * grid.sets), 1),
        }
        rows.append(
            Row(
                f"probes: {name} in {probes.PROCESSES} processes / ours", str(ratio), str(bar), bar.verdict(ratio, MIN_PAIRS),
                witness=witness, seconds=seconds | {"a_set_peer": [round(float(s), 4) for s in took]},
            )
        )  # fmt: skip
    return rows


def program_case(size: Size, pairs: int) -> list[Row]:
    """What the compiled inversion with means is made of; nothing is timed."""
    pipeline = random_pipeline(size)
    latents, text = map(jnp.asarray, inputs(size))
    compiled = compile_inversion(pipeline, latents, text, MEANS)
    hlo = compiled.as_text()
    stacked = program.stacked_shapes(pipeline)
    if "while(" not in hlo or not stacked:
        raise AssertionError("the program has no loop or the network no stacked kernels: nothing to look at")
    copies = program.made(hlo, stacked)
    # One layer's kernels, with or without the axis that slicing leaves.
    layer = {shape[1:] for shape in stacked} | {(1, *shape[1:]) for shape in stacked}
    slices, transfers = program.made(hlo, layer), program.host_transfers(hlo)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(pipeline.transformer.params))
    return [
        Row(
            "stacked weights made anew", str(sum(copies.values())), "== 0", MISSED if copies else MET,
            witness={"stacked": copies, "one_layer": slices},
        ),
        Row("host transfers", str(transfers), "== 0", MISSED if transfers else MET),
        Row(
            "inversion program", f"{program.cost(compiled)['temp_bytes'] / 1e6:.1f} MB temporary", "", "",
            witness={"weight_bytes": weights, "flops_by_hand": STEPS * size.flops(), **program.cost(compiled)},
        ),
    ]  # fmt: skip


def guidance_case(size: Size, pairs: int) -> list[Row]:
    """A sampling step with LaMo's guidance over one without: operations at CogVideoX-5B's size, time at the nano model's."""
    plain, led = guided.operations()
    ratio = led / plain
    times = paired(*guided.nano(), pairs)
    return [
        Row(
            "guidance: operations of a step of CogVideoX-5B", f"{ratio:.4f}", "<= 1.03", MET if ratio <= 1.03 else MISSED,
            witness={"operations": [plain, led]},
        ),
        Row(
            "guidance: time of nano samples", str(times.ratio()), "", "", str(times.control_ratio()), seconds=times.as_json()
        ),
    ]  # fmt: skip


def drift_case(size: Size, pairs: int) -> list[Row]:
    """LaMo's drift loss over a training step, in operations, at CogVideoX-5B's size; nothing is timed."""
    step, loss = drift.operations()
    share = loss / step
    return [
        Row(
            "drift loss / training step of CogVideoX-5B, operations", f"{share:.1e}", "<= 0.01",
            MET if share <= 0.01 else MISSED, witness={"operations": [step, loss]},
        )
    ]  # fmt: skip


def compile_inversion(pipeline, latents, text, taps):
    """The inversion as one compiled program; the weights are its arguments."""

    def run(pipeline, latents, text):
        trajectory = invert(pipeline, latents, text, steps=STEPS, taps=taps)
        return trajectory.latents, trajectory.captured

    return jax.jit(run).lower(pipeline, latents, text).compile()


CASES: dict[str, Callable[[Size, int], list[Row]]] = {
    "forward": forward_case,
    "captures": captures_case,
    "inversion": inversion_case,
    "published": published_case,
    "compile": compile_case,
    "program": program_case,
    "loading": loading_case,
    "demo": demo_case,
    "probes": probes_case,
    "guidance": guidance_case,
    "drift": drift_case,
}
