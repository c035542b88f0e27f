"""`experiments.ablate`: attention cut at one block at a time, and the probes fitted again on what is then read.

The network is inverted with the cut in place at every step, so that what a block holds afterwards was computed without it.
Two cuts: of self-attention from frame to frame, where every latent frame attends to itself only, and of the attention to
the text. No weight is trained anew. A block whose cut takes the probe to chance is one that the reading rests on; a cut that
changes nothing shows that the rest of the network makes up for it, not that the block does nothing.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.conditioning import Conditioning
from jaxdiff.errors import ConfigError
from jaxdiff.pipeline import Pipeline, edit_sites
from jaxdiff.probes import statistics
from jaxdiff.probes.cross_validation import NestedResult, nested_cross_validate
from jaxdiff.progress import progress
from jaxdiff.report import probe_csv, report_run
from jaxdiff.report.study import Curve, Estimate, Panel, Study, Table
from jaxdiff.store import ActivationStore
from jaxdiff.study.batches import Encoded, Prompts
from jaxdiff.study.features import Features, stored_features
from jaxdiff.study.finished import Finished, reopen
from jaxdiff.study.reading import invert_clips
from jaxdiff.study.results import CHANCE, estimate_json
from jaxdiff.study.sources import blocks_and_input
from jaxdiff.taps import MAP_SITE, TEXT_SITE, Edit
from jaxdiff.workdir import Workdir

FRAMES, TEXT = "frames", "text"
CUTS = {FRAMES: "self-attention between frames", TEXT: "attention to the text"}
UNCUT, EVERYWHERE = "uncut", "all"
COLUMNS = ("cut", "block", "metric", "read_block", "sigma", "value", "low", "high", "clips", "scenes")


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """See the flags of `experiments.ablate`."""

    study: Path
    model: str | None = None
    cuts: tuple[str, ...] = (FRAMES, TEXT)
    blocks: tuple[int, ...] | None = None
    everywhere: bool = True
    scenes: int | None = None

    def __post_init__(self):
        if not self.cuts or any(cut not in CUTS for cut in self.cuts) or len(set(self.cuts)) < len(self.cuts):
            raise ConfigError(f"--cuts={','.join(self.cuts)}: name each of {', '.join(CUTS)} at most once")


@dataclasses.dataclass(frozen=True)
class Cut:
    """One way of running the network: attention of `kind` is cut at `blocks`."""

    kind: str
    blocks: tuple[int, ...]
    name: str

    def flags(self, layers: int) -> np.ndarray:
        """Of every block whether it is cut, bool [L]."""
        return np.isin(np.arange(layers), self.blocks)


def own_frame_only(h: jax.Array, key: jax.Array, sigma: Any, cut: jax.Array) -> jax.Array:
    """Attention between frames [B, K, T', T'] so that a frame that is `cut` attends to itself alone."""
    return jnp.where(cut, jnp.eye(h.shape[-1], dtype=h.dtype), h)


def nothing(h: jax.Array, key: jax.Array, sigma: Any, cut: jax.Array) -> jax.Array:
    """Zeros where `cut`."""
    return jnp.where(cut, jnp.zeros_like(h), h)


def edits_of(pipeline: Pipeline, cut: Cut) -> tuple[Edit, ...]:
    """The edits that make a cut; cuts of one kind differ in data only, and run one program.

    The text is cut by leaving out what cross-attention adds (that of image tokens goes with it), and where text and video
    attend in one sequence, as in CogVideoX, by taking the text away from the video's queries: text still sees the video.

    Raises
    ------
    ConfigError : this backbone cannot be cut so.
    """
    sites, flags = edit_sites(pipeline), cut.flags(pipeline.transformer.config.num_layers)
    if cut.kind == FRAMES and MAP_SITE in sites:
        return (Edit(MAP_SITE, None, own_frame_only, flags),)
    if cut.kind == TEXT:
        for site in ("cross_attention_out", TEXT_SITE):
            if site in sites:
                return (Edit(site, None, nothing, flags),)
    raise ConfigError(
        f"--cuts={cut.kind}: {type(pipeline.family).__name__} offers no place to cut {CUTS[cut.kind]}; its sites are "
        f"{', '.join(sites)}"
    )


def cuts_of(config: AblationConfig, layers: int) -> list[Cut]:
    """Every kind at every block alone, then at all of them.

    Raises
    ------
    ConfigError : a block that does not exist, or one twice.
    """
    blocks = range(layers) if config.blocks is None else config.blocks
    if any(not 0 <= b < layers for b in blocks) or len(set(blocks)) < len(blocks):
        raise ConfigError(f"--blocks={config.blocks}: give each of the blocks 0 to {layers - 1} at most once")
    made = []
    for kind in config.cuts:
        made += [Cut(kind, (block,), f"{kind}_{block:02d}") for block in blocks]
        if config.everywhere:
            made.append(Cut(kind, tuple(range(layers)), f"{kind}_{EVERYWHERE}"))
    return made


def read_cuts(
    pipeline: Pipeline, cond: Conditioning | Prompts, study: Finished, cuts: Sequence[Cut], folder: Path
) -> dict[str, ActivationStore]:
    """The study's clips inverted and read with every cut in place, cut by cut resumable."""
    encoded, stores = Encoded(), {}
    for cut in cuts:
        stores[cut.name], _ = invert_clips(
            pipeline, study.clips, cond, study.reading(), folder / cut.name, edits=edits_of(pipeline, cut),
            metadata={"cut": cut.kind, "cut_blocks": list(cut.blocks)}, encoded=encoded, title=f"invert ({cut.name})",
        )  # fmt: skip
    return stores


