"""The classical forms of learning curves: baselines that are fitted to scores in percent.

Four forms as used by Mahmood et al. (CVPR 2022) for estimating data requirements, and the form of Hoiem et al.
(ICML 2021). The score is 100 (1 - error).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.optimize import approx_fprime, least_squares

from natwise.core.validation import check_option

from ._curve import LearningCurve, Observations, check_observations

SMALLEST_ERROR = 1e-9
MAX_EVALUATIONS = 100


@dataclass(frozen=True)
class Form:
    """A family of curves: score in percent at size n, its inverse (inf where unreachable), starts and bounds."""

    score: Callable[[np.ndarray, np.ndarray], np.ndarray]
    size: Callable[[float, np.ndarray], float]
    starts: Callable[[np.ndarray, np.ndarray], list[tuple[float, ...]]]
    bounds: tuple[tuple[float, ...], tuple[float, ...]]


def _power_size(score: float, p: np.ndarray) -> float:
    """Return the size at which the form with parameters p (3,) reaches the score in percent; inf if never."""
    ratio = (score - p[2]) / p[0] if p[0] else 0.0
    return ratio ** (1 / p[1]) if ratio > 0 else math.inf


def _arctan_size(score: float, p: np.ndarray) -> float:
    angle = (score - p[2]) * math.pi / 200
    return (math.tan(angle) - p[1]) * 2 / (math.pi * p[0]) if angle < math.pi / 2 else math.inf


def _logarithmic_size(score: float, p: np.ndarray) -> float:
    exponent = (score - p[2]) / p[0] if p[0] else math.inf
    return math.exp(exponent) - p[1] if exponent < 700 else math.inf


def _root_score(n: np.ndarray, p: np.ndarray) -> np.ndarray:
    # 100 n / (1 + (a n)^b)^(1/b), written so that large n cannot overflow
    return 100 / p[0] * np.exp(-np.logaddexp(0.0, -p[1] * np.log(p[0] * n)) / p[1]) + p[2]


def _root_size(score: float, p: np.ndarray) -> float:
    share = (score - p[2]) * p[0] / 100
    if not 0 < share < 1:
        return math.inf if share >= 1 else 0.0
    return (share ** -p[1] - 1) ** (-1 / p[1]) / p[0]


def _hoiem_size(score: float, p: np.ndarray) -> float:
    rest = 1 - score / 100 - p[0]
    return (p[1] / rest) ** 2 if rest > 0 else math.inf


INF = math.inf
FORMS = {
    "power": Form(
        lambda n, p: p[0] * n ** p[1] + p[2],
        _power_size,
        lambda n, s: [
            (-(100 - s[0]) * n[0] ** -b, b, min(s[-1] + 0.5 * (100 - s[-1]), 99.9)) for b in (-0.2, -0.5, -1.0)
        ],
        ((-INF, -5.0, -INF), (0.0, -1e-3, 100.0)),
    ),
    "arctan": Form(
        lambda n, p: 200 / math.pi * np.arctan(p[0] * math.pi / 2 * n + p[1]) + p[2],
        _arctan_size,
        lambda n, s: [(k / n.mean(), 1.0, -1.0) for k in (0.2, 1.0, 5.0)],
        ((1e-12, -INF, -INF), (INF, INF, 0.0)),
    ),
    "logarithmic": Form(
        lambda n, p: p[0] * np.log(n + p[1]) + p[2],
        _logarithmic_size,
        lambda n, s: [((s[-1] - s[0]) / math.log(n[-1] / n[0]) + 1e-3, b * n[0], s[0]) for b in (0.1, 1.0, 10.0)],
        ((0.0, 0.0, -INF), (INF, INF, INF)),
    ),
    "algebraic_root": Form(
        _root_score,
        _root_size,
        lambda n, s: [(1.0 + 1e-3, b, -1.0) for b in (0.2, 1.0)],
        ((1e-9, 0.02, -INF), (INF, 20.0, INF)),
    ),
    "hoiem": Form(
        lambda n, p: 100 * (1 - p[0] - p[1] / np.sqrt(n)),
        _hoiem_size,
        lambda n, s: [(0.5 * (1 - s[-1] / 100), (1 - s[0] / 100) * math.sqrt(n[0]))],
        ((0.0, 0.0), (1.0, INF)),
    ),
}


class ClassicalCurve(LearningCurve):
    """A baseline: one of the classical forms, fitted by least squares on scores in percent.

    Parameters
    ----------
    form : {"power", "arctan", "logarithmic", "algebraic_root", "hoiem"}
        Score = ``a n^b + c``, ``200/pi atan(a pi/2 n + b) + c``, ``a ln(n + b) + c``,
        ``100 n / (1 + (a n)^b)^(1/b) + c``, or ``100 (1 - alpha - eta n^-0.5)``. Parameters are bounded so that
        the score rises with n, and that of ``power``, ``arctan`` and ``hoiem`` stays at most 100.
    max_extrapolation : float
        As in `PowerLaw`; unlimited by default, as in the literature.

    Attributes
    ----------
    params_ : ndarray
        ``(a, b, c)`` or ``(alpha, eta)``.
    params_covariance_ : ndarray
        Their covariance by linearisation.
    smallest_size_, largest_size_, degrees_of_freedom_
        As in `PowerLaw`. Predicted errors are cut to [1e-9, 1].
    """

    def __init__(self, form: str = "power", max_extrapolation: float = math.inf):
        self.form = form
        self.max_extrapolation = max_extrapolation

    def fit(self, n: Any, errors: Any, sample_weight: Any = None) -> Self:
        """Fit the curve; arguments as in `PowerLaw.fit`, weights multiply squared residuals of the score."""
        check_option("form", self.form, list(FORMS))
        observations = check_observations(n, errors, sample_weight)
        solution = _fit_form(FORMS[self.form], observations)
        self.params_ = solution.x
        self.degrees_of_freedom_ = len(observations.x) - len(solution.x)
        variance = 2 * solution.cost / max(self.degrees_of_freedom_, 1)
        scale = np.maximum(np.linalg.norm(solution.jac, axis=0), 1e-300)
        inverse = np.linalg.pinv(solution.jac / scale, rcond=1e-10) / scale[:, None]
        self.params_covariance_ = variance * inverse @ inverse.T
        return self._remember_range(observations)

    def _score(self, x: np.ndarray, params: np.ndarray) -> np.ndarray:
        """Return the scores in percent, shape of `x` = ln n, with parameters (2,) or (3,)."""
        return FORMS[self.form].score(np.exp(x), params)

    def _log_error(self, x: np.ndarray) -> np.ndarray:
        return np.log(np.clip(1 - self._score(x, self.params_) / 100, SMALLEST_ERROR, 1.0))

    def _log_std(self, x: np.ndarray) -> np.ndarray:
        if self.degrees_of_freedom_ <= 0:
            return np.full(np.shape(x), math.inf)
        step = 1e-6 * np.maximum(np.abs(self.params_), 1e-6)
        jacobian = approx_fprime(self.params_, lambda p: self._score(x.ravel(), p), step).reshape(x.size, -1)
        variance = np.einsum("ij,jk,ik->i", jacobian, self.params_covariance_, jacobian).reshape(x.shape)
        return np.sqrt(np.maximum(variance, 0.0)) / (100 * np.exp(self._log_error(x)))

    def _solve(self, log_target: float) -> float:
        size = FORMS[self.form].size(100 * (1 - math.exp(log_target)), self.params_)
        return math.log(size) if size > 0 else math.log(self.smallest_size_)


def _fit_form(form: Form, observations: Observations) -> Any:
    """Return the best local solution of several starts."""
    n, score = np.exp(observations.x), 100 * (1 - np.exp(observations.y))
    root = np.sqrt(observations.weight)
    lower, upper = (np.array(bound) for bound in form.bounds)
    solutions = [
        least_squares(
            lambda p: root * (form.score(n, p) - score),
            np.clip(start, lower, upper),
            bounds=(lower, upper),
            x_scale="jac",
            max_nfev=MAX_EVALUATIONS,
        )
        for start in form.starts(n, score)
    ]
    return min(solutions, key=lambda solution: solution.cost)
