"""`experiments.fidelity`: every solver against a fine reference, for the same number of network evaluations.

Two distances from the reference run: of the end state, and of what the blocks hold at given noise levels, which is what a
probe reads. Of the latter the part that all clips share is taken out as well: a probe sees what differs between clips.
"""

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.clip import Clip
from jaxdiff.data.intphys import load_intphys
from jaxdiff.data.video import list_videos
from jaxdiff.data.worlds import WorldConfig
from jaxdiff.errors import ConfigError, MissingDataError
from jaxdiff.flow import SOLVERS, DivergedError, Solver, invert
from jaxdiff.flow.solvers import as_solver, is_stochastic
from jaxdiff.mesh import own_mesh, replicate, weights_mesh
from jaxdiff.pipeline import Pipeline, load
from jaxdiff.progress import progress
from jaxdiff.report import probe_csv, report_run
from jaxdiff.report.study import Curve, Panel, Study, Table
from jaxdiff.study.batches import Batches
from jaxdiff.study.config import NANO, StudyConfig
from jaxdiff.study.inversion import text_note
from jaxdiff.study.models import ASSETS, conditioning
from jaxdiff.study.reading import Reading
from jaxdiff.taps import Tap
from jaxdiff.workdir import Workdir

REFERENCE = "midpoint"
HALF = "reference, half the steps"
TAP = Tap("block_out")
COLUMNS = ("solver", "budget", "steps", "evaluations", "metric", "value", "low", "high", "clips")
METRICS = {
    "end_error": "relative error of the end state",
    "feature_error": "1 - cosine of the blocks' token means",
    "contrast_error": "1 - cosine of what differs between clips",
}


@dataclasses.dataclass(frozen=True)
class SolverStudy:
    """See the flags of `experiments.fidelity`."""

    model: str
    config: str
    videos: Path | None = None
    clips: int = 24
    frames: int = 17
    size: int | None = 32
    solvers: tuple[str, ...] | None = None
    evaluations: tuple[int, ...] = (16, 32, 64, 96)
    reference: int = 4
    levels: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    prompt: str = ""
    text_embeddings: str | None = None
    clips_per_device: int = 24
    dtype: str | None = None
    world_seed: int = 0

    def __post_init__(self):
        if self.clips < 2:
            raise ConfigError(f"--clips={self.clips}: what differs between clips needs at least 2")
        if not self.evaluations or min(self.evaluations) < 2 or self.reference < 2:
            raise ConfigError(f"--evaluations={self.evaluations} and --reference={self.reference} must be 2 or more")
        if not self.levels:
            raise ConfigError("--levels names no noise level to compare at")
        for name in self.solvers or ():
            is_stochastic(as_solver(name), up=True)

    def names(self) -> tuple[str, ...]:
        """The solvers that are compared."""
        return self.solvers or tuple(name for name, solver in SOLVERS.items() if not solver.stochastic)

    def reading(self) -> Reading:
        return Reading(frames=self.frames, size=self.size, steps=2, clips_per_device=self.clips_per_device)


