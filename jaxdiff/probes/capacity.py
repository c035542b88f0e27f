"""What a probe could say whatever the states hold: how much it memorises, and how many bits its answers save.

An accuracy on held-out scenes is not inflated by capacity, yet it does not say how easily the answer is read. Three
measures do: training accuracy on labels exchanged inside scenes (`memorised`), the length of the labels' code when every
next portion of scenes is told by probes of the earlier ones (`prequential`), and a control task, labels drawn at random
for each value of an attribute that recurs (`controls.control_labels`), after Hewitt and Liang (arXiv 1909.03368).
"""

import dataclasses
from typing import Any

import numpy as np

from jaxdiff.errors import ConfigError
from jaxdiff.probes import statistics
from jaxdiff.probes.cross_validation import PENALTIES, NestedResult
from jaxdiff.probes.inputs import check_groups, check_labels, check_penalties, named_candidates
from jaxdiff.probes.permutation import permute_labels
from jaxdiff.probes.solver import fit_all


@dataclasses.dataclass(frozen=True)
class Memorised:
    """Training accuracy on labels that were exchanged inside scenes; there is nothing to learn in them.

    accuracy : of the probes that the outer folds chose, cell and penalty, mean over folds and draws.
    by_penalty : [P] the same cells at every penalty of the result, in its order.
    draws : relabelings a fold.
    """

    accuracy: float
    by_penalty: np.ndarray
    draws: int


def memorised(X: Any, result: NestedResult, *, draws: int = 5, seed: int = 0) -> Memorised:
    """How many exchanged labels the chosen probes of `result` fit on their own training clips.

    Parameters
    ----------
    X : as `nested_cross_validate` had it.
    result : its outcome.
    draws : relabelings for each outer fold.

    Raises
    ------
    ConfigError
        No group holds both labels, or X is not what `result` was made from.
    """
    sets = named_candidates(X)
    outer = 1 + int(result.folds.max())
    train = (result.folds[:, None] != np.arange(outer)[:, None]).repeat(draws, 1).reshape(-1, len(result.labels))
    labels = permute_labels(result.labels, result.groups, len(train), seed=(seed, 1))
    signs = np.where(labels, 1.0, -1.0)
    shares: list[np.ndarray] = []
    at_choice: list[float] = []
    for name, candidate in sorted({(c.name, c.candidate) for c in result.chosen}):
        if name not in sets or candidate >= len(sets[name]):
            raise ConfigError(f"the result chose candidate {candidate} of {name!r}, which X does not hold")
        one = sets[name][candidate : candidate + 1]
        ((_, fits),) = fit_all(one, labels, train, result.penalties)
        hit = 0.5 + 0.5 * np.sign(np.asarray(fits.margins)[0]) * signs  # [P, columns, n]
        rate = ((hit * train).sum(-1) / train.sum(-1)).reshape(len(result.penalties), -1, outer, draws).mean(-1)
        for choice in result.chosen:
            if (choice.name, choice.candidate) == (name, candidate):
                of_fold = rate[:, choice.repeat, choice.fold]
                shares.append(of_fold)
                at_choice.append(float(of_fold[result.penalties.tolist().index(choice.penalty)]))
    return Memorised(float(np.mean(at_choice)), np.mean(shares, 0), draws)


@dataclasses.dataclass(frozen=True)
class Code:
    """Length of the labels' prequential code, mean over orders of the scenes.

    bits : of the mixture over all cells and penalties: nothing is chosen, and the price of not knowing the best of M is
        at most log2 M bits.
    clips : how many labels it tells; a code that knows nothing takes one bit each.
    by_order : [orders] bits.
    cells : dict name -> [C] bits of every cell's own mixture over penalties.
    shares : of the scenes at which the probes were fitted anew.
    """

    bits: float
    clips: int
    by_order: np.ndarray
    cells: dict[str, np.ndarray]
    shares: tuple[float, ...]

    @property
    def compression(self) -> float:
        """Bits without a probe over bits with one; at most a little above 1 where there is nothing to read."""
        return self.clips / self.bits


