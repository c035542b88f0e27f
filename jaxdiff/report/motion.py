"""Pictures of motion: maps over the latent grid laid over the video, as figures and as frames of a film."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from jaxdiff.report.style import color, styled

HEAT = matplotlib.colormaps["inferno"]
COLUMNS = 11  # latent frames side by side at most
WIDTH = 10.4
SMALLEST = 192  # pixels; smaller frames are enlarged


@dataclass(frozen=True)
class MotionView:
    """One clip and its maps; P pairs, pair i begins at latent frame i.

    Parameters
    ----------
    name, caption : of the clip.
    video : uint8 [T, H, W, 3].
    spans : the video frames that each latent frame stands for.
    drift, field : [P, H', W'], see `jaxdiff.lamo.heatmaps`.
    drift_size : [P].
    strongest : the pair with the largest `drift_size`.
    lag : latent frames between the two of a pair.
    """

    name: str
    caption: str
    video: np.ndarray
    spans: Sequence[range]
    drift: np.ndarray
    field: np.ndarray
    drift_size: np.ndarray
    strongest: int
    lag: int


def enlarged(frames: np.ndarray) -> np.ndarray:
    """Pictures [..., H, W, 3] with every pixel repeated until the longer side has `SMALLEST` pixels at least."""
    factor = -(-SMALLEST // max(frames.shape[-3:-1]))
    return frames.repeat(factor, -3).repeat(factor, -2)


def tinted(frame: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A frame uint8 [H, W, 3], `enlarged` and in grey, with a map [h, w] in [0, 1] over it: bright where it is high, plain
    grey at 0."""
    frame = enlarged(frame)
    height, width = frame.shape[:2]
    smooth = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    grey = 0.75 / 255.0 * (frame @ np.array([0.299, 0.587, 0.114]))
    return np.round(255.0 * _blend(grey, np.clip(np.asarray(smooth), 0.0, 1.0))).astype(np.uint8)


