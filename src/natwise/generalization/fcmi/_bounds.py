"""Bounds on the generalisation gap from the information, in nats, that one example's outputs hold about its split.

Each function takes information that was computed elsewhere, so that exact values, plug-in values and corrected
estimates go the same way. Losses lie in [0, 1]; the gap is test error less training error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize_scalar

from natwise.core.validation import check_array, check_flag, check_integer, check_option, check_real

from ._inputs import check_not_negative

LOG2 = math.log(2)
_LARGEST_RATE = 0.36534224565400336  # where the linear bound's discriminant vanishes
_GRID = 128


def fcmi_bound(information: ArrayLike, m: int = 1) -> float:
    """Return the f-CMI bound on ``|E gap|``: the mean of sqrt(2 I / m).

    The formula of e-CMI and of the loss-difference bound too: what differs is whose information goes in.

    Parameters
    ----------
    information : array-like of any shape
        I(outputs on the pairs u; S_u) in nats, for each subset u of m pairs: n values for m = 1, the values of
        pairs of pairs for m = 2, a single value for m = n. Values below 0 (a corrected estimate) count as 0.
    m : int
        Size of the subsets. The bound grows with m, so that m = 1 is the one to use.

    Notes
    -----
    Harutyunyan et al. (NeurIPS 2021), theorem on f-CMI; one example's term is at most sqrt(2 log 2) = 1.18, so
    that the bound can exceed 1.
    """
    information = _check_information(information)
    return float(np.sqrt(2 / check_integer("m", m, minimum=1) * information).mean())


def fcmi_squared_bound(information: float, n: int, constant: str = "paper") -> float:
    """Return the bound on E (population risk - training risk)^2 from the information in all predictions together.

    Parameters
    ----------
    information : float
        I(all 2n predictions; S) in nats, averaged over supersamples.
    n : int
        Size of the training set.
    constant : {"paper", "sharp"}
        ``(8 / n) (I + 2)`` as published, or ``(8 / n) (I + log 3 + 1/16)``, which the same proof gives.
    """
    check_option("constant", constant, ("paper", "sharp"))
    information = check_real("information", information, minimum=0.0)
    added = 2.0 if constant == "paper" else math.log(3) + 1 / 16
    return 8 / check_integer("n", n, minimum=1) * (information + added)


def pair_squared_bound(information: ArrayLike, n: int, population: bool = False) -> float:
    """Return the bound on E gap^2 from the information in the outputs on two pairs of examples.

    Parameters
    ----------
    information : array-like of any shape
        I(outputs on pairs i and k; S_i, S_k) in nats, i different from k: all of them, or a random part.
    n : int
        Size of the training set.
    population : bool
        Bound the distance to the population risk, not to the error on the other half of the supersample.
    """
    n = check_integer("n", n, minimum=2)
    ghost = 1 / n + (1 - 1 / n) * float(np.sqrt(2 * _check_information(information)).mean())
    return 2 * ghost + 1 / (2 * n) if check_flag("population", population) else ghost


def single_loss_bound(information: ArrayLike) -> float:
    """Return Wang and Mao's (ICML 2023) bound on ``|E gap|`` from I(one column's loss; S_i): the mean of 2 sqrt(2 I).

    Parameters
    ----------
    information : array-like of any shape
        Nats, a value per pair of examples.
    """
    return 2 * fcmi_bound(information)


def kl_inverse(q: ArrayLike, c: ArrayLike) -> float | np.ndarray:
    """Return the largest p in [q, 1] whose binary divergence d(q || p) is at most c.

    Parameters
    ----------
    q : float or array-like
        Probabilities.
    c : float or array-like
        Nats, at least 0; broadcast against q.

    Returns
    -------
    float, or ndarray of the broadcast shape

    Examples
    --------
    >>> round(kl_inverse(0.0, 0.6931471805599453), 12)
    0.5
    """
    q, c = _check_unit("q", q), check_not_negative("c", c)
    try:
        q, c = np.broadcast_arrays(q, c)
    except ValueError:
        raise ValueError(f"q and c must have shapes that broadcast, got {q.shape} and {c.shape}") from None
    values = np.array([_kl_inverse(float(a), float(b)) for a, b in zip(q.ravel(), c.ravel(), strict=True)])
    return values.reshape(q.shape) if q.ndim else float(values[0])


def binary_kl_bound(train_error: float, information: ArrayLike) -> float:
    """Return the binary-KL bound on the TEST error: the largest R with d(L || (L + R) / 2) <= mean I.

    Parameters
    ----------
    train_error : float
        L, mean over runs.
    information : array-like of any shape
        I(predictions or losses of pair i; S_i) in nats.

    Notes
    -----
    Hellström and Durisi (NeurIPS 2022). The original code solves it by SLSQP from 0.5, right to about 1e-4; here it
    is a root to machine precision.
    """
    train_error = check_real("train_error", train_error, minimum=0.0, maximum=1.0)
    return min(2 * _kl_inverse(train_error, _mean(information)) - train_error, 1.0)


def linear_bound(train_error: float, information: ArrayLike) -> float:
    """Return Hellström and Durisi's linear bound on the TEST error, the least of gamma L + mean I / lambda.

    Parameters
    ----------
    train_error : float
        L, mean over runs.
    information : array-like of any shape
        I(predictions or losses of pair i; S_i) in nats.

    Notes
    -----
    Over lambda > 0 and gamma >= 1 with lambda (1 - gamma) + (e^lambda - 1 - lambda)(1 + gamma^2) <= 0. The least
    gamma of a lambda is the root of a quadratic, so that one search over lambda <= 0.3653 remains.
    """
    train_error = check_real("train_error", train_error, minimum=0.0, maximum=1.0)
    information = _mean(information)
    if information == 0.0:
        return train_error

    def value(log_rate: np.ndarray | float) -> np.ndarray:
        rate = np.exp(np.minimum(log_rate, math.log(_LARGEST_RATE)))
        a = np.expm1(rate) - rate
        root = np.sqrt(np.maximum(rate**2 - 4 * a * (rate + a), 0.0))
        return 2 * (rate + a) / (rate + root) * train_error + information / rate

    return _least(value, _low(information), math.log(_LARGEST_RATE))


def fast_rate_bound(train_error: float, information: ArrayLike, closed_form: bool = False) -> float:
    """Return Wang and Mao's fast-rate bound on E gap, the least of C1 L + mean I / C2.

    Parameters
    ----------
    train_error : float
        L, mean over runs.
    information : array-like of any shape
        I(one column's loss; S_i) in nats; give both columns.
    closed_form : bool
        Return the relaxation 4 I + 4 sqrt(I L) instead, without a search.

    Notes
    -----
    Over C1, C2 > 0 with exp(2 C2) + exp(-2 C2 (C1 + 1)) <= 2. With t = -log(2 - exp(2 C2)) the least C1 is
    t / (2 C2) - 1, and one search over t > 0 remains; at L = 0 the bound is 2 I / log 2.
    """
    train_error = check_real("train_error", train_error, minimum=0.0, maximum=1.0)
    information = _mean(information)
    if check_flag("closed_form", closed_form):
        return 4 * information + 4 * math.sqrt(information * train_error)
    return _fast_rate(train_error, information)


def variance_bound(
    train_error: float, second_moment: float, information: ArrayLike, gamma: float | None = None
) -> float:
    """Return Wang and Mao's variance bound on E gap for the 0-1 loss, the least of C1 V + mean I / C2.

    Parameters
    ----------
    train_error : float
        L, mean over runs.
    second_moment : float
        Mean over runs of the squared training error; or, for the sharpness bound, the mean over examples of the
        squared mean loss while the example is in training.
    information : array-like of any shape
        I(one column's loss; S_i) in nats; give both columns.
    gamma : float, optional
        V = L - (1 - gamma^2) second_moment, in (0, 1]. Default: the best.

    Notes
    -----
    Over exp(2 C2) + exp(-2 C2 (C1 gamma^2 + 1)) <= 2. The least C1 is that of the fast rate over gamma^2, which makes
    the bound fall in gamma: the best is gamma = 1, the fast-rate bound itself. The original code searches numerically
    and finds the same values to six digits.
    """
    train_error = check_real("train_error", train_error, minimum=0.0, maximum=1.0)
    second_moment = check_real("second_moment", second_moment, minimum=0.0, maximum=train_error)
    gamma = 1.0 if gamma is None else check_real("gamma", gamma, minimum=0.0, maximum=1.0)
    if gamma == 0.0:
        raise ValueError("gamma must be > 0, got 0.0")
    weighted = (train_error - (1 - gamma**2) * second_moment) / gamma**2  # C1 V / gamma^2, with the fast rate's C1
    return _fast_rate(weighted, _mean(information))


def interpolation_bound(information: ArrayLike) -> float:
    """Return the bound on the TEST error of an algorithm without training errors: mean I / log 2.

    Exact for the 0-1 loss when both columns err equally often on new data. It says nothing when some training errors
    remain.

    Parameters
    ----------
    information : array-like of any shape
        I(losses, or loss difference, of pair i; S_i) in nats.
    """
    return _mean(information) / LOG2


def ensemble_bound(information: ArrayLike) -> float:
    """Return the f-CMI bound of an ensemble from the information of its members.

    Members whose randomness is independent given S hold together at most the sum of what each holds, whatever the
    rule that combines them, and never more than the log 2 of the split itself.

    Parameters
    ----------
    information : array-like of shape (n_members, n)
        I(predictions of a member on pair i; S_i) in nats. A member that was trained on a part of the pairs holds
        nothing about the others.
    """
    information = _check_information(check_array("information", information, shape=("members", "n")))
    return fcmi_bound(np.minimum(information.sum(axis=0), LOG2))


def _fast_rate(train_error: float, information: float) -> float:
    if information == 0.0:
        return 0.0
    if train_error == 0.0:
        return 2 * information / LOG2

    def value(log_t: np.ndarray | float) -> np.ndarray:
        t = np.exp(log_t)
        doubled = np.log1p(-np.expm1(-t))  # 2 C2
        return train_error * (t / doubled - 1) + 2 * information / doubled

    return _least(value, _low(information), 7.0)


def _kl_inverse(q: float, c: float) -> float:
    if q == 0.0:
        return -math.expm1(-c)
    if c == 0.0 or q == 1.0:
        return q
    rest = 1 - q

    def excess(p: float) -> float:
        return q * math.log(q / p) + rest * math.log(rest / (1 - p)) - c

    largest = 1 - 2**-53
    if q >= largest or excess(largest) <= 0:
        return 1.0
    return brentq(excess, q, largest, xtol=1e-15, rtol=1e-15)


def _low(information: float) -> float:
    """Return a logarithm below that of the best rate, which is about the root of information over training error."""
    return min(-16.0, math.log(information) / 2 - 3)


def _least(value: Callable[[np.ndarray | float], np.ndarray], low: float, high: float) -> float:
    """Return the least value between two ends: the best of a grid, refined between its neighbours."""
    grid = np.linspace(low, high, _GRID)
    values = value(grid)
    best = int(np.argmin(values))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    refined = minimize_scalar(value, bounds=ends, method="bounded", options={"xatol": 1e-9})
    return float(min(refined.fun, values[best]))


def _check_information(information: ArrayLike) -> np.ndarray:
    """Return information of any shape, in nats, with 0 for what is negative; NaN and nothing are refused."""
    information = check_array("information", information, dtype=np.float64)
    if information.size == 0:
        raise ValueError(f"information must hold at least one value, got shape {information.shape}")
    return np.maximum(information, 0.0)


def _mean(information: ArrayLike) -> float:
    """Return the mean over all axes, clipped at 0 after averaging: clipping would bias corrected estimates before."""
    information = check_array("information", information, dtype=np.float64)
    _check_information(information)
    return max(float(information.mean()), 0.0)


def _check_unit(name: str, value: ArrayLike) -> np.ndarray:
    """Return probabilities of any shape, not empty."""
    array = check_array(name, value, dtype=np.float64)
    if array.size == 0 or array.min() < 0 or array.max() > 1:
        raise ValueError(f"{name} must lie in [0, 1], got {array.min() if array.size else 'nothing'}")
    return array
