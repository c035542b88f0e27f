r"""Every fold and penalty of a candidate feature set in one fit on the device.

The problem of one column (fold) f, at one penalty, over the clips i with train[f, i] = 1, is `LinearProbe`'s:

    minimise over w, b   sum_i log(1 + exp(-s_i (w . z_fi + b)))  +  penalty / 2 * |w|^2 ,

with z_f standardised by the training clips of f alone. Four facts make a thousand of them cheap:

1. Folds are masks on one matrix x [n, D] (centred and scaled by all clips, which is a choice of coordinates
   only: it does not move the solution). Centring per fold is absorbed by the free intercept.
2. Scaling per fold is a diagonal metric: with 1/d_f the inverse variances of the training clips, the raw-unit
   weights are w = (1/d_f) V a, where V [D, r] spans the rows of x. The gradient is z^T r + penalty * a with
   z = x V, the same z for all folds, chosen by one eigendecomposition so that z^T z is diagonal.
3. Taking 1/d_f = 1 in the Hessian alone, never in the margins, leaves a quasi-Newton iteration that contracts
   at the rate max |1/d_f - 1|, whatever the conditioning: a few per cent, the spread of training variances
   between folds. Its conjugate gradients cost two GEMMs [F, r] x [r, n] an iteration, with the Hessian's
   diagonal as preconditioner, which is a good one because z^T z is diagonal. Columns whose spread is large
   (heavy-tailed features, few scenes) take the exact Hessian instead.
4. Penalties are solved from strong to weak, each from the last one's solution.

With g the gradient, the intercept eliminated, a column stops when |g|^2 / (2 penalty) is at most `TOLERANCE` of
its objective. As the objective is strongly convex, that bounds what is left to gain; an estimate of what float32
hides is added. A Newton decrement would not do: that of an inner solve cut short is too small, by any factor
where H is ill-conditioned, and clips that saturate take curvature away. It only tells when to solve tightly.

Where there are no more features than clips, the exact Hessian costs hardly more and is used at once.

A few columns for which all this fails are left to `LinearProbe`, in float64 on the host. Many (training variances
that float32 cannot tell from the shared matrix, as of a feature with one huge outlier in the held-out fold) are first
solved with the exact Hessian and then each alone, in units and a rotation of its own; what is left for float64 are
fits that float32 cannot show to be near their minimum (nearly collinear features at very weak penalties: weights a
thousand times what the margins are).
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.errors import CheckFailed
from jaxdiff.probes.linear import CONSTANT, LinearProbe
from jaxdiff.probes.newton import QUASI_SPREAD, TOLERANCE, Problem, newton_path

SPREAD = 8.0  # largest total over training variance for the shared matrix
FEW = 4  # unsolved columns a set that go straight to float64: two more programs to compile would not pay
FEW_NARROW = 16  # where float64 costs little
WIDTH = 128  # features are padded to multiples of it, few of them to one of
NARROW = (16, 32, 64)
WELL_CONDITIONED = 1e-4  # smallest eigenvalue over largest for which an n x n kernel is accurate in float32


class Fits(NamedTuple):
    """Solutions for one candidate set: P penalties, F columns, n clips, D features.

    margins : [P, F, n] float32, for training and held-out clips alike.
    gaps : [P, F] float32, a bound on what is left to gain, in the units of `TOLERANCE`.
    coefficients : [P, F, D] float32, on raw features.
    intercepts : [P, F] float32.
    """

    margins: jax.Array
    gaps: jax.Array
    coefficients: jax.Array
    intercepts: jax.Array


def _standardise(x: jax.Array, train: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Features in common units, and each column's metric in them.

    Returns x [n, D] in units, the centre [D] and unit [D] of each feature, inverse [F, D] (the inverse
    training variances in these units, 0 where constant), and usable [F]. One column alone gets its own units.
    """
    share = train / train.sum(1, keepdims=True)
    shared = train.shape[0] > 1
    everywhere = jnp.full(x.shape[0], 1 / x.shape[0]) if shared else share[0]
    peak = jnp.abs(x).max(0)
    peak = jnp.where(peak > 0, peak, 1)  # no square overflows or vanishes in float32
    x = x / peak
    centre = everywhere @ x
    x = x - centre
    total = everywhere @ (x * x)
    varies = total > CONSTANT**2 * (centre**2 + total)
    if not shared:
        unit = jnp.where(varies, jnp.sqrt(total), jnp.inf)
        return x / unit, centre * peak, unit * peak, jnp.ones((1, x.shape[1])), jnp.ones(1, bool)
    mean = share @ x
    variance = jnp.maximum(share @ (x * x) - mean**2, 0)
    constant = ~varies | (variance <= CONSTANT**2 * ((centre + mean) ** 2 + variance))
    ratio = jnp.where(constant, 0, total / jnp.where(constant, 1, variance))
    tame = ratio <= SPREAD
    ratio = jnp.where(tame, ratio, 1.0)
    # The unit decides nothing but speed: quasi-Newton steps want 1/d near 1, and diverge above 2.
    common = jnp.maximum(ratio.mean(0), ratio.max(0) / (1 + QUASI_SPREAD))
    common = jnp.where(common > 0, common, 1)
    unit = jnp.where(varies, jnp.sqrt(total / common), jnp.inf)
    return x / unit, centre * peak, unit * peak, ratio / common, jnp.all(tame, axis=1)