def probe(features: Features, study: Finished) -> NestedResult:
    """The study's corrected protocol on its clips."""
    labels, protocol = study.labels, study.config.protocol()
    blocks, _ = blocks_and_input(features)
    return nested_cross_validate(
        blocks.arrays, labels.possible, labels.groups, penalties=protocol.penalties, outer=protocol.outer,
        inner=protocol.inner, repeats=protocol.repeats, seed=protocol.seed, strata=labels.categories,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the probes say under one cut: accuracy, and accuracy without the cut minus it, paired over scenes."""

    accuracy: Estimate
    lost: Estimate


def compare(found: NestedResult, uncut: NestedResult, seed: int) -> Reading:
    """A cut's reading beside that without a cut."""
    lost, ends = statistics.paired_difference(uncut.hits, found.hits, found.groups, seed=seed)
    return Reading(Estimate(found.accuracy, *found.interval), Estimate(lost, *ends))


def run_ablation(config: AblationConfig, workdir: Path) -> None:
    """Invert and probe with every cut, and report a curve over blocks for each kind."""
    study = reopen(config.study).scenes(config.scenes)
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        with work.stage("load"):
            pipeline, cond = study.model(config.model)
        cuts = cuts_of(config, pipeline.transformer.config.num_layers)
        refuse(pipeline, study, cuts)
        with work.stage("invert", clips=len(study.clips), cuts=len(cuts)):
            stores = read_cuts(pipeline, cond, study, cuts, workdir / "store")
        seed, results = study.config.seed, {}
        with work.stage("probe"), progress("probe", len(cuts) + 1, unit="readings") as task:
            uncut = probe(stored_features(study.store, study.ids), study)
            task.advance()
            for cut in cuts:
                features = stored_features(stores[cut.name], range(len(study.clips)))
                results[cut.name] = probe(features, study)
                task.advance()
        readings = {name: compare(found, uncut, seed) for name, found in results.items()}
        probe_csv(workdir / "ablation.csv", csv_rows(uncut, results, readings, cuts, study), COLUMNS)
        work.write_result(result_json(uncut, readings, cuts, study))
        with work.stage("report"):
            report = report_study(uncut, readings, cuts, study)
            report_run(work, report)
        work.finish(("result.json", "ablation.csv"))
    print(f"{report.summary}\n-> {workdir / 'report.html'}")


def refuse(pipeline: Pipeline, study: Finished, cuts: Sequence[Cut]) -> None:
    """Raise a ConfigError for cuts that this model or these clips do not allow, before anything is inverted."""
    for cut in cuts:
        edits_of(pipeline, cut)
    frames = study.latents_shape(pipeline)[1]
    if any(cut.kind == FRAMES for cut in cuts) and frames < 2:
        raise ConfigError(f"--cuts=frames: clips of {study.config.frames} frames have one latent frame; nothing to cut")


def result_json(
    uncut: NestedResult, readings: dict[str, Reading], cuts: Sequence[Cut], study: Finished
) -> dict[str, Any]:
    """result.json: nothing in it depends on when or where it was made."""
    return {
        "uncut": estimate_json(Estimate(uncut.accuracy, *uncut.interval)),
        "cuts": [
            {
                "cut": cut.kind,
                "blocks": list(cut.blocks),
                "accuracy": estimate_json(readings[cut.name].accuracy),
                "lost": estimate_json(readings[cut.name].lost),
            }
            for cut in cuts
        ],
        "clips": len(study.clips),
        "scenes": len(set(study.labels.groups.tolist())),
        "chance": CHANCE,
    }


def csv_rows(
    uncut: NestedResult,
    results: dict[str, NestedResult],
    readings: dict[str, Reading],
    cuts: Sequence[Cut],
    study: Finished,
) -> list[dict[str, Any]]:
    """ablation.csv: accuracy under every cut, what the cut cost, and every cell."""
    common = {"clips": len(study.clips), "scenes": len(set(study.labels.groups.tolist()))}
    candidates = stored_features(study.store, study.ids).candidates
    lines: list[dict[str, Any]] = []

    def cells(base: dict[str, Any], result: NestedResult) -> None:
        for name, values in result.grid.items():
            for candidate, value, ends in zip(candidates[name], values, result.grid_interval[name], strict=True):
                lines.append(
                    {**base, "metric": f"cell_accuracy.{name}", "read_block": candidate.block,
                     "sigma": candidate.sigma, "value": value, "low": ends[0], "high": ends[1]}
                )  # fmt: skip

    base = {**common, "cut": UNCUT, "block": ""}
    accuracy = Estimate(uncut.accuracy, *uncut.interval)
    lines.append({**base, "metric": "accuracy", **dataclasses.asdict(accuracy)})
    cells(base, uncut)
    for cut in cuts:
        base = {**common, "cut": cut.kind, "block": EVERYWHERE if cut.name.endswith(EVERYWHERE) else cut.blocks[0]}
        reading = readings[cut.name]
        lines.append({**base, "metric": "accuracy", **dataclasses.asdict(reading.accuracy)})
        lines.append({**base, "metric": "lost", **dataclasses.asdict(reading.lost)})
        cells(base, results[cut.name])
    return lines


def report_study(uncut: NestedResult, readings: dict[str, Reading], cuts: Sequence[Cut], study: Finished) -> Study:
    """The report: accuracy over the cut block, a curve for each kind, with the uncut reading beside it."""
    whole = Estimate(uncut.accuracy, *uncut.interval)
    kinds = list(dict.fromkeys(cut.kind for cut in cuts))
    single = {kind: [cut for cut in cuts if cut.kind == kind and not cut.name.endswith(EVERYWHERE)] for kind in kinds}

    def curve(name: str, x: Sequence[int], estimates: Sequence[Estimate], kind: str) -> Curve:
        y, low, high = (np.array([getattr(e, part) for e in estimates]) for part in ("value", "low", "high"))
        return Curve(name, np.asarray(x, float), y, low, high, kind)

    blocks = [cut.blocks[0] for cut in single[kinds[0]]]
    curves = [curve("nothing cut", blocks, [whole] * len(blocks), "comparison")]
    for kind, colour in zip(kinds, ("states", "null"), strict=False):
        found = [readings[cut.name].accuracy for cut in single[kind]]
        curves.append(curve(f"{kind} cut", [cut.blocks[0] for cut in single[kind]], found, colour))
    rows = tuple(
        (
            CUTS[cut.kind],
            "all" if cut.name.endswith(EVERYWHERE) else str(cut.blocks[0]),
            readings[cut.name].accuracy,
            _points(readings[cut.name].lost),
        )
        for cut in cuts
    )
    return Study(
        title=f"Attention of {study.config.model}, cut block by block",
        summary=_summary(whole, readings, cuts),
        facts={"clips": f"{len(study.clips)} of {len(set(study.labels.groups.tolist()))} scenes"},
        chance=CHANCE,
        panels=(
            Panel(
                "What is still decodable when one block is cut", tuple(curves), "cut block",
                "accuracy on held-out scenes, %",
                "Corrected protocol on all blocks' states, read with the cut in place at every step. Bands: 95 % over "
                "scenes.",
                percent=True,
            ),
        ),
        tables=(
            Table(
                "Every cut", ("cut", "at block", "accuracy", "lost against no cut, points"),
                (("nothing", "", whole, ""), *rows),
                "What is lost is paired over scenes: the same scenes with and without the cut.",
            ),
        ),
        conditional_on=(
            "the trained network and the folds of this seed",
            "scenes, which are resampled; clips of one scene stay together",
        ),
        notes=(
            *study.data.notes,
            "A cut network is off the data it was trained on: lost accuracy may be damage as well as a missing path.",
            "Frames: each latent frame attends to itself only. Text: what attention to the text adds is left out; where "
            "text and video attend as one sequence, the video no longer sees the text.",
        ),
        seeds={"study": study.config.seed},
    )  # fmt: skip


def _points(estimate: Estimate) -> str:
    text = f"{100 * estimate.value:+.1f} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
    return text.replace("-", "−")


def _summary(whole: Estimate, readings: dict[str, Reading], cuts: Sequence[Cut]) -> str:
    """The finding in words that follow from the numbers."""
    parts = [f"Nothing cut: {100 * whole.value:.1f} % of held-out clips told right."]
    for kind in dict.fromkeys(cut.kind for cut in cuts):
        mine = [cut for cut in cuts if cut.kind == kind]
        single = [cut for cut in mine if not cut.name.endswith(EVERYWHERE)]
        if single:
            worst = max(single, key=lambda cut: readings[cut.name].lost.value)
            parts.append(
                f"Cutting {CUTS[kind]} costs most at block {worst.blocks[0]}: "
                f"{_points(readings[worst.name].lost)} points."
            )
        for cut in mine:
            if cut not in single:
                parts.append(f"Cut at all blocks: {100 * readings[cut.name].accuracy.value:.1f} %.")
    return " ".join(parts)
