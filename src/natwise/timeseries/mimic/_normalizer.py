"""Means and standard deviations of columns, gathered batch by batch without cancellation."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from natwise.core.validation import check_option, shorten
from natwise.datasets import mimic3

SMALLEST_STD = 1e-7
_TASKS = {"in_hospital_mortality": "ihm", "decompensation": "decomp", "length_of_stay": "los"}
_TASKS |= {"phenotyping": "ph", "multitask": "mult"}


class Normalizer(TransformerMixin, BaseEstimator):
    """Subtract the mean and divide by the standard deviation, in some columns.

    The moments are those of Welford and Chan et al., exact for any order of batches up to rounding; the published code
    subtracts large sums of squares and loses digits.

    Parameters
    ----------
    columns : sequence of int, optional
        The columns to scale, such as `Discretizer().continuous_columns`; the others pass as they are. Default: all.

    Attributes
    ----------
    mean_ : ndarray (n_features,)
        Mean of each column.
    std_ : ndarray (n_features,)
        Standard deviation with N - 1 in the denominator, at least 1e-7.
    n_samples_seen_ : int
        Rows seen.

    Examples
    --------
    >>> Normalizer().fit([[1.0], [2.0], [3.0]]).transform([[4.0]]).tolist()
    [[2.0]]
    """

    def __init__(self, columns: Any = None):
        self.columns = columns

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the moments of the rows of X, float (n_samples, n_features); `y` is ignored."""
        if hasattr(self, "mean_"):
            del self.mean_
        return self.partial_fit(X)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Take the rows of X (n_samples, n_features) into the moments; `y` is ignored."""
        first = not hasattr(self, "mean_")
        X = validate_data(self, X, dtype=np.float64, reset=first)
        self._chosen()
        count, mean = len(X), X.mean(axis=0)
        squares = ((X - mean) ** 2).sum(axis=0)
        if first:
            self.n_samples_seen_, self.mean_, self._squares = count, mean, squares
        else:
            total, shift = self.n_samples_seen_ + count, mean - self.mean_
            self._squares = self._squares + squares + shift**2 * (self.n_samples_seen_ * count / total)
            self.mean_ = self.mean_ + shift * (count / total)
            self.n_samples_seen_ = total
        variance = self._squares / max(self.n_samples_seen_ - 1, 1)
        self.std_ = np.maximum(np.sqrt(variance), SMALLEST_STD)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return X (n_samples, n_features) as float64 with the chosen columns scaled."""
        check_is_fitted(self, "mean_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        chosen = self._chosen()
        scaled = X.copy()
        scaled[:, chosen] = (X[:, chosen] - self.mean_[chosen]) / self.std_[chosen]
        return scaled

    @classmethod
    def published(cls, task: str = "in_hospital_mortality", timestep: float = 1.0) -> Self:
        """Return the normalizer that the benchmark ships for matrices of `Discretizer(timestep)` on full MIMIC-III.

        Raises
        ------
        ValueError
            If there is none for this task and timestep.
        """
        check_option("task", task, tuple(_TASKS))
        states = mimic3.normalizer_states()
        name = f"{_TASKS[task]}_{timestep:g}"
        if name not in states:
            known = sorted(float(key.split("_")[1]) for key in states if key.startswith(f"{_TASKS[task]}_"))
            raise ValueError(f"timestep must be one of {known} for {task}, got {shorten(timestep)}")
        from natwise.timeseries.mimic._discretizer import Discretizer

        normalizer = cls(columns=Discretizer(timestep=timestep).continuous_columns)
        normalizer.mean_, normalizer.std_ = (states[name][row].copy() for row in range(2))
        normalizer.n_features_in_, normalizer.n_samples_seen_ = len(normalizer.mean_), 0
        return normalizer

    def _chosen(self) -> np.ndarray:
        if self.columns is None:
            return np.arange(self.n_features_in_)
        chosen = np.asarray(self.columns)
        if chosen.dtype.kind not in "iu" or chosen.ndim != 1:
            raise TypeError(f"columns must be a list of column positions, got {shorten(self.columns)}")
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < self.n_features_in_):
            raise ValueError(f"columns must be below {self.n_features_in_}, got {shorten(self.columns)}")
        return chosen
