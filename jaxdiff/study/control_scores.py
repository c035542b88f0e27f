"""How well a control branch does: whether the driver follows its mask, whether the others react, and what to hold beside it."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxdiff.data.worlds.billiards import Billiards
from jaxdiff.physics.interaction import (
    correlation,
    displacement,
    energy_gain,
    iou,
    motion_fidelity,
    track_discs,
)
from jaxdiff.report.study import Check, Gallery, Study, Table

CONTROL, ZEROED, SHUFFLED, BACKBONE = "control", "zeroed", "shuffled", "backbone"
SETS = {
    CONTROL: "the clip's own mask",
    ZEROED: "an empty mask",
    SHUFFLED: "another clip's mask",
    BACKBONE: "the backbone alone",
}
TRUTH = {
    "true": "true clips",
    "autoencoder": "true clips, encoded and decoded",
    "reversed": "true clips, run backwards",
}
MEASURES = {
    "driver": "driver IoU with the mask of this clip",
    "other": "driver IoU with the mask of the other clip with the same first frame",
    "propagation": "correlation of the other disc's displacement with the simulator's, where the driver hits",
    "counterfactual": "the same where the driver misses, with the displacement that a hit would have caused",
    "moved": "how far the other disc moves where the driver misses, of the frame's side",
    "fidelity": "motion fidelity",
    "energy": "gain of kinetic energy, median",
    "lost": "discs not found, share of the frames",
    "psnr": "PSNR in dB without the first frame",
}
DRIVER_BAR = 0.8  # of the survey
OTHER_SLACK = 0.02  # above the overlap that the two true masks have
NEAR_ZERO = 0.3  # a correlation of 32 clips' displacements, two numbers each, below this is none
ROUNDING = 1e-2  # of bfloat16, relative to the largest value; in float32 it is some 1e-6
DRAWS = 500
Scores = dict[str, dict[str, tuple[float, float, float]]]  # set -> measure -> value, low, high


def psnr(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] in dB of clips uint8 [N, T, H, W, 3], without the first frame, which is given; nan where there is no error."""
    error = np.square(video[:, 1:].astype(np.float64) - truth[:, 1:]).mean((1, 2, 3, 4))
    with np.errstate(divide="ignore"):
        return np.where(error > 0, 10 * np.log10(255.0**2 / error), np.nan)