def _rotate(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotate features: z = x basis [n, r] with z^T z diagonal, basis [D, r] orthonormal over the rows of x."""
    n, features = x.shape
    if n >= features:
        _, basis = jnp.linalg.eigh(x.T @ x)
        return x @ basis, basis
    values, left = jnp.linalg.eigh(x @ x.T)

    def from_kernel():
        kept = values > WELL_CONDITIONED * values[-1]
        return (x.T @ left) * jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)

    def from_rows():
        # Clips of one scene share most of what they show, so the kernel may be nearly singular; its small
        # eigenvalues are then rounding. The triangle of a QR holds the small directions to full precision.
        basis, upper = jnp.linalg.qr(x.T)
        _, turn = jnp.linalg.eigh(upper @ upper.T)
        return basis @ turn

    # Centring takes one eigenvalue to zero; the next one tells.
    basis = jax.lax.cond(values[1] > WELL_CONDITIONED * values[-1], from_kernel, from_rows)
    return x @ basis, basis


def _fit(
    x: jax.Array, wanted: jax.Array, labels: jax.Array, train: jax.Array, penalties: jax.Array, exact: bool
) -> Fits:
    """Fit the columns `wanted` [F] of `labels`, `train` [F, n] on features `x` [n, D] at `penalties` [P], falling.

    `gaps` is infinite for columns that these steps, or the shared rotation, cannot serve.
    """
    # An accelerator's default of bfloat16 or TF32 products would not reach the tolerance.
    with jax.default_matmul_precision("highest"):
        train = train.astype(jnp.float32)
        signs = jnp.where(labels, 1.0, -1.0)
        x, centre, unit, inverse, usable = _standardise(x.astype(jnp.float32), train)
        if not exact:
            usable &= jnp.all(jnp.abs(jnp.where(inverse > 0, inverse, 1) - 1) <= QUASI_SPREAD + 1e-5, axis=1)
        z, basis = _rotate(x)
        zt = jax.lax.optimization_barrier(z.T)
        problem = Problem(x, basis, z, zt, inverse, train, signs)
        states, gaps = newton_path(problem, penalties, wanted & usable, exact)
        coefficients = inverse * states.spread / unit
        intercepts = states.intercept - coefficients @ centre
        return Fits(states.margins, gaps, coefficients, intercepts)


@functools.partial(jax.jit, static_argnames=("exact", "weights"))
def _fit_sets(x, wanted, labels, train, penalties, *, exact=False, weights):
    """`_fit` over sets x [sets, n, D], wanted [sets, F]; without `weights` the coefficients come back empty."""

    def one(x, wanted):
        fits = _fit(x, wanted, labels, train, penalties, exact)
        return fits if weights else fits._replace(coefficients=fits.coefficients[..., :0])

    if x.shape[0] == 1:
        return jax.tree.map(lambda leaf: leaf[None], one(x[0], wanted[0]))
    return jax.vmap(one)(x, wanted)


def _sets_at_once(clips: int, columns: int, features: int) -> int:
    """How many sets one call takes on this backend.

    On a CPU one: batched, its eigendecomposition and its QR share their work among the very threads that run them, and
    when both run at once on two cores each waits for a thread that the other holds, for ever (jaxlib 0.10).
    """
    if jax.default_backend() == "cpu":
        return 1
    return int(np.clip(2**31 // (8 * clips * columns * 12 + 4 * clips * features * 4), 1, 64))


def fit_all(
    X: np.ndarray, labels: np.ndarray, train: np.ndarray, penalties: np.ndarray, *, weights: bool = False
) -> Iterator[tuple[slice, Fits]]:
    """Fit every column and penalty on every candidate set, a few sets at a time.

    Objectives are within 1e-4 of their minimum, relative to it: each fit is checked against a bound (see the
    module). It holds exactly for the weights; the curvature of the intercept is taken as it is where the fit
    stops, rounding is an estimate, and features constant on the training clips alone are left out of it.

    Parameters
    ----------
    X : [candidates, n, D]
    labels : [n] or [F, n] bool
        Labels, or labels of each column (permutations are columns too).
    train : [F, n] bool
        Which clips each column is fitted on; all clips get margins.
    penalties : [P]
        In any order.
    weights : bool
        Also return coefficients.

    Yields
    ------
    (slice, Fits)
        Which candidates, and their fits with a leading axis over them; penalties in the order given.

    Raises
    ------
    CheckFailed
        A fit did not converge in float64 either.
    """
    order = np.argsort(-penalties, kind="stable")
    strongest_first = jnp.asarray(penalties[order], jnp.float32)
    back = np.argsort(order)
    labels = np.broadcast_to(labels, train.shape)
    arguments = jnp.asarray(labels), jnp.asarray(train), strongest_first
    candidates, clips, features = X.shape
    # Features that are constant change no fit; few widths are few programs to compile.
    padding = next((width for width in NARROW if width >= features), features + -features % WIDTH) - features
    narrow = features <= clips
    together = min(_sets_at_once(clips, len(train), features + padding), candidates)
    everything = jnp.ones((together, len(train)), bool)
    for start in range(0, candidates, together):
        chunk = np.asarray(X[start : start + together], np.float32)
        real = len(chunk)
        if real < together:  # one shape, one compilation
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], together - real, 0)])
        x = jnp.asarray(np.pad(chunk, ((0, 0), (0, 0), (0, padding))))
        fits = _fit_sets(x, everything, *arguments, exact=narrow, weights=weights)
        poor = _poor(fits)
        many = poor[:real].sum() > (FEW_NARROW if narrow else FEW) * real
        if many and not narrow:
            again = _fit_sets(x, jnp.asarray(poor), *arguments, exact=True, weights=weights)
            fits = Fits(*(jnp.where(_over(poor, old), new, old) for new, old in zip(again, fits, strict=True)))
            poor = _poor(fits)
        fits = Fits(*(leaf[:real] for leaf in fits))
        for at, column in np.argwhere(poor[:real]).tolist():
            fits = _refit_alone(fits, x, chunk, labels, train, strongest_first, at, column, start, weights, many)
        if weights:
            fits = fits._replace(coefficients=fits.coefficients[..., :features])
        yield slice(start, start + real), Fits(*(leaf[:, back] for leaf in fits))


def _poor(fits: Fits) -> np.ndarray:
    """[sets, F] whether a column has a penalty at which it is not solved."""
    return np.any(~(np.asarray(fits.gaps) <= TOLERANCE), axis=1)


def _over(columns: np.ndarray, leaf: jax.Array) -> jax.Array:
    """`columns` [sets, F] as a mask that broadcasts over a leaf [sets, P, F, ...]."""
    return jnp.asarray(columns)[:, None].reshape(columns.shape[0], 1, columns.shape[1], *[1] * (leaf.ndim - 3))


def _refit_alone(fits, x, chunk, labels, train, penalties, at, column, start, weights, many) -> Fits:
    """Replace what is unsolved of one column of one set: in float64, after a rotation of its own if there are many."""
    single = slice(column, column + 1)
    alone = Fits(*(leaf[at : at + 1, :, single] for leaf in fits))
    if many:
        arguments = jnp.asarray(labels[single]), jnp.asarray(train[single]), penalties
        alone = _fit_sets(x[at : at + 1], jnp.ones((1, 1), bool), *arguments, weights=weights)
    margins, gaps, coefficients, intercepts = (np.array(leaf[0, :, 0]) for leaf in alone)
    rows = train[column]
    for p in np.flatnonzero(~(gaps <= TOLERANCE)):
        try:
            probe = LinearProbe(float(penalties[p])).fit(chunk[at][rows], labels[column][rows])
        except CheckFailed as error:
            raise CheckFailed(f"candidate {start + at}, column {column}: {error}") from error
        margins[p], gaps[p] = probe.decision_function(chunk[at]), 0
        coefficients[p, : len(probe.coef_)] = probe.coef_ if weights else ()
        intercepts[p] = probe.intercept_
    new = margins, gaps, coefficients, intercepts
    return Fits(*(old.at[at, :, column].set(leaf) for old, leaf in zip(fits, new, strict=True)))
