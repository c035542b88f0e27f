"""The Physics-IQ score (arXiv 2501.09038): how far a model's clips are from real ones, as real ones are from each other.

Of every scenario the benchmark has two real takes from three views. A model continues take 1; where and when things move is
compared with take 1, and divided by what take 2 reaches. With mean IoUs over scenarios, views (and frames)::

    score = 100 clip( (ST / ST_takes + S / S_takes + WS / WS_takes) / 3 - (MSE - MSE_takes), 0, 1 )

ST is the IoU of the masks of moving pixels frame by frame, S of their unions over time, WS of their averages over time
(sum of minima over sum of maxima), MSE of pixels in [0, 1]. Frames are compared at a quarter of the real clips' sides.

The numbers follow the published code (google-deepmind/physics-IQ-benchmark, Apache-2.0), read at e457754, with its rounding.
It keeps masks in lossy mp4 files in between; the masks of generated clips never leave memory here.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from jaxdiff.data.listing import listed
from jaxdiff.data.video import list_videos, read_video, video_info
from jaxdiff.errors import ConfigError, MissingDataError

VIEWS = ("perspective-left", "perspective-center", "perspective-right")
TAKES = ("take-1", "take-2")
SECONDS = 5
LEARNS, THRESHOLD, BOX = (
    0.3,
    10,
    5,
)  # of a mask: weight of the newest frame in the background, least change of 255, opening
SHRINK = 4  # frames are compared at a quarter of the real ones' sides


@dataclasses.dataclass(frozen=True)
class ViewMetrics:
    """One view of one scenario: the model against take 1, and (`_takes`) take 2 against take 1.

    Attributes
    ----------
    spatiotemporal, mse : [T]; spatial, weighted : numbers.
    """

    spatiotemporal: np.ndarray
    spatial: float
    weighted: float
    mse: np.ndarray
    spatiotemporal_takes: np.ndarray
    spatial_takes: float
    weighted_takes: float
    mse_takes: np.ndarray


def moving(video: np.ndarray) -> np.ndarray:
    """What moves in a clip uint8 [T, H, W, 3]: masks bool [T, H, W], none in the first frame.

    Grey values, blurred over 5 x 5 pixels, against their running average; then an opening and a closing with a 5 x 5 box.
    """
    box = np.ones((BOX, BOX), bool)
    masks = np.zeros(video.shape[:3], bool)
    average = _grey(video[0]).astype(np.float64)
    for frame, mask in zip(video[1:], masks[1:], strict=True):  # one by one: the benchmark's clips are large
        grey = _grey(frame)
        average = (1 - LEARNS) * average + LEARNS * grey
        changed = np.abs(grey - np.rint(average.astype(np.float32))) > THRESHOLD
        # Outside the frame nothing is, and nothing is eaten from there.
        opened = ndimage.binary_dilation(ndimage.binary_erosion(changed, box, border_value=1), box)
        mask[:] = ndimage.binary_erosion(ndimage.binary_dilation(opened, box), box, border_value=1)
    return masks


def _grey(frame: np.ndarray) -> np.ndarray:
    """Brightness of a frame uint8 [H, W, 3], blurred by (1, 4, 6, 4, 1) / 16 either way; int32, in OpenCV's fixed point."""
    grey = (frame.astype(np.int32) @ np.array([9798, 19235, 3735], np.int32) + (1 << 14)) >> 15  # red, green, blue
    for axis in (0, 1):
        grey = ndimage.correlate1d(grey, np.array([1, 4, 6, 4, 1]), axis, mode="mirror")
    return (grey + 128) >> 8


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame uint8 [H, W, ...] at another (height, width): bilinear between the four nearest pixels, no smoothing."""
    values = frame.astype(np.float32)
    for axis, new in enumerate(size):
        old = frame.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        values = values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, old - 1), axis) * share
    return np.floor(values + 0.5).astype(np.uint8)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of masks [..., H, W]; 1 where both are empty."""
    union = (a | b).sum((-2, -1))
    return np.where(union > 0, (a & b).sum((-2, -1)) / np.maximum(union, 1), 1.0)


