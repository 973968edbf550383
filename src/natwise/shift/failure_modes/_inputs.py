"""What the diagnosis is given, checked: representations, labels, predictions and domain ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natwise.core.validation import check_array, shorten


@dataclass(frozen=True, eq=False)
class Problem:
    """Checked inputs of `FailureModes.fit`; classes and training domains are numbered from 0."""

    Z_train: np.ndarray
    y_train: np.ndarray
    domain: np.ndarray
    Z_test: np.ndarray
    y_test: np.ndarray
    pred_id: np.ndarray
    y_id: np.ndarray
    pred_test: np.ndarray
    classes: np.ndarray
    domains: np.ndarray


def check_problem(
    Z_train: Any,
    y_train: Any,
    domain: Any,
    Z_test: Any,
    y_test: Any,
    y_pred_id: Any,
    y_id: Any,
    y_pred_test: Any,
    test_domain: Any,
) -> Problem:
    """Return the inputs with classes and domains as numbers, or say which one is wrong."""
    Z_train = check_array("Z_train", Z_train, shape=("n_train", "n_features"), dtype=np.float64)
    Z_test = check_array("Z_test", Z_test, shape=("n_test", Z_train.shape[-1]), dtype=np.float64)
    if not (len(Z_train) and len(Z_test) and Z_train.shape[1]):
        raise ValueError(f"Z_train and Z_test must not be empty, got shapes {Z_train.shape} and {Z_test.shape}")
    y_train = check_labels("y_train", y_train, len(Z_train), "row of Z_train")
    classes, codes = np.unique(y_train, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y_train must hold at least two classes, got 1: {shorten(classes.tolist())}")
    y_id = check_labels("y_id", y_id, None, "")
    given = {
        "y_test": check_labels("y_test", y_test, len(Z_test), "row of Z_test"),
        "y_id": y_id,
        "y_pred_id": check_labels("y_pred_id", y_pred_id, len(y_id), "entry of y_id"),
        "y_pred_test": check_labels("y_pred_test", y_pred_test, len(Z_test), "row of Z_test"),
    }
    coded = {name: _encode(name, value, classes, "y_train") for name, value in given.items()}
    domains, numbers = np.unique(check_domains("domain", domain, len(Z_train)), return_inverse=True)
    if test_domain is not None:
        _check_separate(test_domain, domains)
    return Problem(
        Z_train=Z_train,
        y_train=codes,
        domain=numbers,
        Z_test=Z_test,
        y_test=coded["y_test"],
        pred_id=coded["y_pred_id"],
        y_id=coded["y_id"],
        pred_test=coded["y_pred_test"],
        classes=classes,
        domains=domains,
    )


def check_labels(name: str, value: Any, n: int | None, per: str) -> np.ndarray:
    """Return class labels (n,): integers, text, booleans, or floats that are whole numbers."""
    array = _one_axis(name, value, "class labels")
    if not len(array):
        raise ValueError(f"{name} must not be empty")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} must have {n} entries, one per {per}, got {len(array)}")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
        broken = array[array != np.round(array)]
        if len(broken):
            raise ValueError(f"{name} must hold class labels, not probabilities, got {broken[0]:g}")
        return array.astype(np.int64)
    return array


def check_domains(name: str, value: Any, n: int) -> np.ndarray:
    """Return domain ids (n,): integers or text."""
    array = _one_axis(name, value, "domain ids")
    if array.dtype.kind not in "iuUS":
        raise TypeError(f"{name} must hold integers or text, got dtype {array.dtype}")
    if len(array) != n:
        raise ValueError(f"{name} must have {n} entries, one per row, got {len(array)}")
    return array


def check_counts(counts: np.ndarray, names: list[str], classes: np.ndarray, fewest: int, reason: str) -> None:
    """Say which class (column) is too rare in which domain (row)."""
    short = np.argwhere(counts < fewest)
    if len(short):
        row, column = short[0]
        found = f"{counts[row, column]} of {shorten(classes[column].item())}"
        raise ValueError(f"{names[row]} must hold at least {fewest} rows of every class{reason}, got {found}")


def _one_axis(name: str, value: Any, what: str) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} must hold {what} of shape (n,), got {shorten(value)}") from None
    if array.ndim != 1:
        raise ValueError(f"{name} must hold {what} of shape (n,), got shape {array.shape}")
    if array.dtype == object:
        kinds = {type(item) for item in array}
        if not kinds or len(kinds) > 1 or not issubclass(next(iter(kinds)), (str, int, np.integer, float)):
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(f"{name} must hold integers or text, got objects of type {found or 'none'}")
        array = np.array(array.tolist())
    if array.dtype.kind not in "biufUS":
        raise TypeError(f"{name} must hold integers or text, got dtype {array.dtype}")
    return array


def _encode(name: str, value: np.ndarray, classes: np.ndarray, known: str) -> np.ndarray:
    if (value.dtype.kind in "US") != (classes.dtype.kind in "US"):
        raise ValueError(f"{name} must hold labels like those of {known}, got {shorten(value[:3].tolist())}")
    unknown = np.setdiff1d(value, classes)
    if len(unknown):
        raise ValueError(f"{name} must hold classes that {known} holds, got {shorten(unknown.tolist())}")
    return np.searchsorted(classes, value)


def _check_separate(test_domain: Any, domains: np.ndarray) -> None:
    ids = check_domains("test_domain", np.atleast_1d(np.asarray(test_domain)), np.size(test_domain))
    shared = np.intersect1d(ids.astype(str), domains.astype(str))
    if len(shared):
        raise ValueError(f"test_domain must not occur in domain, got {shorten(shared.tolist())} in both")
