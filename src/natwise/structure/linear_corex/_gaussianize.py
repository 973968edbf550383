"""Bringing columns to zero mean and unit variance, or nearer to a Gaussian; missing values are filled on the way."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

KINDS = ("standard", "outliers", "empirical", None)
SMALLEST_SCALE = 1e-10
_LINEAR_UP_TO = 4.0


class Gaussianizer:
    """A fitted, column-wise map of the data to the scale on which the model works.

    Parameters
    ----------
    kind : {"standard", "outliers", "empirical", None}
        ``"standard"``: (x - mean) / std with ddof = 0. ``"outliers"``: the same, then values beyond four standard
        deviations are squashed into (4, 5) by tanh. ``"empirical"``: normal quantile of (rank - 0.5) / n.
        ``None``: the data as they are, meant for columns of mean 0 and second moment 1.
    missing_values : float or None
        NaN or the number that marks a missing value; None: there are none.

    Notes
    -----
    Missing values are replaced by the column's mean *of the training data*, also in `transform` (the original uses
    the means of whatever data it is given). The ``"standard"`` scale divides by the number of observed values, so that
    the observed values have unit variance; ``"outliers"`` divides by all rows; both as in the original.

    ``"empirical"`` interpolates between the training values, so that training data get exactly the scores of their
    ranks and new data are independent of one another (the original ranks the new data among themselves).
    """

    def __init__(self, kind: str | None, missing_values: float | None):
        self.kind = kind
        self.missing_values = missing_values

    def fit(self, X: np.ndarray) -> Gaussianizer:
        """Learn means, scales and (for ``"empirical"``) quantiles from `X` (n, p)."""
        missing = self._missing(X)
        n_observed = len(X) - missing.sum(axis=0)
        if not n_observed.all():
            raise ValueError(f"X must have an observed value in every column, got none in {_list(n_observed == 0)}")
        observed = np.where(missing, np.nan, X) if missing.any() else X
        self.fill_ = np.nanmean(observed, axis=0)
        constant = np.nanmin(observed, axis=0) == np.nanmax(observed, axis=0)
        self.fill_[constant] = np.nanmax(observed, axis=0)[constant]  # free of rounding: becomes exactly 0
        filled = self._fill(X)
        if self.kind in ("standard", "outliers"):
            divisor = n_observed if self.kind == "standard" else len(X)
            with np.errstate(over="ignore"):
                scale = np.sqrt(((filled - self.fill_) ** 2).sum(axis=0) / divisor)
            self._fit_scale(self.fill_, scale)
        elif self.kind is None:
            self._fit_scale(np.zeros(X.shape[1]), _unit_or_larger(filled))
        else:
            self._fit_scale(np.zeros(X.shape[1]), np.ones(X.shape[1]))
            self._quantiles = [_quantiles(column) for column in filled.T]
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Return `X` (n, p) on the model's scale, float64."""
        filled = self._fill(X)
        if self.kind == "empirical":
            columns = [np.interp(x, *table) for x, table in zip(filled.T, self._quantiles, strict=True)]
            return np.stack(columns, axis=1)
        Z = (filled - self.location_) / self.scale_
        return _squash(Z) if self.kind == "outliers" else Z

    def inverse_transform(self, Z: np.ndarray) -> np.ndarray:
        """Return values on the model's scale `Z` (n, p) in the units of the data."""
        if self.kind == "empirical":
            tables = [(scores, values) for values, scores in self._quantiles]
            columns = [np.interp(z, *table) for z, table in zip(Z.T, tables, strict=True)]
            return np.stack(columns, axis=1)
        return (_unsquash(Z) if self.kind == "outliers" else Z) * self.scale_ + self.location_

    def to_model_units(self, X: np.ndarray) -> np.ndarray:
        """Return `X` (n, p) without missing values, in the units in which `location_` and `scale_` are given."""
        return self.transform(X) if self.kind == "empirical" else self._fill(X)

    def _fit_scale(self, location: np.ndarray, scale: np.ndarray) -> None:
        """Keep location and scale (p,); refuse those that overflowed."""
        if not np.isfinite(scale).all():
            raise ValueError(f"X must have finite variances, they overflow in {_list(~np.isfinite(scale))}")
        self.location_, self.scale_ = location, np.maximum(scale, SMALLEST_SCALE)

    def _missing(self, X: np.ndarray) -> np.ndarray:
        """Return the flags (n, p) of missing values."""
        if self.missing_values is None:
            return np.zeros(X.shape, dtype=bool)
        return np.isnan(X) if np.isnan(self.missing_values) else np.equal(X, self.missing_values)

    def _fill(self, X: np.ndarray) -> np.ndarray:
        """Return `X` (n, p) with the training means in the place of missing values."""
        missing = self._missing(X)
        return np.where(missing, self.fill_, X) if missing.any() else X


def _squash(Z: np.ndarray) -> np.ndarray:
    """Return values of any shape, those beyond four squashed into (4, 5)."""
    inner = np.clip(Z, -_LINEAR_UP_TO, _LINEAR_UP_TO)
    return inner + np.tanh(Z - inner)


def _unsquash(Z: np.ndarray) -> np.ndarray:
    """Undo `_squash`, entry by entry: (n, p)."""
    inner = np.clip(Z, -_LINEAR_UP_TO, _LINEAR_UP_TO)
    return inner + np.arctanh(np.clip(Z - inner, -1 + 1e-10, 1 - 1e-10))


def _quantiles(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values of a column, ascending, and their normal scores (ties share their mean rank)."""
    values, first = np.unique(column, return_index=True)
    return values, ndtri((rankdata(column)[first] - 0.5) / len(column))


def _unit_or_larger(X: np.ndarray) -> np.ndarray:
    """Return (p,): 1 for columns of X (n, p) that the formulas can take as they are, the root mean square of others."""
    with np.errstate(over="ignore"):
        size = np.sqrt((X**2).mean(axis=0))
    large = size > 1.001
    if large.any():
        warnings.warn(
            f"gaussianize=None expects columns of second moment 1; larger ones are divided by their root mean "
            f"square: {_list(large)}",
            stacklevel=4,
        )
    return np.where(large, size, 1.0)


def _list(flags: np.ndarray, limit: int = 5) -> str:
    """Return some of the flagged columns in words."""
    columns = np.flatnonzero(flags)
    more = f" and {len(columns) - limit} more" if len(columns) > limit else ""
    return f"column{'s' if len(columns) > 1 else ''} {', '.join(map(str, columns[:limit]))}{more}"
