"""One linear probe, fitted on the host in float64: the reference that the batched fits are held to."""

from typing import Any

import numpy as np

from jaxdiff.errors import CheckFailed, ConfigError
from jaxdiff.probes.inputs import check_features, check_labels, check_penalties

# Float32 features that vary by less than this share of their size carry rounding only. Blown up to unit
# variance they would be features made of noise.
CONSTANT = 1e-6


class LinearProbe:
    r"""L2-penalised logistic regression on standardised features.

    With z = (x - mean) / std, both over the training clips, and s = +1 or -1 for the label,

        minimise over w, b   sum_i log(1 + exp(-s_i (w . z_i + b)))  +  penalty / 2 * |w|^2 .

    The intercept b is not penalised. This is scikit-learn's `LogisticRegression(C=1 / penalty)` after a
    `StandardScaler`: the loss is a sum, so the same penalty weighs less on more clips. A feature that is
    constant on the training clips (std <= 1e-6 of its root mean square) gets no weight.

    Newton's method in float64, in the span of the clips where there are fewer clips than features, until the
    Newton decrement says that the objective is within 1e-12 of its minimum. Deterministic.

    Parameters
    ----------
    penalty : float
        Strength of the L2 penalty, > 0.

    Attributes
    ----------
    coef_ : [D] float64
        Weights on raw features: margin = X @ coef_ + intercept_.
    intercept_ : float
    mean_, scale_ : [D] float64
        Training mean and standard deviation; `scale_` is infinite for features that are constant.
    objective_ : float
        The minimum reached.
    classes_ : [2]
        The two labels in the dtype of `y`; margins > 0 mean the second.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> y = np.array([False, False, True, True])
    >>> LinearProbe(penalty=0.1).fit(X, y).score(X, y)
    1.0
    """

    def __init__(self, penalty: float = 1.0):
        self.penalty = float(check_penalties([penalty])[0])

    def __repr__(self) -> str:
        return f"LinearProbe(penalty={self.penalty:g})"

    def fit(self, X: Any, y: Any) -> "LinearProbe":
        """Fit on `X` [clips, D] and binary `y` [clips]; returns self.

        Raises
        ------
        ConfigError
            Shapes disagree, labels are not binary, or only one class is present.
        NonFiniteError
            A feature is NaN or infinite.
        """
        X = check_features(X, ndim=2).astype(np.float64)
        label = check_labels(y, len(X))
        self.mean_ = X.mean(0)
        centred = X - self.mean_
        std = np.sqrt(np.mean(centred**2, 0))
        constant = std <= CONSTANT * np.hypot(self.mean_, std)
        self.scale_ = np.where(constant, np.inf, std)
        z = centred / self.scale_
        basis = None
        if z.shape[1] > z.shape[0]:
            # w lies in the span of the rows of z, so n unknowns do instead of D. QR is exact there; squaring
            # z to an n x n kernel would lose the small directions, where matched clips differ.
            basis, upper = np.linalg.qr(z.T)
            z = upper.T
        weights, intercept, self.objective_ = minimise(z, label, self.penalty)
        weights = weights if basis is None else basis @ weights
        self.coef_ = weights / self.scale_
        self.intercept_ = float(intercept - self.mean_ @ self.coef_)
        self.classes_ = np.array([False, True]).astype(np.asarray(y).dtype)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Margins [clips] float64: log odds of the positive class."""
        if not hasattr(self, "coef_"):
            raise ConfigError("this LinearProbe is not fitted; call fit(X, y) first")
        X = check_features(X, ndim=2)
        if X.shape[1] != len(self.coef_):
            raise ConfigError(f"X has {X.shape[1]} features; the probe was fitted on {len(self.coef_)}")
        # Centred first: on features far from zero the two large terms would cancel.
        offset = self.intercept_ + float(self.mean_ @ self.coef_)
        return (X.astype(np.float64) - self.mean_) @ self.coef_ + offset

    def predict(self, X: Any) -> np.ndarray:
        """Labels [clips] in the dtype of the training labels; a margin of exactly 0 is the negative class."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(int)]

    def score(self, X: Any, y: Any) -> float:
        """Share of clips told right, in [0, 1]."""
        margins = self.decision_function(X)
        return float(np.mean((margins > 0) == check_labels(y, len(margins), both=False)))


def minimise(z: np.ndarray, label: np.ndarray, penalty: float) -> tuple[np.ndarray, float, float]:
    """Weights [r], intercept and objective of the penalised logistic regression of `label` on `z` [n, r].

    Newton's method with halved steps. Raises CheckFailed where it does not converge.
    """
    sign = np.where(label, 1.0, -1.0)
    ones = np.concatenate([z, np.ones((len(z), 1))], 1)
    ridge = np.full(ones.shape[1], penalty)
    ridge[-1] = 0.0

    def objective(w, margins):
        return np.logaddexp(0, -sign * margins).sum() + 0.5 * ridge @ w**2

    w = np.zeros(ones.shape[1])
    margins = np.zeros(len(z))
    value = objective(w, margins)
    for _ in range(200):
        wrong = np.exp(-np.logaddexp(0, sign * margins))  # probability of the other label
        gradient = ones.T @ (-sign * wrong) + ridge * w
        curvature = (ones * (wrong * (1 - wrong))[:, None]).T @ ones + np.diag(ridge)
        # Keeps the intercept solvable where a nearly separating fit has no curvature left.
        curvature[-1, -1] += 1e-30
        step = np.linalg.solve(curvature, -gradient)
        slope = float(gradient @ step)
        moved = ones @ step
        size = 1.0
        while size > 1e-10 and not objective(w + size * step, margins + size * moved) <= value + 1e-4 * size * slope:
            size *= 0.5
        if -slope <= 2e-12 * value:
            # Half the decrement is what is left to gain; here float64 decides whether the step still helps.
            if size > 1e-10:
                w, margins = w + size * step, margins + size * moved
            return w[:-1], float(w[-1]), float(objective(w, margins))
        w, margins = w + size * step, margins + size * moved
        value = objective(w, margins)
    raise CheckFailed(
        f"the linear probe did not converge in 200 Newton steps at penalty {penalty:g} "
        f"({z.shape[0]} clips, {z.shape[1]} directions); try a stronger penalty"
    )
