"""The contact sheet: every clip of a run on one self-contained html page, and what its guide did."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

import numpy as np

from jaxdiff.generation.naming import NamedClip
from jaxdiff.report import Curve, diagnostics, video
from jaxdiff.report.page import CSS, drawing, esc, figure

BUDGET = 12_000_000  # bytes of html for clips: a page that opens at once
STYLE = """
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(var(--card),1fr));gap:22px 18px;margin:18px 0}
.sheet figure{margin:0;break-inside:avoid}
.sheet .row{display:flex;flex-wrap:wrap;gap:6px}
.sheet .row span{flex:1 1 0;min-width:var(--thumb);max-width:var(--most)}
.sheet img{display:block;width:100%;height:auto;border-radius:3px;image-rendering:pixelated;background:var(--band)}
.sheet img.smooth{image-rendering:auto}
.sheet .still{display:none}
.sheet figcaption{font-size:13.5px;line-height:1.4;margin-top:7px;color:var(--ink)}
.sheet figcaption small{color:var(--soft);font-size:12px;margin-left:.5em}
@media (prefers-reduced-motion:reduce){.sheet .moving{display:none}.sheet .still{display:block}}
@media print{.sheet .moving{display:none}.sheet .still{display:block}}
"""


def contact_sheet(
    title: str,
    facts: Mapping[str, str],
    clips: Sequence[NamedClip],
    read: Callable[[NamedClip], np.ndarray],
    fps: float,
    *,
    curves: Sequence[tuple[str, str, Curve]] = (),
    command: str = "",
) -> str:
    """The page as html.

    Parameters
    ----------
    facts : name -> value, shown under the title.
    clips : prompt by prompt; their samples stand side by side.
    read : gives a clip's frames, uint8 [T, H, W, 3]; asked for no more clips than the page has room for.
    curves : (heading, caption, curve over the steps), drawn below each other.
    command : what was run.
    """
    cards: list[str] = []
    shown = used = width = 0
    for prompt, group in groupby(clips, lambda clip: clip.prompt):
        row = list(group)
        pictures = [read(clip) for clip in row]
        width = pictures[0].shape[2]
        images = "".join(
            f"<span>{_image(clip, frames, fps)}</span>" for clip, frames in zip(row, pictures, strict=True)
        )
        groups = f"<small>{esc(', '.join(prompt.groups))}</small>" if prompt.groups else ""
        card = f'<figure><div class="row">{images}</div><figcaption>{esc(prompt.caption)}{groups}</figcaption></figure>'
        if used + len(card) > BUDGET:
            break
        cards.append(card)
        used, shown = used + len(card), shown + len(row)
    left = len(clips) - shown
    more = f"<p class=lead>{left} more clip{'s' * (left != 1)} left out to keep this page small.</p>" if left else ""
    many = max((sum(1 for _ in group) for _, group in groupby(clips, lambda clip: clip.prompt)), default=1)
    thumb = min(max(width, 96), 224)
    card_width = max(160, min(thumb * many + 6 * (many - 1), 480))
    sizes = f"--thumb:{min(thumb, 96)}px;--most:{2 * thumb}px;--card:{card_width}px"
    drawn = "".join(
        f"<h2>{esc(heading)}</h2>{figure(drawing(diagnostics.curves((curve,), xlabel='step', ylabel=curve.name), heading), caption)}"
        for heading, caption, curve in curves
    )
    terms = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in facts.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{esc(title)}</title><style>{CSS}{STYLE}</style></head><body><main>"
        f'<header><p class="kicker">jaxdiff contact sheet</p><h1>{esc(title)}</h1><dl class="facts">{terms}</dl></header>'
        f'<div class="sheet" style="{sizes}">{"".join(cards)}</div>{more}{drawn}'
        + (f"<h2>Command</h2><pre>{esc(command)}</pre>" if command else "")
        + "</main></body></html>\n"
    )


def _image(clip: NamedClip, frames: np.ndarray, fps: float) -> str:
    moving, still = map(video.data_uri, video.thumbnail(frames, fps))
    smooth = " smooth" if frames.shape[1] > 96 else ""
    name = esc(clip.file)
    return (
        f'<img class="moving{smooth}" alt="{name}" title="{name}" src="{moving}">'
        f'<img class="still{smooth}" alt="{name}: first, middle and last frame" src="{still}">'
    )
