"""The moments of linear CorEx in float64: what the weights say about the data, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from natwise.core.validation import check_array, check_real

SMALLEST_VARIANCE = 1e-6


def corex_moments(X: np.ndarray, weights: np.ndarray, eps: float = 0.0) -> dict[str, np.ndarray | float]:
    """Return every moment of the linear CorEx model with normalised `weights` on standardised data.

    Parameters
    ----------
    X : ndarray of shape (n, p)
        Data whose columns have mean 0 and second moment 1; used as it is.
    weights : ndarray of shape (m, p)
        Normalised weights w_j = W_j / sqrt(E[Z_j^2]), with u_j = w_j^T S w_j < 1.
    eps : float in [0, 1]
        Annealing noise: S is replaced by (1 - eps^2) S + eps^2 I everywhere.

    Returns
    -------
    dict
        Float64 arrays and floats, information in nats:

        ================= ======= ======================================================================
        ``uj``            (m,)    w_j^T S w_j
        ``Y_j^2``         (m,)    E[Z_j^2] = 1 / (1 - u_j), noise of unit variance
        ``rho``           (m, p)  correlation of factor and variable, W S
        ``ry``            (m, m)  correlation of the factors
        ``invrho``        (m, p)  1 / (1 - rho^2)
        ``rhoinvrho``     (m, p)  rho / (1 - rho^2)
        ``Qij``           (m, p)  ry @ rhoinvrho
        ``Qi``            (p,)    sum_j rhoinvrho Qij
        ``Si``            (p,)    sum_j rho rhoinvrho
        ``Qi-Si^2``       (p,)    sum_j rhoinvrho (Qij - Si rho), free of cancellation
        ``TC``            float   the objective: lower bound of the total correlation that the factors explain
        ``MI``            (m, p)  I(X_i ; Y_j)
        ``X_i Y_j``       (p, m)  covariance of variables and unnormalised factors
        ``X_i Z_j``       (p, m)  regression coefficients of the variables on the normalised factors
        ``X_i^2 | Y``     (p,)    variance of X_i given all factors, at least 1e-6
        ``I(Y_j ; X)``    (m,)    information that factor j keeps about all variables
        ``I(X_i ; Y)``    (p,)    information of all factors about variable i
        ``TCs``           (m,)    sum_i I(X_i ; Y_j) - I(Y_j ; X)
        ``TC_no_overlap`` float   sum_i max_j I(X_i ; Y_j) - sum_j I(Y_j ; X)
        ``TC_direct``     float   sum_i I(X_i ; Y) - sum_j I(Y_j ; X)
        ``additivity``    float   sum_i (sum_j I(X_i ; Y_j) - I(X_i ; Y))
        ================= ======= ======================================================================

    Raises
    ------
    ValueError
        If a shape does not fit, a value is not finite, `eps` lies outside [0, 1], some u_j >= 1, or X is so far from
        standardised that a correlation with a factor leaves (-1, 1).

    Notes
    -----
    Equations (1)-(3) of the page. The original code subtracts I(Y_j ; X) in ``TC_direct`` without summing over j
    and returns a vector; here it is the sum that was meant.
    """
    X = check_array("X", X, shape=("n_samples", "n_features"), dtype=np.float64)
    weights = check_array("weights", weights, shape=("n_components", X.shape[1]), dtype=np.float64)
    eps = check_real("eps", eps, minimum=0, maximum=1)
    for name, rows in (("X", X), ("weights", weights)):
        if not rows.size:
            raise ValueError(f"{name} must hold at least one row and one column, got shape {rows.shape}")
    moments = objective_moments(X, weights, eps)
    if not (np.abs(moments["rho"]) < 1).all():
        raise ValueError("X must have columns of mean square 1, got a correlation outside (-1, 1) with a factor")
    return {**moments, **_information_moments(moments)}


def objective_moments(X: np.ndarray, weights: np.ndarray, eps: float = 0.0) -> dict[str, Any]:
    """Return the moments that the objective is made of, of X (n, p) and weights (m, p); see `corex_moments`."""
    rho = (1 - eps**2) * ((weights @ X.T) @ X) / len(X) + eps**2 * weights
    ry = weights @ rho.T
    uj = ry.diagonal().copy()
    if not (uj < 1).all():
        raise ValueError(f"weights must satisfy w_j^T S w_j < 1, got {uj.max():.6g} for row {uj.argmax()}")
    ry[np.diag_indices_from(ry)] = 1  # the noise of the factors only enters here
    invrho = 1 / (1 - rho**2)
    rhoinvrho = rho * invrho
    Si = (rho * rhoinvrho).sum(axis=0)
    Qij = ry @ rhoinvrho
    excess = (rhoinvrho * (Qij - Si * rho)).sum(axis=0)
    return {
        "uj": uj,
        "Y_j^2": 1 / (1 - uj),
        "rho": rho,
        "ry": ry,
        "invrho": invrho,
        "rhoinvrho": rhoinvrho,
        "Qij": Qij,
        "Qi": (rhoinvrho * Qij).sum(axis=0),
        "Si": Si,
        "Qi-Si^2": excess,
        "TC": float(np.log1p(Si).sum() - 0.5 * np.log1p(excess).sum() + 0.5 * np.log1p(-uj).sum()),
    }


def _information_moments(moments: dict[str, Any]) -> dict[str, Any]:
    rho = moments["rho"]
    pairwise = mutual_information(rho)
    regression = np.linalg.solve(moments["ry"], rho).T
    residual = np.maximum(1 - np.einsum("ij,ji->i", regression, rho), SMALLEST_VARIANCE)
    kept = 0.5 * np.log(moments["Y_j^2"])
    explained = -0.5 * np.log(residual)
    return {
        "MI": pairwise,
        "X_i Y_j": rho.T * np.sqrt(moments["Y_j^2"]),
        "X_i Z_j": regression,
        "X_i^2 | Y": residual,
        "I(Y_j ; X)": kept,
        "I(X_i ; Y)": explained,
        "TCs": pairwise.sum(axis=1) - kept,
        "TC_no_overlap": float(pairwise.max(axis=0).sum() - kept.sum()),
        "TC_direct": float(explained.sum() - kept.sum()),
        "additivity": float((pairwise.sum(axis=0) - explained).sum()),
    }


def mutual_information(rho: np.ndarray) -> np.ndarray:
    """Return the mutual information, in nats, of jointly Gaussian variables with correlations `rho` of any shape."""
    return -0.5 * np.log1p(-(rho**2))


def loadings(moments: dict[str, Any]) -> np.ndarray:
    """Return A (m, p): the model's correlation of variables i != k is (A^T A)_ik."""
    return moments["rhoinvrho"] / (1 + moments["Si"])
