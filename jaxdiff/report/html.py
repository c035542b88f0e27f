"""`write_report`: a `Study` as one html file that needs nothing else, on a screen or on paper.

No script, no address outside the file, under 20 MB. Every number that a figure shows is also in a table.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdiff.report import claims, quality, scores
from jaxdiff.report.page import CSS, details, esc, table
from jaxdiff.report.study import Study, sentence
from jaxdiff.report.words import further
from jaxdiff.workdir import write_atomic

LIMIT = 20_000_000  # bytes of the whole file


def write_report(path: str | os.PathLike, study: Study) -> None:
    """Write `study` to `path` as one self-contained html file, atomically; equal studies give equal bytes.

    Clips that would take the file over its limit are left out, last first, and the report says how many.

    Raises
    ------
    ValueError
        The file would exceed 20 MB even without clips (only absurdly large tables can do that).
    """
    data = render(study).encode()
    if len(data) > LIMIT:
        raise ValueError(f"the report would take {len(data) / 1e6:.1f} MB; its tables alone pass {LIMIT / 1e6:.0f} MB")
    write_atomic(path, data)


def render(study: Study) -> str:
    """The html of `study`."""
    sections = [
        (title, body)
        for title, body in (
            ("Result", claims.result(study)),
            ("Where in the network, and at which noise level", claims.grids(study)),
            (claims.depth_title(study), claims.depth(study)),
            ("Scores", scores.section(study.scores, scores.SCORES)),
            ("Differences", scores.section(study.differences, scores.DIFFERENCES, zero=True)),
            ("By category", claims.categories(study)),
            ("The published protocol and the corrected one", claims.protocols(study)),
            ("Every run", claims.replicates(study)),
            ("Surprise: the denoising loss, without any probe", quality.surprise(study)),
            *((panel.title, quality.curves_section(panel, study.chance)) for panel in study.panels),
            *((part.title, quality.table_section(part)) for part in study.tables),
            ("How well the inversion did", quality.fidelity(study.fidelity)),
            ("Attention between frames", quality.attention(study)),
            ("Clips", quality.clips(study.clips)),
            ("Samples", scores.gallery(study.gallery)),
            ("Skipped clips", _skipped(study)),
            ("What the intervals are conditional on", _conditions(study)),
            ("How to run this again", _reproduce(study)),
        )
        if body
    ]
    numbered = "".join(
        f'<section id="s{i}"><h2><span class="n">{i}</span>{esc(title)}</h2>{body}</section>'
        for i, (title, body) in enumerate(sections, 1)
    )
    links = " ".join(f'<a href="#s{i}">{esc(title)}</a>' for i, (title, _) in enumerate(sections, 1))
    facts = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in study.facts.items())
    finding = " ".join(filter(None, (sentence(study), "" if study.summary else further(study))))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{esc(study.title)}</title><style>{CSS}</style></head><body><main>"
        f'<header><p class="kicker">jaxdiff report</p><h1>{esc(study.title)}</h1>'
        + (f'<p class="finding">{esc(finding)}</p>' if finding else "")
        + (f'<dl class="facts">{facts}</dl>' if facts else "")
        + (f"<nav>{links}</nav>" if len(sections) > 3 else "")
        + f"</header>{_notes(study.notes)}{numbered}</main></body></html>\n"
    )


def _notes(notes: Sequence[str]) -> str:
    return f'<div class="note-box">{"".join(f"<p>{esc(n)}</p>" for n in notes)}</div>' if notes else ""


def _skipped(study: Study) -> str:
    if not study.skipped:
        return ""
    rows = [(esc(name), esc(reason)) for name, reason in study.skipped]
    count = len(rows)
    were = "s were" if count != 1 else " was"
    lead = f"<p>{count} clip{were} not used; every number above is without them.</p>"
    body = table(("clip", "reason"), rows)
    return lead + (body if count <= 20 else details("List", body))


def _conditions(study: Study) -> str:
    if not study.conditional_on:
        return ""
    return f'<ul class="plain">{"".join(f"<li>{esc(c)}</li>" for c in study.conditional_on)}</ul>'


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for k, v in value.items() for pair in _flat(v, f"{prefix}{k}.")]
    if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        return [pair for i, v in enumerate(value) for pair in _flat(v, f"{prefix}{i}.")]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return [(prefix[:-1], str(value))]


def _reproduce(study: Study) -> str:
    out = f"<h3>Command</h3><pre>{esc(study.command)}</pre>" if study.command else ""
    for title, part in (
        ("Seeds", study.seeds),
        ("Configuration", study.config),
        ("Environment", study.environment),
    ):
        if part:
            rows = "".join(f"<tr><td>{esc(k)}</td><td>{esc(v)}</td></tr>" for k, v in _flat(part))
            out += f'<h3>{title}</h3><div class="columns"><table>{rows}</table></div>'
    return out
