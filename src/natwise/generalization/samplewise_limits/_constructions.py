"""Two learners that tell nothing about any single sample and whose gap is nevertheless always one half."""

from __future__ import annotations

import itertools
import math

import numpy as np

from natwise.core.validation import check_integer
from natwise.generalization.samplewise_limits._enumeration import BUDGET, check_budget
from natwise.generalization.samplewise_limits._problem import FiniteLearningProblem

_LARGEST = 64  # bits or points: beyond, the size alone takes long to compute


def affine_parity_problem(n: int, d: int, *, budget: int = BUDGET) -> FiniteLearningProblem:
    """Return the learner of affine parities: no information in single samples, and a gap of 1/2 in every run.

    Samples are uniform on {0, 1}^d. A hypothesis (a, b), a not 0, errs on z where a·z + b is odd, so on half of all
    points. The learner draws uniformly among those that err on all training samples or on none. Then I(W; Z_i) = 0,
    and with M = 2^d points every pair tells I(W; Z_i, Z_k) = (1 - 1/M) log((M - 1) / (M/2 - 1)) nats.

    Parameters
    ----------
    n : int
        Training samples, at most `d` so that such a hypothesis always exists.
    d : int
        Bits per sample, at least 2 (with one bit there is nothing to choose).
    budget : int
        Largest table M^n (2M - 2) to enumerate; checked before it is allocated.

    Returns
    -------
    FiniteLearningProblem

    Notes
    -----
    Point z is the number whose binary digits are its bits. Our construction for the theorem of Harutyunyan, Ver Steeg
    and Galstyan (ITW 2022), with a larger constant than the published 1/4 with probability 1/2.

    Examples
    --------
    >>> problem = affine_parity_problem(3, 3)
    >>> problem.information(0) < 1e-15, problem.gap_moments()["E_gap2"]
    (True, 0.25)
    >>> round(problem.information((0, 1)), 5)
    0.74139
    """
    d = check_integer("d", d, minimum=2, maximum=_LARGEST)
    n = check_integer("n", n, minimum=1, maximum=d)
    points = 2**d
    check_budget(points, n, 2 * (points - 1), budget)
    z = np.arange(points)
    odd = np.bitwise_count(np.arange(1, points)[:, None] & z) % 2
    loss = np.concatenate([odd, 1 - odd])
    return FiniteLearningProblem(np.full(points, 1 / points), loss, constant_on_training_set(loss, n), budget=budget)


def balanced_labelling_problem(n: int, m: int, *, budget: int = BUDGET) -> FiniteLearningProblem:
    """Return the learner of balanced labellings: as `affine_parity_problem`, with the richest hypotheses.

    Samples are uniform on m points; a hypothesis errs on any half of the points. The learner draws uniformly among
    those that err on all training samples or on none. All facts and formulas of `affine_parity_problem` hold with
    M = m, which need not be a power of two.

    Parameters
    ----------
    n : int
        Training samples, at most m / 2.
    m : int
        Points, an even number.
    budget : int
        Largest table m^n C(m, m/2) to enumerate; checked before it is allocated.

    Returns
    -------
    FiniteLearningProblem

    Examples
    --------
    >>> problem = balanced_labelling_problem(2, 6)
    >>> problem.n_hypotheses, round(problem.information((0, 1)), 5)
    (20, 0.76358)
    """
    m = check_integer("m", m, minimum=2, maximum=_LARGEST)
    if m % 2:
        raise ValueError(f"m must be even, got {m}")
    n = check_integer("n", n, minimum=1, maximum=m // 2)
    check_budget(m, n, math.comb(m, m // 2), budget)
    loss = np.zeros((math.comb(m, m // 2), m))
    for row, wrong in zip(loss, itertools.combinations(range(m), m // 2), strict=True):
        row[list(wrong)] = 1
    return FiniteLearningProblem(np.full(m, 1 / m), loss, constant_on_training_set(loss, n), budget=budget)


def constant_on_training_set(loss: np.ndarray, n: int) -> np.ndarray:
    """Return the kernel of the uniform choice among hypotheses whose 0/1 loss is the same on all n samples.

    `loss` is (n_hypotheses, n_points), the kernel (n_points, …, n_points, n_hypotheses).
    """
    wrong = loss.T.astype(bool)
    all_wrong, none_wrong = wrong, ~wrong
    for _ in range(n - 1):
        all_wrong, none_wrong = all_wrong[..., None, :] & wrong, none_wrong[..., None, :] & ~wrong
    allowed = all_wrong | none_wrong
    return allowed / allowed.sum(axis=-1, keepdims=True)
