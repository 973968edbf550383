"""The metrics of the benchmark as published, with the modern ones beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from natwise.core.validation import check_array, check_option, check_same_length

from ._ranking import Ranking

BUCKET_EDGES = 24.0 * np.array([1, 2, 3, 4, 5, 6, 7, 8, 14])
BUCKET_MEANS = np.array(
    [11.450379, 35.070846, 59.206531, 83.382723, 107.487817, 131.579534, 155.643957, 179.660558, 254.306624, 585.325890]
)
LOG_BUCKET_MEANS = np.array(
    [0.611848, 2.587614, 6.977417, 16.465430, 37.053745, 81.816438, 182.303159, 393.334856, 810.964040, 1715.702848]
)


def binary_metrics(y_true: Any, y_score: Any) -> dict[str, float]:
    """Return the metrics of in-hospital mortality and decompensation.

    Parameters
    ----------
    y_true : array-like (n,)
        Labels 0 and 1, both present.
    y_score : array-like (n,) or (n, 2)
        Probability of label 1 (in the last column).

    Returns
    -------
    dict
        ``auroc``; ``auprc``, the area under the precision-recall curve by trapezoids, as published, and
        ``average_precision``, by steps, beside it; ``minpse``, the largest min(precision, recall); at probability 0.5
        ``acc``, ``prec0``, ``prec1``, ``rec0``, ``rec1``, rounded to float32 as published (NaN where nothing was
        predicted).

    Raises
    ------
    ValueError
        For labels other than 0 and 1, one class only, scores that are not finite, different lengths.
    """
    y_true, y_score = check_binary(y_true, y_score)
    ranking = Ranking(y_true, y_score)
    counts = np.ones((1, len(y_true)))
    ranked = {name: float(ranking.scores(name, counts)[0]) for name in Ranking.NAMES}
    return {**_at_half(y_true, y_score), **ranked}


def multilabel_metrics(y_true: Any, y_score: Any) -> dict[str, Any]:
    """Return the areas under the ROC curves of phenotyping.

    Parameters
    ----------
    y_true : array-like (n, n_labels)
        Labels 0 and 1, both present in each column.
    y_score : array-like (n, n_labels)
        Probabilities.

    Returns
    -------
    dict
        ``auc_scores`` (n_labels,), ``ave_auc_macro``, ``ave_auc_micro`` (all labels as one), ``ave_auc_weighted`` (by
        the number of positives).
    """
    y_true = check_array("y_true", y_true, shape=("n", "n_labels"), dtype=np.float64)
    y_score = check_array("y_score", y_score, shape=y_true.shape, dtype=np.float64)
    columns = [check_binary(y_true[:, label], y_score[:, label]) for label in range(y_true.shape[1])]
    counts = np.ones((1, len(y_true)))
    scores = np.array([Ranking(y, score).scores("auroc", counts)[0] for y, score in columns])
    micro = Ranking(y_true.ravel(), y_score.ravel()).scores("auroc", np.ones((1, y_true.size)))[0]
    return {
        "auc_scores": scores,
        "ave_auc_macro": float(scores.mean()),
        "ave_auc_micro": float(micro),
        "ave_auc_weighted": float(np.average(scores, weights=y_true.sum(axis=0))),
    }


def length_of_stay_metrics(y_true: Any, y_pred: Any, *, buckets: str = "custom") -> dict[str, float]:
    """Return the metrics of the remaining length of stay.

    Parameters
    ----------
    y_true, y_pred : array-like (n,)
        Hours; predictions below 0 are taken as 0.
    buckets : {"custom", "log"}
        The ten classes of kappa, see `length_of_stay_bucket`.

    Returns
    -------
    dict
        ``kappa``, Cohen's with linear weights over the buckets; ``mad``, the mean absolute difference in hours (the
        published name); ``mse`` in hours squared; ``mape``, ``100 * mean |(y - p) / (y + 0.1)|``.
    """
    y_true, y_pred = check_length_of_stay(y_true, y_pred)
    error = y_true - y_pred
    confusion = np.zeros((10, 10))
    np.add.at(confusion, (length_of_stay_bucket(y_true, buckets), length_of_stay_bucket(y_pred, buckets)), 1)
    return {
        "mad": float(np.abs(error).mean()),
        "mse": float((error**2).mean()),
        "mape": float(np.abs(error / (y_true + 0.1)).mean() * 100),
        "kappa": float(linear_kappa(confusion[None])[0]),
    }


def length_of_stay_bucket(hours: Any, buckets: str = "custom") -> np.ndarray:
    """Return the bucket 0..9 of lengths of stay, int64, in the shape of `hours`.

    Parameters
    ----------
    hours : array-like
        Lengths in hours.
    buckets : {"custom", "log"}
        "custom": less than a day, one per day up to 8 days, up to 14 days, longer. "log": floor(10 ln(x + 1) / 8).
    """
    check_option("buckets", buckets, ("custom", "log"))
    hours = check_array("hours", hours, dtype=np.float64)
    if buckets == "custom":
        return np.searchsorted(BUCKET_EDGES, hours, side="right")
    return np.clip(np.floor(10 * np.log(np.maximum(hours, 0) + 1) / 8.0), 0, 9).astype(np.int64)


def linear_kappa(confusion: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa with linear weights of confusion matrices (..., k, k); 0 when chance explains all."""
    k = confusion.shape[-1]
    weights = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    n = confusion.sum(axis=(-2, -1))
    expected = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    by_chance = (weights * expected).sum(axis=(-2, -1)) / n
    seen = (weights * confusion).sum(axis=(-2, -1))
    return np.where(by_chance > 0, 1 - seen / np.where(by_chance > 0, by_chance, 1), 0.0)


