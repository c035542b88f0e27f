"""Colours and type of every figure, and how a matplotlib figure becomes inline SVG that follows the page's
theme.

Figures are drawn once, in the light palette. In the SVG each palette colour is replaced by a CSS variable, so
that the same figure is right on a light page, a dark page and paper. All series colours are told apart by the
common kinds of colour blindness (blue / vermilion / green axis), and each series also has its own marker.
"""

import functools
import io
import re
import zlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

# name -> (light, dark). The light values are what matplotlib draws with; no two may be equal.
PALETTE = {
    "ink": ("#1b1e24", "#e8e9ec"),
    "soft": ("#5d636e", "#a3a9b4"),
    "line": ("#c9cdd4", "#454b55"),
    "grid": ("#e7e9ec", "#2c3139"),
    "paper": ("#fefefe", "#16191e"),
    "band": ("#f1f2f4", "#20242b"),
    "states": ("#c4470c", "#ff8f52"),
    "null": ("#2b6cb0", "#7db4ee"),
    "null2": ("#4a9bd1", "#a9d4f5"),
    "null3": ("#47536b", "#c0c9da"),
    "null4": ("#7a6bb0", "#b7a9ea"),
    "comparison": ("#1f8a5b", "#5fcf9d"),
    "comparison2": ("#8a7a12", "#d6c454"),
    "baseline": ("#8a3d78", "#dd94c8"),
    "baseline2": ("#b0658f", "#eab8d8"),
}
# Text on coloured cells does not follow the theme: the cells do not either.
ON_LIGHT, ON_DARK = "#1a1a1a", "#fdfdfd"

_SERIES = {
    "states": tuple(("states", marker) for marker in "odP^v*"),
    "null": tuple(zip(("null", "null2", "null3", "null4") * 3, "sD^v<>pdhH*8", strict=True)),
    "comparison": tuple(zip(("comparison", "comparison2") * 4, "PX*dvh^s", strict=True)),
    "baseline": tuple(zip(("baseline", "baseline2") * 3, "*hPXd^", strict=True)),
}
_RC = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so figures are the same bytes on every machine
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": PALETTE["soft"][0],
    "axes.titlecolor": PALETTE["ink"][0],
    "text.color": PALETTE["ink"][0],
    "axes.edgecolor": PALETTE["line"][0],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": PALETTE["grid"][0],
    "grid.linewidth": 0.8,
    "xtick.color": PALETTE["line"][0],
    "ytick.color": PALETTE["line"][0],
    "xtick.labelcolor": PALETTE["soft"][0],
    "ytick.labelcolor": PALETTE["soft"][0],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "legend.frameon": False,
}


def color(name: str) -> str:
    """The light-theme colour `name` of the palette."""
    return PALETTE[name][0]


def series(kinds: list[str]) -> list[tuple[str, str]]:
    """(colour, marker) of each series: states are vermilion, null controls blue, comparisons green, baselines plum."""
    seen: dict[str, int] = {}
    out = []
    for kind in kinds:
        styles = _SERIES[kind]
        index = seen[kind] = seen.get(kind, -1) + 1
        name, marker = styles[index % len(styles)]
        out.append((color(name), marker))
    return out


def styled(draw: Any) -> Any:
    """Decorator: run a drawing function under the house style."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(_RC):
            return draw(*args, **kwargs)

    return wrapper


DIVERGING = LinearSegmentedColormap.from_list(
    "below_above",
    ["#123f73", "#2b6cb0", "#8fb9de", "#dfe9f2", "#f7f6f3", "#fbe3cf", "#f2ab72", "#cf5f1c", "#7d2d06"],
)
"""Blue below, near-white at the centre, orange above: lightness falls evenly to both sides."""


def ink_on(rgba: Any) -> str:
    """Black or white, whichever can be read on the colour."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3])
    return ON_LIGHT if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.22 else ON_DARK


def accuracy_norm(values: np.ndarray, chance: float) -> Normalize:
    """A colour scale centred at chance and as wide on both sides, at least 20 points, so noise stays pale."""
    values = np.asarray(values)[np.isfinite(values)]
    reach = max([0.2, *np.abs(values - chance)])
    reach = min(np.ceil(reach * 20 - 1e-9) / 20, max(chance, 1 - chance))
    return Normalize(chance - reach, chance + reach)


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as a PNG on white (for documents that cannot hold SVG)."""
    out = io.BytesIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(out, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure, label: str) -> str:
    """The figure as an inline `<svg>` element: palette colours as CSS variables, the page's font, no outside
    names.

    `label` is the text alternative; it also makes the element's ids unique on the page.
    """
    out = io.StringIO()
    salt = f"{zlib.crc32(label.encode()):08x}"
    with matplotlib.rc_context(_RC | {"svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(out, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    text = text[text.index("<svg") :]
    width, height = (72 * inches for inches in figure.get_size_inches())  # SVG of matplotlib is in points
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.S)  # the style would apply to the whole page
    size = f'viewBox="0 0 {width:g} {height:g}" style="width:{width / 0.75:.0f}px"'
    text = f'<svg role="img" aria-label="{label}" {size}>' + text[text.index(">") + 1 :]
    text = text.replace("xlink:href", "href")
    # matplotlib names groups figure_1, axes_1, ...: the same in every figure of the page, and nobody asks for them.
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    for name, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{name})")
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "var(--sans)", text)
    return re.sub(r"\s*\n\s*", "\n", text)
