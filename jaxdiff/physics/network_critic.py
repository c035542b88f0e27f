"""A small critic that a gradient passes through: a video classifier, trained on possible and impossible clips.

A frame becomes features, of its patches and of where each colour lies; a network compares all frames, and two heads answer:
which of the world's laws the clip keeps, and which words of the world describe it. It sees pixels where the rule critic sees
tracks, so that each of the two can be held out when a model is tuned on the other.
"""

import dataclasses
import io
import itertools
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxdiff.conditioning import Conditioning
from jaxdiff.data.worlds import COLOURS, SHAPES, normalise
from jaxdiff.data.worlds.prompts import MOTIONS, WORDS, table
from jaxdiff.data.worlds.scene import PALETTE
from jaxdiff.errors import CheckpointError, ConfigError
from jaxdiff.models.layers import MLP, LayerNorm, Linear, gelu_tanh, patchify
from jaxdiff.models.network import Network
from jaxdiff.physics.critic import HIGHEST, LOWEST, Judgement
from jaxdiff.physics.objectives import Ratings
from jaxdiff.physics.planner import spoken
from jaxdiff.physics.rules import Fact, parse_fact
from jaxdiff.physics.violations import LAWS, Clips
from jaxdiff.train.loop import Recipe, fit
from jaxdiff.workdir import write_atomic

DECIDE = ("keeps its colour", "keeps its shape", "moves steadily", "keeps its path")  # whether a clip has its words
PATHS = ("stays level", "bounces on equal hops")  # facts of the law "keeps its path"
GROUPS = (len(COLOURS), len(SHAPES), len(MOTIONS))  # of the words, in their order
SPOKEN = sum(GROUPS)
NOISE = (
    0.05  # deviation of what is added to training pixels in [-1, 1]: samples of a model are never as clean as the world
)
JUDGED_AT_ONCE = 32
ORDERS = np.array([*itertools.permutations(range(3))])  # of the channels
_SIGNS = np.asarray(PALETTE) > 0.5  # of every colour, which channels it has
EXCHANGED = np.array([[_SIGNS.tolist().index(signs[order].tolist()) for signs in _SIGNS] for order in ORDERS])


@dataclasses.dataclass(frozen=True)
class ClipCriticConfig:
    """Architecture: clips of `frames` frames of `size` pixels; `width` of a frame's features, `hidden` of what compares them."""

    frames: int = 17
    size: int = 32
    width: int = 32
    hidden: int = 256