def check_length_of_stay(y_true: Any, y_pred: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 (n,), the predictions at least 0."""
    y_true = check_array("y_true", y_true, shape=("n",), dtype=np.float64)
    y_pred = check_array("y_pred", y_pred, shape=("n",), dtype=np.float64)
    if check_same_length(y_true=y_true, y_pred=y_pred) == 0:
        raise ValueError("y_true must hold at least one sample, got none")
    if (y_true < 0).any():
        raise ValueError(f"y_true must be >= 0 hours, got {y_true.min():g}")
    return y_true, np.maximum(y_pred, 0)


def check_binary(y_true: Any, y_score: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return labels 0 and 1, both present, and finite scores, float64 (n,)."""
    y_true = check_array("y_true", y_true, shape=("n",), dtype=np.float64)
    y_score = check_array("y_score", y_score, dtype=np.float64)
    if y_score.ndim == 2 and y_score.shape[1] == 2:
        y_score = y_score[:, 1]
    y_score = check_array("y_score", y_score, shape=("n",), dtype=np.float64)
    check_same_length(y_true=y_true, y_score=y_score)
    strange = y_true[(y_true != 0) & (y_true != 1)]
    if len(strange):
        raise ValueError(f"y_true must hold labels 0 and 1, got {strange[0]:g}")
    if not 0 < y_true.sum() < len(y_true):
        raise ValueError(f"y_true must hold both classes, got {y_true.sum():.0f} positives of {len(y_true)} samples")
    return y_true, y_score


def _at_half(y_true: np.ndarray, y_score: np.ndarray) -> dict[str, float]:
    """Return accuracy, precision and recall of labels and scores (n,) at 1/2; NaN for the precision of no forecast."""
    predicted = y_score > 1 - y_score
    cells = np.array([[(~predicted & (y_true == y)).sum(), (predicted & (y_true == y)).sum()] for y in (0, 1)])
    with np.errstate(invalid="ignore"):
        precision, recall = np.diag(cells) / cells.sum(axis=0), np.diag(cells) / cells.sum(axis=1)
    values = {"acc": np.trace(cells) / cells.sum(), "prec0": precision[0], "prec1": precision[1]}
    values |= {"rec0": recall[0], "rec1": recall[1]}
    return {name: float(np.float32(value)) for name, value in values.items()}
