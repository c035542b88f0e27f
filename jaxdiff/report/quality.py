"""The sections of a report that say how far to trust a run: surprise, curves, fidelity, attention, clips."""

import math
from collections.abc import Sequence

import numpy as np

from jaxdiff.report import diagnostics, video
from jaxdiff.report.page import details, drawing, esc, estimate, figure, table
from jaxdiff.report.study import ClipView, Curve, Estimate, Fidelity, Panel, Points, Study, Table

CLIP_BUDGET = 14_000_000  # bytes of html that clips may take; the rest of the 20 MB is left to tables and figures


def surprise(study: Study) -> str:
    """Pairwise accuracy of the denoising loss."""
    if not study.surprise:
        return ""
    picture = diagnostics.curves(
        study.surprise,
        xlabel="noise level σ",
        ylabel="pairs ranked right, %",
        percent=True,
        chance=study.chance,
    )
    caption = (
        "Share of (possible, impossible) pairs of one scene in which the impossible clip has the higher "
        "denoising loss, same noise for both. No probe is trained."
    )
    return figure(drawing(picture, "pairwise accuracy of the denoising loss"), caption) + details(
        "As numbers", _curve_table(study.surprise, "σ", True)
    )


def _curve_table(items: Sequence[Curve], first: str, as_percent: bool) -> str:
    xs = sorted({float(x) for c in items for x in c.x})
    rows = []
    for x in xs:
        cells = []
        for curve in items:
            at = np.flatnonzero(np.asarray(curve.x, float) == x)
            if not len(at):
                cells.append("–")
                continue
            low, high = (math.nan if a is None else float(a[at[0]]) for a in (curve.low, curve.high))
            value = float(curve.y[at[0]])
            text = estimate(Estimate(value, low, high)) if as_percent else esc(value)
            if not as_percent and math.isfinite(low):
                text += f' <span class="ci">{esc(low)}–{esc(high)}</span>'
            cells.append(text)
        rows.append((f"{x:.4g}", *cells))
    return table((first, *(esc(c.name) for c in items)), rows, numeric=range(1 + len(items)))


def curves_section(panel: Panel, chance: float) -> str:
    """A figure of curves and its numbers."""
    picture = diagnostics.curves(
        panel.curves,
        xlabel=panel.xlabel,
        ylabel=panel.ylabel,
        percent=panel.percent,
        reference=panel.reference,
        log=panel.log,
        chance=chance,
    )
    numbers = _curve_table(panel.curves, esc(panel.xlabel or "x"), panel.percent)
    return figure(drawing(picture, panel.title), esc(panel.caption)) + details("As numbers", numbers)


def table_section(part: Table) -> str:
    """A table."""
    rows = [
        tuple(estimate(c, isinstance(c, Points)) if isinstance(c, Estimate) else esc(c) for c in row)
        for row in part.rows
    ]
    kinds = [all(isinstance(row[i], int | float | Estimate) for row in part.rows) for i in range(len(part.columns))]
    numeric = [i for i, yes in enumerate(kinds) if yes]
    return table([esc(c) for c in part.columns], rows, numeric, esc(part.caption))


def fidelity(part: Fidelity | None) -> str:
    """Figures and tables of how well the inversion did."""
    if part is None:
        return ""
    out = ""
    picture = diagnostics.fidelity(part)
    if picture is not None:
        caption = "A good round trip does not prove a true trajectory"
        if part.self_convergence:
            caption += ": read it together with how much the states still change when the steps are doubled."
        else:
            caption += ", and self-convergence was not measured in this run."
        out += figure(drawing(picture, "fidelity of the inversion"), caption)
    rows = []
    for name, values, unit in (
        ("round-trip PSNR", part.round_trip, "dB"),
        ("autoencoder PSNR", part.autoencoder, "dB"),
        ("relative round-trip error of the latents", part.latent_error, ""),
    ):
        if values is not None and np.isfinite(values).any():
            quantiles = np.nanquantile(np.asarray(values, float), [0, 0.05, 0.5, 0.95, 1])
            rows.append((name + (f", {unit}" if unit else ""), *(esc(float(q)) for q in quantiles)))
    if rows:
        out += table(("per clip", "lowest", "5 %", "median", "95 %", "highest"), rows, numeric=range(1, 6))
    if part.self_convergence:
        numbers = _curve_table(part.self_convergence, "σ", False)
        out += details("Self-convergence as numbers: relative RMS difference, N against 2N steps", numbers)
    if part.known:
        out += _known(part.known)
    if part.noise:
        rows = [
            (
                esc(m.name.removeprefix("noise: ")),
                esc(float(m.value)),
                "" if m.ideal is None else esc(float(m.ideal)),
                esc(m.note),
            )
            for m in part.noise
        ]
        out += table(("recovered noise", "measured", "white noise", ""), rows, numeric=(1, 2))
    if part.mistake_correlation is not None:
        c = part.mistake_correlation
        ends = f" (95 % interval {c.low:+.2f} to {c.high:+.2f})" if math.isfinite(c.low) else ""
        text = f"Correlation of the {part.clip_error_name} with the probe's mistakes: {c.value:+.2f}{ends}."
        meaning = "Near zero means that badly inverted clips are not the ones it gets wrong."
        if ends:
            meaning += " The interval is over scenes, conditional on the fitted probes and on every clip's rank."
        out += f"<p>{esc(text.replace('-0', '−0'))} {meaning}</p>"
    return out + (f"<p>{esc(part.note)}</p>" if part.note else "")


