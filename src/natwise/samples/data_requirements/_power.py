"""The power law and the piecewise power law: closed forms in x = ln n and y = ln error.

Both are written around the switching size N with u = ln n - ln N:

    y = value + slope * u + curvature * min(u, 0)^2 ,

a quadratic up to N that continues as its tangent (a power law) beyond N. It equals
th1 + th2 x + th3 x^2 below ln N with th3 = curvature, th2 = slope - 2 th3 ln N and
th1 = value - slope ln N + th3 (ln N)^2, but is well conditioned, continuous with its slope by construction, and
shows the slope of the tail, which decides every forecast, as a coefficient of its own.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize_scalar

from natwise.core.validation import check_real

from ._curve import LearningCurve, Observations, check_observations, weighted_least_squares

N_SWITCH_GRID = 200
MIN_SIZES_PIECEWISE = 4


class _TangentCurve(LearningCurve):
    """A quadratic in ln n up to the switching size that continues as its tangent; the power law has no curvature.

    Fitted state: ``coef_`` (value, slope, curvature), ``log_switch_``, ``covariance_`` of the coefficients of
    `_basis`, ``degrees_of_freedom_``.
    """

    def _store(self, observations: Observations, log_switch: float, columns: int, estimated: int = 0) -> Self:
        """Fit the first `columns` columns of the basis around the switch.

        `estimated` is 1 when the switch was found from the same points: the band then carries its derivative, the
        next column of the basis, and one degree of freedom less.
        """
        basis = _basis(observations.x - log_switch)
        coef, rss, _ = weighted_least_squares(basis[:, :columns], observations.y, observations.weight)
        wide = basis[:, : columns + estimated]
        self.covariance_ = weighted_least_squares(wide, observations.y, observations.weight)[2]
        self.coef_ = np.r_[coef, np.zeros(3 - columns)]
        self.log_switch_ = float(log_switch)
        self.switch_size_ = math.exp(log_switch)
        self.degrees_of_freedom_ = len(observations.x) - columns - estimated
        self.residual_std_ = _residual_std(rss, self.degrees_of_freedom_)
        return self._remember_range(observations)

    @property
    def theta_(self) -> np.ndarray:
        """``(th1, th2, th3)`` of y = th1 + th2 ln n + th3 (ln n)^2 below the switching size."""
        value, slope, curvature = self.coef_
        x = self.log_switch_
        return np.array([value - slope * x + curvature * x**2, slope - 2 * curvature * x, curvature], dtype=np.float64)

    def _log_error(self, x: np.ndarray) -> np.ndarray:
        return _basis(x - self.log_switch_)[..., :3] @ self.coef_

    def _log_std(self, x: np.ndarray) -> np.ndarray:
        if not math.isfinite(self.residual_std_):
            return np.full(np.shape(x), math.inf)
        basis = _basis(x - self.log_switch_)[..., : len(self.covariance_)]
        variance = np.einsum("...i,ij,...j->...", basis, self.covariance_, basis)
        return self.residual_std_ * np.sqrt(np.maximum(variance, 0.0))

    def _solve(self, log_target: float) -> float:
        value, slope, curvature = self.coef_
        above = log_target - value
        if above >= 0:
            discriminant = slope**2 + 4 * curvature * above
            if discriminant < 0:  # the target lies above the top of the curve: reached everywhere
                return math.log(self.smallest_size_)
            # this form of the root with negative slope also holds for curvature 0
            denominator = -slope + math.sqrt(discriminant)
            return self.log_switch_ - 2 * above / denominator if denominator > 0 else math.inf
        return self.log_switch_ + above / slope if slope < -1e-12 else math.inf


class PowerLaw(_TangentCurve):
    """Error = a n^b by weighted least squares on ln error against ln n.

    Parameters
    ----------
    max_extrapolation : float
        `required_samples` answers "cannot say" beyond this many times the largest fitted size. Unlimited by
        default: this is the baseline, as it is used in the literature.

    Attributes
    ----------
    coef_ : ndarray of shape (3,)
        ln error at the mean ln n, slope b, and 0.
    theta_ : ndarray of shape (3,)
        ``(ln a, b, 0)``.
    smallest_size_, largest_size_ : float
        The range of the fitted sizes.
    covariance_ : ndarray of shape (2, 2)
        (A' W A)^-1 of the first two coefficients; ``residual_std_`` squared times it is their covariance.
    residual_std_ : float
        Standard deviation of ln error around the curve.
    degrees_of_freedom_ : int

    Examples
    --------
    >>> curve = PowerLaw().fit([10, 40, 160], [0.4, 0.2, 0.1])
    >>> curve.required_samples(0.05)
    640
    """

    def __init__(self, max_extrapolation: float = math.inf):
        self.max_extrapolation = max_extrapolation

    def fit(self, n: Any, errors: Any, sample_weight: Any = None) -> Self:
        """Fit the curve.

        Parameters
        ----------
        n : array-like of shape (n_points,)
            Training-set sizes, > 0, total or per class; any order, repeats allowed, at least three distinct.
        errors : array-like of shape (n_points,)
            Error rates in (0, 1].
        sample_weight : array-like of shape (n_points,), optional
            1 / variance of ln error, up to a factor. An integer weight equals that many repeats in the fit.

        Raises
        ------
        ValueError
            For fewer than three distinct sizes, errors outside (0, 1], or values that rise like accuracies.
        """
        observations = check_observations(n, errors, sample_weight)
        return self._fit_power_law(observations)

    def _fit_power_law(self, observations: Observations) -> Self:
        return self._store(observations, float(observations.x.mean()), columns=2)


class PiecewisePowerLaw(_TangentCurve):
    """A quadratic in log-log up to a switching size N, and its tangent, a power law, beyond.

    Few-shot errors often fall slower than the power law that holds later; a power law through them asks for many
    times too much data. The form is our reconstruction of Jain et al. (CVPR 2023), of which the abstract and a
    figure were available to us, not the text.

    Given N the curve is linear in its coefficients; N is found by a profile over 200 geometric points between the
    second and the second-last distinct size, refined by Brent's method. Beyond the data the curve is therefore
    always a power law: the quadratic is never extrapolated unless `switch_size` says so.

    Parameters
    ----------
    switch_size : float, optional
        A known N. Default: estimated.
    max_extrapolation : float
        `required_samples` answers "cannot say" beyond this many times the largest fitted size.

    Attributes
    ----------
    switch_size_ : float
        N.
    theta_ : ndarray of shape (3,)
        ``(th1, th2, th3)`` of ln error = th1 + th2 ln n + th3 (ln n)^2 up to N.
    coef_ : ndarray of shape (3,)
        ln error at N, slope beyond N, curvature th3.
    form_ : str
        ``"piecewise"``, or ``"power law"`` when the points allow no more; a warning tells why.
    covariance_ : ndarray
        (A' W A)^-1 of the coefficients, with a fourth row for the switching size when it was estimated.
    smallest_size_, largest_size_, residual_std_, degrees_of_freedom_
        As in `PowerLaw`.
    """

    def __init__(self, switch_size: float | None = None, max_extrapolation: float = 1000.0):
        self.switch_size = switch_size
        self.max_extrapolation = max_extrapolation

    def fit(self, n: Any, errors: Any, sample_weight: Any = None) -> Self:
        """Fit the curve; parameters as in `PowerLaw.fit`.

        With fewer than four distinct sizes, or when every piecewise fit would end in a rising error, the power law
        is fitted instead, with a `UserWarning`.
        """
        observations = check_observations(n, errors, sample_weight)
        if len(observations.sizes) < MIN_SIZES_PIECEWISE:
            return self._fall_back(observations, f"fewer than {MIN_SIZES_PIECEWISE} distinct sizes")
        if self.switch_size is not None:
            log_switch = math.log(check_real("switch_size", self.switch_size, minimum=0, exclusive=True))
            self._store(observations, log_switch, columns=3)
        else:
            self._store(observations, _profile_switch(observations), columns=3, estimated=1)
        if self.coef_[1] >= 0:
            return self._fall_back(observations, "the fitted error would rise beyond the switching size")
        self.form_ = "piecewise"
        return self

    def _fall_back(self, observations: Observations, reason: str) -> Self:
        self.form_ = "power law"
        self._store(observations, float(observations.x.mean()), columns=2)
        if self.coef_[1] < 0:  # where the power law does not fall either, nothing was lost
            warnings.warn(f"a power law was fitted instead of a piecewise one: {reason}", UserWarning, stacklevel=3)
        return self


def _residual_std(rss: float, degrees_of_freedom: int) -> float:
    return math.sqrt(rss / degrees_of_freedom) if degrees_of_freedom > 0 else math.inf


def _basis(u: np.ndarray) -> np.ndarray:
    """Return 1, u, min(u, 0)^2 and min(u, 0) along a new last axis; the last one is the derivative by ln N."""
    left = np.minimum(u, 0.0)
    return np.stack([np.ones_like(u), u, left**2, left], axis=-1)


def _profile_switch(observations: Observations) -> float:
    """Return the ln N with the smallest residual among those whose curve ends falling."""
    sizes = observations.sizes
    grid = np.linspace(sizes[1], sizes[-2], N_SWITCH_GRID)
    rss, slope = _profile(observations, grid)
    best = int(np.argmin(np.where(slope < 0, rss, math.inf)))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    refined = minimize_scalar(
        lambda x: _profile(observations, np.array([x]))[0][0],
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-11},
    )
    rss_refined, slope_refined = _profile(observations, np.array([refined.x]))
    return float(refined.x) if slope_refined[0] < 0 and rss_refined[0] <= rss[best] else float(grid[best])


def _profile(observations: Observations, log_switches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted residual sum of squares and the final slope for each candidate ln N, all at once.

    The line 1, x is the same for every candidate: what it explains is taken out once, one coefficient remains.
    """
    root, x = np.sqrt(observations.weight), observations.x
    line = np.stack([root, root * (x - x.mean())], axis=1)
    inverse = np.linalg.pinv(line)
    y = root * observations.y
    bend = root * np.minimum(x - log_switches[:, None], 0.0) ** 2
    y_rest = y - line @ (inverse @ y)
    bend_rest = bend - (bend @ inverse.T) @ line.T
    curvature = bend_rest @ y_rest / (bend_rest**2).sum(axis=1)
    residual = y_rest - curvature[:, None] * bend_rest
    return (residual**2).sum(axis=1), inverse[1] @ y - curvature * (bend @ inverse[1])
