"""Facts in controlled English, judged by rules from tracks of the things in a clip.

===================================== ==================================================================================
"the NAME persists"                   it is there in every frame that must show it
"... keeps its colour (shape, size)"  through the whole clip
"... moves steadily"                  sideways at constant speed
"... stays level"                     at one height
"... bounces"                         its height falls, turns at a lowest place and rises; "on equal hops": on parabolas
"... falls"                           its height goes down ever faster
"... moves left" (right)              from its first sight to its last
"... is red" (is a disc)              in most frames
"the A hits the B before the B moves" B is at rest until A touches it, and moves after
===================================== ==================================================================================

The rules read tracks, of a tracker or of a simulator; they never see a pixel.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

LIMIT = 6.0  # of a logit: no rule is surer
SHARP = 4.0  # logit of a thing without any error; at twice the threshold it is minus as much
# Errors at which a rule is in doubt; lengths are fractions of the frame. True clips that went through the nano VAE stay below
# them in nine of ten clips, and clips in which the rule is broken are above.
THRESHOLDS = {
    "persists": 0.15, "keeps its colour": 0.1, "keeps its shape": 0.34, "keeps its size": 0.02, "moves steadily": 0.01,
    "stays level": 0.018, "bounces on equal hops": 0.02,
}  # fmt: skip
MOVES = 0.004  # of the frame's side in a frame, from which on a thing is not at rest
KINDS = (
    *THRESHOLDS, "bounces", "falls", "moves left", "moves right",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Body:
    """One thing of one clip, as its track tells it. Errors are nan where the track cannot tell.

    Attributes
    ----------
    position : [T, 2], its centre (x, y) as fractions of the frame, y down; nan where it is not wholly seen.
    radius : about how large it is, for contacts.
    errors : kind of `THRESHOLDS` -> how much that rule is broken.
    looks : its commonest colour and shape, as words.
    """

    position: np.ndarray
    radius: float = 0.0
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    looks: tuple[str, ...] = ()

    @property
    def seen(self) -> np.ndarray:
        """bool [T]."""
        return np.isfinite(self.position).all(-1)


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact taken apart: `kind` is one of `KINDS`, "is", "hits before" or, for what no rule knows, ""."""

    kind: str
    subject: str = ""
    other: str = ""


def parse_fact(text: str) -> Fact:
    """A statement of the table above."""
    text = text.strip().rstrip(".").lower()
    hit = re.fullmatch(r"(?:the )?(.+?) hits (?:the )?(.+?) before (?:the )?(.+?) moves", text)
    if hit and hit[2] == hit[3]:
        return Fact("hits before", hit[1], hit[2])
    kinds = "|".join(sorted(map(re.escape, KINDS), key=len, reverse=True))
    found = re.fullmatch(rf"(?:the )?(.+?) ({kinds}|is (?:a )?(?P<look>\w+))", text)
    if not found:
        return Fact("")
    return Fact("is", found[1], found["look"]) if found["look"] else Fact(found[2], found[1])


def logit_of(fact: str, bodies: Mapping[str, Body]) -> float:
    """How sure the rules are of a fact: logit of yes within +-`LIMIT`, nan where they cannot tell.

    Parameters
    ----------
    bodies : name -> what is known of it. A fact about a thing that is not among them cannot be told.
    """
    parsed = parse_fact(fact)
    body, other = bodies.get(parsed.subject), bodies.get(parsed.other)
    if body is None or not parsed.kind:
        return math.nan
    if parsed.kind in THRESHOLDS:
        error = body.errors.get(parsed.kind, math.nan)
        return float(np.clip(SHARP * (1 - error / THRESHOLDS[parsed.kind]), -LIMIT, LIMIT))
    if parsed.kind == "is":
        return math.nan if not body.looks else (LIMIT if parsed.other in body.looks else -LIMIT)
    if parsed.kind == "hits before":
        return math.nan if other is None else _hits_before(body, other)
    if body.seen.sum() < 3:
        return math.nan
    return {"moves left": _moves, "moves right": _moves, "falls": _falls, "bounces": _bounces}[parsed.kind](
        body, parsed.kind
    )


def off_line(values: np.ndarray) -> float:
    """Rms distance of values [T] from their best straight line over time; nan are left out, and fewer than four say nothing."""
    there = np.isfinite(values)
    if there.sum() < 4:
        return math.nan
    time = np.arange(len(values))[there]
    return float(np.std(values[there] - np.polyval(np.polyfit(time, values[there], 1), time)))


def spread(values: np.ndarray) -> float:
    """Standard deviation of values [T]; nan are left out, and fewer than four say nothing."""
    there = np.isfinite(values)
    return float(np.std(values[there])) if there.sum() >= 4 else math.nan


def _sure(value: float, scale: float) -> float:
    return float(np.clip(SHARP * value / scale, -LIMIT, LIMIT))


def _moves(body: Body, kind: str) -> float:
    time, x = np.flatnonzero(body.seen), body.position[body.seen, 0]
    speed = np.polyfit(time, x, 1)[0]
    return _sure(speed if kind == "moves right" else -speed, MOVES)


def _falls(body: Body, _: str) -> float:
    """The least of: how far it comes down, and how much faster it becomes."""
    time, y = np.flatnonzero(body.seen), body.position[body.seen, 1]
    if len(y) < 4:
        return math.nan
    bend = np.polyfit(time - time.mean(), y, 2)[0] * len(y) ** 2 / 4  # what the acceleration adds to half the path
    return min(_sure(y[-1] - y[0] - 5 * MOVES, 5 * MOVES), _sure(bend - MOVES, MOVES))


def _bounces(body: Body, _: str) -> float:
    """How much it rises again from the lowest place between two higher ones, in frames that show it before and after."""
    y = body.position[body.seen, 1]
    if len(y) < 4:
        return math.nan
    before, after = np.minimum.accumulate(y), np.minimum.accumulate(y[::-1])[::-1]  # y points down: the highest place
    depth = np.minimum(y - before, y - after).max()
    return _sure(depth - 4 * MOVES, 4 * MOVES)


def _hits_before(body: Body, other: Body) -> float:
    """B's first move against the first touch: sure if it comes in the touch's frame or later, wrong if earlier or never."""
    steps = np.linalg.norm(np.diff(other.position, axis=0), axis=-1)
    moving = np.flatnonzero(np.nan_to_num(steps) > MOVES)
    gap = np.linalg.norm(body.position - other.position, axis=-1) - body.radius - other.radius
    touching = np.flatnonzero(np.nan_to_num(gap, nan=np.inf) <= MOVES)
    if not len(touching) or not len(moving):
        return -LIMIT
    return LIMIT if moving[0] + 1 >= touching[0] else -LIMIT