def _known(items: Sequence[Curve]) -> str:
    """How the inversion follows trajectories that are known."""
    picture = diagnostics.curves(
        items, xlabel="noise level σ", ylabel="cosine with the known trajectory", reference=1.0
    )
    caption = (
        "Clips that the model made itself from noise, on a finer grid, inverted again: cosine of the states, and of the frame "
        "attention maps less the uniform one, with those on the way that the clip was made. Bands span the clips."
    )
    drawn = figure(drawing(picture, "inversion against a known trajectory"), caption)
    return drawn + details("Known trajectories as numbers", _curve_table(items, "σ", False))


def attention(study: Study) -> str:
    """Frame-by-frame attention maps, and their summary a block."""
    if not study.attention:
        return ""
    picture = drawing(diagnostics.attention(study.attention), "frame-by-frame attention")
    caption = (
        "Self-attention mass from each latent frame (rows) to each latent frame (columns), mean over heads "
        "and clips, against attending to all frames alike. Each row of a map sums to one; the percentage "
        "above it is the mass that stays in the own frame."
    )
    rows = []
    for item in study.attention:
        maps = np.asarray(item.maps, float)
        frames = maps.shape[-1]
        away = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
        for block, heads in zip(item.blocks, maps, strict=True):
            same = np.einsum("ktt->k", heads) / frames
            distance = (heads * away).sum((1, 2)) / frames
            rows.append(
                (
                    esc(item.name),
                    str(block),
                    f"{100 * same.mean():.1f} %",
                    f"{100 * same.min():.1f}–{100 * same.max():.1f}",
                    f"{distance.mean():.2f}",
                )
            )
    head = ("model", "block", "mass on the own frame", "lowest–highest head", "mean distance, latent frames")
    return figure(picture, caption) + details("As numbers", table(head, rows, numeric=range(1, 5)))


def clips(items: Sequence[ClipView]) -> str:
    """Source, reconstruction and difference, until the budget of bytes is spent."""
    if not items:
        return ""
    cards, used = [], 0
    for clip in items:
        card = _clip(clip)
        if used + len(card) > CLIP_BUDGET:
            break
        cards.append(card)
        used += len(card)
    left = len(items) - len(cards)
    more = f"<p>{left} more clip{'s' * (left != 1)} left out to keep this file small.</p>" if left else ""
    lead = (
        '<p class="lead">The clip, what is left of it after the way to noise and back, and the difference '
        f"(reconstruction minus source, times {video.GAIN}, about mid grey).</p>"
    )
    return lead + f'<div class="clips">{"".join(cards)}</div>' + more


def _clip(clip: ClipView) -> str:
    frames = video.panels(clip.source, clip.reconstruction)
    moving = video.data_uri(video.animation(frames, clip.fps))
    still = video.data_uri(video.strip(clip.source, clip.reconstruction))
    smooth = " smooth" if frames.shape[1] > 96 else ""
    facts = " · ".join(p for p in (clip.note, "" if clip.psnr is None else f"{clip.psnr:.1f} dB") if p)
    name, what = esc(clip.name), "source, reconstruction, difference"
    return (
        f'<div class="clip"><h3>{name}<span>{esc(facts)}</span></h3>'
        f'<img class="moving{smooth}" alt="{name}: {what}" src="{moving}">'
        f'<img class="still{smooth}" alt="{name}: frames of {what}" src="{still}">'
        '<div class="labels"><span>source</span><span>reconstruction</span><span>difference</span></div>'
        "</div>"
    )
