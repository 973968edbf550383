"""What methods on shifts are given, checked in one way: rows of numbers, strengths of penalties, candidates."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from natwise.core.validation import check_array, check_real, shorten

LARGEST = 1e70  # in size; the squares of covariances, too, must be numbers


def check_matrix(name: str, value: Any, shape: Sequence[int | str | None]) -> np.ndarray:
    """Return a matrix of the shape as finite float64 whose squares are numbers too."""
    return check_size(name, check_array(name, value, shape=shape, dtype=np.float64))


def check_size(name: str, array: np.ndarray) -> np.ndarray:
    """Return the array (n, d), not empty, when all entries are finite and their squares are numbers."""
    largest = np.maximum(array.max(initial=0), -array.min(initial=0))
    if not largest < LARGEST:  # also when it is NaN
        row, column = np.argwhere(~(np.abs(array) < LARGEST))[0]
        expected = f"be below {LARGEST:g} in size" if np.isfinite(largest) else "hold no NaN and no inf"
        raise ValueError(f"{name} must {expected}, got {array[row, column]} in row {row}, column {column}")
    return array


def check_strength(name: str, value: Any) -> float:
    """Return the inverse strength of a penalty, > 0; infinity is no penalty."""
    if isinstance(value, numbers.Real) and value == np.inf:
        return float("inf")
    return check_real(name, value, minimum=0, exclusive=True)


def to_candidates(name: str, value: Any) -> list[Any]:
    """Return the entries of a sequence or vector, or the one thing that was given, in a list of one at least."""
    is_one = (
        isinstance(value, (str, bytes))
        or not isinstance(value, (Sequence, np.ndarray))
        or getattr(value, "ndim", 1) == 0
    )
    candidates = [value] if is_one else list(value)
    if not candidates:
        raise ValueError(f"{name} must hold at least one value, got {shorten(value)}")
    return candidates
