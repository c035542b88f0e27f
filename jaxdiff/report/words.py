"""What a report says beside its first sentence."""

import math

from jaxdiff.report.study import Study, interval, percent


def further(study: Study) -> str:
    """A sentence for every further read of the network that tells the clips, beside the same read of the control models.

    The report's first sentence is about the first read alone, and a reader of it must not miss that another one tells.
    Empty where none has its interval above chance.
    """
    parts = []
    for row in [row for row in study.rows if row.kind == "states"][1:]:
        if not row.estimate.low > study.chance:
            continue
        controls = [r for r in study.rows if r.key.endswith(f".{row.key}") and math.isfinite(r.estimate.value)]
        text = f"Read as {row.name}, {interval(row.estimate)} are told right"
        if controls:
            best = max(controls, key=lambda r: r.estimate.value)
            gap = f"{100 * (row.estimate.value - best.estimate.value):.1f} points"
            clear = all(r.gap is not None and r.gap.low > 0 for r in controls)
            other = f"the same read of the strongest control model ({percent(best.estimate.value)})"
            text += f", {gap} above {other}" if clear else f", but that is not clearly above {other}"
        parts.append(text + ".")
    return " ".join(parts)
