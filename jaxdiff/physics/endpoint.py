"""Language models as planner and critic, behind any endpoint that speaks OpenAI's protocol (vLLM, llama.cpp, OpenAI).

A fact is asked as a question, and the answer's score is continuous: P(yes) against P(no) among the likeliest first tokens,
and for ratings the mean of 1 to 5 under theirs. Where an endpoint gives no probabilities, the words decide.
"""

import base64
import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from jaxdiff.errors import ConfigError, Resumable
from jaxdiff.physics.critic import HIGHEST, LOWEST, Judgement
from jaxdiff.physics.planner import SCHEMA, Plan, extra, parse_plan

T = TypeVar("T")
SAID = 4.0  # logit of an answer in words, where there are no probabilities: yes is .98
FLOOR = 1e-4  # of the probability of an answer that is not among the likeliest
SMALLEST = 224  # pixels of a picture's shorter side; models that look at pictures see little in smaller ones
CHECKED_WITHIN = 10.0  # seconds for the first word with a server

PLANNING = """You prepare prompts for a video generation model and know physics well. Think in four steps:
1. which physical principles govern the scene;
2. which things appear, and what starts an interaction (initiator), what is changed by it (affected), what is neither (background);
3. which interactions happen, in what order;
4. what can be seen of them.
Answer with one JSON object and nothing else. Its keys: principles (list of strings), entities (list of {name, role}), events
(list of {verb, subject, object or null, order from 0}), facts (list of short statements about what is seen, each of which can
be answered with yes or no from the video alone), enhanced_prompt (the prompt for the video model, in which the physics is
said)."""
JUDGING = "You are shown the frames of one video in order. Judge only what can be seen in them."
FACT = 'Is this statement true of the video: "{}"? Answer with one word: yes, no, or unclear.'
COMMONSENSE = "How well does the video follow physical laws, 1 (not at all) to 5 (completely)? Answer with one digit."
SEMANTIC = 'How well does the video show this caption, 1 (not at all) to 5 (completely): "{}"? Answer with one digit.'


class EndpointError(Resumable):
    """A server that answered before stopped answering, or gives no answer that can be read. What it said so far is kept."""


