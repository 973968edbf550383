"""Linear heads by convex optimisation: plain, pulled toward another head, sparse, and for the worst group."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import sklearn
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.fixes import parse_version

L1 = {"l1_ratio": 1.0} if parse_version(sklearn.__version__) >= parse_version("1.8") else {"penalty": "l1"}
NEWTON_PARAMETERS = 1000  # beyond, a Hessian costs more than it saves
GAP = 1e-3  # nats between the worst group's loss and its lower bound


@dataclass(frozen=True, eq=False)
class Head:
    """Weights (k, d) and intercepts (k,), one row of scores per class; one row only, of the second, for two classes."""

    weights: np.ndarray
    intercepts: np.ndarray

    def scores(self, X: np.ndarray) -> np.ndarray:
        """Return scores (n, n_classes); of two classes the first has score 0."""
        scores = X @ self.weights.T + self.intercepts
        return np.hstack([np.zeros_like(scores), scores]) if scores.shape[1] == 1 else scores

    def log_probabilities(self, X: np.ndarray) -> np.ndarray:
        """Return log-probabilities (n, n_classes), in nats."""
        return log_softmax(self.scores(X), axis=1)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the code of the likeliest class (n,)."""
        return self.scores(X).argmax(axis=1)

    def in_units_of(self, mean: np.ndarray, scale: np.ndarray) -> Head:
        """Return the head for rows that were not standardised by `mean` and `scale`, (d,) each."""
        weights = self.weights / scale
        return Head(weights, self.intercepts - weights @ mean)


def fit_head(X: np.ndarray, codes: np.ndarray, weights: np.ndarray, C: float) -> Head:
    """Minimise sum of weighted log-losses times C plus half the squared weights; C may be infinite.

    Rows X (n, d), classes `codes` (n,) from 0 on, `weights` (n,).
    """
    n_rows = 1 if codes.max() <= 1 else codes.max() + 1
    newton = np.isfinite(C) and X.shape[1] * n_rows <= NEWTON_PARAMETERS
    model = LogisticRegression(C=C, solver="newton-cholesky" if newton else "lbfgs", max_iter=5000, tol=1e-6)
    model.fit(X, codes, sample_weight=weights)
    return Head(model.coef_, model.intercept_)


def fit_sparse_head(X: np.ndarray, codes: np.ndarray, C: float, seed: int) -> Head:
    """Minimise the sum of log-losses times C plus the absolute weights, for X (n, d) and `codes` (n,)."""
    solver = "liblinear" if codes.max() == 1 else "saga"
    model = LogisticRegression(C=C, solver=solver, max_iter=2000, tol=1e-3, random_state=seed, **L1).fit(X, codes)
    return Head(model.coef_, model.intercept_)


def fit_head_near(start: Head, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, C: float) -> Head:
    """As `fit_head`, with half the squared distance from `start` in the place of the squared weights."""
    k, d = start.weights.shape
    targets = np.eye(max(k, 2))[codes]
    strength = 0.0 if np.isinf(C) else 1 / C

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        W, b = parameters[: k * d].reshape(k, d), parameters[k * d :]
        log_p = Head(W, b).log_probabilities(X)
        off = (weights[:, None] * (np.exp(log_p) - targets))[:, -k:]
        away = W - start.weights
        value = -(weights[:, None] * targets * log_p).sum() + strength / 2 * (away**2).sum()
        return value, np.concatenate([(off.T @ X + strength * away).ravel(), off.sum(axis=0)])

    first = np.concatenate([start.weights.ravel(), start.intercepts])
    found = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "gtol": 1e-8, "ftol": 1e-12})
    return Head(found.x[: k * d].reshape(k, d), found.x[k * d :])


def fit_worst_group_head(X: np.ndarray, codes: np.ndarray, groups: np.ndarray, C: float) -> tuple[Head, np.ndarray]:
    """Minimise the largest mean log-loss of a group plus half the squared weights over n C; return the groups' shares.

    The dual is solved: the concave function of group weights q whose gradient are the group losses of the head fitted
    with these weights. Rows X (n, d); `groups` (n,) are codes 0 to n_groups - 1, all present.
    """
    n, counts = len(X), np.bincount(groups)
    rows = np.arange(n)

    def head_of(q: np.ndarray) -> Head:
        return fit_head(X, codes, n * (q / counts)[groups], C)

    def losses_of(head: Head) -> np.ndarray:
        return np.bincount(groups, weights=-head.log_probabilities(X)[rows, codes]) / counts

    def negative_dual(q: np.ndarray) -> tuple[float, np.ndarray]:
        head = head_of(q)
        losses = losses_of(head)
        size = 0.0 if np.isinf(C) else (head.weights**2).sum() / (2 * n * C)
        return -(q @ losses + size), -losses

    even = np.full(len(counts), 1 / len(counts))
    simplex = {"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones_like(q)}
    shares = {"bounds": [(1e-6, 1)] * len(counts), "constraints": [simplex]}
    options = {"ftol": 1e-10, "maxiter": 300}
    found = minimize(negative_dual, even, jac=True, method="SLSQP", options=options, **shares)
    q = found.x / found.x.sum()
    head = head_of(q)
    losses = losses_of(head)
    gap = losses.max() - q @ losses
    if gap > GAP:
        warnings.warn(f"groupdro stopped {gap:.2g} nats from the optimum", ConvergenceWarning, stacklevel=4)
    return head, q


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Return class probabilities (n, n_classes) of scores."""
    return softmax(scores, axis=1)