def _blend(grey: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Colours [..., 3] of map values over grey levels: what is low lets the picture through."""
    cover = (0.92 * np.clip(1.8 * value, 0.0, 1.0))[..., None]
    return (1.0 - cover) * grey[..., None] + cover * HEAT(0.2 + 0.8 * value)[..., :3]


# The scale beside a figure is that of the maps over a middle grey.
SCALE = ListedColormap(_blend(np.full(256, 0.4), np.linspace(0.0, 1.0, 256)))


def scaled(maps: np.ndarray) -> np.ndarray:
    """Maps of one clip divided by their largest value: one scale for all frames."""
    return maps / max(float(maps.max()), 1e-12)


def film(view: MotionView) -> np.ndarray:
    """Video | drift | field side by side, uint8 [T, H, 3 W + gaps, 3], `enlarged`. The last frames begin no pair and stay
    grey."""
    panels = [enlarged(view.video), *(_laid_over(view, maps) for maps in (view.drift, view.field))]
    gap = np.full((*panels[0].shape[:2], 4, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], 2)


def _laid_over(view: MotionView, maps: np.ndarray) -> np.ndarray:
    heat, nothing = scaled(maps), np.zeros(maps.shape[1:])
    at = {t: heat[i] for i, span in enumerate(view.spans) for t in span if i < len(heat)}
    return np.stack([tinted(frame, at.get(t, nothing)) for t, frame in enumerate(view.video)])


@styled
def over_time(view: MotionView) -> Figure:
    """One clip: frames, drift and field by latent frame, the size of the drift below, the strongest pair outlined."""
    pairs = len(view.drift)
    shown = np.unique(np.linspace(0, pairs - 1, min(pairs, COLUMNS)).round().astype(int))
    shown[np.abs(shown - view.strongest).argmin()] = view.strongest
    side = min((WIDTH - 1.3) / len(shown), 1.35)
    ratio = view.video.shape[1] / view.video.shape[2]
    left, top, below = 1.15, 0.5, 0.95
    width, height = left + side * len(shown) + 0.9, top + 3 * side * ratio + below
    figure = Figure((width, height))
    figure.text(0.12 / width, 1 - 0.12 / height, f"{view.name}: {view.caption}", va="top", fontweight="bold")
    last = [view.spans[i][-1] for i in shown]
    rows = (
        ("video", None, ""),
        ("drift", view.drift, "change along the\nwhole frame's drift"),
        ("field", view.field, "motion expected\nbeyond the mean\nframe's"),
    )
    for row, (name, maps, what) in enumerate(rows):
        bottom = 1 - (top + (row + 1) * side * ratio) / height
        text: dict[str, Any] = {"ha": "right", "va": "center", "color": color("ink")}
        figure.text((left - 0.1) / width, bottom + 0.66 * side * ratio / height, name, fontweight="bold", **text)
        figure.text(
            (left - 0.1) / width, bottom + 0.5 * side * ratio / height, what,
            ha="right", va="top", fontsize=6.5, color=color("soft"),
        )  # fmt: skip
        for column, (i, t) in enumerate(zip(shown, last, strict=True)):
            place = ((left + column * side) / width, bottom, 0.96 * side / width, 0.96 * side * ratio / height)
            picture = enlarged(view.video[t]) if maps is None else tinted(view.video[t], scaled(maps)[i])
            _picture(figure, place, picture, f"frame {t}" if row == 0 else "", i == view.strongest)
        if maps is not None:
            low = bottom + 0.08 * side * ratio / height
            place = ((left + len(shown) * side + 0.08) / width, low, 0.09 / width, 0.8 * side * ratio / height)
            _bar(figure, place, float(maps.max()))
    axis = figure.add_axes((left / width, 0.3 / height, (len(shown) - 0.04) * side / width, 0.5 / height))
    shades = [color("states") if i == view.strongest else color("null3") for i in shown]
    axis.bar(np.arange(len(shown)) + 0.5, view.drift_size[shown], 0.5, color=shades)
    axis.set_xlim(0, len(shown))
    axis.set_xticks(np.arange(len(shown)) + 0.5, [f"{i}→{i + view.lag}" for i in shown])
    axis.tick_params(axis="x", length=0)
    axis.set_ylim(0, None)
    axis.locator_params(axis="y", nbins=2)
    axis.set_ylabel("|μ|", rotation=0, ha="right", va="center")
    figure.text((left + len(shown) * side) / width, 0.14 / height, "latent frames", color=color("soft"), fontsize=7.5)
    return figure


@styled
def at_strongest(views: Sequence[MotionView]) -> Figure:
    """A row a clip: the frames of its strongest pair, and drift and field there."""
    side, left, top = 1.5, 0.1, 0.26
    ratio = max(view.video.shape[1] / view.video.shape[2] for view in views)
    text = 2.1
    width, height = left + 4 * side + text, top + len(views) * side * ratio
    figure = Figure((width, height))
    for row, view in enumerate(views):
        i, j = view.strongest, view.strongest + view.lag
        here, later = view.video[view.spans[i][-1]], view.video[view.spans[j][-1]]
        pictures = [
            enlarged(here),
            enlarged(later),
            tinted(here, scaled(view.drift)[i]),
            tinted(here, scaled(view.field)[i]),
        ]
        names = ["frame at t*", f"{view.lag} latent frames later", "drift", "field"]
        bottom = 1 - (top + (row + 1) * side * ratio) / height
        for column, (picture, name) in enumerate(zip(pictures, names, strict=True)):
            place = ((left + column * side) / width, bottom, 0.96 * side / width, 0.96 * side * ratio / height)
            _picture(figure, place, picture, name if row == 0 else "", False)
        words = f"{view.caption}\n{view.name}\nt* = {i}, |μ| = {view.drift_size[i]:.2f}"
        figure.text(
            (left + 4 * side + 0.1) / width, bottom + 0.48 * side * ratio / height, words, va="center", fontsize=8
        )
    return figure


def _picture(figure: Figure, place, picture: np.ndarray, title: str, outlined: bool) -> None:
    axis = figure.add_axes(place)
    axis.imshow(picture, interpolation="antialiased", aspect="auto")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(outlined)
    axis.spines[:].set(color=color("states"), linewidth=2.2)
    if title:
        axis.set_title(title, fontsize=8, fontweight="normal", color=color("soft"), loc="center", pad=3)


def _bar(figure: Figure, place, largest: float) -> None:
    axis = figure.add_axes(place)
    bar = figure.colorbar(ScalarMappable(Normalize(0, largest), SCALE), cax=axis)
    bar.outline.set_visible(False)
    bar.set_ticks([0, largest], labels=["0", f"{largest:.2g}"])
    axis.tick_params(length=2, labelsize=7)
