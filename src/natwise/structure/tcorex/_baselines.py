"""What T-CorEx is measured against: covariance estimators per period or pooled, and a time-varying graphical lasso.

Every candidate maps samples (N, p) and their times (N,) to covariance matrices (T, p, p). A method is a list of
candidates, its settings; the study takes the one that is best on validation samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from natwise.structure.linear_corex import LinearCorEx
from natwise.structure.tcorex._estimator import TCorEx

Candidate: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


def methods(
    n_components: int, seed: int, *, l1: tuple[float, ...], gamma: tuple[float, ...]
) -> dict[str, list[Candidate]]:
    """Return all methods with their candidates; `l1` and `gamma` are the grid of T-CorEx."""
    from sklearn.covariance import OAS, LedoitWolf
    from sklearn.decomposition import FactorAnalysis

    linear = LinearCorEx(n_components, random_state=seed)
    return {
        "tcorex": [
            partial(_tcorex, TCorEx(n_components, l1=a, gamma=g, random_state=seed)) for a, g in product(l1, gamma)
        ],
        "linear_corex": [partial(_per_period, linear)],
        "linear_corex_pooled": [partial(_pooled, linear)],
        "ledoit_wolf": [partial(_per_period, LedoitWolf())],
        "oas": [partial(_per_period, OAS())],
        "factor_analysis": [partial(_per_period, FactorAnalysis(n_components, random_state=seed))],
        "graphical_lasso": [partial(time_graphical_lasso, alpha=a, beta=0.0) for a in (0.2, 0.4, 0.6)],
        "time_graphical_lasso": [
            partial(time_graphical_lasso, alpha=a, beta=b) for a, b in product((0.1, 0.2, 0.4), (0.05, 0.2))
        ],
    }


def time_graphical_lasso(
    X: np.ndarray, times: np.ndarray, alpha: float, beta: float, *, n_iter: int = 60
) -> np.ndarray:
    """Return covariances under sparse precision matrices whose entries change rarely, by ADMM in O(T p^3).

    Minimises sum_t [tr(S_t P_t) - log det P_t + alpha |off-diagonal of P_t|_1] + beta sum_t |P_{t+1} - P_t|_1 over the
    precision matrices P_t of standardised variables (Hallac et al., KDD 2017), with steps of size one. With beta = 0
    it is one graphical lasso per period; scikit-learn's solver breaks down with so few samples.
    """
    periods, scale = np.unique(times), X.std(axis=0)
    Z = X / np.where(scale > 0, scale, 1)
    S = np.stack([Z[times == t].T @ Z[times == t] / (times == t).sum() for t in periods])
    sparse, ahead, behind = np.stack([np.eye(S.shape[1])] * len(S)), np.zeros_like(S[1:]), np.zeros_like(S[1:])
    ahead += np.eye(S.shape[1])
    behind += np.eye(S.shape[1])
    duals = [np.zeros_like(sparse), np.zeros_like(ahead), np.zeros_like(behind)]
    copies = np.ones((len(S), 1, 1))
    copies[:-1] += 1
    copies[1:] += 1
    diagonal = np.eye(S.shape[1], dtype=bool)
    for _ in range(n_iter):
        target = sparse - duals[0]
        target[:-1] += ahead - duals[1]
        target[1:] += behind - duals[2]
        values, vectors = np.linalg.eigh(target - S)
        weights = copies[:, 0]
        values = (values + np.sqrt(values**2 + 4 * weights)) / (2 * weights)
        P = (vectors * values[:, None]) @ vectors.transpose(0, 2, 1)
        sparse = np.where(diagonal, P + duals[0], _soft(P + duals[0], alpha))
        first, second = P[:-1] + duals[1], P[1:] + duals[2]
        change = _soft(second - first, 2 * beta)
        ahead, behind = (first + second - change) / 2, (first + second + change) / 2
        duals = [duals[0] + P - sparse, duals[1] + P[:-1] - ahead, duals[2] + P[1:] - behind]
    return np.linalg.inv(P) * np.outer(scale, scale)


def _soft(x: np.ndarray, threshold: float) -> np.ndarray:
    """Move values of any shape towards 0 by the threshold."""
    return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def _tcorex(model: TCorEx, X: np.ndarray, times: np.ndarray) -> np.ndarray:
    return model.fit(X, times).covariances_


def _per_period(model: Any, X: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the covariances (T, p, p) of a model that is fitted to each period by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FactorAnalysis complains of n < p
        return np.stack([_covariance(model.fit(X[times == t])) for t in np.unique(times)])


def _pooled(model: Any, X: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the covariance of a model of all periods, once for each, (T, p, p)."""
    return np.stack([_covariance(model.fit(X))] * len(np.unique(times)))


def _covariance(model: Any) -> np.ndarray:
    return model.get_covariance() if hasattr(model, "get_covariance") else model.covariance_
