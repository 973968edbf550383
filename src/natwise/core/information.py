"""Entropy, divergence and mutual information of discrete and Gaussian variables, in nats and float64.

Exact values come from a pmf or a covariance. From samples there are three estimators of mutual information over N
samples with K non-empty cells or marginal values:

``plugin``
    The information of the empirical distribution: never negative, and biased up by about
    (K_xy - K_x - K_y + 1) / 2N, so conservative where an upper bound is wanted.
``miller_madow``
    The plug-in value less that bias [Miller 1955]. An estimate, which can be negative: average before clipping.
``permutation``
    The plug-in value less its exact mean over all permutations of one variable, so that independent variables read
    zero on average whatever their marginals [the hypergeometric model of Vinh, Epps and Bailey 2010]. An estimate
    too; it reads low where the information is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln, rel_entr, xlogy

from natwise.core.validation import check_array, check_option, shorten

ESTIMATORS = ("plugin", "miller_madow", "permutation")
Variables: TypeAlias = "int | Sequence[int]"
_BLOCK = 2**22  # terms of a sum held at once


def entropy(pmf: ArrayLike) -> float:
    """Return the joint entropy, in nats, of a pmf of any shape, over all its axes."""
    return float(-xlogy(p := _check_pmf("pmf", pmf), p).sum())


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Return KL(p || q) of two pmfs of the same shape; infinite where p puts mass that q does not."""
    p = _check_pmf("p", p)
    return max(0.0, float(rel_entr(p, _check_pmf("q", q, p.shape)).sum()))


def mutual_information(pmf: ArrayLike, x: Variables = 0, y: Variables = 1, given: Variables = ()) -> float:
    """Return I(x; y | given) of a joint pmf.

    Parameters
    ----------
    pmf : array-like
        Joint pmf, one axis per variable.
    x, y, given : int or sequence of int
        Axes of the two groups of variables, and of those that are known. All other axes are summed out.

    Examples
    --------
    >>> xor = np.zeros((2, 2, 2))
    >>> xor[0, 0, 0] = xor[0, 1, 1] = xor[1, 0, 1] = xor[1, 1, 0] = 1 / 4
    >>> mutual_information(xor, 0, 2), round(mutual_information(xor, (0, 1), 2), 6)
    (0.0, 0.693147)
    """
    pmf = _check_pmf("pmf", pmf)
    x, y, given = _check_groups(pmf.ndim, x=x, y=y, given=given)

    def joint(*groups: tuple[int, ...]) -> float:
        kept = {axis for group in groups for axis in group}
        p = pmf.sum(axis=tuple(set(range(pmf.ndim)) - kept))
        return float(-xlogy(p, p).sum())

    return max(0.0, joint(x, given) + joint(y, given) - joint(x, y, given) - joint(given))


def total_correlation(pmf: ArrayLike) -> float:
    """Return the sum of the entropies of all variables (axes) less their joint entropy."""
    pmf = _check_pmf("pmf", pmf)
    marginals = (pmf.sum(axis=tuple(set(range(pmf.ndim)) - {axis})) for axis in range(pmf.ndim))
    return max(0.0, float(sum(-xlogy(p, p).sum() for p in marginals) + xlogy(pmf, pmf).sum()))


