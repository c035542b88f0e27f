"""`experiments.measure` of plain clips: mechanics of whatever moves in them, beside the same numbers of known motion."""

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdiff.data.captions import captioned_videos
from jaxdiff.data.video import list_videos, read_video, video_info
from jaxdiff.errors import ConfigError
from jaxdiff.physics.known import drawn, known_scenes
from jaxdiff.physics.mechanics import DETAILS, MECHANICS, SHARES, measure_tracks
from jaxdiff.physics.metrics import GRAVITY, noise
from jaxdiff.physics.plain_tracking import SIDE, track_plain
from jaxdiff.physics.tracks import Tracks
from jaxdiff.probes import statistics
from jaxdiff.progress import progress
from jaxdiff.report import Gallery, probe_csv, report_run
from jaxdiff.report.study import Estimate, Study, Table
from jaxdiff.study.measures import estimate_json
from jaxdiff.workdir import Workdir

Scores = dict[str, np.ndarray]  # metric -> [N], nan where not defined

GIVEN = "the clips and the tracker; only clips (prompts, where there are captions) are drawn anew"
SETS = {
    "clips": "these clips",
    "shuffled": "these clips, frames shuffled",
    "exact": "known motion, exact",
    "floor": "known motion, tracked (floor)",
    "ceiling": "known motion, tracked, frames shuffled (ceiling)",
}
COLUMNS = ("set", "clip", "caption", "reason", "fps", "frames", *DETAILS, *MECHANICS)
SHOWN, FRAMES, WIDTH = 4, 16, 200  # clips of the report's gallery, their frames and pixels across


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    """See the flags of `experiments.measure`."""

    videos: Path
    captions: Path | None = None
    fps: float | None = None
    scale: float | None = None
    floor: float | None = None
    scenes: int = 8
    seed: int = 0

    def __post_init__(self):
        for name in ("fps", "scale", "floor"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"--{name}={value}; expected a positive number")
        if self.scenes < 2:
            raise ConfigError(f"--scenes={self.scenes}; known motion needs a fall and a collision, so at least 2")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip and what was found in it; `tracks` None, and the `reason` why, where nothing was."""

    name: str
    caption: str
    fps: float
    frames: int
    tracks: Tracks | None
    reason: str = ""
    shuffled: bool = False

    def measured(self, floor: float | None) -> Scores:
        """Its numbers; none but that there are no things where it was refused."""
        if self.tracks is None:
            return {key: np.array([math.nan]) for key in (*MECHANICS, *DETAILS)} | {"things": np.zeros(1)}
        if not self.shuffled:
            return measure_tracks(self.tracks, floor)
        seed = zlib.crc32(self.name.encode())
        return measure_tracks(self.tracks.shuffled(seed), floor, deviation=noise(self.tracks))


def run_plain(config: PlainConfig, workdir: Path) -> None:
    """Read, track, score, report."""
    listed = _listed(config)
    rates = {name: _rate(path, config.fps) for name, path, _ in listed}
    with Workdir(workdir, config) as work:
        if work.done:
            print(f"{workdir} is complete; nothing to do")
            return
        clips: list[Clip] = []
        pictures: list[tuple[str, np.ndarray, np.ndarray]] = []
        sizes: list[tuple[int, int]] = []
        with work.stage("track", clips=len(listed)), progress("track", len(listed)) as task:
            for name, path, caption in listed:
                video = read_video(path)
                found = track_plain(video, rates[name], config.scale)
                clips.append(Clip(name, caption, rates[name], len(video), found.tracks, found.reason))
                sizes.append((video.shape[1], video.shape[2]))
                if found.tracks is not None and len(pictures) < SHOWN:
                    pictures.append((name, *_pictures(video, found.tracks)))
                task.advance()
        with work.stage("reference", scenes=config.scenes):
            first = next((i for i, clip in enumerate(clips) if clip.tracks is not None), 0)
            sets = known_sets(config, clips[first], sizes[first])
        sets = {"clips": clips, "shuffled": _shuffled(clips)} | sets
        scores = {
            key: score(part, config.floor if key in ("clips", "shuffled") else None) for key, part in sets.items()
        }
        groups = None if config.captions is None else np.unique([c.caption for c in clips], return_inverse=True)[1]
        found = {
            key: estimates(part, groups if key in ("clips", "shuffled") else None, config.seed)
            for key, part in scores.items()
        }
        lines = [line for key, part in sets.items() for line in rows(key, part, scores[key])]
        probe_csv(workdir / "clips.csv", lines, COLUMNS)
        work.write_result(_result(found, scores, clips))
        report_run(work, report_study(config, found, scores, clips, pictures))
        work.finish(("result.json", "clips.csv"))
    print(summary(found, scores, clips) + f"\n-> {workdir / 'report.html'}")


def _listed(config: PlainConfig) -> list[tuple[str, Path, str]]:
    if config.captions is not None:
        return captioned_videos(config.videos, config.captions)
    return [(path.relative_to(config.videos).as_posix(), path, "") for path in list_videos(config.videos)]


def _rate(path: Path, fps: float | None) -> float:
    found = fps or video_info(path).fps
    if found is None:
        raise ConfigError(f"{path} knows no frame rate, and gravity needs seconds; give --fps")
    return float(found)


def known_sets(config: PlainConfig, like: Clip, size: tuple[int, int]) -> dict[str, list[Clip]]:
    """Clips of known motion, as long (16 frames at least), as large (up to the tracker's resolution) and as fast as a clip."""
    frames = max(like.frames, 16)
    shrink = max(max(size) / SIDE, 1.0)
    size = (round(size[0] / shrink), round(size[1] / shrink))
    known = known_scenes(config.scenes, frames, size, like.fps, GRAVITY, config.seed)
    exact, found = [], []
    for i, tracks in enumerate(known.tracks):
        # Nothing is told of known motion that is not told of the clips.
        told = tracks.scale if config.scale is not None else None
        exact.append(Clip(str(i), "", tracks.fps, frames, dataclasses.replace(tracks, scale=told)))
        read = track_plain(drawn(tracks, size, config.seed + i)[0], tracks.fps, told)
        found.append(Clip(str(i), "", tracks.fps, frames, read.tracks, read.reason))
    return {"exact": exact, "floor": found, "ceiling": _shuffled(found)}


def _shuffled(clips: Sequence[Clip]) -> list[Clip]:
    return [dataclasses.replace(clip, shuffled=True) for clip in clips]


def score(clips: Sequence[Clip], floor: float | None) -> Scores:
    """Metrics of clips one by one, since they may differ in length, size and rate."""
    parts = [clip.measured(floor) for clip in clips]
    return {key: np.concatenate([part[key] for part in parts]) for key in (*MECHANICS, *DETAILS)}


def estimates(scores: Scores, groups: np.ndarray | None, seed: int) -> dict[str, Estimate]:
    """Mean of every metric over the clips that have it, with its interval over `groups` (default: every clip its own)."""
    found = {}
    for name in MECHANICS:
        values = scores[name]
        there = np.isfinite(values)
        if not there.any():
            found[name] = Estimate(math.nan)
            continue
        names = np.arange(len(values)) if groups is None else groups
        ends = (math.nan, math.nan)
        if len(np.unique(names[there])) > 1:
            interval = statistics.cluster_bootstrap(values[there], names[there], seed=seed, conditional_on=GIVEN)
            ends = (max(interval.low, 0.0), min(interval.high, 1.0) if name in SHARES else interval.high)
        found[name] = Estimate(float(values[there].mean()), *ends)
    return found


def without(scores: Scores, name: str) -> float:
    """Share of the clips that have no such number."""
    return float(1 - np.isfinite(scores[name]).mean())


def rows(key: str, clips: Sequence[Clip], scores: Scores) -> list[dict[str, Any]]:
    """One line a clip, for csv."""
    told = [(c.name, c.caption, c.reason, c.fps, c.frames) for c in clips]
    return [
        {"set": key, **dict(zip(COLUMNS[1:6], line, strict=True)), **{name: float(scores[name][i]) for name in scores}}
        for i, line in enumerate(told)
    ]


def _result(found: Mapping[str, Mapping[str, Estimate]], scores: Mapping[str, Scores], clips: Sequence[Clip]) -> dict:
    def told(key: str) -> dict[str, Any]:
        return {name: {**estimate_json(e), "without": without(scores[key], name)} for name, e in found[key].items()}

    return {
        "headline": told("clips"),
        "reference": {key: told(key) for key in found if key != "clips"},
        "clips": len(clips),
        "refused": {clip.name: clip.reason for clip in clips if clip.tracks is None},
        "fitted_gravity": {
            clip.name: float(value)
            for clip, value in zip(clips, scores["clips"]["fitted_gravity"], strict=True)
            if math.isfinite(value)
        },
    }


def summary(found: Mapping[str, Mapping[str, Estimate]], scores: Mapping[str, Scores], clips: Sequence[Clip]) -> str:
    """Scores as lines of a terminal: value, clips without it, floor, ceiling."""
    lines = [f"{'':20s}{'clips':>10s}{'without':>10s}{'floor':>10s}{'ceiling':>10s}{'shuffled':>10s}"]
    for key, metric in MECHANICS.items():
        cells = [found["clips"][key].value, without(scores["clips"], key)]
        cells += [found[name][key].value for name in ("floor", "ceiling", "shuffled")]
        lines.append(
            f"{metric.name:20s}" + "".join(f"{100 * v:8.2f} %" if math.isfinite(v) else f"{'-':>10s}" for v in cells)
        )
    refused = [clip for clip in clips if clip.tracks is None]
    lines.append(f"{len(refused)} of {len(clips)} clips cannot be tracked" + (":" if refused else ""))
    return "\n".join([*lines, *(f"  {clip.name}: {clip.reason}" for clip in refused)])


def report_study(
    config: PlainConfig,
    found: Mapping[str, Mapping[str, Estimate]],
    scores: Mapping[str, Scores],
    clips: Sequence[Clip],
    pictures: Sequence[tuple[str, np.ndarray, np.ndarray]],
) -> Study:
    """The report of one folder of clips."""
    refused = tuple((clip.name, clip.reason) for clip in clips if clip.tracks is None)
    missed = found["clips"]["missing"].value
    table = []
    for key, metric in MECHANICS.items():
        cells: list[Any] = [metric.name, found["clips"][key]]
        cells += [Estimate(without(scores["clips"], key)), found["floor"][key], Estimate(without(scores["floor"], key))]
        table.append((*cells, found["ceiling"][key], found["shuffled"][key], found["exact"][key]))
    unit = "m/s²" if config.scale is not None else "pixels/s²"
    heads = ("clip", "things", "events", f"gravity, {unit}", *(MECHANICS[k].name for k in ("gain", "mass", "missing")))
    each = [
        (
            clip.name,
            *(float(scores["clips"][k][i]) for k in ("things", "events", "fitted_gravity", "gain", "mass", "missing")),
        )
        for i, clip in enumerate(clips)
        if clip.tracks is not None
    ]
    gallery = None
    same = [part for part in pictures if part[1].shape == pictures[0][1].shape]
    if same:
        gallery = Gallery(
            ("clip", "what is followed"), tuple(p[0] for p in same), np.stack([np.stack(p[1:]) for p in same]), fps=8.0
        )
    seen = (
        f"; of the others, things are missed in {100 * missed:.1f} % of their frames" if math.isfinite(missed) else ""
    )
    return Study(
        title="Mechanics of plain clips",
        summary=f"{len(clips)} clips, of which {len(refused)} cannot be tracked{seen}.",
        facts={
            "clips": str(len(clips)),
            "cannot be tracked": str(len(refused)),
            "metres a pixel": "not known" if config.scale is None else f"{config.scale:g}",
            "known scenes beside them": str(config.scenes),
        },
        tables=(
            Table(
                "Scores",
                ("mean over clips", SETS["clips"], "without it", SETS["floor"], "without it", SETS["ceiling"],
                 SETS["shuffled"], SETS["exact"]),
                tuple(table),
                "Lower is better. A clip is without a number where nothing happens that it is about, or the tracker cannot see "
                "it. The floor is what this tracker makes of motion that obeys every law; a number near it says nothing. The "
                "ceiling is the same with the order of time destroyed; areas have none, so that their variance has no ceiling.",
            ),
            Table("What they mean", ("number", "meaning"), tuple((m.name, m.title) for m in MECHANICS.values())),
            Table("Clip by clip", heads, tuple(each)),
        ),
        skipped=refused,
        gallery=gallery,
        notes=_notes(config),
        conditional_on=(GIVEN,),
    )  # fmt: skip


def _notes(config: PlainConfig) -> tuple[str, ...]:
    notes = ["The tracker follows what moves before a still camera. It cannot tell a thing that is hidden from one that vanished, "
             "nor two things that always touch. Look at what it follows, below, before believing a number."]  # fmt: skip
    if config.scale is None:
        notes.append(
            "Without --scale (metres a pixel) nobody knows what 9.81 m/s² is here: there is no gravity residual, and energies "
            "are told by the gravity that was fitted to each clip."
        )
    if config.floor is None:
        notes.append(
            "Without --floor (the row on which things stand) a thing at constant height is taken to be carried, not to float, "
            "and a jump upward for a bounce."
        )
    return tuple(notes)


def _pictures(video: np.ndarray, tracks: Tracks) -> tuple[np.ndarray, np.ndarray]:
    """Some frames of a clip, small, without and with a ring around what is followed."""
    at = np.linspace(0, len(video) - 1, FRAMES).round().astype(int)
    step = max(video.shape[2] / WIDTH, 1.0)
    y, x = (np.arange(round(n / step)) * step for n in video.shape[1:3])
    plain = video[at][:, y.astype(int)][:, :, x.astype(int)]
    ringed = plain.copy()
    for t, frame in zip(at, ringed, strict=True):
        for k in range(tracks.positions.shape[2]):
            centre, area = tracks.positions[0, t, k], tracks.areas[0, t, k]
            if np.isfinite(centre).all():
                away = np.hypot(x[None] - centre[0], y[:, None] - centre[1])
                ring = np.abs(away - np.sqrt(area / np.pi) - 1.5 * step) < step
                frame[ring] = [(255, 60, 60), (60, 220, 60), (80, 140, 255), (255, 200, 0)][k % 4]
    return plain, ringed
