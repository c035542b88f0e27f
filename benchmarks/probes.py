"""The whole grid of probes, against scikit-learn's LogisticRegression to the same objective.

600 feature sets, 25 folds (5 repeats of 5 grouped ones), 8 penalties: 120,000 fits on 288 of 360 clips each. Ours are
timed on all of it. Peers are timed on some of the sets, a set in each of two processes at a time, spread over the same
run, and their time is scaled by the number of sets:

- *scikit-learn*: features standardised for each fold, float64, lbfgs.
- *scikit-learn, rotated, warm*: what somebody who knows the trick would write. Features are standardised once over all
  clips and rotated once a set to as many numbers as clips (which is exact for L2; a scaling for each fold would not share
  the rotation, so this problem is a little easier than ours), and each fold walks from strong to weak penalties, every
  fit starting from the last.
- *torch L-BFGS*: torch's optimiser with a strong Wolfe line search on the same standardised features, float64.

Peers get, for every penalty, the loosest tolerance that reaches a relative objective gap of `GAP`. Ours is measured
against scikit-learn too, at a tolerance where nothing moves.
"""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.rows import PeerMissing, Row, Settings
from benchmarks.timing import MIN_PAIRS, RESAMPLES, Bar, Interval, listed
from jaxdiff.probes import PENALTIES, grouped_folds
from jaxdiff.probes.solver import fit_all

GAP = 1e-4
PROCESSES = 2
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7)
MOST = 100_000  # iterations of a peer


@dataclasses.dataclass(frozen=True)
class Grid:
    """How much there is to fit; `block` sets are timed at once, `rounds` times each peer fits a set in each process."""

    sets: int = 600
    clips: int = 360
    features: int = 1536
    repeats: int = 5
    folds: int = 5
    block: int = 20
    rounds: int = 4


PEERS = {
    "scikit-learn": Bar(25, at_least=True),
    "scikit-learn, rotated, warm": Bar(10, at_least=True),
    "torch L-BFGS": None,
}
TOY = Grid(sets=4, clips=40, features=64, repeats=1, folds=2, block=2, rounds=1)


