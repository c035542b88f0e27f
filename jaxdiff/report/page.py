"""The page around the figures: style sheet, and the few html elements that a report is built from."""

import html
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxdiff.report.figures import accuracy_limits
from jaxdiff.report.study import Estimate, percent
from jaxdiff.report.style import PALETTE, svg

_VARIABLES = ["".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1)]

CSS = (
    f":root{{color-scheme:light dark;{_VARIABLES[0]}--page:#ffffff;"
    '--sans:system-ui,-apple-system,"Segoe UI","Liberation Sans",Arial,sans-serif;'
    '--serif:Charter,"Bitstream Charter","Iowan Old Style",Georgia,"DejaVu Serif",serif;'
    '--mono:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}'
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_VARIABLES[1]}--page:#121418}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 var(--sans)}
main{max-width:1064px;margin:0 auto;padding:48px 32px 96px}
header{border-bottom:1px solid var(--line);padding-bottom:28px;margin-bottom:12px}
.kicker{font-size:12.5px;letter-spacing:.09em;text-transform:uppercase;color:var(--soft);margin:0 0 6px}
h1{font:700 31px/1.2 var(--serif);margin:0 0 16px;letter-spacing:-.01em;max-width:28em}
.finding{font:400 20.5px/1.48 var(--serif);max-width:44em;margin:0 0 22px}
h2{font:700 21px/1.3 var(--serif);margin:52px 0 6px;padding-top:2px}
h2 .n{color:var(--soft);font-weight:400;margin-right:.55em}
h3{font-size:15px;margin:26px 0 6px}
p{max-width:43em;margin:0 0 14px}
p.lead{color:var(--soft)}
a{color:inherit;text-decoration-color:var(--line);text-underline-offset:3px}
nav{font-size:13.5px;color:var(--soft);margin:14px 0 0;line-height:1.9}
nav a{margin-right:16px;white-space:nowrap;text-decoration:none;border-bottom:1px solid var(--line)}
dl.facts{display:flex;flex-wrap:wrap;gap:14px 36px;margin:0}
dl.facts div{min-width:70px}
dl.facts dt{font-size:12px;color:var(--soft)}
dl.facts dd{margin:0;font-size:15px;font-variant-numeric:tabular-nums}
figure{margin:18px 0 8px}
figure svg{display:block;max-width:100%;height:auto;overflow:visible}
svg *{stroke-linejoin:round;stroke-linecap:butt}
figcaption{font-size:14px;line-height:1.5;color:var(--soft);max-width:50em;margin-top:10px}
figcaption b,p b{color:var(--ink);font-weight:600}
.scroll{overflow-x:auto;margin:16px 0}
table{border-collapse:collapse;font-size:14px;line-height:1.4;font-variant-numeric:tabular-nums}
caption{text-align:left;font-size:13.5px;color:var(--soft);padding:0 0 8px}
th{font-weight:600;text-align:left;color:var(--soft);font-size:12.5px;vertical-align:bottom;
 padding:4px 18px 6px 0}
thead th{border-bottom:1px solid var(--line)}
td{padding:6px 18px 6px 0;border-bottom:1px solid var(--grid);vertical-align:middle}
td.num,th.num{text-align:right}td.num{white-space:nowrap}
table.head td:first-child{min-width:17em}table.head td .ci{display:block}
td.plot,th.plot{padding-top:0;padding-bottom:0}
td.plot svg,th.plot svg{display:block}
tr.part td{border-bottom:1px solid var(--line);padding-top:18px;font-size:12.5px;color:var(--soft)}
tr.part b{color:var(--ink);font-size:14px}
tr.main td{font-size:15.5px;font-weight:600}
td .ci{color:var(--soft);font-weight:400;font-size:.92em}
td .note,li .note{display:block;color:var(--soft);font-size:12.5px;font-weight:400;max-width:34em}
.flag{font-size:12px;font-weight:400;color:var(--soft);border:1px solid var(--line);border-radius:3px;
 padding:0 5px;margin-left:7px;white-space:nowrap}
.met{color:var(--comparison)}.miss{color:var(--states)}
details{margin:10px 0;font-size:14px}
summary{cursor:pointer;color:var(--soft)}
details table{font-size:12.5px}details td .ci{display:block}
details td{padding:3px 12px 3px 0}
.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(470px,1fr));gap:26px 30px;margin:18px 0}
.clip h3{margin:0 0 6px;font-size:14px;font-weight:600;display:flex;justify-content:space-between;gap:12px}
.clip h3 span{color:var(--soft);font-weight:400}
.clip .labels{display:grid;grid-template-columns:1fr 1fr 1fr;font-size:12.5px;color:var(--soft);
 margin-top:4px}
.clip img{display:block;width:100%;height:auto;image-rendering:pixelated;border:1px solid var(--grid)}
.clip img.smooth{image-rendering:auto}
.clip .still{display:none}
ul.plain{padding-left:1.1em;margin:8px 0 14px;max-width:46em}
ul.plain li{margin:5px 0}
pre{font:13px/1.5 var(--mono);background:var(--band);padding:12px 14px;border-radius:4px;overflow-x:auto;
 white-space:pre-wrap;overflow-wrap:anywhere;margin:10px 0 18px}
