"""The probes' objective and minimum against scikit-learn's, which states the same problem in other letters."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from jaxdiff.probes import LinearProbe, statistics
from tests.probes.scenes import features, labels_of


@pytest.mark.parametrize("width", [10, 200])
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e4])
def test_linear_probe_is_scikit_learns_logistic_regression(width, penalty):
    x, y = features("plain", 100, width).astype(np.float64), labels_of(100)
    scaler = StandardScaler().fit(x[:80])
    theirs = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    theirs.fit(scaler.transform(x[:80]), y[:80])
    ours = LinearProbe(penalty).fit(x[:80], y[:80])
    expected = theirs.decision_function(scaler.transform(x))
    # Both are at float64 minima; weak penalties leave the minimum flat.
    np.testing.assert_allclose(ours.decision_function(x), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(scaler.transform(x)))


def test_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    margins, y = rng.integers(0, 9, 200).astype(float), rng.random(200) < 0.4
    assert statistics.auc(margins, y) == pytest.approx(roc_auc_score(y, margins), abs=1e-12)