def features(grid: Grid, index: int) -> np.ndarray:
    """Set `index` [clips, features]: as states of a transformer are, mostly in few directions.

    As many factors as clips, the k-th of size 1 / k, half of it shared by the clips of a scene; every feature mixes them,
    with a little noise of its own. The label moves ten of the factors in the middle.
    """
    rng = np.random.default_rng((7, index))
    own = rng.standard_normal((grid.clips, grid.clips), np.float32)
    shared = np.repeat(rng.standard_normal((grid.clips // 4, grid.clips), np.float32), 4, 0)
    factors = own + shared
    factors[:, 10:20] += np.where(labels(grid), 0.3, -0.3)[:, None].astype(np.float32)
    factors /= np.arange(1, grid.clips + 1, dtype=np.float32)
    mixing = rng.standard_normal((grid.clips, grid.features), np.float32)
    return factors @ mixing + np.float32(0.01) * rng.standard_normal((grid.clips, grid.features), np.float32)


def labels(grid: Grid) -> np.ndarray:
    """Two possible and two impossible clips a scene."""
    return np.tile([True, True, False, False], grid.clips // 4)


def masks(grid: Grid) -> np.ndarray:
    """Training clips of every fold, [repeats * folds, clips]."""
    scenes = np.arange(grid.clips) // 4
    dealt = [grouped_folds(scenes, grid.folds, seed=repeat) for repeat in range(grid.repeats)]
    return np.concatenate([fold != np.arange(grid.folds)[:, None] for fold in dealt])


def _classifier(**settings: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=MOST, **settings)


def standardised(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The training clips in float64, standardised by themselves."""
    z = x[rows].astype(np.float64)
    return (z - z.mean(0)) / z.std(0)


def rotated(x: np.ndarray) -> np.ndarray:
    """All clips, standardised together, in coordinates [clips, clips] of the span of their rows."""
    z = standardised(x, np.ones(len(x), bool))
    values, left = np.linalg.eigh(z @ z.T)
    return left * np.sqrt(np.maximum(values, 0))


def objective(z: np.ndarray, y: np.ndarray, penalty: float, weights: np.ndarray, intercept: float) -> float:
    """The sum of logistic losses and half the penalty times the squared weights."""
    margins = z @ weights + intercept
    return float(np.logaddexp(0, np.where(y, -margins, margins)).sum() + 0.5 * penalty * weights @ weights)


def _fitted(model: Any, z: np.ndarray, y: np.ndarray, penalty: float) -> float:
    return objective(z, y, penalty, model.coef_[0], float(model.intercept_[0]))


def minimum(z: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """The smallest objective, by scikit-learn's Newton solver on the span of the clips."""
    if z.shape[1] > z.shape[0]:
        z = np.linalg.qr(z.T)[1].T
    return _fitted(_classifier(C=1 / penalty, solver="newton-cholesky", tol=1e-10).fit(z, y), z, y, penalty)


def loosest(z: np.ndarray, y: np.ndarray, path: Sequence[float], warm: bool) -> dict[float, float]:
    """For every penalty of the path the loosest tolerance of lbfgs whose gap is at most half of `GAP` on these clips.

    Half, because what is enough here must be enough on other sets too.
    """
    found: dict[float, float] = {}
    model = _classifier(warm_start=warm)
    for penalty in path:
        least = minimum(z, y, penalty)
        for tolerance in TOLERANCES:
            trial = _classifier(warm_start=warm, C=1 / penalty, tol=tolerance)
            if warm and found:  # from where the last penalty ended
                trial.coef_, trial.intercept_, trial.classes_ = (
                    model.coef_.copy(),
                    model.intercept_.copy(),
                    model.classes_,
                )
            if _fitted(trial.fit(z, y), z, y, penalty) / least - 1 <= GAP / 2:
                break
        found[penalty], model = tolerance, trial
    return found


def raw_peer(grid: Grid, index: int, tolerances: dict[float, float]) -> float:
    """Seconds that scikit-learn takes for one set."""
    x, y, train = features(grid, index), labels(grid), masks(grid)
    _classifier()  # which imports scikit-learn
    start = time.perf_counter()
    for clips in train:
        z = standardised(x, clips)
        for penalty, tolerance in tolerances.items():
            _classifier(C=1 / penalty, tol=tolerance).fit(z, y[clips])
    return time.perf_counter() - start


def warm_peer(grid: Grid, index: int, tolerances: dict[float, float]) -> float:
    """Seconds for one set, given the rotation and starting every fit from the last."""
    x, y, train = features(grid, index), labels(grid), masks(grid)
    _classifier()  # which imports scikit-learn
    start = time.perf_counter()
    z = rotated(x)
    for clips in train:
        own, told = z[clips], y[clips]
        model = _classifier(warm_start=True)
        for penalty, tolerance in tolerances.items():
            model.set_params(C=1 / penalty, tol=tolerance).fit(own, told)
    return time.perf_counter() - start


def torch_fit(z: np.ndarray, y: np.ndarray, penalty: float, tolerance: float) -> tuple[np.ndarray, float]:
    """Weights and intercept by torch's L-BFGS; the tolerance is of the mean loss's gradient, as scikit-learn's."""
    import torch

    torch.set_num_threads(1)  # the processes share the cores
    x, signs = torch.from_numpy(z), torch.from_numpy(np.where(y, 1.0, -1.0))
    w = torch.zeros(z.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [w], max_iter=MOST, tolerance_grad=tolerance, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss():
        optimiser.zero_grad()
        margins = signs * (x @ w[:-1] + w[-1])
        value = (torch.nn.functional.softplus(-margins).sum() + 0.5 * penalty * w[:-1] @ w[:-1]) / len(z)
        value.backward()
        return value

    optimiser.step(loss)
    found = w.detach().numpy()
    return found[:-1], float(found[-1])


def loosest_torch(z: np.ndarray, y: np.ndarray, path: Sequence[float]) -> dict[float, float]:
    """As `loosest`, for `torch_fit`."""
    found = {}
    for penalty in path:
        least = minimum(z, y, penalty)
        for tolerance in TOLERANCES:
            if objective(z, y, penalty, *torch_fit(z, y, penalty, tolerance)) / least - 1 <= GAP / 2:
                break
        found[penalty] = tolerance
    return found


def torch_peer(grid: Grid, index: int, tolerances: dict[float, float]) -> float:
    """Seconds that torch's L-BFGS takes for one set."""
    import torch  # noqa: F401, so that its import is not timed

    x, y, train = features(grid, index), labels(grid), masks(grid)
    start = time.perf_counter()
    for clips in train:
        z = standardised(x, clips)
        for penalty, tolerance in tolerances.items():
            torch_fit(z, y[clips], penalty, tolerance)
    return time.perf_counter() - start


def ours(grid: Grid, x: np.ndarray, train: np.ndarray) -> float:
    """Seconds of all folds and penalties of the sets `x` [sets, clips, features]."""
    y, penalties = labels(grid), np.array(PENALTIES)
    start = time.perf_counter()
    for _, fits in fit_all(x, y, train, penalties):
        np.asarray(fits.margins)  # on the host, as the cross-validation wants them
    return time.perf_counter() - start


def gaps(grid: Grid, sets: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """Our relative objective gap for some sets and folds, against scikit-learn: [penalties] largest."""
    y, train, worst = labels(grid), masks(grid), np.zeros(len(PENALTIES))
    for index in sets:
        x = features(grid, index)
        ((_, fits),) = fit_all(x[None], y, train, np.array(PENALTIES), weights=True)
        for column in columns:
            rows = train[column]
            z, deviation = standardised(x, rows), x[rows].astype(np.float64).std(0)
            for p, penalty in enumerate(PENALTIES):
                weights = np.asarray(fits.coefficients[0, p, column], np.float64) * deviation
                margins = np.asarray(fits.margins[0, p, column], np.float64)[rows]
                value = np.logaddexp(0, np.where(y[rows], -margins, margins)).sum() + 0.5 * penalty * weights @ weights
                worst[p] = max(worst[p], value / minimum(z, y[rows], penalty) - 1)
    return worst


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds a set: of ours for every block, of each peer for every timed set (two at a time count half each)."""

    ours: np.ndarray
    peers: dict[str, np.ndarray]
    gaps: np.ndarray
    sets: int

    def ratio(self, peer: str, seed: int = 0) -> Interval:
        """Mean seconds a set of the peer over ours, with a bootstrap interval over blocks and timed sets."""
        rng = np.random.default_rng(seed)

        def means(values):
            return values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)

        drawn = means(self.peers[peer]) / means(self.ours)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Interval(float(self.peers[peer].mean() / self.ours.mean()), float(low), float(high))


def measure(grid: Grid, names: Sequence[str] = tuple(PEERS)) -> Measured:
    """Time ours on the whole grid, and the peers of these names on some of it in between.

    Raises
    ------
    AssertionError : a fit of ours is further than `GAP` from its minimum.
    """
    rows.need("sklearn", "joblib")
    from joblib import Parallel, delayed, parallel_config

    y, train = labels(grid), masks(grid)
    worst = gaps(grid, range(min(2, grid.sets)), range(0, len(train), max(1, len(train) // 3)))
    if not worst.max() <= GAP:
        raise AssertionError(f"our fits are up to {worst.max():.2e} above their minimum, more than {GAP:g}: {worst}")
    path = sorted(PENALTIES, reverse=True)
    x = features(grid, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = loosest(standardised(x, train[0]), y[train[0]], path, warm=False)
        warm = loosest(rotated(x)[train[0]], y[train[0]], path, warm=True)
    peers: dict[str, Callable[[Grid, int], float]] = {
        "scikit-learn": functools.partial(raw_peer, tolerances=plain),
        "scikit-learn, rotated, warm": functools.partial(warm_peer, tolerances=warm),
    }
    if "torch L-BFGS" in names:
        told = loosest_torch(standardised(x, train[0]), y[train[0]], path)
        peers["torch L-BFGS"] = functools.partial(torch_peer, tolerances=told)
    peers = {name: peers[name] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    mine: list[float] = []
    starts = range(0, grid.sets, grid.block)
    rounds = {round(at) for at in np.linspace(0, len(starts) - 1, grid.rounds)}
    with parallel_config(backend="loky", inner_max_num_threads=1), Parallel(n_jobs=PROCESSES) as pool:
        pool(delayed(labels)(grid) for _ in range(PROCESSES))  # the processes start
        ours(grid, np.stack([features(grid, 0)]), train)  # and our program compiles
        for turn, start in enumerate(starts):
            sets = np.stack([features(grid, k) for k in range(start, min(start + grid.block, grid.sets))])
            mine.append(ours(grid, sets, train) / len(sets))
            if turn in rounds:
                for name, peer in peers.items():
                    took = pool(delayed(peer)(grid, start + k) for k in range(PROCESSES))
                    seconds[name] += [one / PROCESSES for one in took]
    return Measured(np.array(mine), {name: np.array(s) for name, s in seconds.items()}, worst, grid.sets)


def case(settings: Settings) -> list[Row]:
    """The whole grid of probes once, against each peer on some of its sets."""
    grid, absent = TOY if settings.tiny else Grid(), {}
    try:
        rows.need("torch")
    except PeerMissing as error:
        absent["torch L-BFGS"] = str(error)
    found = measure(grid, [name for name in PEERS if name not in absent])
    shapes = dataclasses.asdict(grid) | {"penalties": len(PENALTIES), "fits": fits(grid)}
    gaps = dict(zip(map(str, PENALTIES), [float(f"{g:.1e}") for g in found.gaps], strict=True))
    seconds = {"a_set_ours": listed(found.ours)}
    out = [
        rows.number(f"probes: {fits(grid):,} fits, ours", found.ours.mean() * grid.sets, unit="s", shapes=shapes,
                    errors={"largest objective gap": max(gaps.values())}, witness={"gap_by_penalty": gaps}, seconds=seconds)
    ]  # fmt: skip
    for name, took in found.peers.items():
        scaled = round(float(took.mean() * grid.sets), 1)
        out.append(
            rows.measured(
                _title(name), found.ratio(name), MIN_PAIRS, PEERS[name], shapes=shapes,
                witness={"peer_sets_timed": len(took), "peer_seconds_scaled_to_all_sets": scaled},
                seconds=seconds | {"a_set_peer": listed(took)},
            )
        )  # fmt: skip
    return out + [rows.missing(_title(name), why, PEERS[name]) for name, why in absent.items()]


def _title(peer: str) -> str:
    return f"probes: {peer} in {PROCESSES} processes / ours"


def fits(grid: Grid) -> int:
    return grid.sets * grid.repeats * grid.folds * len(PENALTIES)
