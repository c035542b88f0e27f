"""Plans: what physics a prompt asks for, in a form that can be checked.

DiffPhy (arXiv 2505.21653) lets a language model reason in four steps, principles, roles, interactions and what can be seen
of them, and uses two of its outputs: an enhanced prompt, and a list of facts that a critic then judges one by one.
"""

import dataclasses
import json
import re
from typing import Any, Protocol

from jaxdiff.data.worlds import COLOURS, SHAPES
from jaxdiff.data.worlds.prompts import MOTIONS
from jaxdiff.errors import ConfigError

ROLES = ("initiator", "affected", "background")


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
SCHEMA: dict[str, Any] = _object(
    principles={"type": "array", "items": TEXT, "minItems": 1},
    entities={"type": "array", "items": _object(name=TEXT, role={"enum": [*ROLES]}), "minItems": 1},
    events={
        "type": "array",
        "items": _object(
            verb=TEXT, subject=TEXT, object={"type": ["string", "null"]}, order={"type": "integer", "minimum": 0}
        ),
    },
    facts={"type": "array", "items": TEXT, "minItems": 1},
    enhanced_prompt=TEXT,
)
"""JSON schema of a plan, as it is also sent to endpoints that can constrain their output."""


@dataclasses.dataclass(frozen=True)
class Entity:
    """Something that the video shows; `role` is one of `ROLES`."""

    name: str
    role: str


@dataclasses.dataclass(frozen=True)
class Event:
    """What an entity does, to another one or to none; events of a lower `order` come first."""

    verb: str
    subject: str
    object: str | None
    order: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a planner makes of a prompt.

    Parameters
    ----------
    principles : physical principles that govern the scene.
    facts : statements that a critic can answer with yes or no from the video alone.
    enhanced_prompt : what the video model is told instead of the prompt.
    """

    principles: tuple[str, ...]
    entities: tuple[Entity, ...]
    events: tuple[Event, ...]
    facts: tuple[str, ...]
    enhanced_prompt: str

    @classmethod
    def from_dict(cls, values: Any) -> "Plan":
        """From what `dataclasses.asdict` made, or from JSON that fits `SCHEMA`.

        Raises
        ------
        ConfigError : it does not have the form of a plan.
        """
        try:
            return cls(
                principles=tuple(values["principles"]),
                entities=tuple(Entity(**entity) for entity in values["entities"]),
                events=tuple(Event(**event) for event in values["events"]),
                facts=tuple(values["facts"]),
                enhanced_prompt=values["enhanced_prompt"],
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"this is no plan: {error!r} in {str(values)[:200]}") from None


class Planner(Protocol):
    """What turns a prompt into a plan."""

    def plan(self, prompt: str) -> Plan:
        """Plan one prompt."""


def parse_plan(text: str) -> Plan:
    """A plan from the answer of a language model: JSON that fits `SCHEMA`, perhaps in a code fence or behind its thoughts.

    Raises
    ------
    ConfigError : it is not JSON, or does not fit the schema; the message says where. Also without the extra `diffphy`.
    """
    text = re.sub(r"(?s)^.*</think>", "", text).strip()
    fenced = re.fullmatch(r"(?s)```(?:json)?\s*(.*?)\s*```", text)
    text = fenced[1] if fenced else text
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the plan is not JSON ({error}): {text[:200]!r}") from None
    jsonschema = extra("jsonschema")
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMA).iter_errors(values))
    if problem is not None:
        raise ConfigError(f"the plan does not fit its schema at {problem.json_path}: {problem.message[:300]}")
    return Plan.from_dict(values)


def extra(library: str) -> Any:
    """A module of the extra `diffphy`, which only language models need.

    Raises
    ------
    ConfigError : it is not installed.
    """
    try:
        if library == "jsonschema":
            import jsonschema

            return jsonschema
        import openai

        return openai
    except ImportError:
        raise ConfigError(
            f"language models as planner or critic need {library}, which is not installed: pip install 'jaxdiff[diffphy]'"
        ) from None


@dataclasses.dataclass(frozen=True)
class WorldPlanner:
    """Plans of the generated world's prompts by rule: its physics is known, and so is what each motion must look like.

    The enhanced prompt is the prompt: the nano model knows thirteen words, and the prompt has used its three.
    """

    def plan(self, prompt: str) -> Plan:
        """Plan a prompt of colour, shape and motion.

        Raises
        ------
        ConfigError : another prompt.
        """
        colour, shape, motion = spoken(prompt)
        name, (manner, side) = f"{colour} {shape}", motion.split("-")
        path = "bounces on equal hops" if manner == "hops" else "stays level"
        laws = ("persists", "keeps its colour", "keeps its shape", "keeps its size", "moves steadily", path)
        words = (f"is {colour}", f"is a {shape}", f"moves {side}")
        return Plan(
            principles=(
                "object permanence",
                "inertia",
                "gravity with elastic bounces" if manner == "hops" else "support",
            ),
            entities=(Entity(name, "initiator"), Entity("screen", "background")),
            events=(Event(manner, name, None, 0), Event("hides", "screen", name, 1)),
            facts=tuple(f"the {name} {fact}" for fact in (*laws, *words)),
            enhanced_prompt=prompt,
        )


def spoken(prompt: str) -> tuple[str, str, str]:
    """Colour, shape and motion of a prompt of the generated world.

    Raises
    ------
    ConfigError : it is none.
    """
    words = tuple(prompt.lower().split())
    kinds = (COLOURS, SHAPES, MOTIONS)
    if len(words) != 3 or any(word not in kind for word, kind in zip(words, kinds, strict=True)):
        raise ConfigError(
            f"the prompt {prompt!r} is none of the generated world, whose rules are known; its prompts are a colour "
            f"({', '.join(COLOURS)}), a shape ({', '.join(SHAPES)}) and a motion ({', '.join(MOTIONS)}). "
            "For other prompts take --planner=endpoint, --critic=endpoint and --held_out=none"
        )
    return words
