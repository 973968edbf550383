"""From curves to decisions: how much to collect in the next round, and in which group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from natwise.core.validation import check_array, check_integer, check_real, check_same_length, shorten
from natwise.result import Result, provenance

from ._curve import LearningCurve, check_target

N_EXACT = 20_000
MAX_BUDGET = 2**53


class DataRequirementPlanner(BaseEstimator):
    """Plan the collection of data in rounds: collect as far as the curve may be trusted, measure, fit again.

    Parameters
    ----------
    model : learning curve
        `PowerLaw`, `PiecewisePowerLaw`, `MetaPiecewisePowerLaw` or `ClassicalCurve`; cloned for every fit.
    target : float
        Wanted error rate, in (0, 1).
    max_rounds : int
        Rounds of collection that `run` makes at most.
    correction : float
        tau >= 0: the plan aims at ``target - tau`` to protect against forecasts that ask for too little.
    rtol : float
        The horizon is where the band of the curve becomes wider than ± this relative error.
    confidence : float
        Of the band and of the interval.
    min_growth : float
        A round at least multiplies the data by this (unless less is required), even when no forecast can be
        trusted.

    Attributes
    ----------
    model_ : learning curve
        Fitted to all points.
    status_ : str
        ``"reached"``: the mean error at the largest size is at most the target. ``"forecast"``,
        ``"cannot say"`` (too far beyond the measured sizes) or ``"unreachable"`` (the curve never gets there).
    required_ : int or inf
        Forecast of the total size that reaches ``target - correction``.
    interval_ : tuple of two int or inf
        Where the ends of the band reach it.
    horizon_ : int or inf
        Largest size at which the band is still narrower than ``rtol``.
    next_size_ : int
        Recommended total size after the next round: ``min(required_, horizon_)``, where the horizon counts for
        at least one round of ``min_growth``; one such round when there is no forecast; nothing new when the
        target is reached.
    """

    def __init__(
        self,
        model: LearningCurve,
        target: float,
        max_rounds: int = 5,
        correction: float = 0.0,
        rtol: float = 0.1,
        confidence: float = 0.95,
        min_growth: float = 2.0,
    ):
        self.model = model
        self.target = target
        self.max_rounds = max_rounds
        self.correction = correction
        self.rtol = rtol
        self.confidence = confidence
        self.min_growth = min_growth

    def fit(self, n: Any, errors: Any, sample_weight: Any = None) -> Self:
        """Fit the curve to what was measured so far and decide about the next round; as `PowerLaw.fit`."""
        aim = self._check_parameters()
        self.model_ = clone(self.model).fit(n, errors, sample_weight)
        self.required_, self.status_ = self.model_._find_size(math.log(aim))
        self.interval_ = self.model_.required_interval(aim, self.confidence)
        self.horizon_ = self.model_.horizon(self.rtol, self.confidence)
        n = np.asarray(n, dtype=np.float64)
        largest = n.max()
        measured = np.exp(np.log(np.asarray(errors, dtype=np.float64)[n == largest]).mean())
        smallest_round = math.ceil(self.min_growth * largest)
        if measured <= self.target:
            self.status_, self.next_size_ = "reached", math.ceil(largest)
        elif self.required_ <= largest:  # reached by the curve, but the measurement disagrees
            self.status_, self.next_size_ = "forecast", smallest_round
        elif math.isinf(self.required_):
            self.next_size_ = smallest_round
        else:
            self.next_size_ = int(min(self.required_, max(self.horizon_, smallest_round)))
        return self

    def run(self, measure: Callable[[int], Any], n: Any, errors: Any) -> Result:
        """Collect and measure in rounds until the target is reached or the rounds are used up.

        Parameters
        ----------
        measure : callable
            ``measure(size)`` trains on `size` samples and returns an error rate, or a 1-D array of repeats.
        n, errors : array-like of shape (n_points,)
            What is measured already.

        Returns
        -------
        Result
            One row per round. Arrays: ``size`` (collected in total), ``error`` (mean measured there),
            ``required``, ``low``, ``high``, ``horizon`` (before the round). Scalars: ``reached`` (0 or 1),
            ``size`` (final), ``error``, ``rounds``.
        """
        n = check_array("n", n, shape=("n_points",), dtype=np.float64)
        errors = check_array("errors", errors, shape=("n_points",), dtype=np.float64)
        rounds: list[tuple[float, ...]] = []
        with provenance(data={"n": n, "errors": errors}) as record:
            self.fit(n, errors)
            while self.status_ != "reached" and len(rounds) < self.max_rounds:
                size = self.next_size_
                new = _measured(measure(size))
                rounds.append((size, new.mean(), self.required_, *self.interval_, self.horizon_))
                n, errors = np.r_[n, np.full(len(new), size)], np.r_[errors, new]
                self.fit(n, errors)
        names = ("size", "error", "required", "low", "high", "horizon")
        columns = np.array(rounds, dtype=float).reshape(-1, len(names)).T
        largest = n.max()
        return Result(
            "samples.data_requirements/plan",
            arrays=dict(zip(names, columns, strict=True)),
            scalars={
                "reached": self.status_ == "reached",
                "size": largest,
                "error": errors[n == largest].mean(),
                "rounds": len(rounds),
            },
            rows=list(range(1, len(rounds) + 1)),
            params={"target": self.target, "correction": self.correction, "model": type(self.model).__name__},
            provenance=record,
            warnings=[] if self.status_ == "reached" else [f"target not reached: {self.status_}"],
        )

    def _check_parameters(self) -> float:
        """Return the error rate that is aimed at."""
        _check_curve("model", self.model)
        check_target(self.target)
        check_integer("max_rounds", self.max_rounds, minimum=1)
        check_real("correction", self.correction, minimum=0)
        check_real("min_growth", self.min_growth, minimum=1, exclusive=True)
        if self.correction >= self.target:
            raise ValueError(f"correction must be smaller than target ({self.target:g}), got {self.correction:g}")
        return self.target - self.correction


def allocate_budget(curves: Sequence[LearningCurve], weights: Any, budget: int) -> np.ndarray:
    """Divide `budget` new samples among groups so that the weighted sum of errors falls most.

    Maximises ``sum_g weights[g] * (error_g(n_g) - error_g(n_g + b_g))`` over integers ``b_g`` that sum to
    `budget`, where n_g is the largest size that curve g was fitted to. Errors that first fall slowly and then
    faster are handled by the concave envelope of the gain, so a group is not starved because its next single
    sample brings little. Samples that bring nothing anywhere are divided by weight.

    Parameters
    ----------
    curves : sequence of fitted learning curves, one per group
        Fitted to the number of samples **of that group** (see `measure_learning_curve` with ``groups``).
    weights : array-like of shape (n_groups,)
        Importance of each group's error, >= 0: its share among future cases, or equal for fairness.
    budget : int
        Samples to collect, >= 0.

    Returns
    -------
    ndarray of int64, shape (n_groups,)
        Samples to collect per group; exact for budgets up to 20,000, within a grid step of 0.1 % beyond.

    Raises
    ------
    NotFittedError
        If a curve is not fitted.
    ValueError
        For no curves, negative or all-zero weights, or another number of weights.
    """
    curves = list(curves) if isinstance(curves, (Sequence, np.ndarray)) else [curves]
    for position, curve in enumerate(curves):
        _check_curve(f"curves[{position}]", curve)
    weights = check_array("weights", weights, shape=("n_groups",), dtype=np.float64)
    check_same_length(curves=curves, weights=weights)
    budget = check_integer("budget", budget, minimum=0, maximum=MAX_BUDGET)
    if not curves or (weights < 0).any() or not weights.any():
        raise ValueError(f"weights must be >= 0 and not all 0, got {weights.tolist()}")
    for curve in curves:
        check_is_fitted(curve)
    group, length, slope = _steps(curves, weights, budget)
    order = np.argsort(-slope, kind="stable")
    taken = np.diff(np.minimum(np.cumsum(length[order]), budget), prepend=0)
    taken[slope[order] <= 0] = 0
    spent = np.bincount(group[order], weights=taken, minlength=len(curves)).astype(np.int64)
    return spent + _shares(weights, budget - int(spent.sum()))


def _check_curve(name: str, value: Any) -> None:
    if not isinstance(value, LearningCurve):
        raise TypeError(f"{name} must be a learning curve such as PowerLaw(), got {shorten(value)}")


def _measured(errors: Any) -> np.ndarray:
    """Return what `measure` returned as an array (repeats,); the next fit checks whether these are error rates."""
    errors = np.atleast_1d(check_array("measure(size)", errors, dtype=np.float64))
    if errors.ndim != 1 or not len(errors):
        raise ValueError(f"measure(size) must return an error rate or a 1-D array of repeats, got shape {errors.shape}")
    return errors


def _steps(curves: list[LearningCurve], weights: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pieces of the concave gains: group, samples in the piece, gain per sample; in order per group."""
    added = np.arange(min(budget, N_EXACT) + 1)
    if budget > N_EXACT:
        steps = max(2, math.ceil(math.log(budget / N_EXACT) / 1e-3))
        added = np.unique(np.r_[added, np.geomspace(N_EXACT, budget, steps).round().astype(int)])
    parts = []
    for g, (curve, weight) in enumerate(zip(curves, weights, strict=True)):
        errors = curve.predict(curve.largest_size_ + added)
        gain = np.maximum.accumulate(weight * (errors[0] - errors))
        length, slope = _concave_envelope(added, gain)
        parts.append((np.full(len(length), g), length, slope))
    group, length, slope = (np.concatenate(column) for column in zip(*parts, strict=True))
    return group, length, slope


def _concave_envelope(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths and slopes of the least concave majorant of y(x), both (n,), by pooling adjacent violators."""
    lengths: list[int] = []
    gains: list[float] = []
    for length, gain in zip(np.diff(x).tolist(), np.diff(y).tolist(), strict=True):
        while lengths and gain * lengths[-1] > gains[-1] * length:
            length += lengths.pop()
            gain += gains.pop()
        lengths.append(length)
        gains.append(gain)
    return np.array(lengths, dtype=np.int64), np.array(gains) / np.array(lengths, dtype=float)


def _shares(weights: np.ndarray, budget: int) -> np.ndarray:
    """Return integers proportional to weights (n_groups,) that sum to `budget`: largest remainders."""
    exact = weights / weights.sum() * budget
    whole = np.floor(exact).astype(np.int64)
    largest = np.argsort(whole - exact, kind="stable")[: budget - int(whole.sum())]
    whole[largest] += 1
    return whole
