"""What every fitted learning curve can answer: errors with a band, required samples, how far to trust it.

A curve is fitted in logarithms, x = ln n and y = ln error, because errors shrink by factors: the noise is about
the same factor everywhere, and an error stays positive. A kind of curve only says how it computes y(x), the
standard deviation of y(x), and the smallest x at which y falls to a given value.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal, Self, overload

import numpy as np
from scipy.special import stdtr, stdtrit
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from natwise.core.validation import check_array, check_flag, check_real, check_same_length, shorten

MIN_SIZES = 3
ACCURACY_P_VALUE = 0.02
ACCURACY_COMPLEMENT = 0.9


class ExtrapolationWarning(UserWarning):
    """The answer lies further beyond the measured sizes than the curve may be trusted; it was withheld."""


@dataclass(frozen=True)
class Observations:
    """Measured points, sorted by size ``n``: ``y = ln error`` and weights of mean 1."""

    n: np.ndarray
    y: np.ndarray
    weight: np.ndarray

    @functools.cached_property
    def x(self) -> np.ndarray:
        """The logarithms of the sizes."""
        return np.log(self.n)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """The distinct values of ``x``, ascending."""
        return np.unique(self.x)

    def up_to(self, x: float) -> Observations:
        """Return the points whose ln n is at most `x`."""
        keep = self.x <= x
        return Observations(self.n[keep], self.y[keep], self.weight[keep])


def check_observations(n: Any, errors: Any, sample_weight: Any = None) -> Observations:
    """Return the checked points of a learning curve.

    Raises
    ------
    ValueError
        Lengths differ; a size is not positive; an error is 0, negative or above 1; fewer than three distinct
        sizes; errors that rise with n, as accuracies do.
    """
    n = check_array("n", n, shape=("n_points",), dtype=np.float64)
    errors = check_array("errors", errors, shape=("n_points",), dtype=np.float64)
    weight = np.ones_like(n)
    if sample_weight is not None:
        weight = check_array("sample_weight", sample_weight, shape=("n_points",), dtype=np.float64)
    check_same_length(n=n, errors=errors, sample_weight=weight)
    if (n <= 0).any():
        raise ValueError(f"n must be > 0, got {n[n <= 0][0]:g}")
    _check_error_rates(errors)
    if (weight < 0).any() or (len(weight) and not weight.any()):
        raise ValueError(f"sample_weight must be >= 0 and not all 0, got {shorten(weight.tolist())}")
    used = np.flatnonzero(weight > 0)
    used = used[np.argsort(n[used], kind="stable")]
    distinct = np.unique(n[used])
    if len(distinct) < MIN_SIZES:
        raise ValueError(f"n must hold at least {MIN_SIZES} distinct sizes, got {shorten(distinct.tolist())}")
    observations = Observations(n[used], np.log(errors[used]), weight[used] / weight[used].mean())
    _check_errors_fall(observations)
    return observations


def check_target(target: float) -> float:
    """Return the natural logarithm of the wanted error rate; ValueError when it is not in (0, 1]."""
    target = check_real("target", target)
    if not 0 < target <= 1:
        raise ValueError(f"target must be an error rate in (0, 1], got {target:g}")
    return math.log(target)


def weighted_least_squares(
    design: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return coefficients (p,), weighted residual sum of squares, (A' W A)^+ of the fit of y (n,) by A (n, p)."""
    root = np.sqrt(weight)
    scale = np.linalg.norm(design * root[:, None], axis=0)
    scale[scale == 0] = 1.0
    inverse = np.linalg.pinv(design * (root[:, None] / scale), rcond=1e-10)
    coefficients = inverse @ (root * y) / scale
    residual = y - design @ coefficients
    unscaled = inverse / scale[:, None]
    return coefficients, float(weight @ residual**2), unscaled @ unscaled.T