def contingency_tables(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Count the joint values of many pairs of discrete variables at once.

    Parameters
    ----------
    x, y : array-like of shape (n_samples,) or (n_samples, n_tables)
        Codes: any whole numbers. Every column is a variable of its own.

    Returns
    -------
    ndarray of int, shape (n_x, n_y) or (n_tables, n_x, n_y)
        The values of a variable in ascending order, counted; variables with fewer values end with zeros. At most
        n_samples values exist, so that memory does not depend on how large the codes are.
    """
    x, y = (check_array(name, value, dtype=np.int64) for name, value in (("x", x), ("y", y)))
    if x.shape != y.shape or x.ndim not in (1, 2) or x.size == 0:
        raise ValueError(f"x and y must have one shape, (n,) or (n, tables), not empty, got {x.shape} and {y.shape}")
    (x_rank, n_x), (y_rank, n_y) = _ranks(x.reshape(len(x), -1)), _ranks(y.reshape(len(y), -1))
    n_tables = x_rank.shape[1]
    cells = (np.arange(n_tables) * n_x + x_rank) * n_y + y_rank
    counts = np.bincount(cells.ravel(), minlength=n_tables * n_x * n_y)
    return counts.reshape(*x.shape[1:], n_x, n_y)


def entropy_from_counts(counts: ArrayLike, estimator: str = "plugin") -> np.ndarray:
    """Return the entropy of each histogram.

    Parameters
    ----------
    counts : array-like of shape (..., n_values)
        Histograms along the last axis.
    estimator : {"plugin", "miller_madow"}
        Miller-Madow adds (K - 1) / 2N for K non-empty cells.

    Returns
    -------
    ndarray of shape (...)
    """
    check_option("estimator", estimator, ESTIMATORS[:2])
    counts, total = _check_counts(counts, 1)
    value = np.log(total) - xlogy(counts, counts).sum(-1) / total
    return value if estimator == "plugin" else value + ((counts > 0).sum(-1) - 1) / (2 * total)


def mutual_information_from_counts(counts: ArrayLike, estimator: str = "plugin") -> np.ndarray:
    """Return the mutual information of each table of counts, vectorised over tables.

    Parameters
    ----------
    counts : array-like of shape (..., n_x, n_y)
        Tables in the last two axes, such as from `contingency_tables`.
    estimator : {"plugin", "miller_madow", "permutation"}
        See the module's text.

    Returns
    -------
    ndarray of shape (...)
    """
    check_option("estimator", estimator, ESTIMATORS)
    counts, total = _check_counts(counts, 2)
    rows, columns = counts.sum(-1), counts.sum(-2)
    parts = xlogy(counts, counts).sum((-2, -1)) - xlogy(rows, rows).sum(-1) - xlogy(columns, columns).sum(-1)
    plugin = np.maximum(parts / total + np.log(total), 0.0)
    if estimator == "plugin":
        return plugin
    if estimator == "miller_madow":
        free = (counts > 0).sum((-2, -1)) - (rows > 0).sum(-1) - (columns > 0).sum(-1) + 1
        return plugin - free / (2 * total)
    return plugin - _mean_over_permutations(rows, columns, total)


def gaussian_entropy(covariance: ArrayLike) -> float:
    """Return the differential entropy, in nats, of a Gaussian vector with covariance (p, p)."""
    covariance = _check_covariance(covariance)
    return 0.5 * (len(covariance) * float(np.log(2 * np.pi * np.e)) + _logdet(covariance))


def gaussian_mutual_information(
    covariance: ArrayLike, x: Variables = 0, y: Variables = 1, given: Variables = ()
) -> float:
    """Return I(x; y | given) of a Gaussian vector; groups of variables as in `mutual_information`."""
    covariance = _check_covariance(covariance)
    x, y, given = _check_groups(len(covariance), x=x, y=y, given=given)

    def logdet(*groups: tuple[int, ...]) -> float:
        kept = [axis for group in groups for axis in group]
        return _logdet(covariance[np.ix_(kept, kept)])

    return max(0.0, 0.5 * (logdet(x, given) + logdet(y, given) - logdet(x, y, given) - logdet(given)))


def gaussian_total_correlation(covariance: ArrayLike) -> float:
    """Return the total correlation, in nats, of a Gaussian vector with covariance (p, p)."""
    covariance = _check_covariance(covariance)
    return max(0.0, 0.5 * (float(np.log(np.diag(covariance)).sum()) - _logdet(covariance)))


def _ranks(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Replace the codes of each column by their ranks among its distinct values; return also the largest number."""
    order = np.argsort(codes, axis=0, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=0)
    new = np.zeros(codes.shape, dtype=np.int64)
    new[1:] = ordered[1:] != ordered[:-1]
    ranks = np.empty_like(new)
    np.put_along_axis(ranks, order, new.cumsum(axis=0), axis=0)
    return ranks, int(ranks.max()) + 1


def _mean_over_permutations(rows: np.ndarray, columns: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the plug-in information of each table, averaged over all tables with its margins.

    A cell with margins a and b is hypergeometric; its mean term is computed once for each distinct (a, b, N).
    """
    totals, table = np.unique(total, return_inverse=True)
    n_a, n_b = int(rows.max()) + 1, int(columns.max()) + 1
    key = (table.reshape(total.shape)[..., None, None] * n_a + rows[..., :, None]) * n_b + columns[..., None, :]
    distinct, cell = np.unique(key, return_inverse=True)
    n, a, b = totals[distinct // (n_a * n_b)], distinct // n_b % n_a, distinct % n_b
    terms = np.zeros(len(distinct))
    largest = np.minimum(a, b)
    for some in np.array_split(np.arange(len(distinct)), 1 + int(largest.sum()) // _BLOCK):
        terms[some] = _mean_cell(a[some], b[some], n[some])
    return terms[cell.reshape(key.shape)].sum((-2, -1))


def _mean_cell(a: np.ndarray, b: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the mean of (k / n) log(n k / a b) for hypergeometric k = 1 … min(a, b)."""
    largest = np.minimum(a, b)
    owner = np.repeat(np.arange(len(a)), largest)
    k = np.arange(len(owner)) - np.repeat(largest.cumsum() - largest, largest) + 1
    a, b, n = a[owner], b[owner], n[owner]
    possible = n - a - b + k >= 0
    owner, k, a, b, n = (value[possible] for value in (owner, k, a, b, n))
    log_probability = _log_binomial(a, k) + _log_binomial(n - a, b - k) - _log_binomial(n, b)
    values = np.exp(log_probability) * k / n * np.log(n * k / (a * b))
    return np.bincount(owner, values, minlength=len(largest))


def _log_binomial(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _check_pmf(name: str, value: ArrayLike, shape: Sequence[int] | None = None) -> np.ndarray:
    pmf = check_array(name, value, dtype=np.float64, shape=shape)
    if pmf.size == 0 or pmf.min() < 0:
        raise ValueError(f"{name} must hold probabilities >= 0, got {shorten(pmf.tolist())}")
    if abs(pmf.sum() - 1) > 1e-8:
        raise ValueError(f"{name} must sum to 1, got a sum of {pmf.sum():.10g}")
    return pmf


def _check_counts(value: ArrayLike, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    counts = check_array("counts", value, dtype=np.int64)
    if counts.ndim < n_axes or (counts < 0).any():
        raise ValueError(f"counts must have at least {n_axes} axes and no negative entry, got shape {counts.shape}")
    total = counts.sum(axis=tuple(range(-n_axes, 0)))
    if (total == 0).any():
        raise ValueError("counts must hold at least one sample per table, got an empty one")
    return counts, total


def _check_covariance(value: ArrayLike) -> np.ndarray:
    covariance = check_array("covariance", value, dtype=np.float64)
    if covariance.ndim != 2 or len(covariance) != covariance.shape[1] or not len(covariance):
        raise ValueError(f"covariance must be a square matrix, got shape {covariance.shape}")
    if not np.allclose(covariance, covariance.T, rtol=1e-8, atol=1e-12):
        raise ValueError("covariance must be symmetric, got a matrix that is not")
    _logdet(covariance)
    return covariance


def _check_groups(n_variables: int, **groups: Variables) -> list[tuple[int, ...]]:
    """Return each group as a tuple of axes; refuse axes that do not exist or stand in two groups."""
    axes = {name: (group,) if isinstance(group, (int, np.integer)) else tuple(group) for name, group in groups.items()}
    for name, group in axes.items():
        if not all(0 <= axis < n_variables for axis in group) or not (group or name == "given"):
            raise ValueError(f"{name} must hold variables from 0 to {n_variables - 1}, got {shorten(group)}")
    everything = [axis for group in axes.values() for axis in group]
    if len(set(everything)) < len(everything):
        raise ValueError(f"{', '.join(axes)} must not share a variable, got {shorten(axes)}")
    return list(axes.values())


def _logdet(covariance: np.ndarray) -> float:
    try:
        return 2 * float(np.log(np.diag(np.linalg.cholesky(covariance))).sum())
    except np.linalg.LinAlgError:
        raise ValueError("covariance must be positive definite, got a singular or indefinite matrix") from None
