"""What methods on shifts are given, checked in one way: labels, rows of numbers, strengths of penalties."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from natwise.core.validation import check_array, check_real, shorten

LABEL_KINDS = "biufUS"
LARGEST = 1e70  # in size; the squares of covariances, too, must be numbers


def check_labels(name: str, value: Any, n: int | None = None, per: str = "row", kinds: str = LABEL_KINDS) -> np.ndarray:
    """Return labels (n,) as they are: integers, booleans, whole floats or text, but not two of these at once.

    `kinds` are the kinds of NumPy types that are allowed.
    """
    labels = to_array(name, value)
    if labels.ndim != 1:
        raise ValueError(f"{name} must hold labels of shape (n,), got shape {labels.shape}")
    if not len(labels):
        raise ValueError(f"{name} must not be empty")
    if n is not None and len(labels) != n:
        raise ValueError(f"{name} must have {n} entries, one per {per}, got {len(labels)}")
    if labels.dtype == object or labels.dtype.kind == "T":
        labels = _of_one_kind(name, labels)
    if labels.dtype.kind not in kinds:
        expected = "integers, booleans or text" if "b" in kinds else "integers or text"
        raise TypeError(f"{name} must hold {expected}, got dtype {labels.dtype}")
    if labels.dtype.kind == "f":
        wrong = ~(np.isfinite(labels) & (labels == np.round(labels)))
        if wrong.any():
            raise ValueError(f"{name} must hold labels, not continuous or missing values, got {labels[wrong][0]:g}")
    return labels


def check_same_kind(name: str, labels: np.ndarray, known: str, others: np.ndarray) -> None:
    """Raise when one of two vectors of labels, (n,) and (m,), holds text and the other does not."""
    if {labels.dtype.kind, others.dtype.kind} & set("US") and labels.dtype.kind != others.dtype.kind:
        raise TypeError(f"{name} must hold labels like those of {known}, got {shorten(labels[:3].tolist())}")


def to_array(name: str, value: Any) -> np.ndarray:
    """Return an array-like or a dense tensor as an array of any dtype, and refuse masked values."""
    if np.ma.is_masked(value):
        raise ValueError(f"{name} must have no masked values, got {shorten(value)}")
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu().numpy()
        except (TypeError, RuntimeError):
            kind = f"{value.layout} {value.dtype}"
            raise TypeError(f"{name} must be a dense tensor of a NumPy type, got {kind}") from None
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must be a regular array, got {shorten(value)}") from None


def to_plain(name: str, value: Any) -> Any:
    """Return a tensor as an array, anything else as it is for scikit-learn to read, but for masked values and times."""
    if hasattr(value, "detach") or np.ma.is_masked(value):
        return to_array(name, value)
    for dtype in (getattr(value, "dtype", None), *np.atleast_1d(getattr(value, "dtypes", []))):
        if getattr(dtype, "kind", "") in ("m", "M"):
            raise TypeError(f"{name} must be numeric, got dtype {dtype}")
    return value


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


def _of_one_kind(name: str, labels: np.ndarray) -> np.ndarray:
    """Return objects (n,) as an array of their own dtype."""
    if any(_is_missing(label) for label in labels):
        raise ValueError(f"{name} must hold no missing labels, got {shorten(labels[:5].tolist())}")
    kinds = {next((kind for kind in _KINDS if isinstance(label, kind)), type(label)) for label in labels}
    if len(kinds) > 1 or not kinds <= set(_KINDS):
        found = ", ".join(sorted({type(label).__name__ for label in labels}))
        raise TypeError(f"{name} must hold integers, booleans or text, of one kind, got objects of type {found}")
    return np.array(labels.tolist())


def _is_missing(label: Any) -> bool:
    """Return whether it is None, or like NaN, which does not equal itself or cannot say."""
    try:
        return label is None or bool(label != label)
    except (TypeError, ValueError):  # such as pandas.NA
        return True


_KINDS = (str, bytes, (bool, np.bool_), numbers.Integral, numbers.Real)