class ClipCritic(nnx.Module):
    """Video [B, T, S, S, 3] in [-1, 1] -> logits of the laws [B, laws] and of the words [B, 13]."""

    def __init__(self, config: ClipCriticConfig, *, rngs: nnx.Rngs):
        self.config, width, hidden = config, config.width, config.hidden
        self.pixels = Linear(4 * 4 * 3, width, rngs=rngs)
        self.merge = Linear(2 * 2 * width, width, rngs=rngs)
        self.frame = Linear((config.size // 8) ** 2 * width, width, rngs=rngs)
        self.compare = Linear(config.frames * (width + 3 * len(COLOURS)), hidden, rngs=rngs)
        self.mlp = MLP(hidden, hidden, hidden, gelu_tanh, rngs=rngs)
        self.norm = LayerNorm(hidden, 1e-6)
        self.laws = Linear(hidden, len(LAWS), rngs=rngs)
        self.words = Linear(hidden, SPOKEN, rngs=rngs)

    def __call__(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch, frames, size = video.shape[:3]
        x = gelu_tanh(self.pixels(patchify(video, (1, 4, 4))))
        x = gelu_tanh(self.merge(patchify(x.reshape(batch, frames, size // 4, size // 4, -1), (1, 2, 2))))
        x = gelu_tanh(self.frame(x.reshape(batch, frames, -1)))
        x = gelu_tanh(self.compare(jnp.concatenate([x, places(video)], -1).reshape(batch, -1)))
        x = self.norm(x + self.mlp(x))
        return self.laws(x), self.words(x)


def places(video: jax.Array) -> jax.Array:
    """How much of each of the world's colours a frame shows, and where: [B, T, S, S, 3] -> [B, T, 18]; see `moments`."""
    area, x, y = moments(video)
    return jnp.concatenate([20.0 * area, 5.0 * x / (area + 0.005), 5.0 * y / (area + 0.005)], -1)


def moments(video: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Area of each of the world's colours, and its integrals of x and y: [B, T, S, S, 3] in [-1, 1] -> three of [B, T, 6].

    In fractions of the frame, from its middle. A spatial expectation a colour: the weight of a pixel is its chroma along the
    colour's, as far as it is positive.
    """
    batch, frames, size = video.shape[:3]
    video = video.reshape(batch, frames, size // 2, 2, size // 2, 2, 3).mean((3, 5))  # half the resolution is enough
    keys = np.asarray(PALETTE, np.float32)
    keys = keys - keys.mean(1, keepdims=True)
    chroma = 0.5 * (video - video.mean(-1, keepdims=True))
    along = jnp.einsum("bthwc,kc->bthwk", chroma, keys / np.square(keys).sum(1, keepdims=True))
    weight = jnp.square(jax.nn.relu(along))
    axis = (jnp.arange(video.shape[2]) + 0.5) / video.shape[2] - 0.5
    x, y = (jnp.einsum(f"bthwk,{a}->btk", weight, axis) / video.shape[2] ** 2 for a in "wh")
    return weight.mean((2, 3)), x, y


@dataclasses.dataclass(frozen=True)
class NetworkCritic:
    """`ClipCritic` as a `Critic` and a `DifferentiableCritic`.

    Commonsense is ``1 + 4 prod_i P(law_i)`` and semantic ``1 + 4 mean_w P(w)`` over the words of the prompt, as the rule
    critic has them.
    """

    network: Network

    def rate(self, video: jax.Array, cond: Conditioning) -> Ratings:
        """See `DifferentiableCritic.rate`; `cond` holds the embedding of a prompt of the world, or of the empty prompt,
        to which every clip is true."""
        width = cond.text.shape[-1]
        likeness = jnp.einsum("bnd,wd->bnw", cond.text, jnp.asarray(table(width))[:SPOKEN]) / width
        return self._ratings(video, (likeness > 0.5).any(1).astype(jnp.float32))

    def _ratings(self, video: jax.Array, told: jax.Array) -> Ratings:
        laws, words = self.network(video)
        shares = jnp.concatenate([jax.nn.softmax(part) for part in _groups(words)], -1)
        count = told.sum(-1)
        fits = jnp.where(count > 0, (told * shares).sum(-1) / jnp.maximum(count, 1.0), 1.0)
        return Ratings(
            facts=jnp.concatenate([laws, jax.scipy.special.logit(jnp.clip(shares, 1e-6, 1 - 1e-6))], -1),
            told=jnp.concatenate([jnp.ones_like(laws), told], -1),
            commonsense=LOWEST + (HIGHEST - LOWEST) * jnp.exp(jax.nn.log_sigmoid(laws).sum(-1)),
            semantic=LOWEST + (HIGHEST - LOWEST) * fits,
        )

    def judge(self, videos: np.ndarray, facts: Sequence[Sequence[str]], prompts: Sequence[str]) -> list[Judgement]:
        """See `Critic.judge`.

        Raises
        ------
        ConfigError : clips of another size or length than it was trained on, or prompts that are none of the world's.
        """
        config = self.network.config
        if videos.shape[1:] != (config.frames, config.size, config.size, 3):
            raise ConfigError(
                f"the network critic knows clips of {config.frames} frames of {config.size} pixels, got {videos.shape[1:]}"
            )
        words = [spoken(prompt) for prompt in prompts]
        told = np.array([[float(word in row) for word in WORDS[:SPOKEN]] for row in words], np.float32)
        parts = []
        for i in range(0, len(videos), JUDGED_AT_ONCE):
            padding = [(0, max(0, i + JUDGED_AT_ONCE - len(videos)))]
            part = np.pad(videos[i : i + JUDGED_AT_ONCE], padding + [(0, 0)] * 4)
            said = np.pad(told[i : i + JUDGED_AT_ONCE], [*padding, (0, 0)])
            parts.append(jax.device_get(_judged(self, part, said)))
        logits, _, commonsense, semantic = (np.concatenate(leaves) for leaves in zip(*parts, strict=True))
        return [
            Judgement(
                {fact: _logit_of(parse_fact(fact), f"{row[0]} {row[1]}", logits[i]) for fact in facts[i]},
                float(commonsense[i]),
                float(semantic[i]),
            )
            for i, row in enumerate(words)
        ]


jax.tree_util.register_dataclass(NetworkCritic, data_fields=["network"], meta_fields=[])


@jax.jit
def _judged(critic: NetworkCritic, video: jax.Array, told: jax.Array) -> Ratings:
    return critic._ratings(normalise(video), told)


def _groups(words: jax.Array) -> list[jax.Array]:
    """Logits [B, 13] of colours, shapes and motions apart."""
    return jnp.split(words, np.cumsum(GROUPS)[:-1], -1)


def _logit_of(fact: Fact, name: str, facts: np.ndarray) -> float:
    """The logit of a fact about the thing of the prompt; nan for all else."""
    law = "keeps its path" if fact.kind in PATHS else fact.kind
    words = facts[len(LAWS) :]
    if fact.subject != name:
        return float("nan")
    if law in LAWS:
        return float(facts[LAWS.index(law)])
    if fact.kind == "is" and fact.other in WORDS[:SPOKEN]:
        return float(words[WORDS.index(fact.other)])
    if fact.kind in ("moves left", "moves right"):
        share = sum(
            1 / (1 + np.exp(-words[i])) for i, w in enumerate(WORDS[:SPOKEN]) if w.endswith(fact.kind[5:].strip())
        )
        share = np.clip(share, 1e-6, 1 - 1e-6)
        return float(np.log(share) - np.log1p(-share))
    return float("nan")


def train_critic(
    clips: Clips,
    recipe: Recipe,
    *,
    config: ClipCriticConfig | None = None,
    batch: int = 64,
    workdir: Path | None = None,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> NetworkCritic:
    """Train on `jaxdiff.physics.violations.clips`; continue from `workdir` if it holds a checkpoint.

    The loss is the cross entropy of every law, and that of colour, shape and motion in the clips in which they do not change.
    """
    config = config or ClipCriticConfig(frames=clips.video.shape[1], size=clips.video.shape[2])
    start = Network.init(ClipCritic, config, recipe.seed)
    offsets = np.cumsum([0, *GROUPS[:-1]])
    data = (
        jnp.asarray(clips.video),
        jnp.asarray(clips.laws, jnp.float32),
        jnp.asarray(clips.words - offsets),
    )

    def loss(params, given, key):
        video, laws, words = given
        pick, turn, spread, amount = jax.random.split(key, 4)
        rows = jax.random.randint(pick, (batch,), 0, video.shape[0])
        pixels, words = varied(turn, normalise(video[rows]), words[rows])
        # One picture of noise for all clips, times a number of each: drawing it anew for each takes as long as all else.
        noise, size = jax.random.normal(spread, pixels.shape[1:]), jax.random.normal(amount, (batch, 1, 1, 1, 1))
        pixels = pixels + NOISE * size * noise
        kept, said = start.replace(params)(pixels)
        law = optax.sigmoid_binary_cross_entropy(kept, laws[rows]).mean()
        colour, shape, steady, path = (laws[rows, LAWS.index(name)] for name in DECIDE)
        fits = (colour, shape, steady * path)  # a word that holds for half of the clip is no answer
        errors = [
            optax.softmax_cross_entropy_with_integer_labels(part, words[:, i]) for i, part in enumerate(_groups(said))
        ]
        word = sum((fit * error).sum() / jnp.maximum(fit.sum(), 1.0) for fit, error in zip(fits, errors, strict=True))
        return law + word, {"laws": law, "words": word}

    state = fit(loss, start.params, recipe, data, workdir=workdir, report=report)
    return NetworkCritic(start.replace(state.ema))


def varied(key: jax.Array, video: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Clips that are as possible or impossible as the given ones: mirrored, run backwards, and in exchanged colours.

    Parameters
    ----------
    video : [B, T, S, S, 3]
    words : int [B, 3], places within colours, shapes and motions. A mirror and time backwards each turn left to right; an
        exchange of the channels takes every colour of the world to another of its six.
    """
    mirror, back, colour = jax.random.split(key, 3)
    batch = video.shape[0]
    flips, turns = (jax.random.bernoulli(k, 0.5, (batch,)) for k in (mirror, back))
    video = jnp.where(flips[:, None, None, None, None], video[:, :, :, ::-1], video)
    video = jnp.where(turns[:, None, None, None, None], video[:, ::-1], video)
    order = jax.random.randint(colour, (batch,), 0, len(ORDERS))
    video = jnp.take_along_axis(video, jnp.asarray(ORDERS)[order][:, None, None, None], -1)
    colours = jnp.asarray(EXCHANGED)[order, words[:, 0]]
    return video, jnp.stack([colours, words[:, 1], words[:, 2] ^ (flips ^ turns)], -1)


def save_critic(critic: NetworkCritic, path: Path) -> None:
    """Write a critic as one file, whole or not at all."""
    leaves = jax.tree_util.tree_leaves_with_path(critic.network.params)
    arrays = {jax.tree_util.keystr(place): np.asarray(leaf) for place, leaf in leaves}
    buffer = io.BytesIO()
    np.savez(buffer, config=json.dumps(dataclasses.asdict(critic.network.config)), **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def load_critic(path: Path) -> NetworkCritic:
    """What `save_critic` wrote.

    Raises
    ------
    CheckpointError : it is no such file, or one of another architecture.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            config = ClipCriticConfig(**json.loads(str(found["config"])))
            empty = Network.abstract(ClipCritic, config)
            params = jax.tree_util.tree_map_with_path(
                lambda place, leaf: jnp.asarray(found[jax.tree_util.keystr(place)].reshape(leaf.shape)), empty.params
            )
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no critic that jaxdiff wrote: {error}") from None
    return NetworkCritic(empty.replace(params))
