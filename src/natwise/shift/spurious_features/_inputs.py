"""What every eraser and head is given: rows of an embedding, labels as codes, groups and their weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.validation import validate_data

from natwise.core import labels as core
from natwise.core.validation import check_option, for_sklearn, shorten, to_array
from natwise.shift._inputs import check_matrix, check_size

BALANCES = (None, "group")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as codes: `values[codes]` are the labels that were given; the length is the number of values."""

    values: np.ndarray
    codes: np.ndarray

    @property
    def one_hot(self) -> np.ndarray:
        """Indicators, float64 (n, n_values)."""
        return np.eye(len(self.values))[self.codes]

    def only(self, rows: np.ndarray) -> Labels:
        """Return the labels of the chosen rows, a mask (n,) or positions (kept,); the values stay."""
        return Labels(self.values, self.codes[rows])

    def __len__(self) -> int:
        return len(self.values)


def check_rows(estimator: BaseEstimator, X: Any, *, reset: bool) -> np.ndarray:
    """Return `X` (array, frame, list or CPU tensor) as finite float64 (n, d); `reset` in `fit` only."""
    rows = {"ensure_min_samples": 2} if reset else {}
    X = validate_data(estimator, for_sklearn("X", X), dtype=np.float64, ensure_all_finite=False, reset=reset, **rows)
    return check_size("X", X)


def check_counterfactual(counterfactual: Any, X: np.ndarray) -> np.ndarray:
    """Return the counterfactual rows as finite float64 in the shape of `X`; row i must belong to row i of `X`."""
    if counterfactual is None:
        raise ValueError("counterfactual must hold the rows of X with another attribute, got None")
    return check_matrix("counterfactual", counterfactual, X.shape)


def check_labels(name: str, values: Any, n_samples: int | None = None) -> Labels:
    """Return labels (n,), or (n, 1) with scikit-learn's warning, as codes."""
    if values is None:
        raise ValueError(f"requires {name} to be passed, but the target {name} is None")
    labels = to_array(name, values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        message = f"A column-vector {name} was passed when a 1d array was expected"
        warnings.warn(message, DataConversionWarning, stacklevel=3)
        labels = labels[:, 0]
    return Labels(*np.unique(core.check_labels(name, labels, n_samples), return_inverse=True))


def check_classes(y: Any, n_samples: int) -> Labels:
    """Return the classes as codes; there must be two at least."""
    classes = check_labels("y", y, n_samples)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least two classes, got 1 class: {shorten(classes.values.tolist())}")
    return classes


def check_attribute(attribute: Any, n_samples: int) -> Labels:
    """Return the attribute as codes; it must have two values at least."""
    site = check_labels("attribute", attribute, n_samples)
    if len(site) < 2:
        raise ValueError(f"attribute must have at least two values, got only {site.values.tolist()[0]!r}")
    return site


def check_site(attribute: Any, classes: Labels) -> Labels:
    """Return the attribute as codes; warn of its groups with the classes that have no rows."""
    site = check_attribute(attribute, len(classes.codes))
    check_separable(classes, site)
    warn_of_empty_groups(classes, site)
    return site


def check_separable(y: Labels, attribute: Labels) -> None:
    """Raise when the class determines the attribute or is determined by it: nothing could tell them apart."""
    table = np.zeros((len(y), len(attribute)), dtype=bool)
    table[y.codes, attribute.codes] = True
    if len(y) > 1 and (table.sum(axis=1) == 1).all():
        raise ValueError("cannot separate: attribute is determined by y, each class has only one value of attribute")
    if len(y) > 1 and (table.sum(axis=0) == 1).all():
        raise ValueError("cannot separate: y is determined by attribute, each value of attribute has only one class")


def group_codes(y: Labels, attribute: Labels) -> np.ndarray:
    """Return g = y * n_attributes + attribute per row, in codes."""
    return y.codes * len(attribute) + attribute.codes


def balanced_weights(y: Labels, attribute: Labels) -> np.ndarray:
    """Return weights (n,) with mean 1 and equal sums over the groups that have rows."""
    groups = group_codes(y, attribute)
    counts = np.bincount(groups)
    return len(groups) / ((counts > 0).sum() * counts[groups])


def warn_of_empty_groups(y: Labels, attribute: Labels) -> None:
    """Warn when a group of class and attribute has no rows."""
    counts = np.bincount(group_codes(y, attribute), minlength=len(y) * len(attribute))
    empty = [divmod(int(g), len(attribute)) for g in np.flatnonzero(counts == 0)]
    if empty:
        named = [(y.values[a].item(), attribute.values[b].item()) for a, b in empty]
        warnings.warn(
            f"groups (y, attribute) without rows are left out, the rest cannot be balanced fully: {shorten(named)}",
            stacklevel=4,
        )


def random_share_of_each(codes: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return a mask (n,) with a random share of the rows of every code (n,), rounded up."""
    chosen = np.zeros(len(codes), dtype=bool)
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        chosen[rng.permutation(rows)[: int(np.ceil(share * len(rows)))]] = True
    return chosen


def row_weights(y: Any, attribute: Labels, balance: str | None) -> np.ndarray:
    """Return weights (n,) of mean 1: equal, or balanced over groups of class and attribute.

    A `y` of classes is checked against the attribute even when nothing is balanced; other targets are ignored then.
    """
    check_option("balance", balance, BALANCES)
    if balance is None:
        if y is not None and not _is_continuous(y):
            check_separable(check_labels("y", y, len(attribute.codes)), attribute)
        return np.ones(len(attribute.codes))
    if y is None:
        raise ValueError("y must hold the class of each row for balance='group', got None")
    classes = check_labels("y", y, len(attribute.codes))
    check_separable(classes, attribute)
    warn_of_empty_groups(classes, attribute)
    return balanced_weights(classes, attribute)


def _is_continuous(y: Any) -> bool:
    """Return whether `y` holds the finite numbers of a regression."""
    target = to_array("y", y)
    return bool(target.dtype.kind == "f" and np.isfinite(target).all() and (target != np.round(target)).any())