def weighted_iou(a: np.ndarray, b: np.ndarray) -> float:
    """``sum min(a, b) / sum max(a, b)`` of masks averaged over time; 1 where both are empty."""
    union = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / union) if union > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class Small:
    """A clip as it is compared: where things move, bool [T, h, w], and its pictures, float32 [T, h, w, 3] in [0, 1]."""

    moving: np.ndarray
    pictures: np.ndarray


def small(video: np.ndarray, size: tuple[int, int], masks: np.ndarray | None = None) -> Small:
    """A clip uint8 [T, H, W, 3] at another (height, width).

    Parameters
    ----------
    masks : bool [T, H, W], as the benchmark ships them; None: they are made.

    Raises
    ------
    ConfigError : masks of another length.
    """
    masks = moving(video) if masks is None else masks
    if len(masks) != len(video):
        raise ConfigError(f"a clip of {len(video)} frames has masks of {len(masks)}")
    shown = np.stack([resized(255 * mask.astype(np.uint8), size) > 127 for mask in masks])
    return Small(shown, np.stack([resized(frame, size).astype(np.float32) / 255 for frame in video]))


def compare_view(generated: Small, takes: tuple[Small, Small]) -> ViewMetrics:
    """Metrics of one view: the model's clip and both real ones, of one size.

    Raises
    ------
    ConfigError : clips that differ in length or size.
    """
    shapes = [clip.pictures.shape[:3] for clip in (generated, *takes)]
    if len(set(shapes)) != 1:
        raise ConfigError(
            f"a view needs a clip and two takes of one length and size; these are [T, h, w] = {', '.join(map(str, shapes))}. Cut "
            f"all to {SECONDS} seconds at one frame rate"
        )
    first = takes[0]

    def against(clip: Small) -> tuple[np.ndarray, float, float, np.ndarray]:
        return (
            iou(clip.moving, first.moving),
            float(iou(*(np.asarray(part.moving.any(0)) for part in (clip, first)))),
            weighted_iou(clip.moving.mean(0), first.moving.mean(0)),
            np.square(clip.pictures - first.pictures).mean((1, 2, 3), dtype=np.float64),
        )

    return ViewMetrics(*against(generated), *against(takes[1]))


def physics_iq(scenarios: Mapping[str, Mapping[str, ViewMetrics]], rounded: bool = True) -> float:
    """The score, 0 to 100, of metrics by scenario and view.

    Parameters
    ----------
    rounded : as published: numbers of frames to 4 digits, those of the takes to 4 (S to 5), the score to 2. Without it the
        score of take 2 is 100 exactly, and else some hundredths from it.

    Raises
    ------
    ConfigError : no scenario, or one that lacks a view.
    """
    if not scenarios:
        raise ConfigError("Physics-IQ is a mean over scenarios, and there is none")
    for name, views in scenarios.items():
        if missing := [view for view in VIEWS if view not in views]:
            raise ConfigError(f"Physics-IQ: scenario {name} has no {', '.join(missing)}")

    def digits(value, n: int):
        return np.round(value, n) if rounded else value

    def of_frames(field: str) -> float:
        """Mean over scenarios of the mean over frames of all views."""
        parts = [[digits(getattr(views[view], field), 4) for view in VIEWS] for views in scenarios.values()]
        return float(np.mean([np.concatenate(part).mean() for part in parts]))

    def of_takes(field: str) -> float:
        parts = [[digits(getattr(views[view], field), 4) for views in scenarios.values()] for view in VIEWS]
        return float(digits(np.mean([np.concatenate(part).mean() for part in parts]), 4))

    def number(field: str) -> float:
        return float(np.mean([[getattr(views[view], field) for view in VIEWS] for views in scenarios.values()]))

    ratios = (
        of_frames("spatiotemporal") / of_takes("spatiotemporal_takes"),
        number("spatial") / digits(number("spatial_takes"), 5),
        number("weighted") / digits(number("weighted_takes"), 4),
    )
    score = 100 * (float(np.mean(ratios)) - (of_frames("mse") - of_takes("mse_takes")))
    return float(digits(min(max(score, 0.0), 100.0), 2))


