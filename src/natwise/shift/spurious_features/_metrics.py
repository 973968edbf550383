"""Accuracy group by group: how good a model is where the shortcut does not help it."""

from __future__ import annotations

from typing import Any

import numpy as np

from natwise.core.labels import check_same_kind
from natwise.core.validation import check_same_length
from natwise.result import Result
from natwise.shift.spurious_features._inputs import check_labels, group_codes

Z_95 = 1.959963984540054


def group_metrics(y: Any, y_pred: Any, attribute: Any) -> Result:
    """Return accuracy in every group of class and attribute, and in the worst.

    Parameters
    ----------
    y, y_pred : array-like of shape (n_samples,)
        Class and predicted class: integers, booleans or text, not probabilities.
    attribute : array-like of shape (n_samples,)
        The spurious attribute: integers, booleans or text.

    Returns
    -------
    Result
        A row per group g = y * n_attributes + attribute, where y and attribute stand for their place among the sorted
        values that occur. Arrays, all fractions of shape (n_groups,): `group_accuracy` (NaN for a group without rows),
        `group_low` and `group_high` (Wilson's 95 % interval), `group_count`. Scalars: `accuracy`,
        `worst_group_accuracy` (over groups with rows) with `worst_group_low` and `worst_group_high`, the interval of
        that group; `worst_group` (its g); `mean_group_accuracy` (every group counts the same).

    Raises
    ------
    ValueError, TypeError
        If an argument is no vector of labels, or the lengths differ.

    Notes
    -----
    The worst of many small groups is low by chance too: read it with its interval.

    Examples
    --------
    >>> result = group_metrics(y=[0, 0, 1, 1], y_pred=[0, 1, 1, 1], attribute=[0, 1, 0, 1])
    >>> result.arrays["group_accuracy"].tolist(), result.scalars["worst_group_accuracy"]
    ([1.0, 0.0, 1.0, 1.0], 0.0)
    """
    classes, sites = check_labels("y", y), check_labels("attribute", attribute)
    predicted = check_labels("y_pred", y_pred)
    check_same_length(y=classes.codes, y_pred=predicted.codes, attribute=sites.codes)
    check_same_kind("y_pred", predicted.values, "y", classes.values)
    correct = classes.values[classes.codes] == predicted.values[predicted.codes]
    groups = group_codes(classes, sites)
    count = np.bincount(groups, minlength=len(classes) * len(sites))
    hits = np.bincount(groups, weights=correct, minlength=len(count))
    accuracy = np.divide(hits, count, out=np.full(len(count), np.nan), where=count > 0)
    low, high = wilson_interval(hits, count)
    worst = int(np.nanargmin(accuracy))
    names = [f"y={a}, attribute={b}" for a in classes.values for b in sites.values]
    return Result(
        "shift.spurious_features/group_metrics",
        arrays={"group_accuracy": accuracy, "group_low": low, "group_high": high, "group_count": count},
        scalars={
            "accuracy": float(correct.mean()),
            "worst_group_accuracy": float(accuracy[worst]),
            "worst_group_low": float(low[worst]),
            "worst_group_high": float(high[worst]),
            "worst_group": worst,
            "mean_group_accuracy": float(np.nanmean(accuracy)),
        },
        rows=names,
        warnings=[f"no rows in group {names[g]}" for g in np.flatnonzero(count == 0)],
    )


def wilson_interval(hits: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of Wilson's 95 % interval of `hits` / `count`, any shape; (0, 1) where `count` is 0."""
    share = hits / np.maximum(count, 1)
    spread = Z_95**2 / np.maximum(count, 1)
    centre = (share + spread / 2) / (1 + spread)
    half = np.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return np.where(count > 0, np.clip(centre - half, 0, 1), 0.0), np.where(
        count > 0, np.clip(centre + half, 0, 1), 1.0
    )