def billiard_scores(video: np.ndarray, truth: Billiards, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Every measure of generated clips of pairs, hit and miss by turns, with its 95 % interval over pairs."""
    tracks = track_discs(video, truth.colour, truth.radius)
    hit, miss = slice(0, None, 2), slice(1, None, 2)
    partner = np.arange(len(video)).reshape(-1, 2)[:, ::-1].ravel()
    moved, true = displacement(tracks.position), displacement(truth.motion.position)
    masks = truth.masks[:, :, 0]
    each = {
        "driver": iou(tracks.masks[:, :, 0], masks),
        "other": iou(tracks.masks[:, :, 0], masks[partner]),
        "moved": np.where(np.arange(len(video)) % 2, np.linalg.norm(moved, axis=-1), np.nan),
        "fidelity": motion_fidelity(tracks.position, truth.motion.position),
        "lost": 1.0 - tracks.found.mean((1, 2)),
        "psnr": psnr(video, truth.video),
    }
    gain = energy_gain(tracks.position, truth.radius)
    over_pairs: dict[str, Callable[[np.ndarray], float]] = {
        name: functools.partial(_mean_of, values.reshape(-1, 2)) for name, values in each.items()
    }
    over_pairs["propagation"] = lambda rows: correlation(moved[hit][rows], true[hit][rows])
    over_pairs["counterfactual"] = lambda rows: correlation(moved[miss][rows], true[hit][rows])
    over_pairs["energy"] = lambda rows: _median(gain.reshape(-1, 2)[rows])
    return {name: interval(over_pairs[name], len(video) // 2, seed) for name in MEASURES}


def video_scores(video: np.ndarray, truth: np.ndarray, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """What can be said of clips of which only the pixels are known."""
    values = psnr(video, truth)
    return {"psnr": interval(lambda rows: _mean(values[rows]), len(values), seed)}


def interval(of: Callable[[np.ndarray], float], count: int, seed: int = 0) -> tuple[float, float, float]:
    """A number of the rows 0 to `count`, and its 95 % interval where rows are drawn with replacement; nan where not defined."""
    value = of(np.arange(count))
    rng = np.random.default_rng(seed)
    drawn = np.array([of(rng.integers(count, size=count)) for _ in range(DRAWS)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (math.nan, math.nan)
    return float(value), float(low), float(high)


def checks(
    scores: Scores, overlap: float, untrained: Mapping[str, Any], frozen: bool, gain: tuple[float, float, float]
) -> list[Check]:
    """The aims, by the letters of the survey. `overlap` is the IoU of the two true masks of a first picture, `untrained` what
    the branch did before training, `gain` how much the propagation with control is above that without."""
    control, reverse = scores[CONTROL], scores["reversed"]["fidelity"][0]
    driver, other, across = (control[name][0] for name in ("driver", "other", "counterfactual"))
    told = _told(gain)
    return [
        Check(
            "a: the mask changes a bit before training", "no" if untrained["equal_for_any_mask"] else "yes", "no",
            untrained["equal_for_any_mask"],
        ),
        Check(
            "a: and by how much the branch changes the backbone's velocity", f"{untrained['difference']:.1e}",
            f"at most {ROUNDING:.0e}, rounding", untrained["difference"] <= ROUNDING,
        ),
        Check("c: the backbone's weights after training", "unchanged" if frozen else "changed", "unchanged", frozen),
        Check("d: the driver is where its mask is (IoU)", f"{driver:.3f}", f"at least {DRIVER_BAR}", driver >= DRIVER_BAR),
        Check(
            "d: and not where the other mask is (IoU)", f"{other:.3f}", f"at most {overlap + OTHER_SLACK:.3f}",
            other <= overlap + OTHER_SLACK,
        ),
        Check("e: the disc that is hit moves as simulated, gain in r over an empty mask", told, "above 0", gain[1] > 0),
        Check(
            "e: and not where the driver misses (r)", f"{across:.3f}", f"below {NEAR_ZERO}",
            abs(across) < NEAR_ZERO or control["moved"][0] == 0,
        ),
        Check("f: motion fidelity of true clips to themselves run backwards", f"{reverse:.3f}", "below 0.5", reverse < 0.5),
    ]  # fmt: skip


def propagation_gain(videos: Mapping[str, np.ndarray], truth: Billiards, seed: int = 0) -> tuple[float, float, float]:
    """Correlation of the hit disc's displacement with the simulator's: with the clip's own mask minus with an empty one."""
    hit, true = slice(0, None, 2), displacement(truth.motion.position)[::2]
    moved = {
        name: displacement(track_discs(videos[name], truth.colour, truth.radius).position)[hit]
        for name in (CONTROL, ZEROED)
    }

    def difference(rows: np.ndarray) -> float:
        own, without = (correlation(moved[name][rows], true[rows]) for name in (CONTROL, ZEROED))
        return own - (0.0 if math.isnan(without) else without)  # of discs that do not move at all there is none

    return interval(difference, len(true), seed)


def study(
    title: str,
    facts: Mapping[str, str],
    scores: Scores,
    aims: list[Check],
    gallery: Gallery,
    measures: Mapping[str, str],
) -> Study:
    """The report."""
    names = SETS | TRUTH
    rows = tuple((text, *(_told(found.get(key)) for found in scores.values())) for key, text in measures.items())
    missed = [check.name.split(":")[0] for check in aims if not check.met]
    summary = ""
    if aims:
        summary = "Every aim is met." if not missed else f"Aims missed: {', '.join(dict.fromkeys(missed))}."
    return Study(
        title=title,
        summary=summary,
        facts=facts,
        checks=tuple(aims),
        tables=(
            Table(
                "Scores", ("", *(names[key] for key in scores)), rows,
                "Held-out clips; intervals: 95 %, over drawing first pictures anew. All clips of a first picture begin at the "
                "same noise. True clips are what can be reached, and behind the autoencoder what this model can show.",
            ),
        ),
        gallery=gallery,
        conditional_on=("the trained weights, the noise and the tracker; only first pictures, each with its clips, are drawn anew",),
    )  # fmt: skip


def as_json(scores: Scores) -> dict[str, Any]:
    """As result.json holds them."""
    return {
        name: {
            key: dict(zip(("value", "low", "high"), (_number(x) for x in values), strict=True))
            for key, values in found.items()
        }
        for name, found in scores.items()
    }


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _told(values: tuple[float, float, float] | None) -> str:
    if values is None or not math.isfinite(values[0]):
        return "–"
    value, low, high = values
    digits = 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}" + (
        f" [{low:.{digits}f}, {high:.{digits}f}]" if math.isfinite(low) and high > low else ""
    )


def _mean_of(values: np.ndarray, rows: np.ndarray) -> float:
    return _mean(values[rows])


def _mean(values: np.ndarray) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else math.nan


def _median(values: np.ndarray) -> float:
    there = values[np.isfinite(values)]
    return float(np.median(there)) if there.size else math.nan