class LearningCurve(BaseEstimator):
    """The questions that every fitted curve answers; the kinds of curve inherit it.

    The input is a 1-D array of training-set sizes, not a feature matrix, so scikit-learn's `check_estimator` does
    not apply; `get_params`, `set_params` and `clone` work as usual.
    """

    max_extrapolation: float

    @overload
    def predict(self, n: Any, return_std: Literal[False] = False) -> np.ndarray: ...

    @overload
    def predict(self, n: Any, return_std: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(self, n: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the expected error at sizes `n`.

        Parameters
        ----------
        n : array-like of any shape
            Training-set sizes, > 0, in the unit that was fitted (total or per class).
        return_std : bool
            Also return the standard deviation of **ln error** there, so that the band is
            ``errors * exp(± z * std)``. It describes the curve, not the scatter of a single new measurement, and
            is infinite when there are as few points as parameters.

        Returns
        -------
        errors : ndarray of float64, shape of `n`
        std : ndarray of float64, shape of `n`, only if `return_std`
        """
        x = self._log_sizes(n)
        errors = np.exp(self._log_error(x))
        return (errors, self._log_std(x)) if check_flag("return_std", return_std) else errors

    def predict_interval(self, n: Any, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and upper end of the log-normal band of the curve at sizes `n`.

        Quantiles are Student's, because the noise is estimated from the same few points. Ends are cut to [0, 1].
        """
        x = self._log_sizes(n)
        centre, half = self._log_error(x), self._quantile(confidence) * self._log_std(x)
        return np.exp(np.minimum(centre - half, 0.0)), np.exp(np.minimum(centre + half, 0.0))

    def required_samples(self, target: float) -> int | float:
        """Return the smallest size whose expected error is at most `target`.

        Parameters
        ----------
        target : float
            Error rate in (0, 1].

        Returns
        -------
        int or inf
            At least the smallest fitted size (the answer when the target is already reached). ``inf`` when the
            curve never reaches the target, and also, with an `ExtrapolationWarning` that says "cannot say", when
            the answer lies more than ``max_extrapolation`` times beyond the largest fitted size.
        """
        size, status = self._find_size(check_target(target))
        if status == "cannot say":
            warnings.warn(
                f"cannot say how many samples an error of {target:g} needs: more than {self.max_extrapolation:g} "
                f"times the largest fitted size ({self.largest_size_:g})",
                ExtrapolationWarning,
                stacklevel=2,
            )
        return size

    def required_interval(self, target: float, confidence: float = 0.95) -> tuple[int | float, int | float]:
        """Return the sizes at which the lower and the upper end of the band fall to `target` (ints or inf).

        Sizes are searched up to ``max_extrapolation`` times the largest fitted one (at most a billion times).
        """
        log_target = check_target(target)
        x = self._trusted_log_sizes()
        half = self._quantile(confidence) * self._log_std(x)
        centre = self._log_error(x)
        return _first_size_below(x, centre - half, log_target), _first_size_below(x, centre + half, log_target)

    def horizon(self, rtol: float = 0.1, confidence: float = 0.95) -> int | float:
        """Return the largest size up to which the band is narrower than ``±rtol``: how far to trust the curve.

        Parameters
        ----------
        rtol : float
            Tolerated relative half-width: quantile * std(ln error) <= ln(1 + rtol).
        confidence : float
            Of the band, in (0, 1).

        Returns
        -------
        int or inf
            At least the largest fitted size, at most ``max_extrapolation`` times it.
        """
        tolerance = math.log1p(check_real("rtol", rtol, minimum=0, exclusive=True))
        x = self._trusted_log_sizes()
        x = x[x >= math.log(self.largest_size_)]
        too_wide = self._quantile(confidence) * self._log_std(x) > tolerance
        if not too_wide.any():
            limit = self._check_max_extrapolation() * self.largest_size_
            return math.floor(limit) if math.isfinite(limit) else math.inf
        return math.floor(math.exp(x[max(int(too_wide.argmax()) - 1, 0)]) * (1 + 1e-9))

    def _find_size(self, log_target: float) -> tuple[int | float, str]:
        """Return the required size and one of "reached", "forecast", "cannot say", "unreachable"."""
        check_is_fitted(self)
        limit = self._check_max_extrapolation() * self.largest_size_
        if self._log_error(np.log([self.smallest_size_]))[0] <= log_target:
            return _round_up(self.smallest_size_), "reached"
        x = self._solve(log_target)
        if x == math.inf:
            return math.inf, "unreachable"
        if x > min(math.log(limit), 700):
            return math.inf, "cannot say"
        size = _round_up(math.exp(x))
        return size, "reached" if size <= self.largest_size_ else "forecast"

    def _remember_range(self, observations: Observations) -> Self:
        self._check_max_extrapolation()
        self.smallest_size_ = float(observations.n[0])
        self.largest_size_ = float(observations.n[-1])
        return self

    def _check_max_extrapolation(self) -> float:
        if self.max_extrapolation == math.inf:
            return math.inf
        return check_real("max_extrapolation", self.max_extrapolation, minimum=1)

    def _log_sizes(self, n: Any) -> np.ndarray:
        check_is_fitted(self)
        n = check_array("n", n, dtype=np.float64)
        if (n <= 0).any():
            raise ValueError(f"n must be > 0, got {n[n <= 0].ravel()[0]:g}")
        return np.log(n)

    def _trusted_log_sizes(self) -> np.ndarray:
        check_is_fitted(self)
        factor = min(self._check_max_extrapolation(), 1e9)
        inside = np.linspace(math.log(self.smallest_size_), math.log(self.largest_size_), 1000)
        return np.r_[inside, inside[-1] + np.linspace(0, math.log(factor), 8000)[1:]]

    def _quantile(self, confidence: float) -> float:
        confidence = check_real("confidence", confidence, minimum=0, maximum=1, exclusive=True)
        return float(stdtrit(max(self.degrees_of_freedom_, 1), (1 + confidence) / 2))

    def _log_error(self, x: np.ndarray) -> np.ndarray:
        """Return ln error, shape of `x` = ln n."""
        raise NotImplementedError

    def _log_std(self, x: np.ndarray) -> np.ndarray:
        """Return the standard deviation of ln error, shape of `x` = ln n."""
        raise NotImplementedError

    def _solve(self, log_target: float) -> float:
        """Return the smallest ln n, above the smallest fitted size, at which ln error is `log_target`."""
        raise NotImplementedError


def _first_size_below(x: np.ndarray, y: np.ndarray, log_target: float) -> int | float:
    """Return the smallest size at which y, ln error on the grid x = ln n, both (n,), is at most `log_target`."""
    below = np.flatnonzero(y <= log_target)
    if not len(below):
        return math.inf
    i = int(below[0])
    if i > 0 and math.isfinite(y[i - 1]):
        return _round_up(math.exp(np.interp(-log_target, -y[i - 1 : i + 1], x[i - 1 : i + 1])))
    return _round_up(math.exp(x[i]))


def _round_up(size: float) -> int:
    """Return the next integer; the tolerance makes the size that belongs to a predicted error that size again."""
    return math.ceil(size * (1 - 1e-9))


def _check_error_rates(errors: np.ndarray) -> None:
    """Refuse errors (n,) outside (0, 1], with a hint at what they may be."""
    if (errors > 1).any():
        raise ValueError(
            f"errors must be fractions in (0, 1], got {errors[errors > 1][0]:g} (divide percentages by 100)"
        )
    if (errors <= 0).any():
        raise ValueError(
            f"errors must be > 0, got {errors[errors <= 0][0]:g}: no mistake on n_test test samples is an error "
            "rate of about 0.5 / n_test; pass that instead"
        )


def _check_errors_fall(observations: Observations) -> None:
    """Refuse values that clearly rise with n: accuracies passed as errors."""
    x, y, weight = observations.x, observations.y, observations.weight
    means = np.array([np.average(y[x == size], weights=weight[x == size]) for size in observations.sizes])
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    (_, slope), rss, inverse = weighted_least_squares(design, y, weight)
    first, *_, last = np.exp(means)
    # errors at chance level may creep up too; only accuracies rise so that their complement falls like an error
    if slope <= 0 or 1 - last > ACCURACY_COMPLEMENT * (1 - first):
        return
    freedom = len(x) - 2
    p_value = 1 - stdtr(freedom, slope / math.sqrt(max(rss / freedom * inverse[1, 1], 1e-30)))
    if (np.diff(means) > 0).all() or p_value < ACCURACY_P_VALUE:
        raise ValueError(
            f"errors must fall with n, got values that rise from {first:.3g} to {last:.3g}: pass errors "
            "(1 - accuracy), not accuracies"
        )
