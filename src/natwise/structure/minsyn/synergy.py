"""How much several sources Y = (Y_1, …, Y_m) tell about a target X only together; everything in nats.

Every function takes either a table of probabilities ``pmf`` with the axes ``[x, y1, …, ym]``, or ``covariance=``
of a Gaussian vector ``(x, y1, …, ym)``. The three measures answer different questions and can disagree:

========  =====================================================================  ===================================
function  definition                                                             range
========  =====================================================================  ===================================
`wms`     I(X;Y) - sum_j I(X;Y_j), redundancy counts negative                    any sign
`ci`      E log p(x|y)/p_CI(x|y), what the conditionally independent decoder     [0, TC(Y|X)], may exceed I(X;Y)
          p_CI(x|y) ~ p(x) prod_j p(y_j|x) loses
`union`   I(X;Y) - I_U, with I_U the least information any q with the same       [0, I(X;Y)]
          pairs q(x, y_j) = p(x, y_j) has
========  =====================================================================  ===================================
"""

from __future__ import annotations

from typing import Any

import numpy as np

from natwise.core.information import gaussian_mutual_information, mutual_information
from natwise.core.validation import check_array, shorten
from natwise.structure.minsyn._union import MAX_CELLS, NEGLIGIBLE, least_information

__all__ = ["ci", "union", "union_information", "wms"]


def wms(pmf: Any = None, *, covariance: Any = None) -> float:
    """Return the whole-minus-sum synergy I(X;Y) - sum_j I(X;Y_j) = TC(Y|X) - TC(Y) in nats.

    Negative when the sources repeat one another more than they complete one another.

    Parameters
    ----------
    pmf : array-like of shape (n_x, n_y1, …, n_ym), optional
        Joint probabilities, target first.
    covariance : array-like of shape (1 + m, 1 + m), optional
        Covariance of a Gaussian vector, target first; positive definite. Exactly one of the two is given.

    Raises
    ------
    ValueError
        If not exactly one is given, `pmf` has fewer than two axes, a negative entry or another sum than 1, or
        `covariance` is not a symmetric positive definite matrix of at least two rows.

    Examples
    --------
    >>> xor = [[[0.25, 0.0], [0.0, 0.25]], [[0.0, 0.25], [0.25, 0.0]]]
    >>> round(wms(xor), 6)  # one bit
    0.693147
    """
    p, R = _distribution(pmf, covariance)
    if p is None:
        return _gaussian_information(R) - float(_gaussian_single_informations(R).sum())
    return _information(p) - sum(mutual_information(p, 0, j) for j in range(1, p.ndim))


def ci(pmf: Any = None, *, covariance: Any = None) -> float:
    """Return the correlational importance E log p(x|y)/p_CI(x|y) in nats, p_CI(x|y) ~ p(x) prod_j p(y_j|x).

    This is the synergy that `MinSyn` minimises: the loss of a decoder that combines what each source says on
    its own. Zero when the sources are independent given the target. Double-counted redundancy is penalised
    too, so it can be positive where `union` is 0. Arguments and errors are those of `wms`.

    For Gaussians, with rho_j = corr(x, y_j), C = corr(y), b = rho/(1-rho^2), S = rho'b and Q = b'Cb,
    ``ci = (Q - S^2 - S)/(2(1+S)) - log(1+S)/2 + I(X;Y)``.
    """
    p, R = _distribution(pmf, covariance)
    if p is None:
        rho, C = R[0, 1:], R[1:, 1:]
        b = rho / (1 - rho**2)
        S, Q = rho @ b, b @ C @ b
        excess = (Q - S * S - S) / (2 * (1 + S)) - 0.5 * np.log1p(S)
        return max(0.0, float(excess) + _gaussian_information(R))
    log_decoder = _log_independent_decoder(p)
    log_posterior = _log(p) - _log(p.sum(0))
    return max(0.0, float(np.sum(p * np.where(p > 0, log_posterior - log_decoder, 0.0))))


def union_information(pmf: Any = None, *, covariance: Any = None) -> float:
    """Return the union information I_U = min I_q(X;Y) over all q with q(x, y_j) = p(x, y_j), in nats.

    For pmfs a convex problem, solved by an interior-point method with a certified gap (1e-7 nats where it
    converges; a `ConvergenceWarning` tells the gap otherwise). The table may have up to 200,000 cells: it grows
    exponentially with the number of sources. For a Gaussian target it is max_j I(X;Y_j). Arguments and errors are
    those of `wms`; a larger table is a `ValueError`.
    """
    p, R = _distribution(pmf, covariance)
    if p is None:
        return float(_gaussian_single_informations(R).max())
    if p.size > MAX_CELLS:
        raise ValueError(f"pmf must have at most {MAX_CELLS:,} cells for the union information, got {p.size:,}")
    possible = np.where(p > NEGLIGIBLE, p, 0.0)
    possible = possible[possible.reshape(len(p), -1).any(1)] / possible.sum()
    pairs = [_pair(possible, j) for j in range(1, p.ndim)]
    lowest = max(mutual_information(p, 0, j) for j in range(1, p.ndim))
    return float(np.clip(least_information(pairs), lowest, max(lowest, _information(p))))