# --------------------------------------------------------------------------------------------------------------- layout


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One view of one scenario: where its clips lie.

    `masks` are those of the takes, where the benchmark's folder has them.
    """

    name: str
    view: str
    generated: Path
    takes: tuple[Path, Path]
    masks: tuple[Path, Path] | None


def scenarios(real: Path, generated: Path, fps: int = 30) -> tuple[Scenario, ...]:
    """The clips of a benchmark folder and of a model, paired.

    ::

        real/split-videos/testing/30FPS/0001_testing-videos_30FPS_perspective-left_take-1_trimmed-ball-and-block-fall.mp4
        real/video-masks/real/30FPS/0001_video-masks_30FPS_perspective-left_take-1_trimmed-ball-and-block-fall.mp4
        generated/0001_anything.mp4     the number is that of take 1

    (`testing-videos` in the place of `testing` is found as well.) Masks are optional.

    Raises
    ------
    MissingDataError : a folder that is not there, a name that is no such name, a view without both takes, or a generated clip
        that is missing. All are listed.
    """
    folders = [real / "split-videos" / name / f"{fps}FPS" for name in ("testing", "testing-videos")]
    folder = next((path for path in folders if path.is_dir()), folders[0])
    found: dict[tuple[str, str], dict[str, Path]] = {}
    problems = []
    for path in list_videos(folder):
        parts = path.stem.split("_", 5)
        if len(parts) != 6 or parts[3] not in VIEWS or parts[4] not in TAKES:
            problems.append(f"{path.name} is not ID_testing-videos_{fps}FPS_view_take_scenario")
            continue
        found.setdefault((parts[5], parts[3]), {})[parts[4]] = path
    names = {scenario for scenario, _ in found}
    made = {path.name[:4]: path for path in list_videos(generated)}
    pairs = []
    for name in sorted(names):
        for view in VIEWS:
            takes = found.get((name, view), {})
            if len(takes) < 2:
                problems.append(f"{name}, {view}: {' and '.join(take for take in TAKES if take not in takes)} missing")
                continue
            both = (takes["take-1"], takes["take-2"])
            number = both[0].name[:4]
            if number not in made:
                problems.append(f"{name}, {view}: {generated} holds no {number}_*.mp4")
                continue
            masks = [
                real / "video-masks" / "real" / f"{fps}FPS" / t.name.replace("testing-videos", "video-masks")
                for t in both
            ]
            shipped = (masks[0], masks[1]) if all(mask.exists() for mask in masks) else None
            pairs.append(Scenario(name, view, made[number], both, shipped))
    if problems:
        raise MissingDataError(
            f"{real} and {generated} are not a Physics-IQ folder and a model's clips:{listed(problems)}"
        )
    return tuple(pairs)


def compare(pair: Scenario, fps: int = 30) -> ViewMetrics:
    """Read the clips of one view and compare their first five seconds.

    Raises
    ------
    MissingDataError : a clip is shorter, or has another frame rate.
    """

    def read(path: Path) -> np.ndarray:
        info = video_info(path, SECONDS * fps)
        if info.fps is not None and round(info.fps) != fps:
            raise MissingDataError(f"{path} has {info.fps:g} frames a second, and {fps} are compared")
        return read_video(path)[: SECONDS * fps]

    info = video_info(pair.takes[0])
    size = (info.height // SHRINK, info.width // SHRINK)
    masks = pair.masks or (None, None)

    def taken(path: Path, mask: Path | None = None) -> Small:
        return small(read(path), size, None if mask is None else read(mask)[..., 0] > 127)

    # One large clip in memory at a time.
    return compare_view(taken(pair.generated), (taken(pair.takes[0], masks[0]), taken(pair.takes[1], masks[1])))
