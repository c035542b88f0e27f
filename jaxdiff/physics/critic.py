"""Critics: what judges a clip by the facts of its plan, its physics and its prompt; and the one that reads tracks.

A judgement holds the logit of yes for every fact, and two ratings from 1 to 5 as VideoPhy-2 asks for them: adherence to
physical laws ("commonsense") and to the caption ("semantic"). Nan says that the critic could not tell.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxdiff.data.worlds import COLOURS, SHAPES, WorldConfig
from jaxdiff.data.worlds.prompts import WORDS
from jaxdiff.errors import ConfigError
from jaxdiff.physics.planner import spoken
from jaxdiff.physics.rules import Body, logit_of, off_line, spread
from jaxdiff.physics.tracking import Track, track, world_of
from jaxdiff.physics.world_metrics import measure

LOWEST, HIGHEST = 1.0, 5.0  # of a rating


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a critic says of one clip.

    Parameters
    ----------
    facts : fact -> logit of yes, nan where it cannot tell.
    commonsense, semantic : 1 to 5, nan where it cannot tell.
    problems : what went wrong while judging, such as answers that could not be read.
    """

    facts: Mapping[str, float]
    commonsense: float
    semantic: float
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As it is kept on disk: nan as null."""
        return {
            "facts": {fact: _number(logit) for fact, logit in self.facts.items()},
            "commonsense": _number(self.commonsense),
            "semantic": _number(self.semantic),
            "problems": list(self.problems),
        }

    @classmethod
    def from_json(cls, values: Any) -> "Judgement":
        """The inverse of `to_json`.

        Raises
        ------
        ConfigError : it is none.
        """
        try:
            facts = {fact: _or_nan(logit) for fact, logit in values["facts"].items()}
            ratings = _or_nan(values["commonsense"]), _or_nan(values["semantic"])
            return cls(facts, *ratings, tuple(values["problems"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"this is no judgement: {error!r} in {str(values)[:200]}") from None


class Critic(Protocol):
    """What judges clips."""

    def judge(self, videos: np.ndarray, facts: Sequence[Sequence[str]], prompts: Sequence[str]) -> list[Judgement]:
        """Judge clips uint8 [B, T, H, W, 3], each by its own facts and prompt."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """How the three parts of a judgement add up. The paper's are not public; these are ours: all alike."""

    phenomena: float = 1.0
    commonsense: float = 1.0
    semantic: float = 1.0

    def __post_init__(self):
        parts = dataclasses.astuple(self)
        if min(parts) < 0 or not sum(parts) > 0:
            raise ConfigError(
                f"weights of phenomena, commonsense and semantic must not be negative, nor all 0: {parts}"
            )


def reward(judgement: Judgement, weights: Weights | None = None) -> float:
    """``(w_p mean_i P(yes_i) + w_c (commonsense - 1) / 4 + w_s (semantic - 1) / 4) / (w_p + w_c + w_s)``, in [0, 1].

    Facts that cannot be told are left out of the mean, and a part of which nothing can be told out of the sum. Nan if
    there is nothing at all.
    """
    weights = weights or Weights()
    told = [probability(logit) for logit in judgement.facts.values() if not math.isnan(logit)]
    parts = (
        (weights.phenomena, float(np.mean(told)) if told else math.nan),
        (weights.commonsense, (judgement.commonsense - LOWEST) / (HIGHEST - LOWEST)),
        (weights.semantic, (judgement.semantic - LOWEST) / (HIGHEST - LOWEST)),
    )
    known = [(weight, value) for weight, value in parts if not math.isnan(value)]
    total = sum(weight for weight, _ in known)
    return sum(weight * value for weight, value in known) / total if total else math.nan


def probability(logit: float) -> float:
    """``1 / (1 + exp(-logit))``."""
    return 1 / (1 + math.exp(-max(min(logit, 700.0), -700.0)))


# ------------------------------------------------------------------------------------------------ by rules, from tracks

LAWS = (
    "persists", "keeps its colour", "keeps its shape", "keeps its size", "moves steadily", "stays level",
    "bounces on equal hops",
)  # fmt: skip
"""What every clip of the generated world must do, whether its plan says so or not; of the last two, one."""


@dataclasses.dataclass(frozen=True)
class RuleCritic:
    """Judges clips of the generated world by `jaxdiff.physics.rules`, from what the tracker finds in them.

    Commonsense is ``1 + 4 prod_i P(law_i)`` over the world's laws, semantic ``1 + 4 n / 3`` where n of the three words of
    the prompt fit the clip. A clip that never shows a thing keeps no law and fits no word: showing nothing earns nothing.
    """

    def judge(self, videos: np.ndarray, facts: Sequence[Sequence[str]], prompts: Sequence[str]) -> list[Judgement]:
        """See `Critic.judge`.

        Raises
        ------
        ConfigError : clips of another size or length than the world's, or prompts that are none of it.
        """
        words = [spoken(prompt) for prompt in prompts]
        numbers = np.array([[WORDS.index(word) for word in row] for row in words]).reshape(-1, 3)
        found, config = track(videos), world_of(videos)
        measured = measure(found, numbers, config)
        every = []
        for i, (colour, shape, motion) in enumerate(words):
            name = f"{colour} {shape}"
            one = {key: float(values[i]) for key, values in measured.items()}
            body = thing(found, i, one, hops=motion.startswith("hops"), config=config)
            known = {name: body}
            path = LAWS[-1] if motion.startswith("hops") else LAWS[-2]
            logits = [logit_of(f"{name} {law}", known) for law in (*LAWS[:-2], path)]
            kept = math.prod(probability(logit) for logit in logits if not math.isnan(logit))
            fits = 0.0 if one["empty"] else 1 - (1.0 if math.isnan(one["words"]) else one["words"])
            every.append(
                Judgement(
                    {fact: logit_of(fact, known) for fact in facts[i]},
                    LOWEST + (HIGHEST - LOWEST) * kept,
                    LOWEST + (HIGHEST - LOWEST) * fits,
                )
            )
        return every


def thing(found: Track, clip: int, measured: Mapping[str, float], *, hops: bool, config: WorldConfig) -> Body:
    """The thing of one clip of the generated world as a `Body`, from its track and its measures."""
    position, clear = found.position[clip], found.clear[clip]
    if not clear.any():
        return Body(position, errors={"persists": math.inf})
    colour, shape = (np.bincount(values[clip][clear]).argmax() for values in (found.colour, found.shape))
    errors = {
        # In frames that owe no sight nothing can be missing; a thing that is never clear where it could be is nan there.
        "persists": 1 - clear.mean() if math.isnan(measured["permanence"]) else measured["permanence"],
        "keeps its colour": measured["colour"],
        "keeps its shape": measured["shape"],
        "keeps its size": measured["mass"],
        "moves steadily": off_line(position[:, 0]),
        "stays level": spread(position[:, 1]),
        "bounces on equal hops": measured["bounce"] if hops else math.nan,
    }
    looks = (COLOURS[int(colour)], SHAPES[int(shape)])
    return Body(position, float(np.sqrt(np.nanmean(found.area[clip]) / np.pi)), errors, looks)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