.columns{columns:2;column-gap:44px}
.columns table{width:100%;font-size:13px}
.columns td{padding:3px 10px 3px 0;overflow-wrap:anywhere;vertical-align:top}
.columns td:first-child{color:var(--soft);white-space:nowrap}
.columns>*{break-inside:auto}
.note-box{border-left:3px solid var(--line);padding:2px 0 2px 16px;margin:20px 0}
.note-box p{margin:6px 0}
@media (max-width:620px){
 main{padding:24px 16px}.clips{grid-template-columns:1fr}.columns{columns:1}h1{font-size:25px}
 figure{overflow-x:auto}figure svg{max-width:none}}
@media (prefers-reduced-motion:reduce){.clip .moving{display:none}.clip .still{display:block}}
@media print{
 body{font-size:10.5pt}main{max-width:none;padding:0}nav{display:none}h2{break-after:avoid;margin-top:26pt}
 figure,tr,.clip,pre{break-inside:avoid}.clip .moving,.clip .labels{display:none}.clip .still{display:block}
 .clips{grid-template-columns:1fr 1fr}details::details-content{content-visibility:visible;display:block}
 .scroll{overflow:visible}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
}
@page{margin:16mm 14mm}
"""
)


def esc(value: Any) -> str:
    """Text as html; floats in four significant digits."""
    if isinstance(value, float):
        value = f"{value:.4g}" if math.isfinite(value) else "–"
    return html.escape(str(value))


def estimate(value: Estimate | None, points: bool = False) -> str:
    """A number and, in a softer tone, its interval: "68.2 % 65.4–71.0"; in signed points for a difference."""
    if value is None or not math.isfinite(value.value):
        return "–"
    head = f"{100 * value.value:+.1f}".replace("-", "−") if points else percent(value.value)
    if not (math.isfinite(value.low) and math.isfinite(value.high)):
        return head
    if points:
        ends = f"{100 * value.low:+.1f} to {100 * value.high:+.1f}".replace("-", "−")
    else:
        ends = f"{100 * value.low:.1f}–{100 * value.high:.1f}"
    return f'{head} <span class="ci">{ends}</span>'


class Forest:
    """Dot-and-interval plots for table cells, all on one axis with chance in its middle."""

    def __init__(self, estimates: Sequence[Estimate], chance: float, width: int = 300):
        self.low, self.high = accuracy_limits(estimates, chance)
        self.chance, self.width = chance, width

    def _x(self, value: float) -> float:
        return round((value - self.low) / (self.high - self.low) * (self.width - 12) + 6, 1)

    def _ticks(self) -> list[float]:
        step = 0.1 if self.high - self.low > 0.35 else 0.05
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _frame(self, height: int) -> str:
        lines = "".join(
            f'<line x1="{self._x(t)}" x2="{self._x(t)}" y1="0" y2="{height}" stroke="var(--grid)"/>'
            for t in self._ticks()
        )
        middle = self._x(self.chance)
        dash = 'stroke-dasharray="4 3"'
        return f'{lines}<line x1="{middle}" x2="{middle}" y1="0" y2="{height}" stroke="var(--soft)" {dash}/>'

    def axis(self) -> str:
        """The axis's numbers, for the table's head."""
        style = 'text-anchor="middle" font-size="11" fill="var(--soft)"'
        texts = "".join(f'<text x="{self._x(t)}" y="14" {style}>{100 * t:.0f}</text>' for t in self._ticks())
        return f'<svg width="{self.width}" height="20" style="overflow:visible" aria-hidden="true">{texts}</svg>'

    def cell(self, marks: Sequence[tuple[Estimate, str, bool]], height: int = 40) -> str:
        """One cell: (estimate, css colour, filled) marks, below each other where there are several."""
        shapes = []
        for place, (value, shade, filled) in enumerate(marks):
            if not math.isfinite(value.value):
                continue
            y = height / 2 + (place - (len(marks) - 1) / 2) * 11
            if math.isfinite(value.low) and math.isfinite(value.high):
                ends = f'x1="{self._x(value.low)}" x2="{self._x(value.high)}" y1="{y}" y2="{y}"'
                shapes.append(f'<line {ends} stroke="{shade}" stroke-width="2.2" stroke-opacity=".75"/>')
            fill = shade if filled else "var(--page)"
            shapes.append(
                f'<circle cx="{self._x(value.value)}" cy="{y}" r="4.6" fill="{fill}" stroke="{shade}" '
                'stroke-width="1.8"/>'
            )
        body = self._frame(height) + "".join(shapes)
        return f'<svg width="{self.width}" height="{height}" aria-hidden="true">{body}</svg>'


def drawing(picture: Figure, label: str) -> str:
    """A matplotlib figure as inline SVG with `label` as its text alternative."""
    return svg(picture, html.escape(label))


def figure(picture: str, caption: str = "") -> str:
    """A figure with its caption (html)."""
    return f"<figure>{picture}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = (), caption: str = "") -> str:
    """A table from cells that are html already; `numeric` columns are set to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        parts = (f"<{tag}{' class=num' if i in numeric else ''}>{c}</{tag}>" for i, c in enumerate(cells))
        return f"<tr>{''.join(parts)}</tr>"

    title = f"<caption>{caption}</caption>" if caption else ""
    body = "".join(line(row, "td") for row in rows)
    inside = f"{title}<thead>{line(head, 'th')}</thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def details(summary: str, body: str, opened: bool = False) -> str:
    """A part that the reader may unfold."""
    return f"<details{' open' if opened else ''}><summary>{summary}</summary>{body}</details>"