def steps_for(solver: Solver, budget: int, levels: int) -> int:
    """Steps of the grid that `budget` evaluations of a run allow, 0 where not even one.

    Reading at `levels` noise levels puts that many more steps in, and costs solvers that do not evaluate their start an
    evaluation each.
    """
    reads = 0 if solver.evaluates_start else levels
    return max(0, (budget - solver.first_evaluations - reads) // solver.evaluations - levels)


@dataclasses.dataclass(frozen=True)
class Walked:
    """One run over all clips: end states [n, ...], features [levels, blocks, n, D], and evaluations a clip."""

    end: np.ndarray
    features: np.ndarray
    evaluations: int

    def pack(self) -> bytes:
        file = io.BytesIO()
        np.savez(file, end=self.end, features=self.features, evaluations=np.array(self.evaluations))
        return file.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> "Walked":
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return cls(file["end"], file["features"], int(file["evaluations"]))


Parts = Sequence[tuple[jax.Array, Conditioning, int]]  # latents, what they go with, and how many rows are clips


def walk(pipeline: Pipeline, parts: Parts, solver: str, steps: int, levels: Sequence[float]) -> Walked:
    """Invert every clip; a clip that diverged is left as it came out, nan or infinite."""
    ends, features, evaluations = [], [], 0
    for latents, cond, real in parts:
        try:
            trajectory = invert(
                pipeline, latents, cond, steps=steps, solver=solver, taps=(TAP,), capture_sigmas=tuple(levels)
            )
        except DivergedError as error:
            if error.trajectory is None:
                raise
            trajectory = error.trajectory
        ends.append(np.asarray(trajectory.latents)[:real])
        features.append(np.asarray(trajectory.captured[str(TAP.name)], np.float32)[:, :, :real])
        evaluations = trajectory.evaluations
    return Walked(np.concatenate(ends), np.concatenate(features, 2), evaluations)


def errors(run: Walked, reference: Walked) -> dict[str, np.ndarray]:
    """The `METRICS` of every clip, [n] each; nan for a clip that diverged.

    Cosines are of all blocks at one noise level, averaged over the levels. The mean over clips that "contrast_error" takes
    out is the reference's, of both.
    """
    n = len(run.end)
    a, b = (x.end.reshape(n, -1).astype(np.float64) for x in (run, reference))
    shared = reference.features.astype(np.float64).mean(2, keepdims=True)

    def off(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """1 - cosine over the features of each block, mean over blocks and levels: [n]."""
        size = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
        return (1 - (x * y).sum(-1) / np.maximum(size, 1e-30)).mean((0, 1))

    x, y = run.features.astype(np.float64), reference.features.astype(np.float64)
    found = {
        "end_error": np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1),
        "feature_error": off(x, y),
        "contrast_error": off(x - shared, y - shared),
    }
    return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A solver at a budget."""

    solver: str
    budget: int
    steps: int
    evaluations: int
    errors: dict[str, np.ndarray]

    def value(self, metric: str) -> float:
        """Mean over clips; nan if one diverged."""
        return float(np.mean(self.errors[metric]))

    def ends(self, metric: str) -> tuple[float, float]:
        """The middle 80 % of the clips."""
        low, high = np.quantile(self.errors[metric], [0.1, 0.9])
        return float(low), float(high)


def run_solvers(config: SolverStudy, workdir: Path) -> None:
    """Invert with every solver and budget, compare with the reference, report."""
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("encode"):
            pipeline, parts = prepare(config, workdir)
        clips = sum(real for _, _, real in parts)
        fine = config.reference * max(config.evaluations)
        plan = [(REFERENCE, 0, fine), (HALF, 0, fine // 2)]
        plan += [
            (name, budget, steps)
            for name in config.names()
            for budget in config.evaluations
            if (steps := steps_for(as_solver(name), budget, len(config.levels)))
        ]
        found: list[Measured] = []
        reference: Walked | None = None
        with progress("solvers", len(plan), unit="runs") as task:
            for name, budget, steps in plan:
                solver = REFERENCE if name == HALF else name
                file = workdir / "runs" / f"{solver}-{steps}-{budget}.npz"
                if file.exists():
                    run = Walked.unpack(file.read_bytes())
                else:
                    with work.stage("walk", solver=solver, steps=steps):
                        run = walk(pipeline, parts, solver, steps, config.levels)
                    work.write(f"runs/{file.name}", run.pack())
                reference = run if reference is None else reference
                found.append(Measured(name, budget, steps, run.evaluations, errors(run, reference)))
                task.advance(solver=name)
        half, found = found[1], found[2:]
        probe_csv(workdir / "fidelity.csv", csv_rows(found, half, clips), COLUMNS)
        work.write_result(result_json(found, half, clips))
        with work.stage("report"):
            report = report_study(found, half, config, clips)
            report_run(work, report)
        work.finish(("result.json", "fidelity.csv"))
    print(f"{lines(found)}\n-> {workdir / 'report.html'}")


def prepare(config: SolverStudy, workdir: Path) -> tuple[Pipeline, Parts]:
    """The model, and the encoded clips in micro-batches with what they go with."""
    pipeline = load(
        ASSETS / NANO if config.model == NANO else config.model,
        dtype=None if config.dtype is None else jnp.dtype(config.dtype),
        mesh=weights_mesh(),
    )
    same = StudyConfig(config.model, config=config.config, prompt=config.prompt, text_embeddings=config.text_embeddings)
    mesh, clips = own_mesh(), find_clips(config, workdir)
    pipeline, cond = replicate(pipeline, mesh), replicate(conditioning(pipeline, same), mesh)
    batches = Batches(pipeline, clips, config.reading(), mesh, range(len(clips)))
    return pipeline, [(latents, told, batch.real) for batch, latents, told in batches.conditioned(cond)]


def find_clips(config: SolverStudy, workdir: Path) -> list[Clip]:
    """Clips of the folder, or generated ones, at most `config.clips`, evenly out of all.

    Raises
    ------
    MissingDataError : the folder holds fewer than two videos.
    """
    if config.videos is None:
        from jaxdiff.data.worlds.layout import write_intphys

        folder, scenes = workdir / "world", math.ceil(config.clips / 12)
        world = WorldConfig(frames=config.frames, size=config.size or 32)
        write_intphys(world, config.world_seed, scenes, folder, depth=False, masks=False)
        clips = load_intphys(folder, scenes=scenes)
    else:
        paths = list_videos(config.videos)
        clips = [Clip(p.relative_to(config.videos).as_posix(), p, p.stem, "", None) for p in paths]
    if len(clips) < 2:
        raise MissingDataError(f"--videos={config.videos} holds {len(clips)} videos; at least 2 are compared")
    picks = np.unique(np.linspace(0, len(clips) - 1, min(config.clips, len(clips))).round().astype(int))
    return [clips[i] for i in picks]


def best(found: Sequence[Measured], metric: str) -> dict[int, str]:
    """The solver with the smallest error at every budget."""
    out = {}
    for budget in sorted({m.budget for m in found}):
        here = [m for m in found if m.budget == budget and np.isfinite(m.value(metric))]
        if here:
            out[budget] = min(here, key=lambda m: m.value(metric)).solver
    return out


def result_json(found: Sequence[Measured], half: Measured, clips: int) -> dict[str, Any]:
    """result.json: nothing in it depends on when or where it was made."""

    def number(value: float) -> float | None:
        return float(f"{value:.6g}") if np.isfinite(value) else None

    return {
        "solvers": [
            {"solver": m.solver, "budget": m.budget, "steps": m.steps, "evaluations": m.evaluations}
            | {metric: number(m.value(metric)) for metric in METRICS}
            for m in found
        ],
        "best": {metric: {str(k): v for k, v in best(found, metric).items()} for metric in METRICS},
        "reference": {"solver": REFERENCE, "steps": 2 * half.steps}
        | {f"change_from_half_the_steps.{metric}": number(half.value(metric)) for metric in METRICS},
        "clips": clips,
    }


def csv_rows(found: Sequence[Measured], half: Measured, clips: int) -> list[dict[str, Any]]:
    """fidelity.csv: mean and middle 80 % of the clips of every error."""
    return [
        {"solver": m.solver, "budget": m.budget, "steps": m.steps, "evaluations": m.evaluations, "metric": metric,
         "value": m.value(metric), "low": m.ends(metric)[0], "high": m.ends(metric)[1], "clips": clips}
        for m in (half, *found)
        for metric in METRICS
    ]  # fmt: skip


def report_study(found: Sequence[Measured], half: Measured, config: SolverStudy, clips: int) -> Study:
    """The report: both distances over evaluations, and all numbers as a table."""
    names = list(dict.fromkeys(m.solver for m in found))
    kinds = {"euler": "states", "ddim_label": "comparison", "fixed_point": "comparison"}

    def panel(metric: str, title: str, caption: str) -> Panel:
        curves = []
        for name in names:
            mine = [m for m in found if m.solver == name]
            x = np.array([m.evaluations for m in mine], float)
            curves.append(Curve(name, x, np.array([m.value(metric) for m in mine]), kind=kinds.get(name, "null")))
        return Panel(title, tuple(curves), "network evaluations a clip", METRICS[metric], caption, log=True)

    rows = tuple((m.solver, m.steps, m.evaluations, *(f"{m.value(metric):.2e}" for metric in METRICS)) for m in found)
    floor = ", ".join(f"{METRICS[metric]} {half.value(metric):.1e}" for metric in METRICS)
    return Study(
        title=f"Solvers of the inversion of {config.model}",
        summary=_summary(found),
        facts={"clips": str(clips), "reference": f"{REFERENCE}, {2 * half.steps} steps"},
        panels=(
            panel(
                "end_error", "Where the inversion ends", "Distance of the end state from the reference's, mean over clips."
            ),
            panel(
                "contrast_error", "What a probe would read",
                "Of the blocks' token means at the compared noise levels, the part that differs between clips: one minus its "
                "cosine with the reference's.",
            ),
        ),
        tables=(
            Table(
                "Every solver and budget", ("solver", "steps", "evaluations", *METRICS.values()), rows,
                "A budget counts every evaluation: those made only to read, and the steps that reading at given noise levels "
                "puts into the grid, too. Solvers that cannot make a step within a budget are left out of it.",
            ),
        ),
        notes=(
            f"The reference is no exact solution: with half its steps it moves by {floor}. Errors of that size say nothing.",
            "Errors are of these clips and this model; they do not say which solver is best for another one.",
            text_note(config.prompt, config.text_embeddings),
        ),
        seeds={"world": config.world_seed},
    )  # fmt: skip


def _summary(found: Sequence[Measured]) -> str:
    """The finding in words that follow from the numbers."""
    told = [f"{name} at {budget}" for budget, name in best(found, "contrast_error").items()]
    return f"Closest to the reference in what differs between clips: {', '.join(told)} evaluations." if told else ""


def lines(found: Sequence[Measured]) -> str:
    """What the binary prints."""
    head = f"{'solver':>12} {'steps':>6} {'evals':>6} {'end':>9} {'features':>9} {'contrast':>9}"
    body = [
        f"{m.solver:>12} {m.steps:6d} {m.evaluations:6d} " + " ".join(f"{m.value(metric):9.2e}" for metric in METRICS)
        for m in found
    ]
    return "\n".join([head, *body])