def union(pmf: Any = None, *, covariance: Any = None) -> float:
    """Return the union synergy S_U = I(X;Y) - I_U in nats: what no source and no combination of pairs explains.

    See `union_information` for I_U, its solver and its limits; arguments and errors are the same.

    Examples
    --------
    >>> round(union(covariance=[[1, 0.6, 0.6], [0.6, 1, 0], [0.6, 0, 1]]), 6)
    0.413339
    """
    p, R = _distribution(pmf, covariance)
    total = _gaussian_information(R) if p is None else _information(p)
    return max(0.0, total - union_information(pmf, covariance=covariance))


def _distribution(pmf: Any, covariance: Any) -> tuple[Any, Any]:
    """Return (probabilities, None) or (None, correlations), checked."""
    if (pmf is None) == (covariance is None):
        given = "neither" if pmf is None else "both"
        raise ValueError(f"exactly one of pmf and covariance must be given, got {given}")
    return (None, _correlations(covariance)) if pmf is None else (_probabilities(pmf), None)


def _probabilities(pmf: Any) -> np.ndarray:
    p = check_array("pmf", pmf, dtype=np.float64)
    if p.ndim < 2 or p.size == 0:
        raise ValueError(f"pmf must have the axes [x, y1, ..., ym], none of them empty, got shape {p.shape}")
    if p.min() < 0:
        raise ValueError(f"pmf must not be negative, got {p.min()}")
    if abs(p.sum() - 1) > 1e-6:
        raise ValueError(f"pmf must sum to 1, got {p.sum():.9g}")
    return p / p.sum()


def _correlations(covariance: Any) -> np.ndarray:
    R = check_array("covariance", covariance, shape=("1 + m", "1 + m"), dtype=np.float64)
    if len(R) < 2 or R.shape[0] != R.shape[1]:
        raise ValueError(f"covariance must be square with the target and at least one source, got shape {R.shape}")
    diagonal = np.diag(R)
    if diagonal.min() <= 0:
        raise ValueError(f"covariance must have a positive diagonal, got {shorten(diagonal.tolist())}")
    R = R / np.sqrt(np.outer(diagonal, diagonal))
    if np.abs(R - R.T).max() > 1e-8:
        raise ValueError(f"covariance must be symmetric, got correlations that differ by {np.abs(R - R.T).max():.3g}")
    R = (R + R.T) / 2
    if (smallest := np.linalg.eigvalsh(R)[0]) <= 1e-12:
        raise ValueError(f"covariance must be positive definite, got smallest eigenvalue {smallest:.3g} of correlation")
    return R


def _gaussian_information(R: np.ndarray) -> float:
    """Return I(X;Y) from correlations (1 + m, 1 + m)."""
    return gaussian_mutual_information(R, 0, range(1, len(R)))


def _gaussian_single_informations(R: np.ndarray) -> np.ndarray:
    """Return I(X;Y_j), (m,), from correlations (1 + m, 1 + m)."""
    return -0.5 * np.log1p(-(R[0, 1:] ** 2))


def _information(p: np.ndarray) -> float:
    """Return I(X;Y) from a table [x, y1, …, ym]."""
    return mutual_information(p, 0, range(1, p.ndim))


def _pair(p: np.ndarray, j: int) -> np.ndarray:
    """Return the table p(x, y_j), (n_x, n_yj)."""
    return p.sum(axis=tuple(axis for axis in range(1, p.ndim) if axis != j))


def _log(p: np.ndarray) -> np.ndarray:
    """Return log p, of any shape, with 0 where p is 0, for use under a mask."""
    return np.log(p, where=p > 0, out=np.zeros_like(p))


def _log_independent_decoder(p: np.ndarray) -> np.ndarray:
    """Return log p_CI(x|y), right wherever p(x, y) > 0."""
    target = p.reshape(len(p), -1).sum(1).reshape(-1, *[1] * (p.ndim - 1))
    logits = np.where(target > 0, _log(target), -np.inf)
    for j in range(1, p.ndim):
        pair = _pair(p, j)
        given_x = np.where(pair > 0, _log(pair), -np.inf)
        shape = [len(p)] + [p.shape[axis] if axis == j else 1 for axis in range(1, p.ndim)]
        logits = logits + given_x.reshape(shape) - np.where(target > 0, _log(target), 0.0)
    top = logits.max(0)
    top = np.where(np.isfinite(top), top, 0.0)
    normaliser = np.exp(logits - top).sum(0)
    return np.where(np.isfinite(logits), logits - top - _log(normaliser), 0.0)