class UnreadableError(EndpointError):
    """Answers came, and none of them could be read."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A server and a model on it. No key is kept here: it is read from the environment when a request is made.

    Parameters
    ----------
    url : base of the protocol, usually ending in /v1.
    model : the name that the server gives it.
    key : the environment variable that holds the key; local servers need none.
    timeout : seconds for one request.
    retries : how often a request that failed on the way is repeated, with growing pauses: timeouts, lost connections,
        and the answers 408, 409, 429 and 5xx.
    attempts : how often a model is asked for an answer that can be read.
    parallel : questions at once.
    """

    url: str
    model: str
    key: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 4
    attempts: int = 3
    parallel: int = 8

    def __post_init__(self):
        if not re.match(r"https?://[^/\s]+", self.url):
            raise ConfigError(f"--endpoint={self.url!r} is no address; for a local server, http://localhost:8000/v1")
        if not self.model:
            raise ConfigError("--endpoint_model is missing: the name that the server gives the model")
        if self.timeout <= 0 or self.retries < 0 or self.attempts < 1 or self.parallel < 1:
            raise ConfigError(
                f"timeout={self.timeout} must be positive, retries={self.retries} not negative, attempts={self.attempts} and "
                f"parallel={self.parallel} at least 1"
            )

    def client(self, **changes: Any) -> Any:
        """A client of the library openai; a context manager."""
        options = {"timeout": self.timeout, "max_retries": self.retries, **changes}
        return extra("openai").OpenAI(base_url=self.url, api_key=os.environ.get(self.key) or "none", **options)

    def check(self) -> None:
        """Ask the server for its models: before anything slow.

        Raises
        ------
        ConfigError : the server cannot be reached, refuses the key, or has no such model; or a library is missing.
        """
        openai = extra("openai")
        extra("jsonschema")
        try:
            with self.client(timeout=min(self.timeout, CHECKED_WITHIN), max_retries=0) as client:
                served = [model.id for model in client.models.list().data]
        except openai.NotFoundError:
            return  # a server that does not list its models
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError(f"{self.url} refuses the key in ${self.key}: {_short(error)}") from None
        except openai.OpenAIError as error:
            raise ConfigError(
                f"the endpoint {self.url} does not answer ({_short(error)}). Is the server started? For example: "
                f"vllm serve {self.model} --port 8000"
            ) from None
        if served and self.model not in served:
            raise ConfigError(f"{self.url} does not serve {self.model!r}; it serves {', '.join(sorted(served)[:20])}")

    def ask(
        self, client: Any, messages: Sequence[Mapping[str, Any]], read: Callable[[Any], T], **options: Any
    ) -> tuple[T, list[str]]:
        """What `read` makes of the model's answer, and the problems on the way; an answer that it refuses is asked for again.

        Parameters
        ----------
        read : takes a choice of the protocol's completion; raises `ConfigError` for an answer that cannot be read.

        Raises
        ------
        EndpointError : no answer, or none that can be read, after all attempts.
        """
        openai = extra("openai")
        problems: list[str] = []
        for attempt in range(self.attempts):
            temperature = 0.7 if attempt else 0.0  # the same words again would be no second attempt
            try:
                answer = client.chat.completions.create(
                    model=self.model, messages=messages, temperature=temperature, **options
                )
                return read(_choice(answer)), problems
            except (ConfigError, json.JSONDecodeError, openai.APIResponseValidationError) as error:
                problems.append(str(error))
            except openai.BadRequestError as error:
                if not options:
                    raise EndpointError(f"{self.url} refuses the request: {_short(error)}") from None
                problems.append(f"without {', '.join(sorted(options))}, which the endpoint refuses: {_short(error)}")
                options = {}
            except openai.OpenAIError as error:
                raise EndpointError(
                    f"{self.url} failed {self.retries + 1} times, the last time with {_short(error)}. Nothing that was planned, "
                    "generated or judged is lost; when the server is back, the same command goes on"
                ) from None
        raise UnreadableError(
            f"{self.model} at {self.url} gave {self.attempts} answers that cannot be used; the last: {problems[-1]}"
        )


@dataclasses.dataclass(frozen=True)
class EndpointPlanner:
    """Plans by a language model."""

    endpoint: Endpoint

    def plan(self, prompt: str) -> Plan:
        """Plan one prompt.

        Raises
        ------
        EndpointError : as `Endpoint.ask`.
        """
        messages = [{"role": "system", "content": PLANNING}, {"role": "user", "content": prompt}]
        form = {"type": "json_schema", "json_schema": {"name": "plan", "schema": SCHEMA, "strict": True}}
        with self.endpoint.client() as client:
            plan, _ = self.endpoint.ask(
                client, messages, lambda choice: parse_plan(_text(choice)), response_format=form
            )
        return plan


@dataclasses.dataclass(frozen=True)
class EndpointCritic:
    """Judgements by a model that sees pictures.

    A question without an answer that can be read is nan, with the reason among the judgement's problems; a server that
    does not answer at all is an error.

    Parameters
    ----------
    frames : of each video that the model is shown, evenly spaced from the first to the last.
    """

    endpoint: Endpoint
    frames: int = 8

    def judge(self, videos: np.ndarray, facts: Sequence[Sequence[str]], prompts: Sequence[str]) -> list[Judgement]:
        """See `jaxdiff.physics.critic.Critic.judge`.

        Raises
        ------
        EndpointError : the server does not answer.
        """
        with self.endpoint.client() as client, ThreadPoolExecutor(self.endpoint.parallel) as pool:
            return [self._judge(client, pool, *one) for one in zip(videos, facts, prompts, strict=True)]

    def _judge(self, client: Any, pool: ThreadPoolExecutor, video: np.ndarray, facts: Sequence[str], prompt: str):
        pictures = [
            {"type": "image_url", "image_url": {"url": data_url(frame)}} for frame in chosen(video, self.frames)
        ]

        def question(text: str, read: Callable[[Any], float]) -> tuple[float, list[str]]:
            content = [*pictures, {"type": "text", "text": text}]
            messages: list[dict[str, Any]] = [
                {"role": "system", "content": JUDGING},
                {"role": "user", "content": content},
            ]
            try:
                return self.endpoint.ask(client, messages, read, logprobs=True, top_logprobs=20)
            except UnreadableError as error:
                return math.nan, [f"{text} {error}"]

        asked = [(FACT.format(fact), read_yes) for fact in facts]
        asked += [(COMMONSENSE, read_rating), (SEMANTIC.format(prompt), read_rating)]
        answers = list(pool.map(lambda one: question(*one), asked))
        *logits, commonsense, semantic = [value for value, _ in answers]
        problems = tuple(problem for _, found in answers for problem in found)
        return Judgement(dict(zip(facts, logits, strict=True)), commonsense, semantic, problems)


