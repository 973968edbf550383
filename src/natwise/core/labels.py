"""Labels: classes, groups, sites, and whatever else says only what is alike."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from natwise.core.validation import shorten, to_array

LABEL_KINDS = "biufUS"
_KINDS = (str, bytes, (bool, np.bool_), numbers.Integral, numbers.Real)


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
