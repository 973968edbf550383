"""What the diagnosis is given, checked: representations, labels, predictions and domain ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from natwise.core.labels import check_labels, check_same_kind
from natwise.core.validation import shorten
from natwise.shift._inputs import check_matrix


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
    Z_train = check_matrix("Z_train", Z_train, ("n_train", "n_features"))
    Z_test = check_matrix("Z_test", Z_test, ("n_test", Z_train.shape[1]))
    if not (len(Z_train) and len(Z_test) and Z_train.shape[1]):
        raise ValueError(f"Z_train and Z_test must not be empty, got shapes {Z_train.shape} and {Z_test.shape}")
    y_train = check_labels("y_train", y_train, len(Z_train), "row of Z_train")
    classes, codes = np.unique(y_train, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y_train must hold at least two classes, got 1: {shorten(classes.tolist())}")
    y_id = check_labels("y_id", y_id)
    given = {
        "y_test": check_labels("y_test", y_test, len(Z_test), "row of Z_test"),
        "y_id": y_id,
        "y_pred_id": check_labels("y_pred_id", y_pred_id, len(y_id), "entry of y_id"),
        "y_pred_test": check_labels("y_pred_test", y_pred_test, len(Z_test), "row of Z_test"),
    }
    coded = {name: _encode(name, value, classes) for name, value in given.items()}
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


def check_domains(name: str, value: Any, n: int) -> np.ndarray:
    """Return domain ids (n,): integers or text."""
    return check_labels(name, value, n, kinds="iuUS")


def check_counts(counts: np.ndarray, names: list[str], classes: np.ndarray, fewest: int, reason: str) -> None:
    """Say which class is too rare in which domain; `counts` (n_domains, n_classes) are rows of each."""
    short = np.argwhere(counts < fewest)
    if len(short):
        row, column = short[0]
        found = f"{counts[row, column]} of {shorten(classes[column].item())}"
        raise ValueError(f"{names[row]} must hold at least {fewest} rows of every class{reason}, got {found}")


def _encode(name: str, value: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return labels (n,) as places among the known classes."""
    check_same_kind(name, value, "y_train", classes)
    unknown = np.setdiff1d(value, classes)
    if len(unknown):
        raise ValueError(f"{name} must hold classes that y_train holds, got {shorten(unknown.tolist())}")
    return np.searchsorted(classes, value)


def _check_separate(test_domain: Any, domains: np.ndarray) -> None:
    """Raise when a test domain is one of the training domains (K,)."""
    ids = check_domains("test_domain", np.atleast_1d(np.asarray(test_domain)), np.size(test_domain))
    shared = np.intersect1d(ids.astype(str), domains.astype(str))
    if len(shared):
        raise ValueError(f"test_domain must not occur in domain, got {shorten(shared.tolist())} in both")