# ------------------------------------------------------------------------------------------------ answers and pictures


def read_yes(choice: Any) -> float:
    """Logit of yes of an answer to `FACT`: ``log P(yes) - log P(no)``; nan for "unclear".

    Raises
    ------
    ConfigError : the answer is none of the three.
    """
    word = _last_word(choice, r"yes|no|unclear")
    if word == "unclear":
        return math.nan
    shares = _shares(choice, ("yes", "no"))
    if shares is None:
        return SAID if word == "yes" else -SAID
    return math.log(max(shares[0], FLOOR)) - math.log(max(shares[1], FLOOR))


def read_rating(choice: Any) -> float:
    """Mean of 1 to 5 under the answer's probabilities.

    Raises
    ------
    ConfigError : the answer has no digit from 1 to 5.
    """
    digit = _last_word(choice, r"[1-5]")
    shares = _shares(choice, tuple("12345"))
    return float(digit) if shares is None else float(np.dot(shares, np.arange(LOWEST, HIGHEST + 1)) / sum(shares))


def chosen(video: np.ndarray, frames: int) -> np.ndarray:
    """At most `frames` frames of a video [T, H, W, 3], evenly spaced, the first and the last among them."""
    return video[np.unique(np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int))]


def data_url(frame: np.ndarray) -> str:
    """A picture uint8 [H, W, 3] as a data url (png). A small one is enlarged by whole numbers, which blurs nothing."""
    from PIL import Image

    factor = -(-SMALLEST // min(frame.shape[:2]))
    buffer = io.BytesIO()
    Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1)).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _short(error: Exception) -> str:
    """The error in one line, with what lies behind a lost connection."""
    text = str(error).split("\n")[0][:300]
    return f"{type(error).__name__}: {text}" + (f" ({error.__cause__})" if error.__cause__ else "")


def _choice(answer: Any) -> Any:
    choices = getattr(answer, "choices", None)
    if not choices:
        raise ConfigError(f"the answer holds no choice: {str(answer)[:200]!r}.")
    return choices[0]


def _text(choice: Any) -> str:
    content = getattr(choice.message, "content", None)
    if not content:
        raise ConfigError("the answer is empty.")
    return content


def _last_word(choice: Any, words: str) -> str:
    """The last of some words in an answer, after its thoughts."""
    text = re.sub(r"(?s)^.*</think>", "", _text(choice)).lower()
    found = re.findall(rf"\b(?:{words})\b", text)
    if not found:
        raise ConfigError(f"the answer {text[:100]!r} is none of those asked for.")
    return found[-1]


def _shares(choice: Any, words: Sequence[str]) -> list[float] | None:
    """Probability of each word among the likeliest first tokens; None if there are none, or the first token is another."""
    listed = getattr(choice.logprobs, "content", None) if choice.logprobs else None
    if not listed:
        return None
    totals = dict.fromkeys(words, 0.0)
    for token in listed[0].top_logprobs or ():
        word = token.token.strip().strip(".").lower()
        if word in totals:
            totals[word] += math.exp(token.logprob)
    return [*totals.values()] if sum(totals.values()) > 0.5 else None
