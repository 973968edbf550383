"""Bounds that need no runs: from capacity, from stability, from gradient noise, and PAC-Bayes for contrast."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from natwise.core.validation import check_integer, check_option, check_real

from ._bounds import LOG2, fcmi_bound, kl_inverse
from ._inputs import check_not_negative


def vc_bound(n: int, d: int) -> float:
    """Return the f-CMI bound on ``|E gap|`` of any deterministic binary classifier from a class of VC dimension d.

    Parameters
    ----------
    n : int
        Size of the training set.
    d : int
        VC dimension.

    Returns
    -------
    float
        sqrt(2 I / n) with I from `vc_information`.

    Examples
    --------
    >>> round(vc_bound(10_000, 10), 3)
    0.131
    """
    return fcmi_bound(vc_information(n, d), m=n)


def vc_information(n: int, d: int) -> float:
    """Return the most nats that all predictions on a supersample can hold about the split, by Sauer's lemma.

    Parameters
    ----------
    n : int
        Size of the training set; the supersample has 2n examples.
    d : int
        VC dimension.

    Returns
    -------
    float
        ``max((d + 1) log 2, d log(2 e n / d))``.
    """
    n, d = check_integer("n", n, minimum=1), check_integer("d", d, minimum=1)
    return max((d + 1) * LOG2, d * math.log(2 * math.e * n / d))


def stability_bound(self_stability: float, dimension: int, lipschitz: float = 1.0) -> float:
    """Return the bound on ``|E gap|`` of a deterministic symmetric algorithm that is stable in its predictions.

    Parameters
    ----------
    self_stability : float
        beta, with beta^2 >= E ||f(z, x_i) - f(z', x_i)||^2 where z' is z with example i drawn anew.
    dimension : int
        d, the number of outputs of a prediction.
    lipschitz : float
        gamma, by which the loss (in [0, 1]) can change per unit of the prediction.

    Returns
    -------
    float
        ``2^(3/2) d^(1/4) sqrt(gamma beta)``.
    """
    beta = check_real("self_stability", self_stability, minimum=0.0)
    d = check_integer("dimension", dimension, minimum=1)
    return 2**1.5 * d**0.25 * math.sqrt(check_real("lipschitz", lipschitz, minimum=0.0) * beta)


def stability_squared_bound(
    n: int,
    self_stability: float,
    test_stability: float,
    train_stability: float,
    *,
    dimension: int,
    lipschitz: float = 1.0,
    constant: str = "paper",
) -> float:
    """Return the bound on E gap^2 of a stable deterministic symmetric algorithm.

    Parameters
    ----------
    n : int
        Size of the training set.
    self_stability, test_stability, train_stability : float
        Root mean squared change of a prediction on the example drawn anew, on a new example, and on another
        training example.
    dimension : int
        Number of outputs of a prediction.
    lipschitz : float
        By which the loss can change per unit of the prediction.
    constant : {"paper", "sharp"}
        ``32 / n + 12^(3/2) sqrt(d) gamma s`` (the constant of the paper as we remember it, not checked against its
        text), or ``32 / n + 8 sqrt(2) sqrt(d) gamma s``, our own derivation for the gap to the other half of the
        supersample; s^2 = 2 self^2 + n test^2 + n train^2.
    """
    n = check_integer("n", n, minimum=1)
    check_option("constant", constant, ("paper", "sharp"))
    own, test, train = (
        check_real(name, value, minimum=0.0)
        for name, value in (
            ("self_stability", self_stability),
            ("test_stability", test_stability),
            ("train_stability", train_stability),
        )
    )
    root = math.sqrt(
        check_integer("dimension", dimension, minimum=1) * (2 * own * own + n * test * test + n * train * train)
    )
    factor = 12**1.5 if constant == "paper" else 8 * math.sqrt(2)
    return 32 / n + factor * check_real("lipschitz", lipschitz, minimum=0.0) * root


def sgld_bound(n: int, batch_size: int, lr: ArrayLike, beta: ArrayLike, grad_variance: ArrayLike) -> float:
    """Return the bound of Negrea et al. (NeurIPS 2019) on ``|E gap|`` of stochastic gradient Langevin dynamics.

    The square root of ``n / (4 b (n - 1)^2) sum_t lr_t beta_t V_t / 4``, for the update
    ``w <- w - lr grad + sqrt(2 lr / beta) N(0, I)`` with unit normal noise, which `SGLD` takes.

    Parameters
    ----------
    n : int
        Size of the training set.
    batch_size : int
        b.
    lr, beta : float or array-like of shape (T,) or longer
        Learning rate and inverse temperature of each iteration.
    grad_variance : array-like of shape (T,)
        ``grad_variance[t - 1]`` is the mean over training examples of ||grad_i - mean grad||^2 where iteration t
        starts.

    Notes
    -----
    The indices are those of the f-CMI authors' code: the sum runs over t = 1 … T - 1 and pairs ``lr[t]`` and
    ``beta[t]`` with ``grad_variance[t - 1]``, so that the first iteration (an untrained network) is left out. Their
    runs add noise of standard deviation 1 / beta times what the bound assumes; the curve then belongs to another
    process than the runs.
    """
    n = check_integer("n", n, minimum=2)
    b = check_integer("batch_size", batch_size, minimum=1, maximum=n)
    variance = check_not_negative("grad_variance", grad_variance, ("T",))
    steps = np.arange(1, len(variance))
    products = _at("lr", lr, len(variance))[steps] * _at("beta", beta, len(variance))[steps]
    return math.sqrt(n / (4 * b * (n - 1) ** 2) * float(products @ variance[:-1]) / 4) if len(steps) else 0.0


def pac_bayes_kl_bound(empirical_risk: float, kl: float, n: int, delta: float = 0.05) -> float:
    """Return the PAC-Bayes kl bound (Seeger, Maurer) on the risk of a randomised classifier.

    It holds with probability 1 - delta over the training set: for one trained posterior, unlike the bounds of this
    folder on the mean over training sets.

    Parameters
    ----------
    empirical_risk : float
        Mean training loss under the posterior, in [0, 1].
    kl : float
        KL(posterior || prior) in nats; the prior must not depend on the training set.
    n : int
        Size of the training set.
    delta : float
        Probability with which it may fail.

    Returns
    -------
    float
        ``kl_inverse(risk, (KL + log(2 sqrt(n) / delta)) / n)``.
    """
    risk = check_real("empirical_risk", empirical_risk, minimum=0.0, maximum=1.0)
    return float(kl_inverse(risk, _complexity(kl, n, delta)))


def mcallester_bound(empirical_risk: float, kl: float, n: int, delta: float = 0.05) -> float:
    """Return McAllester's square-root form of `pac_bayes_kl_bound`, which Pinsker's inequality makes looser.

    Parameters
    ----------
    empirical_risk, kl, n, delta
        As in `pac_bayes_kl_bound`.
    """
    risk = check_real("empirical_risk", empirical_risk, minimum=0.0, maximum=1.0)
    return risk + math.sqrt(_complexity(kl, n, delta) / 2)


def _complexity(kl: float, n: int, delta: float) -> float:
    n = check_integer("n", n, minimum=1)
    delta = check_real("delta", delta, minimum=0.0, maximum=1.0, exclusive=True)
    return (check_real("kl", kl, minimum=0.0) + math.log(2 * math.sqrt(n) / delta)) / n


def _at(name: str, value: ArrayLike, length: int) -> np.ndarray:
    """Return a setting of every iteration, (length,) or longer; a single number is the same in all."""
    array = check_not_negative(name, value)
    if array.ndim == 0:
        array = np.full(length, float(array))
    if array.ndim != 1 or len(array) < length:
        raise ValueError(f"{name} must be a number or hold at least {length} values, got shape {array.shape}")
    return array
