"""What this room's estimators are given: rows of numbers, missing or not, and lists of settings to try."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from natwise.core.validation import check_real, for_sklearn, shorten

Value = TypeVar("Value")


def check_rows(estimator: BaseEstimator, X: Any, *, reset: bool, min_features: int = 1) -> np.ndarray:
    """Return `X` (array, frame, list or CPU tensor) as float64 (n, p), finite but for NaN that marks missing values.

    `reset` in `fit` only, where at least two rows and `min_features` columns are asked for.
    """
    X = for_sklearn("X", X)
    if isinstance(X, np.ndarray) and X.dtype.kind not in "biufcO":  # scikit-learn would make numbers of text
        raise TypeError(f"X must be numeric, got dtype {X.dtype}")
    least = {"ensure_min_samples": 2, "ensure_min_features": min_features} if reset else {}
    X = validate_data(estimator, X, reset=reset, dtype=np.float64, ensure_all_finite=False, **least)
    allowed = nan_is_missing(getattr(estimator, "missing_values", None))
    wrong = np.isinf(X) if allowed else ~np.isfinite(X)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        what = "no inf" if allowed else "no NaN and no inf"
        raise ValueError(f"X must hold {what}, got {X[row, column]} in row {row}, column {column}")
    return X


def nan_is_missing(missing_values: float | None) -> bool:
    """Say whether the value that marks missing values is NaN."""
    return isinstance(missing_values, (float, np.floating)) and bool(np.isnan(missing_values))


def check_missing_values(value: Any) -> None:
    """Refuse what cannot mark missing values: anything but None, NaN and numbers."""
    if value is not None and not nan_is_missing(value):
        check_real("missing_values", value)


def check_each(name: str, values: Any, check: Callable[[str, Any], Value]) -> list[Value]:
    """Return the settings to try, at least one, each of them checked."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must hold numbers to try, got {shorten(values)}")
    checked = [check(name, value) for value in values]
    if not checked:
        raise ValueError(f"{name} must hold at least one number, got none")
    return checked