def prequential(
    X: Any,
    y: Any,
    groups: Any,
    *,
    penalties: Any = PENALTIES,
    orders: int = 5,
    portions: int = 5,
    seed: int = 0,
) -> Code:
    """Prequential (online) code length of the labels, after Blier and Ollivier, and Voita and Titov (arXiv 2003.12298).

    Scenes come in a random order. Probes of every cell and penalty are fitted to the first k / (portions + 1) of them for
    k = 1 to portions, and each time tell the labels of the scenes up to the next share; the first ones cost one bit a
    clip. The code of a labeling is

        L = - log2  mean over cells and penalties  prod_i p_i(y_i) ,

    the mixture of what all of them said beforehand.

    Parameters
    ----------
    X, y, groups, penalties : as in `nested_cross_validate`.
    orders : random orders of the scenes.
    portions : how often probes are fitted in one order.

    Raises
    ------
    ConfigError
        Shapes disagree, labels are not binary, or `orders` or `portions` is below 1.
    NonFiniteError
        A feature is NaN or infinite; names where.
    """
    sets = named_candidates(X)
    clips = next(iter(sets.values())).shape[1]
    y, codes, penalties = check_labels(y, clips), check_groups(groups, clips), check_penalties(penalties)
    if min(orders, portions) < 1:
        raise ConfigError(f"{orders} orders, {portions} portions; each is at least 1")
    shares = tuple(k / (portions + 1) for k in range(1, portions + 1))
    train = np.zeros((orders, portions, clips), bool)
    told = np.zeros_like(train)
    for order in range(orders):
        place = np.random.default_rng((seed, order)).permutation(codes.max() + 1)[codes]
        # Probes need both classes: until the first scenes hold them, the labels are told without.
        first = 1 + max(place[y].min(), place[~y].min())
        ends = [max(first, round(share * (codes.max() + 1))) for share in shares] + [codes.max() + 1]
        for k in range(portions):
            train[order, k] = place < ends[k]
            told[order, k] = (place >= ends[k]) & (place < ends[k + 1])
    plain = clips - told.sum((1, 2))  # [orders]
    columns = train.reshape(-1, clips)
    signs = np.where(y, 1.0, -1.0)
    lengths = {}
    for name, array in sets.items():
        parts = []
        for _, fits in fit_all(array, y, columns, penalties):
            losses = np.logaddexp(0, -signs * np.asarray(fits.margins, np.float64)) / np.log(2)  # [C, P, F, n]
            bits = (losses * told.reshape(-1, clips)).sum(-1)
            parts.append(bits.reshape(*bits.shape[:2], orders, portions).sum(-1))
        lengths[name] = np.concatenate(parts) + plain  # [C, P, orders]
    together = np.concatenate([bits.reshape(-1, orders) for bits in lengths.values()])
    by_order = _mixture(together)
    cells = {name: _mixture(np.moveaxis(bits, 1, 0)).mean(-1) for name, bits in lengths.items()}
    return Code(float(by_order.mean()), clips, by_order, cells, shares)


def _mixture(bits: np.ndarray) -> np.ndarray:
    """Code length of the even mixture of codes along the first axis."""
    least = bits.min(0)
    return least - np.log2(np.mean(np.exp2(least - bits), 0))


@dataclasses.dataclass(frozen=True)
class Selectivity:
    """Accuracy on the task minus accuracy on a control task of the same clips.

    control, interval : accuracy on the control task.
    difference, difference_interval : task minus control, paired over scenes.
    values : how many values the recurring attribute has: few need no capacity to be told apart.
    """

    control: float
    interval: statistics.Interval
    difference: float
    difference_interval: statistics.Interval
    values: int


def selectivity(task: NestedResult, control: NestedResult, values: int, *, seed: int = 0) -> Selectivity:
    """Compare the `task` with a control task (`controls.control_labels`) that was cross-validated on the same clips."""
    value, interval = statistics.paired_difference(task.hits, control.hits, task.groups, seed=seed)
    return Selectivity(control.accuracy, control.interval, value, interval, values)
