"""How much each column of a matrix tells about a label: coordinates of an embedding, or projections on directions."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from natwise.core.information import contingency_tables, mutual_information_from_counts
from natwise.shift.spurious_features._inputs import Labels

N_BINS = 8


def auc(X: np.ndarray, labels: Labels, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of every column of `X` (n, d) alone, between 1/2 and 1, shape (d,).

    The column's sign plays no role; of more than two values, each against the rest, and the mean.
    """
    values = range(1, 2) if len(labels) == 2 else range(len(labels))
    codes = [np.unique(column, return_inverse=True)[1] for column in X.T]
    areas = np.array([[_area(code, labels.codes == value, weights) for code in codes] for value in values])
    return np.maximum(areas, 1 - areas).mean(axis=0)


def auc_given(X: np.ndarray, labels: Labels, given: Labels, weights: np.ndarray) -> np.ndarray:
    """Return `auc` of X (n, d) within each value of `given`, averaged over the values with two labels or more, (d,)."""
    found = []
    for value in range(len(given)):
        rows = given.codes == value
        present, codes = np.unique(labels.codes[rows], return_inverse=True)
        if len(present) > 1:
            found.append(auc(X[rows], Labels(present, codes), weights[rows]))
    return np.mean(found, axis=0)


def counterfactual_effect(X: np.ndarray, other: np.ndarray, attribute: Labels, weights: np.ndarray) -> np.ndarray:
    """Return the mean change of every column with the attribute, shape (d,).

    Of two values: mean of (2c - 1)(x - x'), what the second value adds twice over. Of more: mean of |x - x'|.
    """
    change = X - other
    signed = (2 * attribute.codes - 1)[:, None] * change if len(attribute) == 2 else np.abs(change)
    return weights / weights.sum() @ signed


def information_given(X: np.ndarray, labels: Labels, given: Labels) -> np.ndarray:
    """Return I(column; labels | given) in nats, shape (d,), by quantile bins and Miller-Madow; at least 0."""
    total = np.zeros(X.shape[1])
    for value in range(len(given)):
        rows = given.codes == value
        inner = np.quantile(X[rows], np.linspace(0, 1, N_BINS + 1)[1:-1], axis=0)
        bins = (X[rows][:, None] > inner).sum(axis=1)
        tables = contingency_tables(bins, np.broadcast_to(labels.codes[rows][:, None], bins.shape))
        total += rows.mean() * mutual_information_from_counts(tables, "miller_madow")
    return np.maximum(total, 0.0)


def probe_weight(X: np.ndarray, labels: Labels, weights: np.ndarray) -> np.ndarray:
    """Return the size of every column's weight in a linear probe for the label, in standardised units, shape (d,)."""
    standard, _, _ = standardised(X)
    probe = LogisticRegression(C=1.0, max_iter=2000).fit(standard, labels.codes, sample_weight=weights)
    return np.linalg.norm(probe.coef_, axis=0)


def standardised(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return X (n, d) with columns of mean 0 and deviation 1, means and deviations (d,); constant ones are centred."""
    mean, scale = X.mean(axis=0), X.std(axis=0)
    scale = np.where(scale > 1e-12 * np.maximum(1.0, np.abs(mean)), scale, 1.0)
    return (X - mean) / scale, mean, scale


def _area(codes: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted share of pairs of rows (n,), one positive, one not, in the right order; ties count half."""
    above = np.bincount(codes, weights=weights * positive)
    below = np.bincount(codes, weights=weights * ~positive)
    wins = np.cumsum(below) - below / 2
    return float(above @ wins / (above.sum() * below.sum()))
